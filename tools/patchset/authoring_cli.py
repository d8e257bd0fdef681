"""Commands for those who write patches: export, lint, upgrade, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mto_tools.errors import MtoError
from mto_tools.home import find_home

Name = Annotated[str, typer.Argument(help="The upstream: a folder under patches/.")]
Repo = Annotated[
    Path | None, typer.Option("--repo", help="Its clone, if not upstream/NAME.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON object on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the authoring commands to `app`."""
    app.command(rich_help_panel="Write patches")(export)
    app.command(rich_help_panel="Write patches")(lint)


def say(line: str) -> None:
    """Tell a person something that a program would not want."""
    print(line, file=sys.stderr)


def export(
    name: Name,
    layer: Annotated[
        str, typer.Option(help="Where new lines go: compat, mto, deepspeed; default: last applied.")
    ] = "",
    message: Annotated[
        list[str] | None,
        typer.Option("-m", "--message", help="Subject; given again, paragraphs that say why."),
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Rewrite patch files and lock from your edited checkout.

    Takes all tracked files as they stand; `git add` a new one to make it part. A line that belongs
    to a patch stays in it. Prints the names of the files written.
    """
    from mto_tools.patchset import export as exporting
    from mto_tools.patchset.upstreams import load_upstream

    upstream = load_upstream(find_home(), name)
    done = exporting.export(upstream, repo, layer, message or (), say)
    if as_json:
        table = {key: getattr(done, key) for key in ("written", "removed", "layer", "untracked")}
        _dump({"name": name, **table, "tree": done.lock.tree, "commit": done.lock.commit})
        return
    for file in (*done.written, *done.removed):
        print(f"patches/{name}/{file}")
    if not (done.written or done.removed):
        say(f"{name}: patches and lock are already those of the checkout")
    for file in done.removed:
        say(f"{file} inserts nothing any more and is removed")
    for note in done.notes:
        say(note)
    if done.untracked:
        shown = ", ".join(done.untracked[:5]) + (" ..." if len(done.untracked) > 5 else "")
        say(f"not exported, because untracked (git add makes them part): {shown}")


def lint(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Default: all upstreams.")
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Prove that the patches only insert, hold no upstream text, and are those that are locked."""
    from mto_tools.patchset import lint as linting

    home = find_home()
    folders = sorted(path.parent.name for path in (home / "patches").glob("*/upstream.toml"))
    results = [linting.lint(home, name, repo) for name in names or folders]
    problems = [problem for result in results for problem in result.problems]
    if as_json:
        _dump({"ok": not problems, "upstreams": [result.as_dict() for result in results]})
    for result in results:
        if not as_json:
            for problem in result.problems:
                print(problem)
        for what in result.unchecked:
            say(f"{result.name}: not checked: {what}")
    if problems:
        raise MtoError(f"mto lint found {len(problems)} problem{'s'[: len(problems) > 1]}")
    total = sum(result.patches for result in results)
    lines = sum(result.inserted for result in results)
    say(f"{len(results)} upstreams, {total} patches, {lines} inserted lines: all as promised")


def _dump(table: dict[str, Any]) -> None:
    print(json.dumps(table, indent=2, default=list))
