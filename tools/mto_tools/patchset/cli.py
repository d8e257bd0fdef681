"""Commands around the patch series: checkout, apply, revert, status, verify, diff."""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home
from mto_tools.patchset import authoring_cli
from mto_tools.patchset.pending import open_upstream
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
Keep = Annotated[
    bool, typer.Option("--keep", help="Put local edits on a branch mto-keep/TIME first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    for command in (checkout, apply, revert, status, verify, diff):
        app.command(rich_help_panel="Upstreams and their patches")(command)
    authoring_cli.register(app)


@functools.cache
def _stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print one line for a person, on stderr."""
    _stderr().print(_printable(line), markup=False)


def _printable(text: str) -> str:
    """Replace the bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Turn the system's refusals into our errors; on a terminal, show that something goes on."""
    with plain_errors(), _stderr().status(what):
        yield


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the operating system refuses into our errors.

    Raises:
        MissingError: The disk is full.
        MtoError: No permission, or any other failure of the system.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MissingError(
                f"no space left on the disk of {where}",
                hint="free some disk space, then run the command again; what was begun is finished "
                "or undone by it",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MtoError(
                f"cannot write {where}: {error.strerror}",
                hint="see that it is yours and not read-only; what was begun is finished or undone "
                "by the next mto command",
            ) from error
        raise MtoError(f"{where}: {error.strerror or error}") from error


def upstreams(names: list[str], repo: Path | None) -> list[Upstream]:
    """Load the named upstreams; `--repo` goes with one of them only."""
    if repo and len(names) != 1:
        raise typer.BadParameter("goes with exactly one NAME", param_hint="--repo")
    home = find_home()
    return [open_upstream(home, name, say) for name in dict.fromkeys(names)]


def checkout(names: Names, source: From = None) -> None:
    """Clone upstreams at their pins, unpatched."""
    from mto_tools.patchset.checkout import ensure_clone

    with working("mto checkout"):
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
    keep: Keep = False,
    as_json: Json = False,
) -> None:
    """Clone if needed, check every object, and switch to the patched tree."""
    from mto_tools.patchset.apply import apply as run

    if through is not None and through not in LAYERS:
        raise typer.BadParameter(f"one of {', '.join(LAYERS)}", param_hint="--through")
    outcomes = []
    with plain_errors():
        for upstream in upstreams(names, repo):
            outcome = run(upstream, say, through=through, repo=repo, source=source, keep_edits=keep)
            outcomes.append(outcome)
            layers = f" through {through}" if through else ""
            say(f"{upstream.name}: {'applied' if outcome.done else 'already applied'}{layers}")
    _print_outcomes(outcomes, as_json)


def revert(names: Names, repo: Repo = None, keep: Keep = False, as_json: Json = False) -> None:
    """Go back to where the clone was before apply."""
    from mto_tools.patchset.apply import revert as run

    outcomes = []
    with plain_errors():
        for upstream in upstreams(names, repo):
            outcome = run(upstream, say, repo=repo, keep_edits=keep)
            outcomes.append(outcome)
            say(f"{upstream.name}: {'reverted' if outcome.done else 'nothing to revert'}")
    _print_outcomes(outcomes, as_json)


def verify(names: Names, repo: Repo = None, as_json: Json = False) -> None:
    """Build the series again; compare patches, lock, trees, commits and work tree."""
    from mto_tools.patchset.apply import verify as run

    outcomes = []
    with plain_errors():
        for upstream in upstreams(names, repo):
            outcomes.append(run(upstream, say, repo=repo))
            say(f"{upstream.name}: patches, lock, trees, commits and work tree agree")
    _print_outcomes(outcomes, as_json)


def diff(
    name: Annotated[str, typer.Argument(help="One upstream.")],
    repo: Repo = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only the summary.")] = False,
) -> None:
    """Show what the checkout changes over the pinned commit."""
    from mto_tools.patchset.apply import diff as run

    with plain_errors():
        (upstream,) = upstreams([name], repo)
        out = run(upstream, repo=repo, stat=stat, color=sys.stdout.isatty())
    sys.stdout.buffer.write(out)
    sys.stdout.buffer.flush()


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
    with plain_errors():
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
    columns = ["upstream", "state", "layer", *(["inserted lines"] if verbose else []), "detail"]
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("upstream", "state"))
    for state in found:
        detail = "; ".join(part for part in (state.detail, state.series) if part)
        if verbose:
            more = [f"HEAD {state.head or 'none'}", f"pin {state.pin}", state.repo, *state.edited]
            detail = "\n".join(part for part in (detail, *more) if part)
        word = Text(state.word, style=_COLORS.get(state.word, "bold red"))
        row: list[Any] = [state.name, word, state.through or "-"]
        if verbose:
            from mto_tools.patchset.status import layers_text

            row.append(layers_text(state.inserted) or "-")
        table.add_row(*row, Text(_printable(detail)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe has no right margin
    console.print(table)


def _print_outcomes(outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
