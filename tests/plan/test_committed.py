"""The files in patches/NAME/deepspeed/ and the tables in docs/, as the planner writes them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mto_tools.plan.committed import PAGES, documented, files, write_all

from .conftest import HOME

PATCHES = HOME / "patches"
FILES = sorted(PATCHES.glob("*/deepspeed/*.json"))


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


def test_write_all_makes_the_folders_hold_these_and_no_other(tmp_path: Path) -> None:
    shutil.copytree(PATCHES, tmp_path / "patches")
    (tmp_path / "patches" / "mae" / "deepspeed" / "gone.json").write_text("{}")
    written = write_all(tmp_path)
    found = sorted((tmp_path / "patches").glob("*/deepspeed/*"))
    assert found == sorted(written)
    assert [file.read_text() for file in found] == [file.read_text() for file in FILES]
