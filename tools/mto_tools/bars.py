"""Progress bars with the time that is left, on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bars(console: Console, *, transient: bool = False) -> Progress:
    """Bars that say what is done, of how much, for how long and for how long still.

    `transient` ones are gone at the end.
    """
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    silent = not console.is_terminal
    return Progress(*columns, console=console, disable=silent, transient=transient)
