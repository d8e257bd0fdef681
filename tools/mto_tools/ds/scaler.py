"""The loss scaler as the recipe knows it; the scale itself is applied inside the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mto_tools.ds.engine import Engine
from mto_tools.errors import RefusedError


class ScalerAdapter:
    """Common to the three kinds."""

    def __init__(self, scaler: Any, engine: Engine) -> None:
        self._scaler, self._engine = scaler, engine

    def state_dict(self) -> dict[str, Any]:
        """What the recipe's own scaler would save."""
        scale = self._engine.scale
        return scale.state_dict() if scale.enabled else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale."""
        self._engine.scale.load_state_dict(state)


class NativeScaler(ScalerAdapter):
    """In the place of `NativeScalerWithGradNormCount` (MAE, BootMAE, ConMIM)."""

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


class GradScaler(ScalerAdapter):
    """In the place of `torch.amp.GradScaler`."""

    def scale(self, loss: Tensor) -> Loss:
        """Something to call `backward()` on."""
        return Loss(loss, self._engine)

    def unscale_(self, optimizer: Any) -> None:
        """Nothing: the step unscales, clips and checks."""

    def step(self, optimizer: Any) -> None:
        """The engine's step."""
        self._engine.step()

    def update(self) -> None:
        """Nothing: the step has done it."""

    def get_scale(self) -> float:
        """The current scale."""
        return self._engine.scale.value

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._engine.scale.enabled


class ApexAmp(ScalerAdapter):
    """In the place of the module `apex.amp`, after `initialize`.

    SimMIM names that module in two files, so its functions are replaced, and not the module.
    """

    def __init__(self, scaler: Any, engine: Engine) -> None:
        super().__init__(scaler, engine)
        for name in ("scale_loss", "master_params", "state_dict", "load_state_dict"):
            setattr(scaler, name, getattr(self, name))

    @contextlib.contextmanager
    def scale_loss(self, loss: Tensor, optimizer: Any) -> Iterator[Loss]:
        """Yield something to call `backward()` on."""
        yield Loss(loss, self._engine)

    def master_params(self, optimizer: Any) -> Iterator[Tensor]:
        """None: clipping and the norm are the step's."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """The scale and its count of good steps, under apex's names."""
        scale = self._engine.scale
        return {"loss_scaler0": {"loss_scale": scale.value, "unskipped": scale.good_steps}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what `state_dict`, or apex, has saved."""
        if self._engine.scale.enabled:
            self._engine.scale.load_apex(state)


class Loss:
    """A loss whose `backward()` is the engine's."""

    def __init__(self, loss: Tensor, engine: Engine) -> None:
        self._loss, self._engine = loss, engine

    def backward(self) -> None:
        """One micro batch."""
        self._engine.backward(self._loss)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)


def scaler_adapter(scaler: Any) -> type[ScalerAdapter]:
    """The adapter that looks like `scaler`.

    Raises:
        RefusedError: It is none of the known kinds.
    """
    if isinstance(scaler, torch.amp.GradScaler):
        return GradScaler
    if isinstance(scaler, ModuleType) and hasattr(scaler, "scale_loss"):
        return ApexAmp
    if callable(scaler) and isinstance(getattr(scaler, "_scaler", None), torch.amp.GradScaler):
        return NativeScaler
    raise RefusedError(
        f"DeepSpeed needs the recipe's loss scaler, which must run every backward, not {scaler!r}",
        hint="SimMIM: leave --amp-opt-level at O1",
    )
