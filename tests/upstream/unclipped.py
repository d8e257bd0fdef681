"""Runs of a recipe that clips, at a threshold that no gradient reaches.

Then DDP and ZeRO must agree in every bit, as they need not where they clip: ZeRO sums the squares
of a norm in float64, torch on a CPU in float32, which is off by 3e-4 for the largest weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mto_tools.launch.small import Run

from .test_deepspeed import Pairs, agree, values

NEVER = 1e9


@dataclass(frozen=True)
class Unclipped(Pairs):
    """`Pairs` at that threshold."""

    def config(self, stage: int, accumulation: int) -> list[str]:
        """As there; the flags for the recipe itself are in `flags`."""
        given = super().config(stage, accumulation)
        file = Path(given[-1].removeprefix("--deepspeed_config="))
        file.write_text(json.dumps({**json.loads(file.read_text()), "gradient_clipping": NEVER}))
        return given

    @property
    def flags(self) -> tuple[str, ...]:
        """What tells the recipe."""
        if self.runs.runner.upstream == "simmim":
            return ("TRAIN.CLIP_GRAD", str(NEVER))
        return (f"--clip_grad={NEVER}",)

    def both(self) -> tuple[Run, Run]:
        """On ZeRO 2 and under DDP, with MTO."""
        return (
            self.run("zero", mto=True, stage=2, arguments=self.flags),
            self.run("ddp", mto=True, arguments=self.flags),
        )

    def resumed(self) -> tuple[Run, Run]:
        """The second epoch of each, begun as the other."""
        zero, ddp = self.both()
        return (
            self.run("on-zero", mto=True, stage=2, arguments=self.flags, resume=ddp.out.name),
            self.run("on-ddp", mto=True, arguments=self.flags, resume=zero.out.name),
        )


def same(unclipped: Unclipped, run: Run, base: Run) -> None:
    """All that a run computes and saves, and which random numbers it draws."""
    agree(unclipped, run, base, exact=True)
    steps = len(run.losses)
    assert run.rng == base.rng[-steps:]
    assert unclipped.runs.log(run) == unclipped.runs.log(base)[-steps:]


def same_but_for_rounding(unclipped: Unclipped, run: Run, base: Run) -> None:
    """Two micro batches a step, whose sums DDP makes in another order.

    Adam's step does not tell how large a gradient was; its first moment does. After the first
    epoch it is a sum of two gradients, both taken where the weights still were equal: the first
    step's rate is zero.
    """
    assert len(run.losses) == 8
    assert run.losses[:3] == base.losses[:3]
    torch.testing.assert_close(values(run), values(base), rtol=1e-4, atol=0)
    ours, theirs = (
        torch.cat([entry["exp_avg"].flatten() for entry in saved["optimizer"]["state"].values()])
        for saved in (unclipped.saved(run, 0), unclipped.saved(base, 0))
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    for each in (run, base):
        assert [line["step"] for line in unclipped.runs.log(each)] == [1, 2, 3, 4]
    one, two = (unclipped.saved(each)["optimizer"] for each in (run, base))
    assert one["param_groups"] == two["param_groups"]
    for state in (one["state"], two["state"]):
        assert {float(entry["step"]) for entry in state.values()} == {4.0}
