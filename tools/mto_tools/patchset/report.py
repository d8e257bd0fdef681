"""What an upgrade would do, for the eye. Upstream text is shown here and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mto_tools.patchset.rehearse import Rehearsal
from mto_tools.patchset.replay import HunkReport, Step

WORDS = {
    "clean": "clean",
    "moved": "only moved",
    "absorbed": "upstream has it",
    "renamed": "file renamed",
    "conflict": "conflict",
    "gone": "file gone",
}
_COLOURS = {
    "clean": "green",
    "moved": "green",
    "absorbed": "yellow",
    "renamed": "yellow",
    "conflict": "bold red",
    "gone": "bold red",
}
_MOST = 24
"""Lines of upstream text shown of one place."""


def show_rehearsal(console: Console, rehearsal: Rehearsal) -> None:
    """Print the report of one upgrade."""
    r = rehearsal
    distance = "" if r.ahead < 0 else f" ({r.ahead} ahead, {r.behind} behind)"
    for line in (f"{r.name}  {r.pin}", f"to  {r.target}", f"    {r.date} {r.subject}{distance}"):
        console.print(Text(line), soft_wrap=True)
    for step in r.steps:
        console.print(Text(f"\n{step.patch.name}", style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for hunk in step.hunks:
            table.add_row("", *_row(hunk))
        console.print(table)
        for part in _details(step):
            console.print(part, soft_wrap=True)
    if r.copied:
        lines = [f"  {place}" for place in r.copied]
        console.print(Text("\nupstream has these inserted lines too:", "bold red"))
        console.print(Text("\n".join(lines)), soft_wrap=True)
    for change in r.licence:
        console.print(Text(f"\nlicence: {change.path} {change.what}", style="bold yellow"))
        console.print(_quoted(change.lines))


def _row(hunk: HunkReport) -> tuple[RenderableType, ...]:
    now = "" if hunk.now is None else f"-> {hunk.now[0]}:{hunk.now[1]}"
    return (
        Text(f"{hunk.path}:{hunk.after}"),
        Text(f"+{hunk.count}", "dim"),
        Text(WORDS[hunk.verdict], _COLOURS[hunk.verdict]),
        Text(now if hunk.now != (hunk.path, hunk.after) else ""),
        Text("upstream changed around it" if hunk.around else "", "dim"),
    )


def _details(step: Step) -> Iterable[RenderableType]:
    for note in dict.fromkeys(f"  {hunk.path}: {hunk.note}" for hunk in step.hunks if hunk.note):
        yield Text(note)
    for path, lines in step.sides.items():
        yield Group(Text(f"  {path}, both sides:", "bold red"), _quoted(lines))
    for hunk in step.hunks:
        if hunk.around:
            yield Group(Text(f"  upstream around {hunk.path}:{hunk.after}"), _quoted(hunk.around))


def _quoted(lines: list[str]) -> RenderableType:
    more = [f"... {len(lines) - _MOST} more lines"] if len(lines) > _MOST else []
    return Text("\n".join(f"    {line}" for line in [*lines[:_MOST], *more]))
