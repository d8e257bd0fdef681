"""Options that leave no trace in the recipe's namespace, which its checkpoints may hold."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mto_tools.errors import MtoError, RefusedError


class PrivateOptions:
    """The options of one feature, which keeps their values itself.

    They follow their parser into others that name it among their `parents`.

    Args:
        group: The parser's group for them.
        begin: Called when a parser with these options begins a command line.
        check: Called at the end of it.

    A ValueError or MtoError of the three functions is an error of the command line.
    """

    def __init__(
        self,
        group: argparse._ArgumentGroup,
        begin: Callable[[], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._group = group
        self.begin = begin
        self.check = check

    def add(self, flag: str, keep: Callable[[Any], None], **more: Any) -> None:
        """Add an option whose value goes to `keep` alone; `more` as `add_argument` takes it."""
        nowhere: dict[str, Any] = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        action: Any = self._group.add_argument(flag, action=_Keep, **nowhere, **more)
        action.options, action.keep = self, keep


class _Keep(argparse.Action):
    options: PrivateOptions
    keep: Callable[[Any], None]

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        _or_refuse(parser, lambda: self.keep(values))


_parse_known_args: Any = argparse.ArgumentParser.parse_known_args


def _parse(parser: Any, args: Any = None, namespace: Any = None, **more: Any) -> Any:
    """`parse_known_args`, with word to the options that it begins and ends.

    A parser that is only made must change nothing: many scripts make theirs on import, which a
    spawned worker repeats.
    """
    own = {action.options: None for action in parser._actions if isinstance(action, _Keep)}
    if namespace is None:  # else it goes on with a command line parsed in part
        for options in own:
            options.begin()
    found = _parse_known_args(parser, args, namespace, **more)
    for options in own:
        _or_refuse(parser, options.check)
    return found


argparse.ArgumentParser.parse_known_args = _parse  # type: ignore[method-assign,assignment]


def _or_refuse(parser: argparse.ArgumentParser, call: Callable[[], None]) -> None:
    try:
        call()
    except (ValueError, MtoError) as error:
        parser.error(str(error))


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
