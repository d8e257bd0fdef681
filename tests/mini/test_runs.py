"""Whole runs: repeatable, resumable after a kill at any moment, the same on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from .conftest import Recipe, assert_same_run, leaves, losses, read_checkpoint, read_log


@pytest.mark.parametrize("style", ["simmim", "mae"])
def test_repeatable_bit_for_bit(recipe: Recipe, tmp_path: Path, style: str) -> None:
    """Neither workers nor more frequent saving and scoring touch the run."""
    flags = ("--style", style, "--drop_path", "0.2")
    a = recipe.train(tmp_path / "a", *flags)
    b = recipe.train(
        tmp_path / "b", *flags, "--workers", "2", "--eval_every", "1", "--save_every", "2"
    )
    assert losses(a) == losses(b)
    for name in ("model", "optimizer", "progress"):
        assert leaves(read_checkpoint(a)[name]) == leaves(read_checkpoint(b)[name])


def test_log_and_checkpoint_hold_what_they_promise(recipe: Recipe, whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 8, 12, 12]
    for line in lines:
        if "loss" in line:
            assert list(line) == ["step", "loss", "lr", "step_ms", "data"]
            assert len(line["data"]) == 8
            assert int(line["data"], 16) > 0
        else:
            assert list(line) == ["step", "val_loss", "knn", "probe", "probe10"]
            assert all(0 <= line[name] <= 1 for name in ("knn", "probe", "probe10"))
    assert sorted(p.name for p in whole.iterdir()) == [
        *("checkpoint-000000.pth", "checkpoint-000005.pth", "checkpoint.pth", "images.png"),
        "log.jsonl",
    ]
    for name, step in (("-000000", 0), ("-000005", 5), ("", 12)):
        state = read_checkpoint(whole, f"checkpoint{name}.pth")
        assert state["step"] == step
        assert {"model", "optimizer", "scaler", "args"} <= state.keys()
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.iterdir()}
    recipe.train(whole)  # a finished run stays as it is
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.iterdir()}
    assert after == before | {"log.jsonl": after["log.jsonl"]}
    assert after["log.jsonl"][1] == before["log.jsonl"][1]


def test_killed_at_any_change_of_a_file_and_resumed(recipe: Recipe, tmp_path: Path) -> None:
    """A checkpoint is two changes, a file beside it and a rename; the log is one, when opened."""
    flags = (
        *("--drop_path", "0.2", "--steps", "30", "--log_every", "4"),
        *("--eval_every", "7", "--save_every", "3"),  # saves fall between lines of the log
    )
    whole = recipe.train(tmp_path / "whole", *flags)
    out = tmp_path / "runs" / "killed"
    out.mkdir(parents=True)
    found: list[int] = []  # the step of the checkpoint that each kill left behind
    torn = 0
    for changes in (1, 2, 3, 6, 5, 4, 7):
        process = recipe.start_tiny(out, *flags, cwd=out.parent, die_before=changes)
        assert process.wait() == -9, process.stderr
        torn += (out / "checkpoint.pth.tmp").exists()
        found.append(read_checkpoint(out)["step"] if (out / "checkpoint.pth").exists() else -1)
    assert found[:2] == [-1, -1]
    assert len(set(found)) >= 4, found
    assert torn >= 2, "no kill fell between the two"
    assert_same_run(whole, recipe.train(out, *flags))


def test_a_log_cut_in_the_middle_of_a_line(recipe: Recipe, whole: Path, stopped: Path) -> None:
    log = stopped / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert_same_run(whole, recipe.train(stopped))


def test_resumed_with_another_period_of_the_log(recipe: Recipe, tmp_path: Path) -> None:
    """Three stretches of one run, of which the second ends before it logs."""
    each = [line["loss"] for line in losses(recipe.train(tmp_path / "each", "--log_every", "1"))]
    out = tmp_path / "out"
    for period, stop in ((4, 5), (10, 6), (7, 12)):
        recipe.train(out, "--log_every", str(period), "--save_steps", str(stop))
        (out / f"checkpoint-{stop:06d}.pth").replace(out / "checkpoint.pth")
    found = {line["step"]: line["loss"] for line in losses(out)}
    assert list(found) == [4, 7, 12]
    for first, last in ((0, 4), (4, 7), (7, 12)):
        assert found[last] == pytest.approx(sum(each[first:last]) / (last - first), rel=1e-6)


def test_torchrun_goes_on_on_two_ranks(recipe: Recipe, whole: Path, stopped: Path) -> None:
    """The real launcher, from step 5 of 12."""
    python = recipe.server.command
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    process = recipe.start(*torchrun, *python, *recipe.command(stopped))
    assert process.wait() == 0, process.stderr
    assert_close_runs(whole, stopped)
    lines = process.out.read_text().splitlines()
    assert len(lines) == len(set(lines)), "rank 0 alone prints"


def test_accumulation_gives_the_same_run(recipe: Recipe, tmp_path: Path, whole: Path) -> None:
    assert_close_runs(whole, recipe.train(tmp_path / "four", "--accum_steps", "4"))


def test_the_mask_tokens_own_rate(recipe: Recipe, tmp_path: Path) -> None:
    """Adam's first step has the length of the learning rate in every coordinate."""
    moved = {}
    for rate in ("1", "10"):
        flags = (
            "--mask_token_lr",
            rate,
            "--steps",
            "1",
            "--warmup_steps",
            "0",
            "--save_steps",
            "0",
            "1",
        )
        out = recipe.train(tmp_path / rate, *flags)
        before, after = (read_checkpoint(out, f"checkpoint-{n:06d}.pth") for n in (0, 1))
        moved[rate] = {k: v - before["model"][k] for k, v in after["model"].items()}
    token, faster = moved["1"].pop("mask_token"), moved["10"].pop("mask_token")
    assert torch.allclose(faster, 10 * token, rtol=1e-3, atol=1e-8)
    assert all(torch.equal(moved["1"][name], moved["10"][name]) for name in moved["1"])


def test_gradients_are_clipped_to_the_norm(recipe: Recipe, tmp_path: Path) -> None:
    """After one step, Adam's first running mean is a tenth of the gradient."""
    flags = ("--steps", "1", "--warmup_steps", "0")
    out = recipe.train(tmp_path / "out", *flags, "--clip_grad", "1e-3", "--accum_steps", "2")
    states = read_checkpoint(out)["optimizer"]["state"].values()
    norm = torch.cat([state["exp_avg"].double().flatten() for state in states]).norm()
    assert norm.item() == pytest.approx(1e-4, rel=1e-3)


def assert_close_runs(a: Path, b: Path) -> None:
    """Same data, and losses and gradients within float32 rounding over a dozen steps."""
    for ours, theirs in zip(read_log(a), read_log(b), strict=True):
        assert ours["step"] == theirs["step"]
        if "loss" in ours:
            assert ours["data"] == theirs["data"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
    # Adam's running means, because the weights of the keys' biases follow rounding noise: their
    # gradient is zero, and Adam divides it by its own size
    ours, theirs = (read_checkpoint(run)["optimizer"]["state"] for run in (a, b))
    for i, state in ours.items():
        torch.testing.assert_close(state["exp_avg"], theirs[i]["exp_avg"], rtol=1e-3, atol=1e-5)
