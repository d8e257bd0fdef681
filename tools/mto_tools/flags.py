"""Options that leave no trace in the recipe's namespace, which its checkpoints may hold."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_kept(
    group: argparse._ArgumentGroup, flag: str, keep: Callable[[Any], None], **more: Any
) -> None:
    """Add an option whose value goes to `keep`, and nowhere else; `more` as `add_argument` has."""

    class Keep(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
            keep(values)

    nowhere = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    group.add_argument(flag, action=Keep, **nowhere, **more)
