"""mini with its series applied: off is the plain recipe, on changes nothing but the loss."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ..forkserver import ForkServer
from .conftest import Train, lines

ON = ("--mto", "--mto_log_every", "1")


def content(value: Any) -> Any:
    """A checkpoint to compare. Its bytes depend on which strings pickle has met."""
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("style", ["mae", "simmim"])
def test_baseline_is_sacred(tmp_path: Path, train: Train, style: str) -> None:
    flags = ("--style", style)
    plain = train(tmp_path / "plain", *flags, recipe="plain")
    off = train(tmp_path / "off", *flags)
    observed = train(tmp_path / "seen", *flags, *ON, "--mto_preset", "observe")
    on = train(tmp_path / "on", *flags, *ON, "--mto_grad_every", "4")

    bytes_plain = (plain / "checkpoint.pth").read_bytes()
    assert bytes_plain == (off / "checkpoint.pth").read_bytes()
    assert bytes_plain == (observed / "checkpoint.pth").read_bytes()
    assert sorted(path.name for path in off.iterdir()) == ["checkpoint.pth", "log.jsonl"]
    log = lines(plain, "step_ms", name="log.jsonl")
    assert log == lines(off, "step_ms", name="log.jsonl")

    a, b = (torch.load(out / "checkpoint.pth", weights_only=True) for out in (plain, on))
    assert a.keys() == b.keys()
    assert a["args"] == b["args"]
    shapes = [{k: v.shape for k, v in state["model"].items()} for state in (a, b)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(a["model"]["mask_token"], b["model"]["mask_token"])
    assert [r["data"] for r in log] == [r["data"] for r in lines(on, name="log.jsonl")]
    watched, trained = lines(observed), lines(on)
    assert [r["rng"] for r in watched] == [r["rng"] for r in trained]
    assert watched[0]["loss"] == trained[0]["loss"]
    assert watched[-1]["loss"] != trained[-1]["loss"]


@pytest.mark.parametrize("mode", ["balance", "calibrate"])
def test_killed_at_any_moment_and_resumed(
    tmp_path: Path,
    train: Train,
    recipes: dict[str, Path],
    small: list[str],
    mini_server: ForkServer,
    mode: str,
) -> None:
    flags = (*ON, f"--mto_{mode}", "0.1", "--mto_warmup_steps", "9", "--save_every", "1")
    flags += ("--steps", "30")
    whole = train(tmp_path / "whole", *flags)
    cut = tmp_path / "cut"
    cut.mkdir()
    for changes in (9, 14, 25):  # of files, since the start
        process = mini_server.start(
            *(recipes["patched"] / "main_pretrain.py", *small, *flags),
            out=tmp_path / "log",
            cwd=cut,
            die_before=changes,
        )
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    steps = [line["step"] for line in lines(cut / "out")]
    assert 0 < steps[-1] < 30, "killed too early or too late to show anything"
    resumed = train(cut, *flags)
    a, b = (torch.load(out / "checkpoint.pth", weights_only=True) for out in (whole, resumed))
    assert content(a) == content(b)
    for name in ("mto.jsonl", "log.jsonl"):
        assert lines(whole, "step_ms", name=name) == lines(resumed, "step_ms", name=name)
    assert lines(resumed)[-1]["weights"]["sparsity"] > 0


def test_two_ranks_are_one(tmp_path: Path, train: Train) -> None:
    flags = (*ON, "--mto_balance", "0.1", "--drop_path", "0")
    one = train(tmp_path / "one", *flags)
    two = train(tmp_path / "two", *flags, ranks=2)
    split = train(tmp_path / "split", *flags, "--accum_steps", "4")
    for other in (two, split):
        for a, b in zip(lines(one), lines(other), strict=True):
            for name in ("loss", "total", "sparsity", "singularity", "ranking", "heterogeneity"):
                assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-5), (a["step"], name)
        for a, b in zip(lines(one, name="log.jsonl"), lines(other, name="log.jsonl"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
