"""Options without a trace in the recipe's namespace, and their way to other processes."""

from __future__ import annotations

import argparse
import os
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


class Wish:
    """What this process was asked for, by its command line or by the process that started it.

    Children inherit it by an environment variable, also those that parse no command line. While it
    waits to be met, the first step of any torch optimizer is refused.

    Args:
        variable: Name of the environment variable.
        call: The function that meets it.
        layer: The layer of patches that calls the function.
    """

    def __init__(self, variable: str, call: str, layer: str) -> None:
        self.variable, self._call, self._layer = variable, call, layer
        self._hook: Any = None
        self.ask(self.text)

    @property
    def text(self) -> str | None:
        """The wish; `None` for none."""
        return os.environ.get(self.variable)

    def ask(self, text: str | None) -> None:
        """Make `text` the wish of this process and of its children."""
        self.met()
        os.environ.pop(self.variable, None)
        if text is None:
            return
        os.environ[self.variable] = text
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        def refuse(*_: Any) -> None:
            raise RefusedError(
                f"{self.variable} is {text}, but the script has not called {self._call} before its "
                "first optimizer step: it trains the plain recipe",
                hint=f"mto status   (is layer {self._layer} applied?); without it: unset "
                f"{self.variable}",
            )

        self._hook = register_optimizer_step_pre_hook(refuse)

    def met(self) -> None:
        """Let optimizers step."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
