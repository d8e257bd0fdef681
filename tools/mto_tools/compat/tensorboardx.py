"""`tensorboardX`, which torch took over as `torch.utils.tensorboard`."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


def tensorboardx() -> bool:
    """Serve `from tensorboardX import SummaryWriter` with torch's own writer."""
    if "tensorboardX" in sys.modules or importlib.util.find_spec("tensorboardX"):
        return False
    module = ModuleType("tensorboardX", "torch.utils.tensorboard under its first name.")

    def lazily(name: str) -> Any:
        if name != "SummaryWriter":
            raise AttributeError(f"module 'tensorboardX' has no attribute {name!r}")
        from torch.utils.tensorboard import SummaryWriter

        class LogdirWriter(SummaryWriter):
            """Takes `logdir=`, as BootMAE and ConMIM call it, and torch's own `log_dir=`."""

            def __init__(self, logdir: str | None = None, *args: Any, **more: Any) -> None:
                super().__init__(more.pop("log_dir", logdir), *args, **more)

        return LogdirWriter

    module.__getattr__ = lazily  # type: ignore[method-assign]
    sys.modules["tensorboardX"] = module
    return True
