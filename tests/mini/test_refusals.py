"""Bad input: one sentence on stderr, the documented exit code, nothing overwritten."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from .conftest import Process, Recipe, assert_same_run, read_checkpoint

MISSING, REFUSED, CORRUPT = 3, 4, 5


def assert_stopped(process: Process, code: int, *parts: str) -> None:
    """One line on stderr that names the script and holds all `parts`."""
    assert process.wait() == code, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("main_pretrain.py: ")
    for part in parts:
        assert part in process.stderr


@pytest.fixture
def own_data(recipe: Recipe, tmp_path: Path) -> Path:
    """A copy of the images that a test may spoil."""
    recipe.data = Path(shutil.copytree(recipe.data, tmp_path / "own"))
    return recipe.data


@pytest.mark.parametrize("folder", ["", "train", "train/class0"])
def test_no_data(recipe: Recipe, tmp_path: Path, folder: str) -> None:
    if folder:
        (tmp_path / "empty" / folder).mkdir(parents=True)
    run = recipe.start_tiny(tmp_path / "out", "--data_path", tmp_path / "empty")
    assert_stopped(run, MISSING, str(tmp_path / "empty" / "train"), "<class>/<image>")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "flags"), [(60, ()), (4, ("--cache_mb", "0")), (60, ("--workers", "1"))]
)
def test_broken_image(
    recipe: Recipe, tmp_path: Path, own_data: Path, content: int, flags: tuple[str, ...]
) -> None:
    broken = own_data / "train" / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:content])
    run = recipe.start_tiny(tmp_path / "out", *flags)
    assert_stopped(run, CORRUPT, str(broken), "replace it")


def test_without_val_only_the_scores_are_left_out(
    recipe: Recipe, tmp_path: Path, own_data: Path
) -> None:
    shutil.rmtree(own_data / "val")
    process = recipe.start_tiny(tmp_path / "out")
    assert process.wait() == 0
    assert "left out" in process.out.read_text()
    assert "knn" not in (tmp_path / "out" / "log.jsonl").read_text()


def test_output_dir_cannot_be_made(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = recipe.start_tiny(tmp_path / "file" / "out")
    assert_stopped(run, MISSING, str(tmp_path / "file" / "out"))
    assert_stopped(recipe.start_tiny(tmp_path / "file"), MISSING, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_dir_not_writable(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    assert_stopped(recipe.start_tiny(out), MISSING, str(out), "Permission denied")


def test_disk_full(recipe: Recipe, tmp_path: Path) -> None:
    """A file-size limit makes write() fail the way a full disk does."""
    whole = recipe.train(tmp_path / "whole", "--save_steps", "5")
    size = (whole / "checkpoint.pth").stat().st_size
    # no room for the first checkpoint
    out = tmp_path / "first"
    run = recipe.start_tiny(out, file_size=size // 8)
    assert_stopped(run, MISSING, str(out / "checkpoint.pth"), "nothing was written", "free some")
    assert list(out.iterdir()) == []
    # no room for the next one
    out = tmp_path / "out"
    out.mkdir()
    old = (whole / "checkpoint-000005.pth").read_bytes()
    (out / "checkpoint.pth").write_bytes(old)
    run = recipe.start_tiny(out, file_size=size // 2)
    assert_stopped(run, MISSING, str(out / "checkpoint.pth"), "old file is intact")
    assert (out / "checkpoint.pth").read_bytes() == old
    assert not (out / "checkpoint.pth.tmp").exists()
    # with room again, the run goes on as if nothing had happened
    recipe.train(out)
    assert all(
        torch.equal(w, read_checkpoint(whole)["model"][name])
        for name, w in read_checkpoint(out)["model"].items()
    )


def test_log_cut_in_the_middle_of_a_line(recipe: Recipe, tmp_path: Path) -> None:
    whole = recipe.train(tmp_path / "whole")
    out = recipe.train(tmp_path / "out", "--save_steps", "5")
    (out / "checkpoint-000005.pth").replace(out / "checkpoint.pth")
    log = out / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert_same_run(whole, recipe.train(out))


def test_a_checkpoint_that_is_not_of_this_run(
    recipe: Recipe, tmp_path: Path, own_data: Path
) -> None:
    """Each is refused, and every file stays as it is."""
    out = recipe.train(tmp_path / "out")
    checkpoint, image = out / "checkpoint.pth", own_data / "train" / "class1" / "3.png"
    content, pixels = checkpoint.read_bytes(), image.read_bytes()

    def refused(code: int, *parts: str, flags: tuple[str, ...] = ()) -> None:
        before = {path: path.read_bytes() for path in out.iterdir()}
        assert_stopped(recipe.start_tiny(out, *flags), code, str(out), *parts, "--output_dir")
        assert {path: path.read_bytes() for path in out.iterdir()} == before

    for option, value, found in (
        ("--style", "simmim", "found mae"),
        ("--embed_dim", "32", "found 16"),
        ("--seed", "1", "found 0"),
        ("--steps", "24", "found 12"),
        ("--amp", "bf16", "found none"),
    ):
        refused(CORRUPT, f"{option} {value}", found, flags=(option, value))
    image.unlink()
    refused(CORRUPT, "29 images", "found 30 images")
    image.write_bytes(pixels)
    torch.save({"model": {}}, tmp_path / "foreign")
    for other in (content[:1000], b"", (tmp_path / "foreign").read_bytes()):
        checkpoint.write_bytes(other)
        refused(CORRUPT, "not a checkpoint of this recipe")
    checkpoint.unlink()
    refused(REFUSED, "log.jsonl")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--batch_size", "9", "--accum_steps", "2"), "total batch"),
        (("--patch_size", "3"), "no multiple of --patch_size"),
        (("--mask_cell", "3"), "--mask_cell 3"),
        (("--steps", "0"), "--steps"),
        (("--save_steps", "1;2"), "--save_steps"),
    ],
)
def test_settings_that_cannot_work(
    recipe: Recipe, tmp_path: Path, flags: tuple[str, ...], part: str
) -> None:
    run = recipe.start_tiny(tmp_path / "out", *flags)
    assert run.wait() == 2
    assert part in run.stderr
    assert not (tmp_path / "out").exists()


def test_total_batch_must_divide_by_ranks(recipe: Recipe, tmp_path: Path) -> None:
    for run in recipe.start_ranks(tmp_path / "out", "--batch_size", "9"):
        assert_stopped(run, 2, "--batch_size 9", "2 ranks x 1")


def test_a_diverging_run_stops(recipe: Recipe, tmp_path: Path) -> None:
    run = recipe.start_tiny(tmp_path / "out", "--lr", "1e30")
    assert_stopped(run, 1, "the loss is", "--clip_grad 1")
