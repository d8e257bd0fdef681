"""Data sets: the built-in ones, and what is said of the user's before a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mto_tools.errors import MissingError
from mto_tools.launch.inputs import count_images, default_data
from mto_tools.upstreams.recipe import Data

from .conftest import recipe_of

MAKE = """
import pathlib, sys
out = pathlib.Path(sys.argv[2])
if (out / "thesis.tex").exists():
    sys.exit("will not write beside thesis.tex")
(out / "train").mkdir(parents=True)
"""


@pytest.mark.parametrize("name", ["bootmae", "conmim", "mae", "simmim"])
def test_built_in_data(tmp_path: Path, name: str) -> None:
    """Made once, and again where the images are gone; lists count where the recipe reads them."""
    spec = recipe_of(name).data
    made = default_data(tmp_path, Path("/up"), spec, print)
    cwd = made.parent if name == "bootmae" else Path("/up")
    images = 8 * 8
    assert count_images(spec, made, Path("/up")) == (images, cwd)
    shutil.copy(next(made.glob("train/*/*.png")), made / "train" / "digit0" / "more.png")
    assert default_data(tmp_path, Path("/up"), spec, print) == made
    assert count_images(spec, made, Path("/up")) == (images + (not spec.listing), cwd)
    shutil.rmtree(made)
    assert default_data(tmp_path, Path("/up"), spec, print) == made
    assert count_images(spec, made, Path("/up")) == (images, cwd)


def test_data_set_made_by_a_script(tmp_path: Path) -> None:
    """Its words and ours reach the user; it is started once."""
    (tmp_path / "make.py").write_text(MAKE)
    spec = Data(name="set", make="make.py --out {data}")
    thesis = tmp_path / "data" / "set" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(MissingError, match="thesis.tex") as caught:
        default_data(tmp_path, tmp_path, spec, print)
    assert "--data" in caught.value.hint
    assert thesis.read_text() == "years of work"
    thesis.unlink()
    for checkout in (tmp_path, Path("/nowhere")):
        assert default_data(tmp_path, checkout, spec, print) == thesis.parent


@pytest.mark.parametrize("name", ["bootmae", "conmim"])
def test_a_list_that_is_missing(tmp_path: Path, name: str) -> None:
    spec = recipe_of(name).data
    checkout, data = tmp_path / "up", tmp_path / "sets" / "images"
    with pytest.raises(MissingError) as caught:
        count_images(spec, data, checkout)
    path = checkout / spec.listing.format(data=data, phase="train")  # an absolute one stays
    assert str(path) in str(caught.value)
    path.parent.mkdir(parents=True)
    path.write_text("a/1.png 0\na/2.png 0\n\n")
    assert count_images(spec, data, checkout) == (2, checkout)


def test_images_are_those_that_an_image_folder_reads(tmp_path: Path) -> None:
    """Others would plan more steps than the recipe makes."""
    spec, train = recipe_of("mae").data, tmp_path / "data" / "train"

    def count() -> int:
        return count_images(spec, tmp_path / "data", tmp_path)[0]

    def refused() -> None:
        with pytest.raises(MissingError, match=str(train)) as caught:
            count()
        assert "--data" in caught.value.hint

    refused()
    (train / "empty").mkdir(parents=True)
    for name in ("loose.png", "empty/notes.txt", "empty/moving.gif", "empty/raw.heic"):
        (train / name).write_bytes(b"")
    refused()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("a.PNG", "deep/b.jpeg", "c.webp", "d.tiff"):
        (tmp_path / "elsewhere" / name).write_bytes(b"")
    (train / "linked").symlink_to(tmp_path / "elsewhere")
    assert count() == 4
