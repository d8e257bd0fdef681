"""Commands around the patch series: checkout, apply, revert, status, verify, diff."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from mto_tools.home import find_home
from mto_tools.patchset.lock import open_upstream
from mto_tools.upstreams.upstream import LAYERS, Upstream, upstream_names

if TYPE_CHECKING:
    from mto_tools.patchset.apply import Outcome
    from mto_tools.patchset.status import Status

_COLORS = {"absent": "dim", "pristine": "cyan", "applied": "green"}
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Upstreams, e.g. mini simmim.")]
Repo = Annotated[
    Optional[Path],  # noqa: UP045  typer reads this at run time, on Python 3.10 as well
    typer.Option(help="A clone or linked work tree you made elsewhere.", metavar="PATH"),
]
From = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--source", help="URL, local mirror or clone, or bundle to fetch from."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    for command in (checkout, apply, revert, status, verify, diff):
        app.command(rich_help_panel="Upstreams and their patches")(command)


@functools.cache
def _stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print one line for a person, on stderr."""
    _stderr().print(_printable(line), markup=False)


def _printable(text: str) -> str:
    """Replace the bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def upstreams(names: list[str], repo: Path | None) -> list[Upstream]:
    """Load the named upstreams; `--repo` goes with one of them only."""
    if repo and len(names) != 1:
        raise typer.BadParameter("goes with exactly one NAME", param_hint="--repo")
    home = find_home()
    return [open_upstream(home, name, say) for name in dict.fromkeys(names)]


def checkout(names: Names, source: From = None) -> None:
    """Clone upstreams at their pins, unpatched."""
    from mto_tools.patchset.checkout import ensure_clone

    for upstream in upstreams(names, None):
        git = ensure_clone(upstream, say, source=source)
        say(f"{upstream.name}: the pin {upstream.pin} is in {git.folder}")


def apply(
    names: Names,
    through: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help=f"Last layer to apply: {', '.join(LAYERS)}.", metavar="LAYER"),
    ] = None,
    repo: Repo = None,
    source: From = None,
    as_json: Json = False,
) -> None:
    """Clone if needed, check every object, and switch to the patched tree."""
    from mto_tools.patchset.apply import apply as run

    if through is not None and through not in LAYERS:
        raise typer.BadParameter(f"one of {', '.join(LAYERS)}", param_hint="--through")
    outcomes = []
    for upstream in upstreams(names, repo):
        outcomes.append(run(upstream, say, through=through, repo=repo, source=source))
        layers = f" through layer {through}" if through else ""
        _say_outcome(outcomes[-1], f"applied{layers}", f"already applied{layers}")
    _print_outcomes(outcomes, as_json)


def revert(names: Names, repo: Repo = None, as_json: Json = False) -> None:
    """Go back to where the clone was before apply."""
    from mto_tools.patchset.apply import revert as run

    outcomes = []
    for upstream in upstreams(names, repo):
        outcomes.append(run(upstream, say, repo=repo))
        _say_outcome(outcomes[-1], "reverted", "nothing to revert")
    _print_outcomes(outcomes, as_json)


def verify(names: Names, repo: Repo = None, as_json: Json = False) -> None:
    """Build the series again; compare patches, lock, trees, commits and work tree."""
    from mto_tools.patchset.apply import verify as run

    outcomes = []
    for upstream in upstreams(names, repo):
        outcomes.append(run(upstream, say, repo=repo))
        _say_outcome(outcomes[-1], "patches, lock, trees, commits and work tree agree", "")
    _print_outcomes(outcomes, as_json)


def diff(
    name: Annotated[str, typer.Argument(help="One upstream.")],
    repo: Repo = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only the summary.")] = False,
) -> None:
    """Show what the checkout changes over the pinned commit."""
    from mto_tools.patchset.apply import diff as run

    (upstream,) = upstreams([name], repo)
    out = run(upstream, repo=repo, stat=stat, color=sys.stdout.isatty())
    stream = getattr(sys.stdout, "buffer", None)
    stream.write(out) if stream else typer.echo(out, nl=False)


def status(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[NAME...]", help="Upstreams; all of them by default."),
    ] = None,
    repo: Repo = None,
    expect: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Exit 1 unless each one named is in this state.", metavar="WORD"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Lines inserted by each layer, OIDs, files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """One word per upstream.

    absent · pristine · applied · partly applied · edited since · wrong base · incomplete clone

    Exits 0 if each is absent, pristine or applied (or, with --expect WORD, WORD), else 1.
    """
    from mto_tools.patchset.status import WORDS
    from mto_tools.patchset.status import status as look

    if expect is not None and expect not in WORDS:
        raise typer.BadParameter(f"one of: {', '.join(WORDS)}", param_hint="--expect")
    wanted = upstreams(names or upstream_names(find_home()), repo)
    found = [look(upstream, say, repo=repo) for upstream in wanted]
    if as_json:
        typer.echo(json.dumps([_as_dict(state) for state in found], indent=2))
    else:
        _print_status(found, verbose)
    if not all(s.word == expect and not s.series if expect else s.good for s in found):
        raise typer.Exit(1)


def _as_dict(state: Status) -> dict[str, Any]:
    return {**asdict(state), "good": state.good}


def _print_status(found: list[Status], verbose: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    lines = ["inserted lines"] if verbose else []
    columns = ["upstream", "state", "patched with", *lines, "note"]
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("upstream", "state"))
    for state in found:
        off = "off until a run turns it on" if state.layers else ""
        note = "; ".join(part for part in (state.detail, state.series, off) if part)
        if verbose:
            more = [f"HEAD {state.head or 'none'}", f"pin {state.pin}", state.repo, *state.edited]
            note = "\n".join(part for part in (note, *more) if part)
        word = Text(state.word, style=_COLORS.get(state.word, "bold red"))
        row: list[Any] = [state.name, word, ", ".join(state.layers) or "-"]
        if verbose:
            row.append(", ".join(f"{layer} {n}" for layer, n in state.inserted.items()) or "-")
        table.add_row(*row, Text(_printable(note)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe has no right margin
    console.print(table)


def _say_outcome(outcome: Outcome, changed: str, unchanged: str) -> None:
    say(f"{outcome.name}: {changed if outcome.changed else unchanged} in {outcome.repo}")


def _print_outcomes(outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
