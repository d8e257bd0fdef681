"""ConMIM on DeepSpeed: what test_deepspeed.py cannot ask of every recipe."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mto_tools.launch.small import Run

from .conftest import HERE, OPTIONS, Runs
from .unclipped import Unclipped, same, same_but_for_rounding

RECIPE = "conmim"


@pytest.fixture(scope="module")
def unclipped(runs: Runs) -> Unclipped:
    return Unclipped(runs)


def models(run: Run, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Student and teacher."""
    one, two = (
        torch.load(run.out / f"{name}-{epoch}.pth", weights_only=False)["model"]
        for name in ("checkpoint", "checkpoint_copy")
    )
    return one, two


def same_teacher(run: Run, base: Run) -> None:
    ours, theirs = models(run, 1)[1], models(base, 1)[1]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_bit_is_ddps_where_nothing_is_clipped(runs: Runs, unclipped: Unclipped) -> None:
    run, base = unclipped.both()
    assert len(run.losses) == 8
    same(unclipped, run, base)
    same_teacher(run, base)
    saved = unclipped.saved(run)
    parameters = sum(len(group["params"]) for group in saved["optimizer"]["param_groups"])
    assert len(saved["optimizer"]["state"]) < parameters, "some have no gradient"
    norms = [
        [json.loads(line)["train_grad_norm"] for line in (r.out / "log.txt").open()]
        for r in (run, base)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_checkpoints_go_on_exactly_in_both_directions(unclipped: Unclipped) -> None:
    base = unclipped.both()[1]
    for run in unclipped.resumed():
        assert len(run.losses) == 4
        same(unclipped, run, base)
        same_teacher(run, base)


def test_accumulated_gradients_are_those_of_plain_torch(unclipped: Unclipped) -> None:
    """(Clipped gradients would all have the same size.)"""
    run = unclipped.run("zero-2", mto=True, stage=1, accumulation=2, arguments=unclipped.flags)
    plain = (HERE / "accumulate.py",)
    base = unclipped.run("ddp-2", mto=True, arguments=unclipped.flags, before=plain)
    same_but_for_rounding(unclipped, run, base)


def accumulated(runs: Runs, unclipped: Unclipped, name: str, resume: Run | None = None) -> Run:
    """Two epochs of six micro batches, of which four make a step and two are left over."""
    given = [*unclipped.flags, *runs.runner.mto(dict(OPTIONS)), *unclipped.config(1, 4)]
    old = resume.out if resume else None
    runner = runs.with_processes(2)
    return runner.pretrain(name, runs.patched, given, steps=6, epochs=2, resume=old)


@pytest.fixture(scope="module")
def leftovers(runs: Runs, unclipped: Unclipped) -> Run:
    return accumulated(runs, unclipped, "leftovers")


def test_schedules_go_by_steps(runs: Runs, leftovers: Run) -> None:
    """By upstream's formulas, written out for two steps: a warm-up of one from zero, then one."""
    assert len(leftovers.losses) == 8
    assert [line["step"] for line in runs.log(leftovers)] == [1, 2]
    saved = torch.load(runs.runner.checkpoint(leftovers.out, 1), weights_only=False)
    assert {float(entry["step"]) for entry in saved["optimizer"]["state"].values()} == {2.0}
    assert {group["lr"] for group in saved["optimizer"]["param_groups"]} == {7.5e-4}
    (student_0, teacher_0), (student_1, teacher_1) = models(leftovers, 0), models(leftovers, 1)
    name = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(student_0[name], teacher_0[name])  # the first step's rate is zero
    assert not torch.equal(student_1[name], student_0[name])
    momentum = 1 - (1 - saved["args"].t_momentum) / 2  # half way on the cosine to one
    expected = teacher_0[name] * momentum + student_1[name] * (1 - momentum)
    moved = (expected - teacher_0[name]).norm()
    assert (teacher_1[name] - expected).norm() < 1e-2 * moved


def test_resume_is_exact(runs: Runs, unclipped: Unclipped, leftovers: Run) -> None:
    resumed = accumulated(runs, unclipped, "resumed", resume=leftovers)
    assert resumed.losses == leftovers.losses[4:]
    ours, theirs = models(resumed, 1)[0], models(leftovers, 1)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    same_teacher(resumed, leftovers)
