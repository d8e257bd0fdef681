"""Commands around the patch series: checkout, apply, revert, status, verify, diff."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mto_tools.errors import printable
from mto_tools.home import find_home
from mto_tools.patchset.lock import open_upstream
from mto_tools.upstreams.upstream import LAYERS, Upstream, upstream_names

if TYPE_CHECKING:
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


def dump(table: Any) -> None:
    """Print JSON for programs, on stdout."""
    typer.echo(json.dumps(table, indent=2))


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
        str | None,
        typer.Option(help=f"Last layer to apply: {', '.join(LAYERS)}.", metavar="LAYER"),
    ] = None,
    repo: Repo = None,
    source: From = None,
) -> None:
    """Clone if needed, check every object, and switch to the patched tree."""
    from mto_tools.patchset.apply import apply as run

    if through is not None and through not in LAYERS:
        raise typer.BadParameter(f"one of {', '.join(LAYERS)}", param_hint="--through")
    for upstream in upstreams(names, repo):
        done = run(upstream, say, through=through, repo=repo, source=source)
        layers = f" through layer {through}" if through else ""
        already = "" if done.changed else "already "
        say(f"{upstream.name}: {already}applied{layers} in {done.repo}")


def revert(names: Names, repo: Repo = None) -> None:
    """Go back to where the clone was before apply."""
    from mto_tools.patchset.apply import revert as run

    for upstream in upstreams(names, repo):
        done = run(upstream, say, repo=repo)
        what = "reverted" if done.changed else "nothing to revert"
        say(f"{upstream.name}: {what} in {done.repo}")


def verify(names: Names, repo: Repo = None) -> None:
    """Build the series again; compare patches, lock, trees, commits and work tree."""
    from mto_tools.patchset.apply import verify as run

    for upstream in upstreams(names, repo):
        found = run(upstream, say, repo=repo)
        say(f"{upstream.name}: patches, lock, trees, commits and work tree agree in {found.repo}")


def diff(name: Annotated[str, typer.Argument(help="One upstream.")], repo: Repo = None) -> None:
    """Show what the checkout changes over the pinned commit."""
    from mto_tools.patchset.apply import diff as run

    (upstream,) = upstreams([name], repo)
    typer.echo(run(upstream, repo=repo, color=sys.stdout.isatty()), nl=False)


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
        dump([{**asdict(state), "good": state.good} for state in found])
    else:
        _print_status(found)
    if not all(s.word == expect and not s.series if expect else s.good for s in found):
        raise typer.Exit(1)


def _print_status(found: list[Status]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("upstream", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("patched with", "note"):
        table.add_column(column, overflow="fold")
    for state in found:
        off = "off until a run turns it on" if state.layers else ""
        note = "; ".join(part for part in (state.detail, state.series, off) if part)
        word = Text(state.word, _COLORS.get(state.word, "bold red"))
        table.add_row(state.name, word, ", ".join(state.layers) or "-", Text(printable(note)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe has no right margin
    console.print(table)
