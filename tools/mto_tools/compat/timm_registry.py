"""timm's model registry hands arguments to a model that old model functions do not take."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

_NEW_ARGUMENTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register_model() -> bool:
    """Drop what `create_model` passes since 0.6 and 1.0 before it reaches an upstream's model.

    Only the deprecated path that the recipes import from is changed; timm's models are not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        registry: Any = importlib.import_module("timm.models.registry")
    original = registry.register_model
    if hasattr(original, "drops") or original.__module__ == registry.__name__:
        return False

    def register(function: Any) -> Any:
        @functools.wraps(function)
        def build(*args: Any, **more: Any) -> Any:
            kept = {k: v for k, v in more.items() if k not in _NEW_ARGUMENTS}
            return function(*args, **kept)

        return original(build)

    register.drops = _NEW_ARGUMENTS  # type: ignore[attr-defined]
    registry.register_model = register
    return True
