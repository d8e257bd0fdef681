"""A device without the device: code that would fail, or wait, on a GPU is found on a CPU.

`Elsewhere` makes the CPU stand for the GPU that holds the inputs, and torch's device "meta" for the
CPU. A tensor made without `device=` in a room of ours lands on "meta", and no operation takes
tensors of both. Only calls that stand in our own files count.

`Syncs` collects the places in our files where the host waits for a device: values that are read
(item, tolist, bool), shapes that depend on values (nonzero, masks as indices), and tensors made
from Python numbers on the device, which are copied there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[1]
OURS = (str(ROOT / "mto_core"), str(ROOT / "tools" / "mto_tools"))
FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}
FACTORIES = FROM_DATA | {
    *(torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand),
    *(torch.randint, torch.randn, torch.randperm, torch.tril_indices, torch.zeros),
}
WAITS = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::masked_select"),
    *("aten::nonzero", "aten::unique_dim", "aten::_unique2", "aten::item"),
}
READS = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def our_place() -> str:
    """File and function of the innermost caller in our rooms; "" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _called_by_us() -> bool:
    """Whether the call that a function mode sees stands in one of our files."""
    return sys._getframe(2).f_code.co_filename.startswith(OURS)


class _Bodies(TorchDispatchMode):
    """Runs the bodies of our custom operators under both modes, which torch would leave out."""

    def __init__(self, functions: TorchFunctionMode, see: Callable[..., None]) -> None:
        super().__init__()
        self.functions, self.see = functions, see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.see(name, args, kwargs or {})
        if name.startswith("mto_core"):
            with self, self.functions:
                return OPDEFS[name]._init_fn(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Elsewhere(TorchFunctionMode):
    """Inside it, tensors of one operation have one device and, beside scalars, one float dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = _Bodies(self, _mixed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES and _called_by_us() and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        out = func(*args, **kwargs)
        if func is torch.from_numpy and _called_by_us():
            out = out.to("meta")
        return out

    def __enter__(self) -> Any:
        self.bodies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.bodies.__exit__(*error)


def _mixed(name: str, args: Any, kwargs: Any) -> None:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    devices = {t.device.type for t in tensors}
    if len(devices) > 1:
        raise AssertionError(f"{our_place()}: {name} takes tensors of two devices")
    whole = {t.dtype for t in tensors if t.ndim and t.is_floating_point()}
    converts = name in ("aten::copy_", "aten::_to_copy") or name.startswith("mto_core")
    if len(whole) > 1 and not converts:
        raise AssertionError(f"{our_place()}: {name} takes tensors of {whole}")


class Syncs(TorchFunctionMode):
    """Inside it, `places` collects where our code waits for the device, once per wait."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.reading = False
        self.bodies = _Bodies(self, self._see)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func in READS or (func in FROM_DATA and not isinstance(args[0], Tensor))
        listed = func in (Tensor.__getitem__, Tensor.__setitem__) and _has_list(args[1])
        if not (reads or listed) or self.reading:
            return func(*args, **(kwargs or {}))
        if place := our_place():
            self.places.append(place)
        self.reading = True  # one wait, whatever it calls
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.reading = False

    def _see(self, name: str, args: Any, kwargs: Any) -> None:
        masks = name in INDEXES and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if (masks or name in WAITS) and not self.reading and (place := our_place()):
            self.places.append(place)

    def __enter__(self) -> Any:
        self.bodies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.bodies.__exit__(*error)


def _has_list(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) for part in parts)
