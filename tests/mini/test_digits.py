"""scikit-learn's digits as image folders, and learning on them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from .conftest import Recipe, read_checkpoint


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

    times = {p: p.stat().st_mtime_ns for p in digits.rglob("*.png")}
    make(recipe, digits)  # again: nothing changes
    assert {p: p.stat().st_mtime_ns for p in digits.rglob("*.png")} == times
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]


def test_make_digits_refuses_a_folder_with_other_content(recipe: Recipe, tmp_path: Path) -> None:
    cat = tmp_path / "mine" / "train" / "cat.png"
    cat.parent.mkdir(parents=True)
    cat.write_text("mine")
    for out in (tmp_path / "mine", cat):
        assert str(out) in make(recipe, out, code=4)
    assert files(tmp_path / "mine") == {"train/cat.png": b"mine"}


def run(recipe: Recipe, digits: Path, out: Path, *flags: str) -> tuple[list[float], dict]:
    """The losses of a run on the digits, and its last scores."""
    make(recipe, digits)
    process = recipe.start("--data_path", digits, "--output_dir", out, "--device", "cpu", *flags)
    assert process.wait() == 0, process.stderr
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], lines[-1]


def test_mae_style_learns(
    recipe: Recipe, mini: SimpleNamespace, digits: Path, tmp_path: Path
) -> None:
    """The default model, a third of its steps: k-NN is far above chance (0.1), and above what the
    untrained encoder's features give."""
    out = tmp_path / "out"
    losses, scores = run(
        *(recipe, digits, out, "--style", "mae", "--steps", "300", "--warmup_steps", "30"),
        *("--lr", "3e-3", "--batch_size", "48", "--eval_every", "300", "--save_steps", "0"),
    )
    assert losses[-1] < 0.4 * losses[0]
    assert scores["knn"] > 0.7
    model = mini.models.MAE()
    model.load_state_dict(read_checkpoint(out, "checkpoint-000000.pth")["model"])
    train, val = (mini.data.Images(digits / split) for split in ("train", "val"))
    untrained = mini.evaluate.evaluate(model, train, val, img_size=32)
    assert scores["knn"] > untrained["knn"] + 0.05
    assert scores["probe10"] > untrained["probe10"] + 0.05


def test_simmim_style_learns(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    losses, scores = run(
        *(recipe, digits, tmp_path / "out", "--style", "simmim", "--img_size", "16"),
        *("--patch_size", "2", "--embed_dim", "32", "--depth", "2", "--steps", "120"),
        *("--warmup_steps", "12", "--lr", "4e-3", "--batch_size", "32", "--eval_every", "120"),
    )
    assert losses[-1] < 0.75 * losses[0]
    assert scores["knn"] > 0.4
