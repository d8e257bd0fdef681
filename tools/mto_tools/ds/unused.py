"""Parameters without gradient, which torch's optimizers pass over and ZeRO would decay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn


class UnusedParameters:
    """Parameters that have had no gradient on any rank so far.

    In ZeRO's flat shard their gradient is zero, by which Adam leaves them where they are, but for
    weight decay.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._waiting = dict(enumerate(parameters))
        self._none_left = False
        for number, parameter in self._waiting.items():
            if parameter.requires_grad:
                parameter.register_hook(lambda grad, number=number: self.mark_used([number]))

    def on_all_ranks(self) -> list[bool]:
        """By parameter, whether no rank has had a gradient for it; a collective call."""
        device = self._parameters[0].device
        used = torch.ones(len(self._parameters), dtype=torch.int32, device=device)
        used[list(self._waiting)] = 0
        dist.all_reduce(used)
        return [not number for number in used.tolist()]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put unused parameters back to their values before the step inside."""
        unused: list[nn.Parameter] = []
        if not self._none_left:
            flags = self.on_all_ranks()
            unused = [p for p, flag in zip(self._parameters, flags, strict=True) if flag]
            self._none_left = not unused
        before = [p.detach().clone() for p in unused]
        yield
        with torch.no_grad():
            for parameter, value in zip(unused, before, strict=True):
                parameter.copy_(value)

    def mark_used(self, numbers: Iterable[int]) -> None:
        """These parameters have had a gradient."""
        for number in numbers:
            self._waiting.pop(number, None)
