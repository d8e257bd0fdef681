"""Bad input: one sentence on stderr, the documented exit code, nothing overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from .conftest import TINY, Process, Recipe, assert_same_run, read_checkpoint, read_log

MISSING, REFUSED, CORRUPT = 3, 4, 5


def assert_stopped(process: Process, code: int, *parts: str) -> None:
    """One line on stderr that names the script and holds all `parts`."""
    assert process.wait() == code, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("main_pretrain.py: ")
    for part in parts:
        assert part in process.stderr


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may spoil."""
    return Path(shutil.copytree(tiny_data, tmp_path / "own"))


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (("--batch_size", "9", "--accum_steps", "2"), 2, "--batch_size 9"),
        (("--patch_size", "3"), 2, "--patch_size 3"),
        (("--mask_cell", "3"), 2, "--mask_cell 3"),
        (("--steps", "0"), 2, "--steps"),
        (("--save_steps", "1;2"), 2, "--save_steps"),
        (("--data_path", "nowhere"), MISSING, "train/<class>/<image>"),
        (("--data_path", "empty"), MISSING, "empty/train"),
        (("--data_path", "no_image"), MISSING, "class0"),
    ],
)
def test_bad_arguments(
    mini: SimpleNamespace,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    code: int,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty/train").mkdir(parents=True)
    Path("no_image/train/class0").mkdir(parents=True)
    parse = mini.main_pretrain.get_args_parser().parse_args
    with pytest.raises(SystemExit) as stopped:
        mini.main_pretrain.main(parse(["--data_path", str(tiny_data), *TINY, *flags]))
    assert stopped.value.code == code
    assert part in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


@pytest.mark.parametrize(("content", "workers"), [(4, "0"), (60, "1")])
def test_broken_image(
    recipe: Recipe, tmp_path: Path, own_data: Path, content: int, workers: str
) -> None:
    broken = own_data / "train" / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:content])
    run = recipe.start_tiny(tmp_path / "out", "--data_path", own_data, "--workers", workers)
    assert_stopped(run, CORRUPT, str(broken), "cannot decode")


def test_without_val_only_the_scores_are_left_out(
    recipe: Recipe, tmp_path: Path, own_data: Path
) -> None:
    shutil.rmtree(own_data / "val")
    process = recipe.start_tiny(tmp_path / "out", "--data_path", own_data)
    assert process.wait() == 0
    assert "left out" in process.out.read_text()
    assert "knn" not in (tmp_path / "out" / "log.jsonl").read_text()


def test_without_labels_the_held_out_loss_is_the_score(
    recipe: Recipe, tmp_path: Path, own_data: Path
) -> None:
    for split in ("train", "val"):
        shutil.rmtree(own_data / split / "class1")
    process = recipe.start_tiny(tmp_path / "out", "--data_path", own_data)
    assert process.wait() == 0
    assert "left out" in process.out.read_text()
    scored = [line for line in read_log(tmp_path / "out") if "val_loss" in line]
    assert [line["step"] for line in scored] == [8, 12]
    assert all(line.keys() == {"step", "val_loss"} for line in scored)
    words = ("--finetune", tmp_path / "out" / "checkpoint.pth", "--output_dir", tmp_path / "tuned")
    script = recipe.folder / "main_finetune.py"
    assert recipe.start(script, "--data_path", own_data, *words).wait() == MISSING
    assert not (tmp_path / "tuned").exists()


def test_output_dir_cannot_be_made(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = recipe.start_tiny(tmp_path / "file" / "out")
    assert_stopped(run, MISSING, str(tmp_path / "file" / "out"))
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_full(recipe: Recipe, tmp_path: Path, whole: Path, stopped: Path) -> None:
    """A file-size limit makes write() fail the way a full disk does."""
    size = (whole / "checkpoint.pth").stat().st_size
    run = recipe.start_tiny(tmp_path / "out", file_size=size // 8)  # not even the first checkpoint
    assert_stopped(run, MISSING, str(tmp_path / "out"), "File too large")
    assert list((tmp_path / "out").iterdir()) == []
    old = (stopped / "checkpoint.pth").read_bytes()
    assert_stopped(recipe.start_tiny(stopped, file_size=size // 2), MISSING, str(stopped))
    assert (stopped / "checkpoint.pth").read_bytes() == old
    assert not (stopped / "checkpoint.pth.tmp").exists()
    # with room again, the run goes on as if nothing had happened
    assert_same_run(whole, recipe.train(stopped))


def test_a_checkpoint_that_is_not_of_this_run(
    mini: SimpleNamespace, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = read_checkpoint(whole)["args"]
    assert mini.checkpoint.load(whole / "checkpoint.pth", args | {"workers": 9})["step"] == 12

    def refused(path: Path, *parts: str, **other: object) -> None:
        with pytest.raises(SystemExit) as stopped:
            mini.checkpoint.load(path, args | other)
        assert stopped.value.code == CORRUPT
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        for part in (str(path), "--output_dir", *parts):
            assert part in said

    for name, value in (("style", "simmim"), ("embed_dim", 32), ("seed", 1), ("amp", "bf16")):
        refused(whole / "checkpoint.pth", f"{name} is {args[name]}, not {value}", **{name: value})
    refused(whole / "checkpoint.pth", "30 images", "29 images", images="29 images")
    torch.save({"model": {}}, tmp_path / "foreign")
    (tmp_path / "torn").write_bytes((whole / "checkpoint.pth").read_bytes()[:1000])
    (tmp_path / "empty").touch()
    for name in ("foreign", "torn", "empty"):
        refused(tmp_path / name, "not a checkpoint of this recipe")


@pytest.mark.parametrize(
    "content", ["mine\n", "[1]\n", '{"loss": 1}\n', '{"step": "1"}\n', "\xff\n"]
)
def test_a_log_that_is_not_of_this_recipe(
    mini: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit) as stopped:
        mini.checkpoint.Log(log, 12)
    assert stopped.value.code == CORRUPT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(log) in said
    assert log.read_text(encoding="latin-1") == content


def test_nothing_of_another_run_is_overwritten(
    recipe: Recipe, stopped: Path, own_data: Path
) -> None:
    def refused(code: int, *flags: str | Path) -> None:
        before = {path: path.read_bytes() for path in stopped.iterdir()}
        assert_stopped(recipe.start_tiny(stopped, *flags), code, str(stopped), "--output_dir")
        assert {path: path.read_bytes() for path in stopped.iterdir()} == before

    (own_data / "train" / "class1" / "3.png").unlink()
    refused(CORRUPT, "--data_path", own_data)
    (stopped / "checkpoint.pth").unlink()
    refused(REFUSED)


def test_a_diverging_run_stops(recipe: Recipe, tmp_path: Path) -> None:
    run = recipe.start_tiny(tmp_path / "out", "--lr", "1e30")
    assert_stopped(run, 1, "the loss is", "--clip_grad 1")
