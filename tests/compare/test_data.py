"""Data sets: the built-in ones, and what is said of the user's before a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mto_tools.compare.inputs import check_data, count_images, default_data, start_folder
from mto_tools.errors import MissingError

from .conftest import recipe_of

MAE, MINI = (recipe_of(name).data for name in ("mae", "mini"))


@pytest.mark.parametrize("name", ["bootmae", "conmim", "mae", "simmim"])
def test_built_in_data(tmp_path: Path, name: str) -> None:
    """Made once, and again where the images are gone; lists count where the recipe reads them."""
    spec = recipe_of(name).data
    made = default_data(tmp_path, Path("/up"), spec, name, print)
    cwd = start_folder(spec, made, Path("/up"))
    assert cwd == (made.parent if name == "bootmae" else Path("/up"))
    images = count_images(spec, made, cwd, name)
    assert images == 8 * spec.per_class
    (made / "train" / "digit0" / "more.png").write_bytes(b"")
    assert default_data(tmp_path, Path("/up"), spec, name, print) == made
    assert count_images(spec, made, cwd, name) == images + (not spec.listing)
    shutil.rmtree(made)
    assert default_data(tmp_path, Path("/up"), spec, name, print) == made
    assert count_images(spec, made, cwd, name) == images


def test_data_set_made_by_a_script(home: Path) -> None:
    """make_digits.py refuses a folder with foreign files; its words and ours reach the user."""
    where = home / "upstream/embedded/mini"
    (home / "data" / "digits").mkdir(parents=True)
    thesis = home / "data" / "digits" / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(MissingError, match="thesis.tex") as caught:
        default_data(home, where, MINI, "mini", print)
    assert "--data" in caught.value.hint
    assert thesis.read_text() == "years of work"
    thesis.unlink()
    data = default_data(home, where, MINI, "mini", print)
    assert data == home / "data" / "digits"
    before = (data / "train").stat().st_mtime_ns
    assert default_data(home, Path("/nowhere"), MINI, "mini", print) == data
    assert (data / "train").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["bootmae", "conmim"])
def test_a_list_that_is_missing(tmp_path: Path, name: str) -> None:
    spec = recipe_of(name).data
    checkout, data = tmp_path / "up", tmp_path / "sets" / "images"
    with pytest.raises(MissingError) as caught:
        count_images(spec, data, start_folder(spec, data, checkout), name)
    path = checkout / spec.listing.format(data=data, phase="train")  # an absolute one stays
    assert str(path) in str(caught.value)
    path.parent.mkdir(parents=True)
    path.write_text("a/1.png 0\na/2.png 0\n\n")
    assert count_images(spec, data, start_folder(spec, data, checkout), name) == 2


def test_images_are_those_that_an_image_folder_reads(tmp_path: Path) -> None:
    """Others would plan more steps than the recipe makes."""
    train = tmp_path / "data" / "train"

    def refused() -> None:
        with pytest.raises(MissingError, match=str(tmp_path / "data")) as caught:
            check_data(MAE, tmp_path / "data", "mae")
        assert "mto compare mae" in caught.value.hint

    refused()
    train.parent.mkdir()
    refused()
    (train / "empty").mkdir(parents=True)
    for name in ("loose.png", "empty/notes.txt", "empty/moving.gif", "empty/raw.heic"):
        (train / name).write_bytes(b"")
    refused()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("a.PNG", "deep/b.jpeg", "c.webp", "d.tiff"):
        (tmp_path / "elsewhere" / name).write_bytes(b"")
    (train / "linked").symlink_to(tmp_path / "elsewhere")
    check_data(MAE, tmp_path / "data", "mae")
    from torchvision.datasets import ImageFolder

    read = ImageFolder(str(train), allow_empty=True)
    assert count_images(MAE, tmp_path / "data", tmp_path, "mae") == len(read) == 4
