"""The loss scaler as the recipe knows it; the scale itself is applied inside the engine."""

from __future__ import annotations

import contextlib
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mto_tools.ds.engine import Engine
from mto_tools.errors import RefusedError


def torch_scaler(scaler: Any, device: torch.device) -> torch.amp.GradScaler:
    """torch's scaler inside the recipe's own, or with the state of `apex.amp`.

    Raises:
        RefusedError: The recipe's scaler is none of the known kinds.
    """
    if _is_apex(scaler):
        from mto_tools.compat import apex

        state = scaler.state_dict()
        enabled = state["loss_scaler0"]["loss_scale"] != 1.0
        apex.loss_scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        apex.load_state_dict(state)
        scaler.state_dict, scaler.load_state_dict = apex.state_dict, apex.load_state_dict
        return apex.loss_scaler
    inner = getattr(scaler, "_scaler", None) if callable(scaler) else scaler
    if isinstance(inner, torch.amp.GradScaler):
        return inner
    raise RefusedError(
        f"DeepSpeed needs the recipe's loss scaler, which must run every backward, not {scaler!r}",
        hint="SimMIM: leave --amp-opt-level at O1",
    )


def scaler_adapter(scaler: Any, engine: Engine) -> Any:
    """What looks like the recipe's scaler, and leaves backward and step to the engine."""
    adapter = Scaler(scaler, engine)
    if not _is_apex(scaler):
        return adapter

    # SimMIM names that module in two files, so its functions are replaced, and not the module.
    scaler.scale_loss = lambda loss, optimizer: contextlib.nullcontext(adapter.scale(loss))
    scaler.master_params = lambda optimizer: iter(())  # clipping and the norm are the step's
    return scaler


def _is_apex(scaler: Any) -> bool:
    return isinstance(scaler, ModuleType) and hasattr(scaler, "scale_loss")


class Scaler:
    """A `NativeScalerWithGradNormCount` (MAE, BootMAE, ConMIM) or `torch.amp.GradScaler` (mini).

    All that the engine does not do is the recipe's own scaler's: its scale and its state.
    """

    def __init__(self, own: Any, engine: Engine) -> None:
        self._own, self._engine = own, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(
        self,
        loss: Tensor,
        optimizer: Any,
        clip_grad: float | None = None,
        parameters: Any = None,
        create_graph: bool = False,
        update_grad: bool = True,
    ) -> Tensor | None:
        """Backward and, where due, the step; return the gradient norm before clipping."""
        if create_graph:
            raise RefusedError("an optimizer that needs second derivatives does not go with ZeRO")
        self._engine.backward(loss)
        if not update_grad:
            return None
        self._engine.step()
        return self._engine.grad_norm()

    def scale(self, loss: Tensor) -> Any:
        """Something whose `backward()` is the engine's."""
        return SimpleNamespace(backward=partial(self._engine.backward, loss))

    def unscale_(self, optimizer: Any) -> None:
        """Nothing: the step unscales, clips and checks."""

    def step(self, optimizer: Any) -> None:
        """The engine's step."""
        self._engine.step()

    def update(self) -> None:
        """Nothing: the step has done it."""
