"""`torchvision.transforms.Lambda` of a lambda, which pickle cannot send to a worker."""

from __future__ import annotations

import importlib
import marshal
from types import CodeType, FunctionType
from typing import Any

import torchvision.transforms

transforms: Any = torchvision.transforms


def picklable_lambda() -> bool:
    """Let workers started by spawn or forkserver, Python 3.14's default, receive the transform.

    SimMIM's pre-training has such a lambda. It travels as byte code, to be run in its own module;
    both processes run the same Python.
    """
    known = transforms.Lambda
    if hasattr(known, "travels"):
        return False

    class Lambda(known):  # type: ignore[misc,valid-type]
        travels = True

        def __reduce__(self) -> Any:
            function: Any = self.lambd
            if function.__name__ != "<lambda>" or function.__closure__:
                return _make, (function,)
            code = marshal.dumps(function.__code__)
            return _unmarshal, (code, function.__module__, function.__defaults__)

    Lambda.__name__ = Lambda.__qualname__ = known.__name__
    transforms.Lambda = Lambda
    return True


def _make(function: Any) -> Any:
    picklable_lambda()
    return transforms.Lambda(function)


def _unmarshal(code: bytes, module: str, defaults: tuple[Any, ...] | None) -> Any:
    body: CodeType = marshal.loads(code)
    space = vars(importlib.import_module(module))
    return _make(FunctionType(body, space, body.co_name, defaults))
