"""The files in patches/NAME/deepspeed/ and the tables in docs/, as the planner writes them."""

from __future__ import annotations

import shutil
from pathlib import Path

from mto_tools.plan.committed import GPUS, MEMORIES, files, plans, write_all
from mto_tools.plan.memory import GIB, estimate

from ..docs import check_table
from .conftest import FACTS, HOME

PATCHES = HOME / "patches"
FILES = sorted(PATCHES.glob("*/deepspeed/*.json"))


def test_files_are_exactly_what_the_planner_writes_each_once() -> None:
    there = {str(file.relative_to(PATCHES)): file.read_text() for file in FILES}
    assert there == files(HOME), "mto plan --write-all"
    by_folder = [(path.split("/")[0], text) for path, text in there.items()]
    assert len(set(by_folder)) == len(by_folder), "two files of one recipe are equal"


def test_the_table_of_plans_is_the_planner_s() -> None:
    """Images x micro batches, ZeRO 2 where it is, memory."""
    rows = {"model": [f"{GPUS} x {gpu_mem:g} GB" for gpu_mem in MEMORIES]}
    for name, model, plan in plans(HOME):
        cell = "does not fit"
        if plan:
            zero = ", ZeRO 2" if plan.stage == 2 else ""
            cell = f"{plan.micro} x {plan.accumulation}{zero}, {plan.memory.sum() / GIB:.1f} GiB"
        rows.setdefault(f"{name} `{model}`", []).append(cell)
    check_table("deepspeed.md", "plans", [[model, *cells] for model, cells in rows.items()])


def test_the_table_of_memory_is_that_of_upstream_s_own_ddp() -> None:
    rows = [["model", "state", "per image", "images", "together", "card of"]]
    for name, facts in sorted(FACTS.items()):
        images = {s.model: s.images_per_gpu for s in facts.schedules if s.images_per_gpu}
        for model, count in images.items():
            counts, beside = facts.memory[model], facts.bytes_beside
            taken = estimate(counts, stage=0, micro=count, beside=beside)
            state, each = taken.sum("state"), taken.sum("images") // count
            cells = [f"{state / GIB:.1f} GiB", f"{each / 2**20:.0f} MiB", str(count)]
            cells += [f"{taken.sum('state', 'images') / GIB:.1f} GiB", f"{taken.card} GB"]
            rows.append([f"{name} `{model}`", *cells])
    check_table("recipes.md", "memory", rows)


def test_write_all_makes_the_folders_hold_these_and_no_other(tmp_path: Path) -> None:
    shutil.copytree(PATCHES, tmp_path / "patches")
    (tmp_path / "patches" / "mae" / "deepspeed" / "gone.json").write_text("{}")
    written = write_all(tmp_path)
    found = sorted((tmp_path / "patches").glob("*/deepspeed/*"))
    assert found == sorted(written)
    assert [file.read_text() for file in found] == [file.read_text() for file in FILES]
