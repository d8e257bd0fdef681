"""Parameters without gradient, which torch's optimizers pass over and ZeRO would decay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


class UnusedParameters:
    """Trained parameters that have had no gradient on any rank so far.

    In ZeRO's flat shard their gradient is zero, by which Adam leaves them where they are, but for
    weight decay.

    Attributes:
        used: Numbers of the parameters that have had a gradient on this rank.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._trained = {n: p for n, p in enumerate(parameters) if p.requires_grad}
        self._none_left = False
        self.used: set[int] = set()
        for number, parameter in self._trained.items():
            parameter.register_hook(lambda grad, number=number: self.used.add(number))

    def numbers(self) -> set[int]:
        """Numbers of those parameters; a collective call."""
        device = next(iter(self._trained.values())).device
        used = torch.tensor([n in self.used for n in self._trained], device=device).int()
        dist.all_reduce(used)
        return {n for n, ranks in zip(self._trained, used.tolist(), strict=True) if not ranks}

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put unused parameters back to their values before the step inside."""
        unused = [] if self._none_left else [self._trained[n] for n in self.numbers()]
        self._none_left = not unused
        before = [p.detach().clone() for p in unused]
        yield
        with torch.no_grad():
            for parameter, value in zip(unused, before, strict=True):
                parameter.copy_(value)
