"""Optimizers that timm renamed or dropped, and that two optimizer factories import by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_LEGACY = {"nadam": ("Nadam", "NAdamLegacy"), "radam": ("RAdam", "RAdamLegacy")}


def renamed() -> bool:
    """Bring back `Nadam` and `RAdam`, which are `NAdamLegacy` and `RAdamLegacy` since 1.0.

    BootMAE and ConMIM import them at the top of `optim_factory`, though their recipes use AdamW.
    """
    changed = False
    for module_name, (old, new) in _LEGACY.items():
        module = importlib.import_module(f"timm.optim.{module_name}")
        if not hasattr(module, old):
            setattr(module, old, getattr(module, new))
            changed = True
    return changed


def novograd() -> bool:
    """Let ConMIM import `NovoGrad`; to ask for it is an error, for no timm of today computes it."""
    name = "timm.optim.novograd"
    if name in sys.modules or importlib.util.find_spec(name):
        return False
    module = ModuleType(name, "The place of an optimizer that timm dropped.")
    module.NovoGrad = _NovoGrad  # type: ignore[attr-defined]
    sys.modules[name] = module
    return True


class _NovoGrad:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(
            "--opt novograd: timm no longer has this optimizer; use --opt nvnovograd, NVIDIA's "
            "version of it, or --opt adamw, the recipe's own"
        )
