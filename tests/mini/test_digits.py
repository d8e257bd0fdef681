"""scikit-learn's digits as image folders, and learning on them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from .conftest import Recipe, losses, read_checkpoint, read_log


def make(recipe: Recipe, out: Path, code: int = 0) -> str:
    process = recipe.start(recipe.folder / "make_digits.py", "--out", out)
    assert process.wait() == code, process.stderr
    return process.stderr


@pytest.fixture(scope="module")
def digits(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "digits"
    make(recipe, out)
    return out


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_make_digits(recipe: Recipe, digits: Path) -> None:
    written = files(digits)
    truth = load_digits()
    ids = {int(Path(name).stem): name.split("/")[:2] for name in written}
    assert len(written) == 1797
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

    (digits / "val/3/0003.png").unlink(missing_ok=True)
    (digits / "train/0/0000.png").write_bytes(b"a kill in the middle")
    make(recipe, digits)
    assert files(digits) == written
    cat = digits / "train" / "cat.png"
    cat.write_text("mine")
    assert "train/cat.png" in make(recipe, digits, code=4)
    cat.unlink()
    assert files(digits) == written


def run(recipe: Recipe, digits: Path, out: Path, *flags: str) -> tuple[float, dict[str, float]]:
    """The last loss over the first of a run on the digits, and its last scores."""
    script = recipe.folder / "main_pretrain.py"
    process = recipe.start(
        script, "--data_path", digits, "--output_dir", out, "--device", "cpu", *flags
    )
    assert process.wait() == 0, process.stderr
    logged = [line["loss"] for line in losses(out)]
    return logged[-1] / logged[0], read_log(out)[-1]


def test_mae_style_learns(
    recipe: Recipe, mini: SimpleNamespace, digits: Path, tmp_path: Path
) -> None:
    """The default model, a third of its steps: k-NN is far above chance (0.1), and above what the
    untrained encoder's features give."""
    flags = ("--steps", "300", "--warmup_steps", "30", "--lr", "3e-3", "--batch_size", "48")
    flags += ("--eval_every", "300", "--save_steps", "0")
    loss, scores = run(recipe, digits, tmp_path, *flags)
    assert loss < 0.4
    assert scores["knn"] > 0.7
    model = mini.models.MAE(mini.main_pretrain.get_args_parser().parse_args(["--data_path", ""]))
    model.load_state_dict(read_checkpoint(tmp_path, "checkpoint-000000.pth")["model"])
    train, val = (mini.data.Images(digits / split) for split in ("train", "val"))
    untrained = mini.evaluate.evaluate(model.eval(), train, val, img_size=32)
    assert scores["knn"] > untrained["knn"] + 0.05
    assert scores["probe10"] > untrained["probe10"] + 0.05


def test_simmim_style_learns(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    flags = ("--style", "simmim", "--img_size", "16", "--patch_size", "2", "--embed_dim", "32")
    flags += ("--depth", "2", "--steps", "120", "--warmup_steps", "12", "--lr", "4e-3")
    loss, scores = run(recipe, digits, tmp_path, *flags, "--batch_size", "32")
    assert loss < 0.75
    assert scores["knn"] > 0.4
