"""What is said of the images before a model is built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mto_tools.errors import MtoError
from mto_tools.evaluate.images import BrokenImageError, open_split, scan
from mto_tools.evaluate.score import choose


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def test_labels_and_fingerprint(data: Path, tmp_path: Path) -> None:
    found = scan(data, 12)
    assert found.labels["train"].tolist() == [0] * 6 + [1] * 6
    assert found.labels["val"].tolist() == [0, 0, 1, 1]
    for split in ("train", "val"):
        shutil.copytree(data / split, tmp_path / "copy" / split)
    assert scan(tmp_path / "copy", 12).fingerprint == found.fingerprint
    (data / "val" / "a" / "0.png").rename(data / "val" / "a" / "9.png")
    assert scan(data, 12).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: shutil.rmtree(d / "val"), "val"),
        (lambda d: shutil.rmtree(d / "train"), "train"),
        (lambda d: [shutil.rmtree(x) for x in (d / "train").iterdir()], "train"),
        (lambda d: [x.unlink() for x in (d / "val" / "b").iterdir()], "b"),
        (lambda d: (d / "val" / "b").rename(d / "val" / "c"), "b, c"),
        (lambda d: [shutil.rmtree(d / x / "b") for x in ("train", "val")], "one class"),
        (lambda d: (d / "train" / "a" / "0.png").unlink(), "11 images, fewer than the 12"),
    ],
)
def test_bad_folders_are_told_with_a_hint(
    data: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(data)
    with pytest.raises(MtoError) as caught:
        scan(data, 12)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_broken_image_is_named(data: Path) -> None:
    file = data / "val" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BrokenImageError, match=str(file)):
        open_split(data, "val")[1]


def test_few_labels_are_the_same_in_every_run() -> None:
    labels = np.repeat([0, 1, 2], [30, 4, 900])
    chosen = choose(labels, lambda n: min(n, 10), 1)
    assert np.bincount(labels[chosen]).tolist() == [10, 4, 10]
    assert (chosen == choose(labels, lambda n: min(n, 10), 1)).all()
    assert (chosen != choose(labels, lambda n: min(n, 10), 2)).any()
    assert len(set(chosen)) == len(chosen)
