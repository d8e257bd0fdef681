"""`apex.amp`, by torch's own autocast and GradScaler.

What apex did at level O1, and is kept here: half precision inside the model and float32 outside it,
float32 weights, a dynamic loss scale that starts at 65536, doubles after 2000 good steps and halves
on overflow, an optimizer step skipped on overflow, gradients unscaled after each backward pass (so
that clipping and accumulation see true gradients), and the layout of the saved state.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

loss_scaler = torch.amp.GradScaler("cpu", enabled=False)


def amp() -> None:
    """Serve `from apex import amp`, which SimMIM's default precision level insists on."""
    with contextlib.suppress(ImportError):
        importlib.import_module("apex.amp")
        return
    facade, package = ModuleType("apex.amp", __doc__), ModuleType("apex", "Nothing but apex.amp.")
    for function in (initialize, scale_loss, master_params, state_dict, load_state_dict):
        setattr(facade, function.__name__, function)
    vars(package)["amp"] = facade
    sys.modules.update({"apex": package, "apex.amp": facade})


def initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, opt_level: str = "O1"
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Run `model` under autocast and give a float32 output; `opt_level` is O0 or O1.

    Raises:
        ValueError: Another level: O2 and O3 keep half precision weights, which this does not do.
    """
    global loss_scaler
    if opt_level not in ("O0", "O1"):
        raise ValueError(
            f"apex.amp level {opt_level} needs apex itself; use O1 (half precision inside the "
            "model, float32 weights) or O0"
        )
    device = next(model.parameters()).device.type
    loss_scaler = torch.amp.GradScaler(device, enabled=opt_level == "O1" and device == "cuda")
    if opt_level == "O1" and (device == "cuda" or torch.is_autocast_enabled(device)):
        kind = torch.float16 if device == "cuda" else torch.bfloat16
        half: Any = torch.autocast(device, kind)(model.forward)
        model.forward = lambda *args, **more: half(*args, **more).float()
    return model, optimizer


@contextlib.contextmanager
def scale_loss(loss: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield the scaled loss; on leaving, unscale the gradients it added to the optimizer's.

    The gradients of earlier micro batches are laid aside during the backward pass, because they are
    unscaled already.
    """
    scaler = loss_scaler
    if not scaler.is_enabled():
        yield loss
        return
    parameters = list(master_params(optimizer))
    earlier = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    yield scaler.scale(loss)
    scaler.unscale_(optimizer)
    for parameter, grad in zip(parameters, earlier, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    before = scaler.get_scale()
    scaler.update()
    if scaler.get_scale() < before:
        _skip_next_step(optimizer, scaler.get_scale())


def master_params(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters of all groups; at O1 they are the float32 ones."""
    for group in optimizer.param_groups:
        yield from group["params"]


def state_dict() -> dict[str, Any]:
    """Return the scale and its count of good steps, under apex's names."""
    state = loss_scaler.state_dict()
    scale, good_steps = state.get("scale", 1.0), state.get("_growth_tracker", 0)
    return {"loss_scaler0": {"loss_scale": scale, "unskipped": good_steps}}


def load_state_dict(saved: dict[str, Any]) -> None:
    """Read what `state_dict`, or apex, has saved."""
    if loss_scaler.is_enabled():
        theirs = saved["loss_scaler0"]
        new = {"scale": theirs["loss_scale"], "_growth_tracker": theirs["unskipped"]}
        loss_scaler.load_state_dict(loss_scaler.state_dict() | new)


def _skip_next_step(optimizer: Any, scale: float) -> None:
    """Make the coming `optimizer.step()` do nothing, once; a skip that waits already is enough."""
    warnings.warn(f"gradient overflow: step skipped, loss scale down to {scale:g}", stacklevel=4)
    step = optimizer.step

    def skip(*_: Any, **__: Any) -> None:
        optimizer.step = step

    if step.__name__ != skip.__name__:
        optimizer.step = skip
