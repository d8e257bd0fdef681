"""Commands for those who write patches: export, lint, upgrade."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated

import typer

from mto_tools.errors import ConflictError, MtoError
from mto_tools.home import find_home
from mto_tools.patchset.cli import Json, Repo, dump, say
from mto_tools.patchset.lock import open_upstream
from mto_tools.upstreams.upstream import load_upstream, upstream_names

Name = Annotated[str, typer.Argument(metavar="NAME", help="A folder under patches/.")]


def register(app: typer.Typer) -> None:
    """Add the authoring commands to `app`."""
    for command in (export, lint, upgrade):
        app.command(rich_help_panel="Write patches")(command)


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

    upstream = open_upstream(find_home(), name, say)
    if from_patches:
        done = exporting.regenerate(upstream, say, repo)
    else:
        done = exporting.export(upstream, repo, layer, message or (), say)
    if as_json:
        dump({"name": name, **asdict(done)})
        return
    for file in done.written:
        typer.echo(f"patches/{name}/{file}")
    for file in done.removed:
        say(f"removed patches/{name}/{file}")
    if done.written or done.removed or from_patches:
        say(f"{name}: patches and lock are written in {upstream.folder}")
    else:
        say(f"{name}: patches and lock are already those of {repo or upstream.checkout}")
    if done.untracked:
        files = ", ".join(done.untracked)
        say(f"not exported, because untracked (git add makes them part): {files}")


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
    results = [linting.lint(home, name, repo) for name in names or upstream_names(home)]
    problems = [problem for result in results for problem in result.problems]
    if as_json:
        table = [{**asdict(result), "ok": not result.problems} for result in results]
        dump({"ok": not problems, "upstreams": table})
    else:
        for problem in problems:
            typer.echo(problem)
    for result in results:
        for what in result.unchecked:
            say(f"{result.name}: not checked: {what}")
    if problems:
        raise MtoError(f"mto lint found problems: {len(problems)}")
    patches = sum(result.patches for result in results)
    lines = sum(result.inserted for result in results)
    done = "what could be checked is" if any(result.unchecked for result in results) else "all"
    counts = f"upstreams: {len(results)}, patches: {patches}, inserted lines: {lines}"
    say(f"{counts}; {done} as promised")


def upgrade(
    name: Name,
    to: Annotated[
        str, typer.Option(help="Branch, tag or commit; 'embedded' for the folder as it is.")
    ] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Rewrite pin, patches, lock.")] = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Take the conflicts you resolved, and accept.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Forget what you resolved.")] = False,
    source: Annotated[
        str | None, typer.Option(help="URL, path or bundle to look in, such as a fork.")
    ] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> None:
    """Rehearse the patches on another upstream commit; with --accept, move to it.

    A rehearsal writes nothing. Status 0: the series goes on by itself; 6: a person must decide.
    """
    from rich.console import Console

    from mto_tools.patchset import rehearse
    from mto_tools.patchset import upgrade as upgrading
    from mto_tools.patchset.scratch_repo import open_scratch
    from mto_tools.patchset.transaction import series_lock

    only_to = accept or as_json
    if sum((bool(to), go_on, abort)) != 1 or (only_to and not to) or (accept and as_json):
        raise typer.BadParameter("give one of --to REF [--accept | --json], --continue, --abort")
    home = find_home()
    upstream = open_upstream(home, name, say)
    if abort:
        folder = upgrading.abort(upstream)
        say(f"removed {folder}; pin, patches and lock are as they were")
        return
    with series_lock(upstream.folder, say) if accept or go_on else nullcontext():
        upstream = load_upstream(home, upstream.name)
        if go_on:
            lock = upgrading.proceed(upstream, say, repo)
        else:
            with open_scratch(upstream, say, source, repo) as scratch:
                rehearsal = rehearse.rehearse(scratch, to)
                if as_json:
                    dump(rehearsal.as_dict())
                else:
                    rehearse.show(Console(stderr=accept, highlight=False), rehearsal)
                if accept:
                    lock = upgrading.upgrade(scratch, rehearsal, say, repo)
                elif not rehearsal.ok:
                    raise ConflictError(
                        f"the series of {name} conflicts with {rehearsal.target}",
                        hint=f"mto upgrade {name} --to {to} --accept opens a work tree to resolve "
                        "it; nothing has been changed",
                    )
                else:
                    return
    typer.echo(lock.base_commit)
    say(
        f"{name} is now pinned to {lock.base_commit}; patches and lock in {upstream.folder} are "
        f"rewritten, and mto apply {name} brings a checkout to them"
    )
