"""`torch.load` reads nothing but tensors and plain types by default since 2.6."""

from __future__ import annotations

import argparse
import functools
import pickle
from types import SimpleNamespace
from typing import Any

import numpy
import torch

# What a recipe's checkpoint is made of, besides what torch allows by itself.
_PLAIN = {
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray"},
    "collections": {"OrderedDict", "Counter", "defaultdict"},
    "argparse": {"Namespace"},
    "yacs.config": {"CfgNode"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.serialization": {"_get_layout"},
}


def argparse_namespace() -> bool:
    """Let resume and fine-tuning read the `Namespace` which three recipes keep in a checkpoint."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    return True


def numpy_scalars() -> bool:
    """Let resume read the learning rates of BootMAE and ConMIM, which are numpy's float64.

    Their schedules are numpy arrays, whose elements land in the optimizer's parameter groups. Both
    names of the function that rebuilds a scalar are listed: numpy 2 moved it.
    """
    reduced: Any = numpy.float64(0).__reduce__()
    rebuild, dtype = reduced[0], reduced[1][0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    functions = [(rebuild, name) for name in names]
    torch.serialization.add_safe_globals([*functions, numpy.dtype, type(dtype)])
    return True


def yacs_node() -> bool:
    """Let SimMIM read its own checkpoints, which hold the configuration as a yacs `CfgNode`.

    torch's reader cannot fill a `dict` subclass whatever the allow-list says, so such a file is
    read with an unpickler of our own, whose allow-list is as short: tensors, plain containers,
    `Namespace` and `CfgNode`. A call that names `weights_only` or `pickle_module` is left alone.
    """
    if hasattr(torch.load, "reads_yacs"):
        return False
    original = torch.load
    listed = SimpleNamespace(__name__="listed_pickle", Unpickler=_ListedUnpickler, load=_load)

    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **more: Any) -> Any:
        if pickle_module is not None or "weights_only" in more:
            return original(f, map_location, pickle_module, **more)
        start = f.tell() if hasattr(f, "tell") else None
        try:
            return original(f, map_location, weights_only=True, **more)
        except pickle.UnpicklingError as error:
            if "CfgNode" not in str(error):
                raise
        if start is not None:
            f.seek(start)
        return original(f, map_location, listed, weights_only=False, **more)

    load.reads_yacs = True  # type: ignore[attr-defined]
    torch.load = load
    return True


class _ListedUnpickler(pickle.Unpickler):
    """Finds only what `_PLAIN` lists, and torch's storage, dtype and size types."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in old protocols
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        if module == "torch":
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype) or name == "Size" or name.endswith("Storage"):
                return found
        raise pickle.UnpicklingError(
            f"the checkpoint holds {module}.{name}, which is neither a tensor nor plain data; if "
            "you trust the file, load it once with torch.load(..., weights_only=False) and save "
            "the part you need"
        )


def _load(file: Any, **more: Any) -> Any:
    return _ListedUnpickler(file, **more).load()
