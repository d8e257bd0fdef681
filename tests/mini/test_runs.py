"""Whole runs: repeatable, resumable after a kill at any moment, the same on two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import TINY, Recipe, assert_same_run, read_checkpoint, read_log

STYLES = ("simmim", "mae")


@pytest.mark.parametrize("style", STYLES)
def test_repeatable_bit_for_bit(recipe: Recipe, tmp_path: Path, style: str) -> None:
    flags = ("--style", style, "--drop_path", "0.2")
    a = recipe.train(tmp_path / "a", *flags)
    assert_same_run(a, recipe.train(tmp_path / "b", *flags))
    # neither workers, nor an empty cache, nor more frequent saving and scoring touch the run
    c = recipe.train(
        *(tmp_path / "c", *flags, "--workers", "2", "--cache_mb", "0"),
        *("--eval_every", "1", "--save_every", "2"),
    )
    assert [line for line in read_log(c) if "loss" in line] == [
        line for line in read_log(a) if "loss" in line
    ]
    ours, theirs = read_checkpoint(a), read_checkpoint(c)
    assert all(torch.equal(w, theirs["model"][name]) for name, w in ours["model"].items())
    assert torch.equal(ours["rng"][0]["torch"], theirs["rng"][0]["torch"])


def test_seed_matters(recipe: Recipe, tmp_path: Path) -> None:
    a, b = (recipe.train(tmp_path / s, "--seed", s) for s in ("1", "2"))
    first, second = read_log(a)[0], read_log(b)[0]
    assert first["loss"] != second["loss"]
    assert first["data"] != second["data"]


def test_log_and_checkpoint_hold_what_they_promise(recipe: Recipe, tmp_path: Path) -> None:
    out = recipe.train(tmp_path / "out", "--save_steps", "0,7")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 8, 12, 12]
    for line in lines:
        if "loss" in line:
            assert list(line) == ["step", "loss", "lr", "step_ms", "data"]
            assert len(line["data"]) == 8
            assert int(line["data"], 16) > 0
        else:
            assert list(line) == ["step", "knn", "probe", "probe10"]
            assert all(0 <= line[name] <= 1 for name in ("knn", "probe", "probe10"))
    assert (recipe.processes[0].out).read_text() == (out / "log.jsonl").read_text()
    assert sorted(p.name for p in out.iterdir()) == [
        *("checkpoint-000000.pth", "checkpoint-000007.pth", "checkpoint.pth", "images.png"),
        "log.jsonl",
    ]
    for name, step in (("checkpoint-000000.pth", 0), ("checkpoint-000007.pth", 7)):
        assert read_checkpoint(out, name)["step"] == step
    state = read_checkpoint(out)
    assert state["step"] == 12
    assert {"model", "optimizer", "scaler", "step", "rng", "args"} <= state.keys()
    assert state["args"]["style"] == "mae"


def test_a_finished_run_stays_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    out = recipe.train(tmp_path / "out")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    recipe.train(out)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()} == before


@pytest.mark.parametrize("style", STYLES)
def test_killed_at_any_change_of_a_file_and_resumed(
    recipe: Recipe, tmp_path: Path, style: str
) -> None:
    """A checkpoint is two changes, a file beside it and a rename; the log is one, when opened."""
    flags = (
        *("--style", style, "--drop_path", "0.2", "--steps", "30", "--log_every", "4"),
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


def test_resumed_with_another_period_of_the_log(recipe: Recipe, tmp_path: Path) -> None:
    """Three stretches of one run, of which the second ends before it logs."""
    each = read_log(recipe.train(tmp_path / "each", "--log_every", "1"))
    losses = [line["loss"] for line in each if "loss" in line]
    out = tmp_path / "out"
    for period, stop in ((4, 5), (10, 6), (7, 12)):
        recipe.train(out, "--log_every", str(period), "--save_steps", str(stop))
        (out / f"checkpoint-{stop:06d}.pth").replace(out / "checkpoint.pth")
    found = {line["step"]: line["loss"] for line in read_log(out) if "loss" in line}
    assert list(found) == [4, 7, 12]
    for first, last in ((0, 4), (4, 7), (7, 12)):
        assert found[last] == pytest.approx(sum(losses[first:last]) / (last - first), rel=1e-6)


def test_two_ranks_give_the_losses_of_one(recipe: Recipe, tmp_path: Path) -> None:
    one = recipe.train(tmp_path / "one")
    two = tmp_path / "two"
    ranks = recipe.start_ranks(two)
    for process in ranks:
        assert process.wait() == 0, process.stderr
    assert_close_runs(one, two)
    assert len(read_checkpoint(two)["rng"]) == 2
    assert ranks[1].out.read_text() == ""


def test_torchrun_resumes(recipe: Recipe, tmp_path: Path) -> None:
    """The real launcher; stopped at step 5 of 12 and gone on with by two ranks."""
    whole = recipe.train(tmp_path / "whole", "--style", "simmim")
    out = tmp_path / "out"
    recipe.train(out, "--style", "simmim", "--save_steps", "5")
    (out / "checkpoint-000005.pth").replace(out / "checkpoint.pth")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(recipe.folder / "main_pretrain.py")),
            *("--data_path", str(recipe.data), "--output_dir", str(out), *TINY),
            *("--style", "simmim"),
        ],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    assert_close_runs(whole, out)


@pytest.mark.parametrize("style", STYLES)
def test_accumulation_gives_the_same_run(recipe: Recipe, tmp_path: Path, style: str) -> None:
    one = recipe.train(tmp_path / "one", "--style", style)
    four = recipe.train(tmp_path / "four", "--style", style, "--accum_steps", "4")
    assert_close_runs(one, four)


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
