"""Commands around the patch series: checkout, apply, revert, status, verify, diff."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mto_tools.errors import printable
from mto_tools.home import find_home
from mto_tools.patchset.lock import open_upstream
from mto_tools.upstreams.upstream import LAYERS, Upstream, upstream_names

if TYPE_CHECKING:
    from mto_tools.patchset.apply import Outcome
    from mto_tools.patchset.status import Status

_COLORS = {"absent": "dim", "pristine": "cyan", "applied": "green"}
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Upstreams, e.g. mini simmim.")]
Repo = Annotated[
    Path | None,
    typer.Option(help="A clone or linked work tree you made elsewhere.", metavar="PATH"),
]
From = Annotated[
    str | None,
    typer.Option("--source", help="URL, local mirror or clone, or bundle to fetch from."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    for command in (checkout, apply, revert, status, verify, diff):
        app.command(rich_help_panel="Upstreams and their patches")(command)


def say(line: str) -> None:
    """Print one line for a person, on stderr."""
    typer.echo(printable(line), err=True)


def upstreams(names: list[str], repo: Path | None) -> list[Upstream]:
    """Load the named upstreams; `--repo` goes with one of them only."""
    if repo and len(names) != 1:
        raise typer.BadParameter("goes with exactly one NAME", param_hint="--repo")
    home = find_home()
    return [open_upstream(home, name, say) for name in dict.fromkeys(names)]


def _each(
    run: Callable[..., Outcome],
    names: list[str],
    repo: Path | None,
    as_json: bool,
    changed: str,
    unchanged: str = "",
    **options: str | None,
) -> None:
    """Run a command on each upstream, say what was done and where, and print JSON if asked."""
    outcomes = []
    for upstream in upstreams(names, repo):
        outcome = run(upstream, say, repo=repo, **options)
        say(f"{outcome.name}: {changed if outcome.changed else unchanged} in {outcome.repo}")
        outcomes.append(asdict(outcome))
    if as_json:
        typer.echo(json.dumps(outcomes, indent=2))


def checkout(names: Names, source: From = None) -> None:
    """Clone upstreams at their pins, unpatched."""
    from mto_tools.patchset.checkout import ensure_clone

    for upstream in upstreams(names, None):
        git = ensure_clone(upstream, say, source=source)
        say(f"{upstream.name}: the pin {upstream.pin} is in {git.folder}")


def apply(
    names: Names,
    through: Annotated[
        str | None,
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
    done = "applied" + (f" through layer {through}" if through else "")
    _each(run, names, repo, as_json, done, f"already {done}", through=through, source=source)


def revert(names: Names, repo: Repo = None, as_json: Json = False) -> None:
    """Go back to where the clone was before apply."""
    from mto_tools.patchset.apply import revert as run

    _each(run, names, repo, as_json, "reverted", "nothing to revert")


def verify(names: Names, repo: Repo = None, as_json: Json = False) -> None:
    """Build the series again; compare patches, lock, trees, commits and work tree."""
    from mto_tools.patchset.apply import verify as run

    _each(run, names, repo, as_json, "patches, lock, trees, commits and work tree agree")


def diff(
    name: Annotated[str, typer.Argument(help="One upstream.")],
    repo: Repo = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only the summary.")] = False,
) -> None:
    """Show what the checkout changes over the pinned commit."""
    from mto_tools.patchset.apply import diff as run

    (upstream,) = upstreams([name], repo)
    out = run(upstream, repo=repo, stat=stat, color=sys.stdout.isatty())
    typer.echo(out, nl=False)


def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Upstreams; all of them by default."),
    ] = None,
    repo: Repo = None,
    expect: Annotated[
        str | None,
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
        states = [{**asdict(state), "good": state.good} for state in found]
        typer.echo(json.dumps(states, indent=2))
    else:
        _print_status(found, verbose)
    if not all(s.word == expect and not s.series if expect else s.good for s in found):
        raise typer.Exit(1)


def _print_status(found: list[Status], verbose: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("upstream", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("patched with", *(["inserted lines"] if verbose else []), "note"):
        table.add_column(column, overflow="fold")
    for state in found:
        off = "off until a run turns it on" if state.layers else ""
        note = "; ".join(part for part in (state.detail, state.series, off) if part)
        word = Text(state.word, _COLORS.get(state.word, "bold red"))
        row = [", ".join(state.layers) or "-"]
        if verbose:
            row.append(", ".join(f"{layer} {n}" for layer, n in state.inserted.items()) or "-")
            more = [f"HEAD {state.head or 'none'}", f"pin {state.pin}", state.repo, *state.edited]
            note = "\n".join(part for part in (note, *more) if part)
        table.add_row(state.name, word, *row, Text(printable(note)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe has no right margin
    console.print(table)
