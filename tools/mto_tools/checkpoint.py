"""Checkpoints of the recipes: read without running code of theirs, and without their classes."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MissingError

_WEIGHTS = ("model", "model_state", "state_dict", "module")  # keys of a checkpoint, in this order
_SETTINGS = ("args", "config")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file of a recipe."""

    path: Path
    weights: dict[str, Any]  # tensors by parameter name, on the CPU
    settings: dict[str, Any]  # the run's own, by option or, for yacs, nested; {} where none are in
    progress: float | None  # epoch, or step, at which it was saved; None where it does not say


def read_checkpoint(path: Path, *, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint with torch's safe reader; yacs nodes and namespaces become plain dicts.

    Args:
        path: The file.
        mmap: Read tensors when they are used, which is quick where only settings are asked for.

    Raises:
        MissingError: There is no such file.
        CorruptError: The file is cut, is no checkpoint, or wants code to be run.
    """
    import torch

    if not path.is_file():
        raise MissingError(f"there is no checkpoint {path}", hint=f"ls {path.parent}")
    try:
        with torch.serialization.safe_globals(_known()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of zip, pickle, torch or the file system
        raise CorruptError(
            f"{path}: no whole checkpoint that can be read safely: {_reason(error)}",
            hint="give a checkpoint of the recipe; one that was cut cannot be used",
        ) from None
    if not isinstance(found, Mapping):
        raise CorruptError(f"{path}: holds a {type(found).__name__}, not a checkpoint")
    weights = next((found[key] for key in _WEIGHTS if isinstance(found.get(key), Mapping)), found)
    weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise CorruptError(f"{path}: holds no weights; its keys: {', '.join(map(str, found))}")
    settings: Any = next((found[key] for key in _SETTINGS if found.get(key) is not None), {})
    progress = found.get("epoch", found.get("step"))
    return Checkpoint(
        path,
        weights,
        _plain(settings),
        float(progress) if isinstance(progress, (int, float)) else None,
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


class _Node:
    """Stands in for a yacs node, whose class need not be installed."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()  # that the safe reader fills


def _known() -> list[Any]:
    import numpy as np

    try:
        scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
    except AttributeError:  # numpy 1
        scalar = np.core.multiarray.scalar  # type: ignore[attr-defined]
    paths = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    return [
        argparse.Namespace,
        (_Node, "yacs.config.CfgNode"),
        *((pathlib.PurePath, f"pathlib.{name}") for name in paths),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        np.dtype,
        *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")},
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and callable(value.item) and getattr(value, "ndim", None) == 0:
        return value.item()
    return str(value) if isinstance(value, pathlib.PurePath) else value


def _reason(error: Exception) -> str:
    """The line of torch's long message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0][:300]
