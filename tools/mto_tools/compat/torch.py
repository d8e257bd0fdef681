"""What torch removed, took over, or reads no longer."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
from collections import OrderedDict
from types import ModuleType
from typing import Any

import torch


def six() -> None:
    """Bring back `from torch._six import inf`, which the gradient norms of three recipes use."""
    module = ModuleType("torch._six", "What was left of the Python 2 bridge when it was removed.")
    vars(module).update(inf=math.inf, nan=math.nan, string_classes=(str, bytes))
    sys.modules["torch._six"] = module


def tensorboardx() -> None:
    """Serve `from tensorboardX import SummaryWriter` with torch's own, where it is not installed.

    It takes `logdir=`, as BootMAE and ConMIM call it.
    """
    if importlib.util.find_spec("tensorboardX"):
        return
    from torch.utils.tensorboard import SummaryWriter

    module = ModuleType("tensorboardX", "torch.utils.tensorboard under its first name.")
    vars(module)["SummaryWriter"] = lambda logdir: SummaryWriter(logdir)
    sys.modules["tensorboardX"] = module


def argparse_namespace() -> None:
    """Let resume and fine-tuning read the `Namespace` which three recipes keep in a checkpoint.

    `torch.load` reads nothing but tensors and plain types by default since 2.6.
    """
    torch.serialization.add_safe_globals([argparse.Namespace])


def numpy_scalars() -> None:
    """Let resume read the learning rates of BootMAE and ConMIM, which are numpy's float64.

    Their schedules are numpy arrays, whose elements land in the optimizer's parameter groups. Both
    names of the function that rebuilds a scalar are listed: numpy 2 moved it.
    """
    import numpy

    reduced: Any = numpy.float64(0).__reduce__()
    rebuild, dtype = reduced[0], reduced[1][0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    functions = [(rebuild, name) for name in names]
    torch.serialization.add_safe_globals([*functions, numpy.dtype, type(dtype)])


def yacs_node() -> None:
    """Let SimMIM read its own checkpoints, which hold the configuration as a yacs `CfgNode`.

    torch's safe reader fills no `dict` subclass but its own, so it reads an `OrderedDict`, which
    then becomes a node again.
    """
    from yacs.config import CfgNode  # type: ignore[import-untyped]

    torch.serialization.add_safe_globals([(OrderedDict, "yacs.config.CfgNode")])
    original = torch.load

    @functools.wraps(original)
    def load(*args: Any, **more: Any) -> Any:
        found = original(*args, **more)
        for key, value in found.items() if isinstance(found, dict) else ():
            if isinstance(value, OrderedDict) and "__immutable__" in vars(value):
                found[key] = CfgNode(dict(value))
                vars(found[key]).update(vars(value))
        return found

    torch.load = load
