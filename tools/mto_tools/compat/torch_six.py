"""`torch._six`, removed in torch 2.0."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import ModuleType


def torch_six() -> bool:
    """Bring back `from torch._six import inf`, which the gradient norms of three recipes use."""
    if "torch._six" in sys.modules or importlib.util.find_spec("torch._six"):
        return False
    module = ModuleType("torch._six", "What was left of the Python 2 bridge when it was removed.")
    vars(module).update(inf=math.inf, nan=math.nan, string_classes=(str, bytes))
    sys.modules["torch._six"] = module
    return True
