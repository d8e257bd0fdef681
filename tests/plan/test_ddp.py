"""The memory table of docs/recipes.md: of the commands on that page, by the planner's counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mto_tools.plan.activations import footprint
from mto_tools.plan.ddp import IMAGES, card, per_image, state, table
from mto_tools.plan.estimate import GIB
from mto_tools.plan.recipes import RECIPES

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def test_every_model_of_the_four_upstreams_is_there() -> None:
    assert sorted(IMAGES) == sorted(
        (recipe.name, model)
        for recipe in RECIPES.values()
        if recipe.name != "mini"
        for model in recipe.models
    )


@pytest.mark.parametrize("name", ["mae", "simmim", "bootmae", "conmim"])
def test_the_images_are_those_of_the_first_command(name: str) -> None:
    section = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    given = re.search(r"--batch[_-]size (\d+)", section)
    assert given
    assert int(given[1]) == IMAGES[name, RECIPES[name].models[0]]


def test_no_figure_of_memory_stands_beside_the_table() -> None:
    begin, end = PAGE.index("<!-- memory"), PAGE.index("<!-- end of memory")
    assert table() in PAGE[begin:end]
    beside = re.findall(r"[\d.]+ [GM]iB", PAGE[:begin] + PAGE[end:])
    assert beside == ["1.5 GiB"]  # assumed for CUDA and NCCL


def test_conmim_vit_l_by_hand() -> None:
    """291.5 MB were counted in 16 bits; 24 blocks of 16 heads add 4 B x 197^2 each on CUDA."""
    model = footprint("conmim", "conmim_large_patch16_224")
    assert model.activations == 291_539_812 + 4 * 24 * 16 * 197**2
    assert state(model) == (22 + 8) * 333_570_496
    taken = state(model) + 256 * per_image(model)
    assert taken / GIB == pytest.approx(96.4, abs=0.05)
    assert card(taken) > 80
    assert card(80 * GIB) == round((80 + 1.5) / 0.9 + 0.5)
