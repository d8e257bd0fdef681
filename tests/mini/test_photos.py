"""Crops of photographs as image folders, cut by tiles that train and val do not share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Recipe

skimage_data = pytest.importorskip("skimage.data")


def make(recipe: Recipe, out: Path, code: int = 0) -> str:
    process = recipe.start(recipe.folder / "make_photos.py", "--out", out)
    assert process.wait() == code, process.stderr
    return process.stderr


@pytest.fixture(scope="module")
def photos(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photos") / "photos"
    make(recipe, out)
    return out


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert (image.size, image.mode) == ((48, 48), "RGB")
        return np.asarray(image)


def test_every_photograph_has_as_many_crops(photos: Path) -> None:
    for split, count in (("train", 300), ("val", 40)):
        (folder,) = (photos / split).iterdir()  # one class: crops have no labels
        names = Counter(file.name.rpartition("-")[0] for file in folder.iterdir())
        assert len(names) == 14
        assert {*names.values()} == {count}


def test_train_and_val_share_no_pixel(photos: Path) -> None:
    """Each crop is found in the photograph again; where it lies is marked."""
    photo = skimage_data.chelsea()
    marked = {}
    for split in ("train", "val"):
        seen = np.zeros(photo.shape[:2], dtype=bool)
        for file in (photos / split / "photos").glob("chelsea-*"):
            crop = read(file)
            starts = np.argwhere((photo[:-47, :-47] == crop[0, 0]).all(-1))
            place = [(y, x) for y, x in starts if (photo[y : y + 48, x : x + 48] == crop).all()]
            assert len(place) == 1
            seen[place[0][0] : place[0][0] + 48, place[0][1] : place[0][1] + 48] = True
        marked[split] = seen
    assert marked["val"].sum() > 10_000
    assert not (marked["train"] & marked["val"]).any()


def test_a_folder_of_others_is_refused_and_a_broken_crop_is_written_again(
    recipe: Recipe, photos: Path
) -> None:
    crop, mine = photos / "val" / "photos" / "moon-0007.png", photos / "train" / "mine.png"
    before = read(crop)
    mine.write_text("mine")
    assert "train/mine.png" in make(recipe, photos, code=4)
    mine.unlink()
    crop.write_bytes(b"a kill in the middle")
    make(recipe, photos)
    assert np.array_equal(read(crop), before)
