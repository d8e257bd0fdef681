"""The dynamic loss scale of `torch.amp.GradScaler`: its numbers and its state."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


class LossScale:
    """A scale that grows after `interval` good steps in a row and falls on overflow.

    An overflowed step is left out. DeepSpeed's own handling of float16 under autocast (0.19) is not
    used: it updates the scale once per parameter group, and clips gradients that are still scaled.
    """

    def __init__(self, scaler: Any) -> None:
        """Take over the scale of a recipe's scaler: a GradScaler, its wrapper, or `apex.amp`."""
        self.value, self.good_steps = 1.0, 0
        self.growth, self.backoff, self.interval = 2.0, 0.5, 2000
        if isinstance(scaler, ModuleType):
            self.load_apex(scaler.state_dict())
            self.enabled = self.value != 1.0
        else:
            inner = scaler if isinstance(scaler, torch.amp.GradScaler) else scaler._scaler
            self.enabled = inner.is_enabled()
            self.load_state_dict(inner.state_dict())

    def update(self, overflow: bool) -> None:
        """Count a step."""
        if not self.enabled:
            return
        self.good_steps += 1
        if overflow:
            self.value, self.good_steps = self.value * self.backoff, 0
        elif self.good_steps == self.interval:
            self.value, self.good_steps = self.value * self.growth, 0

    def state_dict(self) -> dict[str, Any]:
        """As `GradScaler.state_dict`."""
        return {
            "scale": self.value,
            "growth_factor": self.growth,
            "backoff_factor": self.backoff,
            "growth_interval": self.interval,
            "_growth_tracker": self.good_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `GradScaler.load_state_dict`; the state of a scaler without scale changes nothing."""
        if self.enabled and "_growth_tracker" in state:
            self.value, self.interval = float(state["scale"]), int(state["growth_interval"])
            self.growth = float(state["growth_factor"])
            self.backoff = float(state["backoff_factor"])
            self.good_steps = int(state["_growth_tracker"])

    def load_apex(self, state: dict[str, Any]) -> None:
        """Take the state of `apex.amp`."""
        saved = state["loss_scaler0"]
        self.value, self.good_steps = float(saved["loss_scale"]), int(saved["unskipped"])
