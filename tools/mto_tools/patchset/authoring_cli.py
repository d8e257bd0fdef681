"""Commands for those who write patches: export, lint, upgrade."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mto_tools.errors import ConflictError, MtoError
from mto_tools.home import find_home

if TYPE_CHECKING:
    from mto_tools.upstreams.upstream import Upstream

Name = Annotated[str, typer.Argument(metavar="NAME", help="A folder under patches/.")]
Repo = Annotated[
    Path | None, typer.Option("--repo", help="Its clone, if not upstream/NAME.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON object on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the authoring commands to `app`."""
    for command in (export, lint, upgrade):
        app.command(rich_help_panel="Write patches")(_guarded(command))


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what the operating system refuses into our errors."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        from mto_tools.patchset.cli import plain_errors

        with plain_errors():
            command(*args, **options)

    return run


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
    from_patches: Annotated[
        bool, typer.Option("--from-patches", help="Take patch files you edited or git merged.")
    ] = False,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Rewrite patch files and lock from your edited checkout.

    Takes all tracked files as they stand; `git add` a new one to make it part. A line that belongs
    to a patch stays in it. Prints the names of the files written.
    """
    from mto_tools.patchset import export as exporting
    from mto_tools.upstreams.upstream import load_upstream

    upstream = load_upstream(find_home(), name)
    if from_patches:
        from mto_tools.patchset.relock import relock

        changed, lock = relock(upstream, say, repo)
        if as_json:
            _dump({"name": name, "written": changed, "tree": lock.tree, "commit": lock.commit})
        for file in changed if not as_json else ():
            print(f"patches/{name}/{file}")
        say(f"{name}: patches and lock fit; mto apply {name} brings a checkout to them")
        return
    done = exporting.export(upstream, repo, layer, message or (), say)
    if as_json:
        keys = ("written", "removed", "renamed", "layer", "untracked")
        table = {key: getattr(done, key) for key in keys}
        _dump({"name": name, **table, "tree": done.lock.tree, "commit": done.lock.commit})
        return
    for file in (*done.written, *done.removed):
        print(f"patches/{name}/{file}")
    if not (done.written or done.removed):
        say(f"{name}: patches and lock are already those of the checkout")
    for file in done.removed:
        now = done.renamed.get(file)
        say(f"{file} is now {now}" if now else f"{file} inserts nothing any more and is removed")
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
    results = [linting.lint(home, name, repo) for name in names or _known(home)]
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
        raise MtoError(f"mto lint found {_count(len(problems), 'problem')}")
    total = sum(result.patches for result in results)
    lines = sum(result.inserted for result in results)
    say(
        f"{_count(len(results), 'upstream')}, {_count(total, 'patch', 'patches')}, "
        f"{_count(lines, 'inserted line')}: "
        + ("what could be checked is" if any(r.unchecked for r in results) else "all")
        + " as promised"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def upgrade(
    name: Name,
    to: Annotated[
        str, typer.Option(help="Branch, tag or commit; 'embedded' for the folder as it is.")
    ] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Rewrite pin, patches, lock.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Take what you resolved and accept it.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Forget what you resolved.")] = False,
    scan: Annotated[bool, typer.Option("--scan", help="Try every upstream commit.")] = False,
    since: Annotated[str, typer.Option(help="With --scan: leave out what is older.")] = "",
    source: Annotated[
        str | None, typer.Option(help="URL, path or bundle to look in, such as a fork.")
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Rehearse the patches on another upstream commit; with --accept, move to it.

    A rehearsal writes nothing. Status 0: the series goes on by itself; 6: a person must decide.
    """
    from mto_tools.patchset import pending, resolve
    from mto_tools.upstreams.upstream import load_upstream

    if sum((bool(to), go_on, abort, scan)) != 1:
        raise typer.BadParameter("give one of --to REF, --scan, --continue, --abort")
    home = find_home()
    upstream = load_upstream(home, name)
    pending.recover(upstream.folder, say)
    if abort:
        say(f"removed {resolve.abort(upstream)}; pin, patches and lock are as they were")
    elif go_on:
        with pending.exclusive(upstream.folder, say):
            lock = resolve.proceed(load_upstream(home, name), say, repo)
        _accepted(name, lock.base_commit, as_json)
    elif scan:
        _scan(load_upstream(home, name), since, source, repo, as_json)
    else:
        _upgrade(load_upstream(home, name), to, accept, source, repo, as_json)


def _upgrade(
    upstream: Upstream, to: str, accept: bool, source: str | None, repo: Path | None, as_json: bool
) -> None:
    from contextlib import nullcontext

    from rich.console import Console

    from mto_tools.patchset import pending, report, resolve, upgrade
    from mto_tools.patchset.workshop import open_workshop

    if accept:
        resolve.refuse_second(upstream)
    hold = pending.exclusive(upstream.folder, say) if accept else nullcontext()
    with hold, open_workshop(upstream, say, source, repo) as shop:
        rehearsal = upgrade.rehearse(shop, upstream, to)
        if as_json and not accept:
            _dump(rehearsal.as_dict())
        else:
            report.show_rehearsal(Console(stderr=accept, highlight=False), rehearsal)
        if not accept:
            if not rehearsal.ok:
                raise ConflictError(
                    f"the series of {upstream.name} conflicts with {rehearsal.target}",
                    hint=f"mto upgrade {upstream.name} --to {to} --accept opens a work tree to "
                    "resolve it; nothing has been changed",
                )
            return
        if not rehearsal.ok:
            resolve.start(shop, upstream, rehearsal.target, source or "", say)
        done = [(step.patch, step.after) for step in rehearsal.steps]
        upgrade.accept(shop, upstream, rehearsal.target, done, say, source, repo)
    _accepted(upstream.name, rehearsal.target, as_json)


def _accepted(name: str, commit: str, as_json: bool) -> None:
    if as_json:
        _dump({"name": name, "pin": commit, "accepted": True})
    else:
        print(commit)
    say(f"{name} is now pinned to {commit}; patches and lock are rewritten")
    say(f"a checkout still holds the old ones: mto apply {name}")


def _scan(
    upstream: Upstream, since: str, source: str | None, repo: Path | None, as_json: bool
) -> None:
    from rich.console import Console

    from mto_tools.patchset import report
    from mto_tools.patchset.scan import scan
    from mto_tools.patchset.workshop import open_workshop

    with open_workshop(upstream, say, source, repo) as shop:
        tried = scan(shop, upstream, since)
        if as_json:
            _dump({"name": upstream.name, "commits": [one.as_dict() for one in tried]})
        else:
            report.show_scan(Console(highlight=False), tried)


def _known(home: Path) -> list[str]:
    return sorted(path.parent.name for path in (home / "patches").glob("*/upstream.toml"))


def _dump(table: dict[str, Any]) -> None:
    print(json.dumps(table, indent=2, default=list))
