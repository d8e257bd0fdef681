"""torchvision's transforms, as two recipes use them."""

from __future__ import annotations

import importlib
import marshal
from types import CodeType, FunctionType
from typing import Any

import torchvision.transforms.functional

transforms: Any = torchvision.transforms


def get_image_size() -> None:
    """Bring back `_get_image_size`, public since 0.13: MAE's random crop for linear probing."""
    transforms.functional._get_image_size = transforms.functional.get_image_size


def picklable_lambda() -> None:
    """Let workers started by spawn or forkserver, Python 3.14's default, receive the transform.

    SimMIM's pre-training has `transforms.Lambda` of a lambda, which pickle cannot send.
    """
    transforms.Lambda = Lambda


class Lambda(transforms.Lambda):
    """A lambda travels as byte code, to be run in its own module by the same Python."""

    def __reduce__(self) -> Any:
        function: Any = self.lambd
        if function.__name__ != "<lambda>" or function.__closure__:
            return Lambda, (function,)
        code = marshal.dumps(function.__code__)
        return _unmarshal, (code, function.__module__, function.__defaults__)


def _unmarshal(code: bytes, module: str, defaults: tuple[Any, ...] | None) -> Lambda:
    body: CodeType = marshal.loads(code)
    space = vars(importlib.import_module(module))
    return Lambda(FunctionType(body, space, body.co_name, defaults))
