"""`[plan]` of recipe.toml: its schedules, and what is said where a fact is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, MissingError, RefusedError
from mto_tools.plan.planner import Request, make_plan
from mto_tools.upstreams.upstream import Upstream, load_upstream

from .conftest import FACTS, HOME

REST = """\
pretrain = "main.py"
arguments = "--epochs {epochs}"
checkpoint = "{epoch}.pth"
resume = "--resume {folder}/{epoch}.pth"
[styles.tiny]
preset = "simmim"
[data]
name = "digits"
"""
TOY = """\
[plan]
arguments = "--net {model} --bs {micro} --acc {accumulation} --lr {rate} --ds {config}"
mto = "--mto --mto_preset simmim"
[[plan.schedules]]
model = "tiny"
total_batch = 64
rate = "1e-3"
[plan.memory.tiny]
parameters = 1000
trainable = 1000
saved = 10_000_000
tokens = 16
width = 8
depths = 3
masked = 9
"""


@pytest.fixture
def toy(tmp_path: Path) -> Upstream:
    shutil.copytree(HOME / "patches" / "mini", tmp_path / "patches" / "toy")
    file = tmp_path / "patches" / "toy" / "upstream.toml"
    file.write_text(file.read_text().replace('name = "mini"', 'name = "toy"'))
    (file.parent / "recipe.toml").write_text(REST + TOY)
    return load_upstream(tmp_path, "toy")


@pytest.mark.parametrize(
    ("old", "new", "error", "named"),
    [
        (TOY, "", MissingError, "[plan]"),
        ('rate = "1e-3"\n', "", MissingError, "plan.schedules.0.rate"),
        ("tokens = 16\n", "", MissingError, "plan.memory.tiny.tokens"),
        ("[plan.memory.tiny]", "[plan.memory.small]", MissingError, "plan.memory.tiny"),
        ("{rate}", "{speed}", CorruptError, "speed"),
        ('rate = "1e-3"', 'rate = "fast"', CorruptError, "plan.schedules.0.rate"),
        ("[data]", "[data", CorruptError, "TOML"),
        ("mto =", "mtoo =", CorruptError, "plan.mtoo"),
    ],
)
def test_a_missing_or_wrong_fact_is_named(
    toy: Upstream, old: str, new: str, error: type[Exception], named: str
) -> None:
    file = toy.folder / "recipe.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(error) as caught:
        make_plan(toy, Request(gpus=2))
    assert named in str(caught.value)
    assert str(file) in str(caught.value)


def test_schedules_are_upstream_s() -> None:
    simmim, mae = FACTS["simmim"], FACTS["mae"]
    assert simmim.schedule("swin_base", None).epochs == 100
    assert "swin_base__800ep" in simmim.schedule("swin_base", 800).flags
    with pytest.raises(MissingError) as caught:
        simmim.schedule("swin_base", 300)
    assert caught.value.hint == "--epochs 100 | 800"
    assert mae.schedule(None, 1600).epochs == 1600
    with pytest.raises(MissingError) as caught:
        mae.schedule("vit_tiny", None)
    assert "mae_vit_base_patch16" in caught.value.hint
    with pytest.raises(MissingError):
        FACTS["mini"].schedule(None, 3)  # it counts steps


@pytest.mark.parametrize(("name", "warmup"), [("mae", 40), ("bootmae", 40), ("conmim", 10)])
def test_a_schedule_that_ends_within_its_warm_up_is_refused(name: str, warmup: int) -> None:
    """MAE never reaches its rate then, and `cosine_scheduler` of the others stops in an assert."""
    facts = FACTS[name]
    with pytest.raises(RefusedError) as caught:
        facts.schedule(None, warmup)
    assert f"--epochs {warmup + 1}" in caught.value.hint
    assert facts.schedule(None, warmup + 1).epochs == warmup + 1
