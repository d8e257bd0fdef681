"""Settings that a compat patch writes into a script, for one that no patch has touched."""

from __future__ import annotations

import argparse
from typing import Any


def always_distributed() -> bool:
    """Keep `args.distributed` True, as the patch of BootMAE does, whose loop needs a group."""

    def keep_true(self: argparse.Namespace, name: str, value: Any) -> None:
        object.__setattr__(self, name, True if name == "distributed" else value)

    argparse.Namespace.__setattr__ = keep_true  # type: ignore[method-assign]
    return True
