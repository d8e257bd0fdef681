"""scikit-learn's digits as image folders, and learning on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from .conftest import Recipe


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits") / "digits"


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def make(recipe: Recipe, out: Path, code: int = 0) -> str:
    process = recipe.start("--out", out, script="make_digits.py")
    assert process.wait() == code, process.stderr
    return process.stderr


def test_make_digits(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    make(recipe, digits)
    written = files(digits)
    truth = load_digits()
    assert len(written) == 1797
    ids = {int(Path(name).stem): name.split("/")[:2] for name in written}
    assert sorted(ids) == list(range(1797))
    assert all(int(ids[i][1]) == truth.target[i] for i in ids)
    for label in range(10):
        val = sum(split == "val" for split, name in ids.values() if int(name) == label)
        assert val == (truth.target == label).sum() // 5
    for i in (0, 700, 1796):  # shrunk again, an image is the one it came from
        with Image.open(digits / "/".join(ids[i]) / f"{i:04d}.png") as image:
            assert image.size == (32, 32)
            small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - truth.images[i] * 255 / 16).mean() < 16

    # again: nothing changes; half gone, or killed while writing: it is completed
    times = {p: p.stat().st_mtime_ns for p in digits.rglob("*.png")}
    make(recipe, digits)
    assert {p: p.stat().st_mtime_ns for p in digits.rglob("*.png")} == times
    for path in sorted(times)[::2]:
        path.unlink()
    (digits / "train" / "0" / "0000.png.tmp").write_bytes(b"torn")
    make(recipe, digits)
    assert files(digits) == written


def test_make_digits_refuses_a_folder_with_other_content(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "cat.png").write_text("mine")
    message = make(recipe, tmp_path / "mine", code=4)
    assert "cat.png" in message
    assert files(tmp_path / "mine") == {"train/cat.png": b"mine"}
    assert "is a file" in make(recipe, tmp_path / "mine" / "train" / "cat.png", code=4)


@pytest.mark.parametrize("style", ["simmim", "mae"])
def test_it_learns(recipe: Recipe, digits: Path, tmp_path: Path, style: str) -> None:
    """A small model, some hundred steps: the loss halves, and k-NN is far above chance (0.1) and
    above the untrained model's."""
    make(recipe, digits)
    process = recipe.start(
        *("--data_path", digits, "--output_dir", tmp_path / "out", "--style", style),
        *("--img_size", "16", "--patch_size", "4", "--embed_dim", "32", "--depth", "2"),
        *("--decoder_dim", "32", "--steps", "400", "--eval_every", "399", "--lr", "4e-3"),
        *("--batch_size", "32", "--device", "cpu", "--save_every", "1000"),
    )
    assert process.wait() == 0, process.stderr
    lines = [json.loads(line) for line in process.out.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    scores = [line for line in lines if "knn" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert scores[-1]["knn"] > 0.6
    assert scores[-1]["probe"] > 0.8
