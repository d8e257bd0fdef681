"""What the compat patch writes into BootMAE, from outside: `args.distributed` is always True.

`worker --before` runs this file for a BootMAE that no patch has touched, which with one process
stops at a barrier; its loop reads `model.module` as well.
"""

from __future__ import annotations

import argparse
from typing import Any


def _keep_true(self: argparse.Namespace, name: str, value: Any) -> None:
    object.__setattr__(self, name, True if name == "distributed" else value)


argparse.Namespace.__setattr__ = _keep_true  # type: ignore[method-assign]
