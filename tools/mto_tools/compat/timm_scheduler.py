"""timm's learning rate schedules as they were in 2021."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any

import timm.scheduler.cosine_lr
import timm.scheduler.scheduler

Cosine: Any = timm.scheduler.cosine_lr.CosineLRScheduler
Scheduler: Any = timm.scheduler.scheduler.Scheduler


def t_mul() -> bool:
    """Accept `CosineLRScheduler(t_mul=...)`, called `cycle_mul` since 0.5."""
    init = Cosine.__init__
    if "t_mul" in inspect.signature(init).parameters or hasattr(init, "takes_t_mul"):
        return False

    @functools.wraps(init)
    def renamed(self: Any, *args: Any, **more: Any) -> None:
        if "t_mul" in more:
            more["cycle_mul"] = more.pop("t_mul")
        init(self, *args, **more)

    renamed.takes_t_mul = True  # type: ignore[attr-defined]
    Cosine.__init__ = renamed
    return True


def lr_scale_once() -> bool:
    """Set each group's value as the schedule computed it, without another factor `lr_scale`.

    SimMIM's fine-tuning puts the layer decay into each group's `lr`, from which the schedule
    starts, and notes the factor in the group as `lr_scale`. Since 0.6 timm multiplies by that note
    again. Nothing fails: the lower layers merely learn at the square of the decay.
    """
    probe = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.0, "lr_scale": 0.5}]),
        param_group_field="lr",
    )
    Scheduler.update_groups(probe, 1.0)
    if probe.optimizer.param_groups[0]["lr"] == 1.0:
        return False

    def update_groups(self: Any, values: Any) -> None:
        groups = self.optimizer.param_groups
        each = values if isinstance(values, (list, tuple)) else [values] * len(groups)
        for group, value in zip(groups, each, strict=True):
            group[self.param_group_field] = value

    Scheduler.update_groups = update_groups
    return True
