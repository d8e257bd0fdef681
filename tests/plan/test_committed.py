"""The files in patches/NAME/deepspeed/: written by the planner, read by DeepSpeed and by ds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mto_tools.ds.config import read_config
from mto_tools.plan.committed import PAGES, documented, files, write_all

from .conftest import HOME

PATCHES = HOME / "patches"
FILES = sorted(PATCHES.glob("*/deepspeed/*.json"))
# By hand from the upstreams' commands: images per step; largest gradient norm.
TOTALS = {"mae": {4096}, "simmim": {2048}, "bootmae": {4096, 2048}, "conmim": {2048}, "mini": {64}}
CLIPPING = {"mae": 0.0, "simmim": 5.0, "bootmae": 0.0, "conmim": 1.0, "mini": 0.0}


def test_files_are_exactly_what_the_planner_writes_each_once() -> None:
    there = {str(file.relative_to(PATCHES)): file.read_text() for file in FILES}
    assert there == files(HOME), "mto plan --write-all"
    by_folder = [(path.split("/")[0], text) for path, text in there.items()]
    assert len(set(by_folder)) == len(by_folder), "two files of one recipe are equal"


@pytest.mark.parametrize("page", PAGES)
def test_the_table_in_the_documentation_is_the_planner_s(page: str) -> None:
    text = (HOME / "docs" / page).read_text()
    assert text == documented(HOME, page, text), "mto plan --write-all"


@pytest.mark.parametrize("name", ["mae", "simmim", "bootmae", "conmim"])
def test_the_memory_table_takes_the_images_of_the_first_command(name: str) -> None:
    page = (HOME / "docs" / "recipes.md").read_text()
    given = re.search(r"--batch[_-]size (\d+)", page.split(f"\n## {name}\n")[1])
    row = re.search(rf"\| {name} `[^|]*\|[^|]*\|[^|]*\| (\d+) \|", page)
    assert given
    assert row
    assert given[1] == row[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_file_is_accepted(file: Path, rank_of_eight: dict[str, Any]) -> None:
    name, content = file.parts[-3], json.loads(file.read_text())
    parsed = rank_of_eight["parsed"][str(file)]
    zero = content.pop("zero_optimization")
    assert all(isinstance(value, bool | int | float) for value in zero.values())
    assert parsed.items() <= (content | zero).items()
    assert (zero["overlap_comm"], zero["reduce_bucket_size"] <= 50_000_000) == (False, True)
    assert content["train_batch_size"] in TOTALS[name]
    read_config(file).agree(
        batch_size=parsed["train_micro_batch_size_per_gpu"],
        accumulation=parsed["gradient_accumulation_steps"],
        clip_grad=CLIPPING[name],
        world_size=8,
    )


def test_write_all_makes_the_folders_hold_these_and_no_other(tmp_path: Path) -> None:
    shutil.copytree(PATCHES, tmp_path / "patches")
    (tmp_path / "patches" / "mae" / "deepspeed" / "gone.json").write_text("{}")
    written = write_all(tmp_path)
    found = sorted((tmp_path / "patches").glob("*/deepspeed/*"))
    assert found == sorted(written)
    assert [file.read_text() for file in found] == [file.read_text() for file in FILES]
