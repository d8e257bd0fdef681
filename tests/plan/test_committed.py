"""The files in patches/NAME/deepspeed/: written by the planner, read by DeepSpeed and by ds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mto_tools.ds.config import read_config
from mto_tools.errors import RefusedError
from mto_tools.plan.committed import MACHINES, PAGES, documented, files, plans, write_all
from mto_tools.plan.planner import Plan
from mto_tools.plan.recipes import RECIPES

PATCHES = Path(__file__).parents[2] / "patches"
FILES = sorted(PATCHES.glob("*/deepspeed/*.json"))
# By hand from the upstreams' commands: images per step; largest gradient norm.
TOTALS = {"mae": {4096}, "simmim": {2048}, "bootmae": {4096, 2048}, "conmim": {2048}, "mini": {64}}
CLIPPING = {"mae": 0.0, "simmim": 5.0, "bootmae": 0.0, "conmim": 1.0, "mini": 0.0}


def test_files_are_exactly_what_the_planner_writes() -> None:
    there = {str(file.relative_to(PATCHES)): file.read_text() for file in FILES}
    assert there == files(), "mto plan --write-all"


def test_every_model_has_a_file_for_every_machine_it_fits_on() -> None:
    found = list(plans())
    assert len(found) == sum(len(r.models) for r in RECIPES.values()) * len(MACHINES)
    assert len(FILES) == sum(isinstance(plan, Plan) for _, plan in found)


@pytest.mark.parametrize("page", PAGES)
def test_the_table_in_the_documentation_is_the_planner_s(page: str) -> None:
    text = (PATCHES.parent / "docs" / page).read_text()
    assert text == documented(page, text), "mto plan --write-all"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_file_is_accepted(file: Path, rank_of_eight: dict[str, Any]) -> None:
    name, content = file.parts[-3], json.loads(file.read_text())
    parsed = rank_of_eight["parsed"][str(file)]
    assert parsed["world"] == 8
    assert parsed["micro"] * parsed["accumulation"] * 8 == parsed["total"]
    assert parsed["total"] in TOTALS[name]
    assert parsed["clipping"] == CLIPPING[name]
    zero = content["zero_optimization"]
    assert parsed["stage"] == zero["stage"]
    assert parsed["bucket"] == zero["reduce_bucket_size"] <= 50_000_000
    assert parsed["overlap"] is zero["overlap_comm"] is False
    assert all(isinstance(value, bool | int | float) for value in zero.values())

    config = read_config(file)
    config.agree(
        batch_size=parsed["micro"],
        accumulation=parsed["accumulation"],
        clip_grad=CLIPPING[name],
        world_size=8,
    )
    with pytest.raises(RefusedError, match="train_batch_size"):
        config.agree(
            batch_size=parsed["micro"],
            accumulation=parsed["accumulation"],
            clip_grad=CLIPPING[name],
            world_size=4,
        )


def test_write_all_makes_the_folders_hold_these_and_no_other(tmp_path: Path) -> None:
    stale = tmp_path / "patches" / "mae" / "deepspeed" / "gone-8x24gb.json"
    kept = tmp_path / "patches" / "mae" / "lock"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    kept.write_text("a lock")
    for name in RECIPES:
        (tmp_path / "patches" / name).mkdir(exist_ok=True)
    written = write_all(tmp_path)
    found = [file for file in (tmp_path / "patches").rglob("*") if file.is_file()]
    assert sorted(found) == sorted([*written, kept])
    assert {str(f.relative_to(tmp_path / "patches")): f.read_text() for f in written} == files()
