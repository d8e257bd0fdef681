"""Options that leave no trace in the recipe's namespace, which its checkpoints may hold."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mto_tools.errors import RefusedError


def add_private_argument(
    group: argparse._ArgumentGroup, flag: str, keep: Callable[[Any], None], **more: Any
) -> None:
    """Add an option whose value goes to `keep`, and nowhere else; `more` as `add_argument` has."""

    class Keep(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
            keep(values)

    nowhere: dict[str, Any] = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    group.add_argument(flag, action=Keep, **nowhere, **more)


def around_parsing(
    parser: argparse.ArgumentParser, before: Callable[[], None], after: Callable[[], None]
) -> None:
    """Call `before` and `after` whenever `parser` parses a command line.

    A parser that has this one among its `parents` calls neither.
    """
    parse: Any = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None, **more: Any) -> Any:
        if namespace is None:  # else it goes on with a command line parsed in part
            before()
        found = parse(args, namespace, **more)
        after()
        return found

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


class StepGuard:
    """Stops an optimizer that steps before a feature that was asked for is in effect."""

    def __init__(self) -> None:
        self._handle: Any = None

    def clear(self) -> None:
        """Let optimizers step."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def arm(self, message: str, hint: str) -> None:
        """Raise `RefusedError` at the next step of any torch optimizer in this process."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        def refuse(*_: Any) -> None:
            raise RefusedError(message, hint=hint)

        self.clear()
        self._handle = register_optimizer_step_pre_hook(refuse)
