"""The micro batches of one optimizer step, without those left over from an epoch before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mto_core.balance import GradientMeter


class MicroBatches:
    """What the micro batches of a step have given: the last ones, as many as a step has.

    Where accumulation does not divide an epoch, the recipes drop the gradients of what is left
    over, and begin the step of that same number anew with the next epoch. So more micro batches
    come than a step has, and the first ones were left over. That is known only once they are more.

    Args:
        meters: Those of gradient norms, which measure in each micro batch.
    """

    def __init__(self, meters: Sequence[GradientMeter]) -> None:
        self._measured = [t for m in meters for t in (m.pending, m.pending_images)]
        self.clear()

    def clear(self) -> None:
        """A new step begins."""
        self.rows: list[Tensor | None] = []  # None where the step is not logged
        self._parts: list[list[Tensor]] = []

    def before(self) -> None:
        """Call it before the terms of a micro batch, so that what these measure stands alone."""
        if self._parts:  # of the step before, the meter itself takes in what was measured
            for measured in self._measured:
                measured.zero_()

    @torch.no_grad()
    def keep(self, row: Tensor | None, count: int) -> bool:
        """Take in one micro batch of a step of `count`; return whether there are that many."""
        self.rows = [*self.rows, row][-count:]
        self._parts = [*self._parts, [measured.clone() for measured in self._measured]][-count:]
        for measured, *parts in zip(self._measured, *self._parts, strict=True):
            measured.zero_()
            for part in parts:  # one by one, as the meter would have added them up
                measured += part
        return len(self.rows) == count
