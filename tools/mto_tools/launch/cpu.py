"""CUDA-only scripts on a CPU, for tests: the device calls become harmless, nothing else changes."""

from __future__ import annotations

import os
from typing import Any

_NOTHING = "set_device synchronize empty_cache reset_peak_memory_stats reset_max_memory_allocated"
_ZERO = "max_memory_allocated memory_allocated max_memory_reserved memory_reserved current_device"


def pretend_cuda(precision: str = "float32") -> None:
    """Make every CUDA call that the recipes use work on the CPU. Call it before torch is imported.

    Args:
        precision: "float32" leaves CUDA's autocast off, as it is without a GPU; "bfloat16" runs the
            whole script under the CPU's autocast. (float16 is about 20 times slower there.)
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    from torch.overrides import TorchFunctionMode

    def cpu(value: Any) -> Any:
        if isinstance(value, str) and value.split(":")[0] == "cuda":
            return "cpu"
        typed = isinstance(value, torch.device) and value.type == "cuda"
        return torch.device("cpu") if typed else value

    class OnCpu(TorchFunctionMode):
        """Every function of torch reads a CUDA device among its arguments as the CPU."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            if function is torch.Tensor.cuda:
                return args[0]
            return function(*map(cpu, args), **{k: cpu(v) for k, v in (kwargs or {}).items()})

    OnCpu().__enter__()
    for name in _NOTHING.split():
        setattr(torch.cuda, name, lambda *_, **__: None)
    for name in _ZERO.split():
        setattr(torch.cuda, name, lambda *_, **__: 0)
    # A scaler without CUDA is switched off and has no state, but three loops log its scale.
    torch.amp.GradScaler.state_dict = lambda self: {"scale": 1.0}  # type: ignore[method-assign]
    _gloo()
    if precision == "bfloat16":
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.bfloat16)
        torch.set_autocast_cache_enabled(False)  # nothing leaves the context: casts would go stale


def _gloo() -> None:
    """Use gloo for NCCL, and no device for DistributedDataParallel."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel as Parallel

    init_group, init_parallel = dist.init_process_group, Parallel.__init__

    def init_process_group(backend: str | None = None, *args: Any, **more: Any) -> None:
        init_group("gloo", *args, **more)

    def init(self: Any, module: Any, *_: Any, **more: Any) -> None:
        init_parallel(self, module, **{**more, "device_ids": None, "output_device": None})

    dist.init_process_group = init_process_group
    Parallel.__init__ = init  # type: ignore[method-assign]
