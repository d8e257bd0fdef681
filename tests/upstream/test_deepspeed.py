"""The four recipes on DeepSpeed against the same under DDP, on two processes.

A recipe that clips gets a threshold that no gradient reaches: ZeRO sums the squares of a norm in
float64, torch on a CPU in float32, and the factor differs in its last bit. Without clipping, both
agree in every bit, but for sums over micro batches, which DDP makes in another order.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mto_tools.errors import MtoError
from mto_tools.launch.small import BATCH, Run
from mto_tools.launch.smoke import differences

from .conftest import HERE, OPTIONS, Runs

pytest.importorskip("deepspeed", exc_type=ImportError)
RECIPES = ("mae", "simmim", "simmim_swin", "bootmae", "conmim")
CLIPS = {"simmim": 5.0, "conmim": 1.0}
NEVER = 1e9
COMPARED = ("model", "optimizer", "amp", "lr_scheduler")  # of a checkpoint
# A last bit of float32 can be one of bfloat16 a layer later.
CLOSE = 2e-3 if os.environ.get("MTO_UPSTREAM_PRECISION") == "bfloat16" else 2e-5
# Adam's first steps turn a last bit of a small gradient into a whole step of that weight.
SWING = 3e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs for every recipe, unless it says which."""
    names = getattr(metafunc.function, "recipes", RECIPES)
    metafunc.parametrize("runs", names, indirect=True, scope="module")


def only(*names: str) -> Any:
    """Mark a test as one of some recipes."""

    def mark(function: Any) -> Any:
        function.recipes = names
        return function

    return mark


@dataclass(frozen=True)
class Pairs:
    """Runs under DDP and on DeepSpeed."""

    runs: Runs

    def config(self, stage: int, accumulation: int, clip: float) -> list[str]:
        """Arguments that switch DeepSpeed on."""
        file: Path = self.runs.runner.work / f"zero{stage}-{accumulation}-{clip}.json"
        content = {
            "train_batch_size": 2 * BATCH * accumulation,
            "train_micro_batch_size_per_gpu": BATCH,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": clip,
            "zero_optimization": {"stage": stage},
        }
        file.write_text(json.dumps(content))
        nodes = self.runs.runner.launch.recipe.options.form == "nodes"
        return ["DEEPSPEED.CONFIG", str(file)] if nodes else [f"--deepspeed_config={file}"]

    def run(
        self,
        name: str,
        arguments: tuple[str, ...] = (),
        *,
        mto: bool = True,
        stage: int = 0,
        accumulation: int = 1,
        clip: bool = False,
        **how: Any,
    ) -> Run:
        """Two epochs of four micro batches; `stage` 0 is DDP."""
        given = self.runs.mto(OPTIONS) if mto else []
        upstream, threshold = self.runs.runner.launch.name, 0.0
        if upstream in CLIPS:
            threshold = CLIPS[upstream] if clip else NEVER
            option = {"simmim": "TRAIN.CLIP_GRAD", "conmim": "--clip_grad"}[upstream]
            given += [option, str(threshold)]
        given += self.config(stage, accumulation, threshold) if stage else []
        return self.runs.run(name, [*given, *arguments], processes=2, **how)

    def agree(self, run: Run, base: Run) -> None:
        """All that a run computes and saves, and the random numbers that it draws."""
        steps = len(run.loss)
        assert run.loss == base.loss[-steps:]
        assert run.rng == base.rng[-steps:]
        ours, theirs = self.runs.saved(run), self.runs.saved(base)
        assert list(ours) == list(theirs)
        assert list(ours["model"]) == list(theirs["model"])
        assert not {"MTO", "DEEPSPEED"} & set(ours.get("config", ()))
        for name in ("checkpoint", "checkpoint_copy"):  # ConMIM's teacher is saved beside
            files = [self.runs.runner.checkpoint(each.out, 1) for each in (run, base)]
            files = [Path(str(file).replace("checkpoint-", f"{name}-")) for file in files]
            if files[0].exists():
                found = differences(*files)
                assert [x for x in found if x.split(".")[1] in COMPARED] == []


@pytest.fixture(scope="module")
def pairs(runs: Runs) -> Pairs:
    """The runs of the recipe at hand."""
    return Pairs(runs)


def values(run: Run) -> torch.Tensor:
    return torch.tensor([float.fromhex(loss) for loss in run.loss], dtype=torch.float64)


def first_moment(pairs: Pairs, run: Run) -> torch.Tensor:
    """Adam's, of all weights, after the first epoch."""
    state = pairs.runs.saved(run, 0)["optimizer"]["state"]
    return torch.cat([entry["exp_avg"].flatten() for entry in state.values()])


@pytest.mark.parametrize(("mto", "stage"), [(False, 2), (True, 1)], ids=["off", "on"])
def test_as_under_ddp(pairs: Pairs, mto: bool, stage: int) -> None:
    base = pairs.run(f"ddp-{mto}", mto=mto)
    run = pairs.run(f"zero-{mto}", mto=mto, stage=stage)
    assert len(run.loss) == 8
    pairs.agree(run, base)
    assert not mto or pairs.runs.log(run) == pairs.runs.log(base)


def test_checkpoints_go_on_in_both_directions(pairs: Pairs) -> None:
    """What has begun under one goes on under the other as it would have under DDP alone.

    (BootMAE goes on otherwise than unbroken: each rank begins with a momentum encoder of its own,
    and the checkpoint holds rank 0's.)
    """
    base, zero = pairs.run("ddp-True"), pairs.run("zero-True", stage=1)
    expected = pairs.run("ddp-to-ddp", resume=base.out)
    on_zero = pairs.run("ddp-to-zero", stage=1, resume=base.out)
    on_ddp = pairs.run("zero-to-ddp", resume=zero.out)
    for run in (on_zero, on_ddp):
        assert len(run.loss) == 4
        pairs.agree(run, expected)


@only("simmim", "conmim")
def test_a_clipped_gradient_and_the_norm_in_the_log(pairs: Pairs) -> None:
    base, run = pairs.run("ddp-clipped", clip=True), pairs.run("zero-clipped", stage=1, clip=True)
    assert run.loss[:2] == base.loss[:2], "the first step's rate is zero"
    torch.testing.assert_close(values(run), values(base), rtol=SWING, atol=0)
    ours, theirs = (first_moment(pairs, each) for each in (run, base))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm(), "one was clipped more than the other"
    norms = []
    for each in (run, base):
        folder = pairs.runs.log_file(each.out).parent
        file = next(file for file in folder.glob("log*.txt") if "grad_norm" in file.read_text())
        found = re.findall(r'grad_norm"?:? (\S+?)[ ,}]', file.read_text())
        norms.append([float(one) for one in found])
    assert norms[0]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2), "a shard's would be far smaller"
    assert pairs.runs.name == "simmim" or max(norms[0]) > CLIPS["conmim"], "nothing was clipped"


@only("mae", "simmim", "conmim")
def test_accumulation(pairs: Pairs) -> None:
    """ConMIM has none of its own: the reference is plain accumulation under DDP."""
    flags = {"mae": ("--accum_iter=2",), "simmim": ("TRAIN.ACCUMULATION_STEPS", "2")}
    given = flags.get(pairs.runs.name, ())
    plain = () if given else (HERE / "accumulate.py",)
    base = pairs.run("ddp-2", given, before=plain)
    run = pairs.run("zero-2", given, stage=1, accumulation=2)
    assert len(run.loss) == 8
    assert run.loss[:3] == base.loss[:3], "the same until the second step"
    torch.testing.assert_close(values(run), values(base), rtol=SWING, atol=0)
    assert [line["step"] for line in pairs.runs.log(run)] == [1, 2, 3, 4]
    assert [line["step"] for line in pairs.runs.log(base)] == [1, 2, 3, 4]
    ours, theirs = (pairs.runs.saved(each)["optimizer"] for each in (run, base))
    assert ours["param_groups"] == theirs["param_groups"]
    for state in (ours["state"], theirs["state"]):
        assert {float(entry["step"]) for entry in state.values()} == {4.0}
    # After the first epoch, Adam's moment is a sum of two gradients at equal weights, since the
    # first step's rate is zero.
    ours, theirs = (first_moment(pairs, each) for each in (run, base))
    assert (ours - theirs).norm() < CLOSE * theirs.norm()


@only("simmim")
def test_a_run_without_amp_is_refused(pairs: Pairs) -> None:
    """Its backward would not be DeepSpeed's."""
    with pytest.raises(MtoError):
        pairs.run("o0", ("--amp-opt-level=O0",), stage=1, epochs=1)
    log = (pairs.runs.runner.work / "o0.log").read_text()
    assert "DeepSpeed needs the recipe's loss scaler" in log
    assert "--amp-opt-level" in log


def models(run: Run, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """ConMIM's student and teacher."""
    one, two = (
        torch.load(run.out / f"{name}-{epoch}.pth", weights_only=False)["model"]
        for name in ("checkpoint", "checkpoint_copy")
    )
    return one, two


@only("conmim")
def test_schedules_are_those_of_twice_the_batch(pairs: Pairs) -> None:
    """(Losses would differ: the projector normalises by the micro batch.)"""
    run = pairs.run("zero-2", stage=1, accumulation=2)
    large = pairs.run("ddp-large", (f"--batch_size={2 * BATCH}",))
    assert [line["step"] for line in pairs.runs.log(large)] == [1, 2, 3, 4]
    rates = [
        [g["lr"] for g in pairs.runs.saved(r)["optimizer"]["param_groups"]] for r in (run, large)
    ]
    assert rates[0] == rates[1]


@only("conmim")
def test_schedules_go_by_steps_and_a_resume_is_exact(pairs: Pairs) -> None:
    """Two epochs of six micro batches, of which four make a step and two are left over.

    By upstream's formulas, written out for two steps: a warm-up of one from zero, then one.
    """
    run = pairs.run("leftovers", stage=1, accumulation=4, steps=6)
    assert len(run.loss) == 8
    assert [line["step"] for line in pairs.runs.log(run)] == [1, 2]
    saved = pairs.runs.saved(run)
    parameters = sum(len(group["params"]) for group in saved["optimizer"]["param_groups"])
    assert len(saved["optimizer"]["state"]) < parameters, "some have no gradient"
    assert {float(entry["step"]) for entry in saved["optimizer"]["state"].values()} == {2.0}
    assert {group["lr"] for group in saved["optimizer"]["param_groups"]} == {7.5e-4}
    (student_0, teacher_0), (student_1, teacher_1) = models(run, 0), models(run, 1)
    name = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(student_0[name], teacher_0[name])  # the first step's rate is zero
    assert not torch.equal(student_1[name], student_0[name])
    momentum = 1 - (1 - saved["args"].t_momentum) / 2  # half way on the cosine to one
    expected = teacher_0[name] * momentum + student_1[name] * (1 - momentum)
    moved = (expected - teacher_0[name]).norm()
    assert (teacher_1[name] - expected).norm() < 1e-2 * moved
    resumed = pairs.run("resumed", stage=1, accumulation=4, steps=6, resume=run.out)
    assert resumed.loss == run.loss[4:]
    for ours, theirs in zip(models(resumed, 1), models(run, 1), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
