"""CUDA-only scripts on a CPU, for tests: the device calls become harmless, nothing else changes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

_FACTORIES = (
    "tensor as_tensor zeros ones empty full arange linspace eye rand randn randint randperm"
)
_CALLS = (
    "set_device synchronize empty_cache reset_peak_memory_stats reset_max_memory_allocated "
    "max_memory_allocated memory_allocated max_memory_reserved memory_reserved current_device"
)


def pretend_cuda(precision: str = "float32") -> None:
    """Make every CUDA call that the recipes use work on the CPU. Call it before torch is imported.

    Args:
        precision: "float32" leaves CUDA's autocast off, as it is without a GPU; "bfloat16" runs the
            whole script under the CPU's autocast. (float16 is about 20 times slower there.)
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.Tensor.cuda = _same  # type: ignore[method-assign]
    torch.nn.Module.cuda = _same  # type: ignore[method-assign]
    torch.Tensor.to = _on_cpu(torch.Tensor.to)  # type: ignore[method-assign]
    torch.nn.Module.to = _on_cpu(torch.nn.Module.to)  # type: ignore[method-assign]
    for name in _FACTORIES.split():
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _CALLS.split():
        setattr(torch.cuda, name, lambda *_, **__: 0)
    # A scaler without CUDA is switched off and has no state, but three loops log its scale.
    torch.amp.GradScaler.state_dict = lambda self: {"scale": 1.0}  # type: ignore[method-assign]
    _gloo()
    if precision == "bfloat16":
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.bfloat16)
        torch.set_autocast_cache_enabled(False)  # nothing leaves the context: casts would go stale


def _same(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Read a CUDA device among the arguments as the CPU."""
    import torch

    def device(value: Any) -> Any:
        named = isinstance(value, str) and value.split(":")[0] == "cuda"
        typed = isinstance(value, torch.device) and value.type == "cuda"
        return torch.device("cpu") if named or typed else value

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        return function(*map(device, args), **{k: device(v) for k, v in more.items()})

    return call


def _gloo() -> None:
    """Use gloo for NCCL, and no device for DistributedDataParallel."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel as Parallel

    init_group, init_parallel = dist.init_process_group, Parallel.__init__

    def init_process_group(backend: str | None = None, *args: Any, **more: Any) -> None:
        init_group("gloo", *args, **more)

    def init(self: Any, module: Any, *_: Any, **more: Any) -> None:
        more.update(device_ids=None, output_device=None)
        init_parallel(self, module, **more)

    dist.init_process_group = init_process_group
    Parallel.__init__ = init  # type: ignore[method-assign]
