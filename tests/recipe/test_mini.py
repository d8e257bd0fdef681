"""mini with its series applied: off is the plain recipe, on changes nothing but the loss."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import lines

HOME = Path(__file__).parents[2]
SMALL = (
    *("--img_size", "16", "--patch_size", "4", "--embed_dim", "16", "--depth", "2"),
    *("--num_heads", "2", "--decoder_dim", "16", "--decoder_depth", "2"),
    *("--decoder_num_heads", "2", "--drop_path", "0.2", "--batch_size", "8", "--steps", "12"),
    *("--log_every", "2", "--eval_every", "1000", "--save_every", "3", "--device", "cpu"),
    *("--threads", "1"),
)
ON = ("--mto", "--mto_log_every", "1")


def command(recipe: Path, images: Path, *flags: str, ranks: int = 0) -> list[str]:
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    script = str(recipe / "main_pretrain.py")
    return [*launcher, script, "--data_path", str(images), "--output_dir", "out", *SMALL, *flags]


def train(cwd: Path, recipe: Path, images: Path, *flags: str, ranks: int = 0) -> Path:
    """Run to the end in `cwd`, so that every run has the same arguments; return its output."""
    cwd.mkdir(exist_ok=True)
    done = subprocess.run(
        command(recipe, images, *flags, ranks=ranks),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return cwd / "out"


def leaves(out: Path) -> dict[str, Any]:
    """Everything in the checkpoint by path. Its bytes depend on which strings pickle has met."""
    found: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}/{key}", item)
        elif isinstance(value, (list, tuple)) and len(value) < 100:
            for number, item in enumerate(value):
                walk(f"{path}/{number}", item)
        else:
            found[path] = value.tolist() if isinstance(value, torch.Tensor) else value

    walk("", torch.load(out / "checkpoint.pth", weights_only=True))
    return found


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
    assert str(a["rng"]) == str(b["rng"])
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
    tmp_path: Path, recipes: dict[str, Path], images: Path
) -> None:
    flags = (*ON, "--mto_balance", "0.1", "--mto_warmup_steps", "9", "--save_every", "1")
    flags += ("--steps", "30")
    start = time.monotonic()
    whole = train(tmp_path / "whole", recipes["patched"], images, *flags)
    duration = time.monotonic() - start

    cut = tmp_path / "cut"
    cut.mkdir()
    rng = random.Random(7)
    killed = 0
    for _ in range(3):
        with subprocess.Popen(
            command(recipes["patched"], images, *flags),
            cwd=cut,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            log = cut / "out" / "mto.jsonl"
            before = log.read_text().count("\n") if log.exists() else 0
            more = rng.randint(2, 8)
            end = time.monotonic() + 10 * duration + 30
            while process.poll() is None and time.monotonic() < end:
                if log.exists() and log.read_text().count("\n") >= before + more:
                    break
                time.sleep(0.005)
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed
    resumed = train(cut, recipes["patched"], images, *flags)
    a, b = leaves(whole), leaves(resumed)
    assert a.keys() == b.keys()
    assert [path for path in a if a[path] != b[path]] == []
    assert lines(whole, "step_ms") == lines(resumed, "step_ms")
    assert lines(whole, "step_ms", name="log.jsonl") == lines(resumed, "step_ms", name="log.jsonl")


@pytest.mark.parametrize("style", ["mae", "simmim"])
def test_two_ranks_are_one(
    tmp_path: Path, recipes: dict[str, Path], images: Path, style: str
) -> None:
    flags = ("--style", style, *ON, "--mto_balance", "0.1", "--drop_path", "0")
    one = train(tmp_path / "one", recipes["patched"], images, *flags)
    two = train(tmp_path / "two", recipes["patched"], images, *flags, ranks=2)
    split = train(tmp_path / "split", recipes["patched"], images, *flags, "--accum_steps", "4")
    for other in (two, split):
        for a, b in zip(lines(one), lines(other), strict=True):
            for name in ("loss", "total", "sparsity", "singularity", "ranking", "heterogeneity"):
                assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-5), (a["step"], name)
        for a, b in zip(lines(one, name="log.jsonl"), lines(other, name="log.jsonl"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
