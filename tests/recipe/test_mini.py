"""mini with its series applied: off is the plain recipe, on changes nothing but the loss."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ..forkserver import ForkServer
from .conftest import lines

SMALL = (
    *("--img_size", "16", "--patch_size", "4", "--embed_dim", "16", "--depth", "2"),
    *("--num_heads", "2", "--decoder_dim", "16", "--decoder_depth", "2"),
    *("--decoder_num_heads", "2", "--drop_path", "0.2", "--batch_size", "8", "--steps", "12"),
    *("--log_every", "2", "--eval_every", "1000", "--save_every", "3", "--device", "cpu"),
)
ON = ("--mto", "--mto_log_every", "1")
PYTHON = [sys.executable]


@pytest.fixture(scope="module", autouse=True)
def forked(mini_server: ForkServer) -> None:
    PYTHON[:] = mini_server.command


def arguments(recipe: Path, images: Path, *flags: str) -> list[str]:
    script = str(recipe / "main_pretrain.py")
    return [script, "--data_path", str(images), "--output_dir", "out", *SMALL, *flags]


def train(cwd: Path, recipe: Path, images: Path, *flags: str, ranks: int = 0) -> Path:
    """Run to the end in `cwd`, so that every run has the same arguments; return its output."""
    cwd.mkdir(exist_ok=True)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    torchrun = [*PYTHON, *start, "--no-python"] if ranks else []
    done = subprocess.run(
        [*torchrun, *PYTHON, *arguments(recipe, images, *flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return cwd / "out"


def content(value: Any) -> Any:
    """A checkpoint to compare. Its bytes depend on which strings pickle has met."""
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("style", ["mae", "simmim"])
def test_baseline_is_sacred(
    tmp_path: Path, recipes: dict[str, Path], images: Path, style: str
) -> None:
    flags = ("--style", style)
    plain = train(tmp_path / "plain", recipes["plain"], images, *flags)
    off = train(tmp_path / "off", recipes["patched"], images, *flags)
    observed = train(
        tmp_path / "seen", recipes["patched"], images, *flags, *ON, "--mto_preset", "observe"
    )
    on = train(tmp_path / "on", recipes["patched"], images, *flags, *ON, "--mto_grad_every", "4")

    bytes_plain = (plain / "checkpoint.pth").read_bytes()
    assert bytes_plain == (off / "checkpoint.pth").read_bytes()
    assert bytes_plain == (observed / "checkpoint.pth").read_bytes()
    assert sorted(path.name for path in off.iterdir()) == ["checkpoint.pth", "log.jsonl"]
    log = lines(plain, "step_ms", name="log.jsonl")
    assert log == lines(off, "step_ms", name="log.jsonl")

    a, b = (torch.load(out / "checkpoint.pth", weights_only=True) for out in (plain, on))
    assert a.keys() == b.keys()
    assert a["args"] == b["args"]
    assert {k: v.shape for k, v in a["model"].items()} == {
        k: v.shape for k, v in b["model"].items()
    }
    assert not torch.equal(a["model"]["mask_token"], b["model"]["mask_token"])
    assert [r["data"] for r in log] == [r["data"] for r in lines(on, name="log.jsonl")]
    watched, trained = lines(observed), lines(on)
    assert [r["rng"] for r in watched] == [r["rng"] for r in trained]
    assert watched[0]["loss"] == trained[0]["loss"]
    assert watched[-1]["loss"] != trained[-1]["loss"]


def test_killed_at_any_moment_and_resumed(
    tmp_path: Path, recipes: dict[str, Path], images: Path, mini_server: ForkServer
) -> None:
    flags = (*ON, "--mto_balance", "0.1", "--mto_warmup_steps", "9", "--save_every", "1")
    flags += ("--steps", "30")
    whole = train(tmp_path / "whole", recipes["patched"], images, *flags)
    cut = tmp_path / "cut"
    cut.mkdir()
    for changes in (9, 14, 25):  # of files, since the start
        process = mini_server.start(
            *arguments(recipes["patched"], images, *flags),
            out=tmp_path / "log",
            cwd=cut,
            die_before=changes,
        )
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    steps = [line["step"] for line in lines(cut / "out")]
    assert 0 < steps[-1] < 30, "killed too early or too late to show anything"
    resumed = train(cut, recipes["patched"], images, *flags)
    a, b = (torch.load(out / "checkpoint.pth", weights_only=True) for out in (whole, resumed))
    assert content(a) == content(b)
    assert lines(whole, "step_ms") == lines(resumed, "step_ms")
    assert lines(whole, "step_ms", name="log.jsonl") == lines(resumed, "step_ms", name="log.jsonl")


def test_two_ranks_are_one(tmp_path: Path, recipes: dict[str, Path], images: Path) -> None:
    flags = (*ON, "--mto_balance", "0.1", "--drop_path", "0")
    one = train(tmp_path / "one", recipes["patched"], images, *flags)
    two = train(tmp_path / "two", recipes["patched"], images, *flags, ranks=2)
    split = train(tmp_path / "split", recipes["patched"], images, *flags, "--accum_steps", "4")
    for other in (two, split):
        for a, b in zip(lines(one), lines(other), strict=True):
            for name in ("loss", "total", "sparsity", "singularity", "ranking", "heterogeneity"):
                assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-5), (a["step"], name)
        for a, b in zip(lines(one, name="log.jsonl"), lines(other, name="log.jsonl"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
