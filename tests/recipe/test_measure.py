"""What is measured beside the terms: random numbers, the order of tokens, affinity maps."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mto_tools import recipe
from mto_tools.recipe.measure import checksum, save_affinity

from .conftest import begin, lines


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_the_checksum_tells_any_generator_s_draws_and_makes_none(draw: Callable[[], Any]) -> None:
    before = checksum()
    assert checksum() == before
    draw()
    assert checksum() != before


def test_the_checksum_reads_cuda_s_generator_only_where_it_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for in_use, state in ((False, 1), (False, 2), (True, 1), (True, 2)):
        states = torch.tensor([state], dtype=torch.uint8)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=in_use: used)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda states=states: states)
        found.append(checksum())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_line_s_checksum_is_of_the_mask_too(tmp_path: Path) -> None:
    found = []
    for number, flip in enumerate((False, False, True)):
        folder = tmp_path / str(number)
        model, x, mask = begin("--mto", "--mto_preset", "observe", folder=folder)
        loss = model(x, mask)
        random.seed(0)
        torch.manual_seed(0)
        recipe.add(loss, mask.flip(0) if flip else mask, step=1)
        found += [line["rng"] for line in lines(folder)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("visible_first", "constant"), [(False, False), (False, True), (True, False)]
)
def test_a_mask_in_another_order_than_the_tokens_is_told(
    visible_first: bool, constant: bool
) -> None:
    """Visible tokens first, as some decoders have them; black images have equal visible tokens."""
    model, _, _ = begin("--mto")
    mask = torch.stack([torch.randperm(16) < 10 for _ in range(4)])
    x = torch.ones(4, 16, 8) if constant else torch.randn(4, 16, 8)
    places = torch.randn(16, 8)
    given = torch.where(mask[:, :, None], places, x + places)
    if visible_first:
        order = mask.int().argsort(dim=1, stable=True)
        given = given.gather(1, order[:, :, None].expand_as(given))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe.add(model(given, torch.zeros_like(mask)), mask, step=1)
    assert any("order of the mask" in str(w.message) for w in caught) == visible_first


def test_hierarchical_affinity_is_refused(tmp_path: Path) -> None:
    depths = [torch.zeros(1, 4, 8), torch.zeros(1, 1, 8)]
    with pytest.raises(ValueError, match="--mto_affinity_steps"):
        save_affinity(tmp_path / "x.npz", depths, torch.ones(1, 4, dtype=torch.bool))
