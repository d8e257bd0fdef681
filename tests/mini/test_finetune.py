"""Fine-tuning learns two easy classes, starts from the checkpoint, and repeats bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .conftest import Process, Recipe, read_checkpoint


def start(recipe: Recipe, out: Path, checkpoint: Path, *more: str) -> Process:
    return recipe.start(
        *(recipe.folder / "main_finetune.py", "--data_path", recipe.data, "--output_dir", out),
        *("--finetune", checkpoint, "--batch_size", "8", "--device", "cpu", *more),
    )


def tune(recipe: Recipe, out: Path, checkpoint: Path, *more: str) -> list[dict[str, Any]]:
    process = start(recipe, out, checkpoint, *more)
    assert process.wait() == 0, process.stderr
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def test_learns_and_repeats(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    given = (whole / "checkpoint.pth", "--epochs", "15", "--lr", "3e-3")
    first, second = (tune(recipe, tmp_path / name, *given) for name in ("a", "b"))
    assert first == second
    assert [line["epoch"] for line in first] == list(range(15))
    assert first[-1]["train_loss"] < 0.8 * first[0]["train_loss"]
    assert first[-1]["test_acc1"] > 80
    one, other = (read_checkpoint(tmp_path / name)["model"] for name in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_starts_from_the_checkpoint_unless_from_scratch(
    recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    given = (whole / "checkpoint.pth", "--epochs", "1", "--lr", "0")
    tune(recipe, tmp_path / "on", *given)
    tune(recipe, tmp_path / "new", *given, "--scratch")
    pretrained = read_checkpoint(whole)["model"]
    on, new = (read_checkpoint(tmp_path / name)["model"] for name in ("on", "new"))
    assert all(torch.equal(on[f"encoder.{name}"], x) for name, x in pretrained.items())
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(new[f"encoder.{name}"], pretrained[name])


def test_refuses_what_is_no_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(b"PK")
    codes = [start(recipe, tmp_path / "out", tmp_path / n).wait() for n in ("cut.pth", "no.pth")]
    assert codes == [5, 3]
    assert not (tmp_path / "out").exists()
