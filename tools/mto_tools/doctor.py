"""`mto doctor`: programs, packages, disk and upstreams of this machine, with what mends a gap."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home
from mto_tools.launch.needs import missing_modules, package, required
from mto_tools.patchset.git import OLDEST, Git
from mto_tools.patchset.replay import NEEDED, git_version
from mto_tools.patchset.sources import find_source
from mto_tools.patchset.status import ABSENT, APPLIED, PRISTINE, status
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import Upstream, load_upstream, upstream_names

PATIENCE = 8.0  # seconds that a source has for its answer
ROOM = 2.0  # GB that clones of all upstreams, a data set of digits and some checkpoints take
PLACES = {ABSENT: "not checked out", PRISTINE: "ready to apply", APPLIED: "applied"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str  # such as "git" or "mae source"
    state: str  # "ok", "missing", or "note" for what only some tasks need
    found: str
    hint: str = ""  # what mends it


def doctor(home: Path, names: list[str], *, network: bool = True) -> Iterator[Finding]:
    """Look at programs, packages, disk and upstreams; every finding comes as it is made.

    Args:
        home: Root of the mto clone.
        names: The upstreams to look at.
        network: Ask sources that are not on this machine.
    """
    free = shutil.disk_usage(home).free / 1e9
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield _git(home)
    yield Finding("disk", "ok" if free > ROOM else "note", f"{free:.1f} GB free at {home}")
    for name in ("torch", "einops"):
        yield _packages(name, [name], needed=True)
    for extra in ("tools", "deepspeed"):
        yield _packages(extra, [needed.name for group, needed in required() if group == extra])
    for name in names:
        try:
            upstream = load_upstream(home, name)
            yield _source(upstream, network)
            yield _series(upstream)
            if (upstream.folder / "recipe.toml").is_file():
                recipe, there = load_recipe(upstream), upstream.checkout.is_dir()
                modules = missing_modules(recipe, upstream.checkout)
                yield _packages(f"{name} packages", recipe.needs, modules, needed=there)
        except MtoError as error:
            yield Finding(name, "missing", error.message, error.hint)


def _git(home: Path) -> Finding:
    try:
        version = git_version(Git(home))
    except MtoError as error:
        return Finding("git", "missing", error.message, error.hint)
    found, oldest, needed = (".".join(map(str, one)) for one in (version, OLDEST, NEEDED))
    if version < OLDEST:
        return Finding("git", "missing", found, f"mto needs {oldest} or newer")
    hint = f"mto upgrade needs {needed}; the rest works" if version < NEEDED else ""
    return Finding("git", "note" if hint else "ok", found, hint)


def _packages(
    what: str, names: Iterable[str], modules: Iterable[str] = (), *, needed: bool = False
) -> Finding:
    """Packages in their versions, and modules that are absent."""
    packages = [package(name) for name in names]
    bad = [found for found in packages if not found.ok]
    lacking = [*map(str, bad), *(f"no module {name}" for name in modules)]
    if not lacking:
        return Finding(what, "ok", ", ".join(map(str, packages)))
    hint = "; ".join(dict.fromkeys(found.install for found in bad))
    state = "missing" if needed or any(found.version for found in bad) else "note"
    return Finding(what, state, ", ".join(lacking), hint or "install the package that has it")


def _source(upstream: Upstream, network: bool) -> Finding:
    what = f"{upstream.name} source"
    if upstream.source == "embedded":
        return Finding(what, "ok", f"in this clone: {upstream.path}")
    try:
        source = find_source(upstream)
    except MtoError as error:
        return Finding(what, "missing", error.message, error.hint)
    place = f"{source.shown} ({source.origin.removeprefix(f'{upstream.home}/')})"
    if source.kind != "url":
        return Finding(what, "ok", place)
    if not network:
        return Finding(what, "note", f"{place}, not asked")
    try:
        subprocess.run(
            ["git", "ls-remote", "--exit-code", "--quiet", source.value, "HEAD"],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        return Finding(what, "ok", place)
    except (OSError, subprocess.SubprocessError):
        hint = f"mto checkout {upstream.name} --source PATH takes a mirror, clone or bundle"
        state = "note" if upstream.checkout.is_dir() else "missing"
        return Finding(what, state, f"{place} does not answer", hint)


def _series(upstream: Upstream) -> Finding:
    what, name = f"{upstream.name} series", upstream.name
    found = status(upstream, lambda line: None)
    if found.series:
        return Finding(what, "missing", found.series, f"mto lint {name}")
    place = PLACES.get(found.word, f"{found.word}: {found.detail}")
    hint = f"mto apply {name}" if found.word == ABSENT else f"mto status {name}"
    ready = found.word in (PRISTINE, APPLIED)
    return Finding(what, "ok" if ready else "note", place, "" if ready else hint)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(_command)


def _command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Default: all upstreams.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no source over the net.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: one JSON object on stdout.")
    ] = False,
) -> None:
    """Say what this machine has, what is missing, and what mends it.

    Status 0: nothing that must be mended; 3: something is missing.
    """
    home = find_home()
    console, found = Console(highlight=False, soft_wrap=True, quiet=as_json), []
    colours = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for finding in doctor(home, names or upstream_names(home), network=not offline):
        found.append(finding)
        state = (f"{finding.state:8}", colours[finding.state])
        console.print(Text.assemble(f"{finding.what:18}", state, finding.found))
        if finding.hint:
            console.print(Text(f"{'':26}{finding.hint}", "dim"))
    missing = [finding.what for finding in found if finding.state == "missing"]
    if as_json:
        findings = [asdict(finding) for finding in found]
        print(json.dumps({"ok": not missing, "findings": findings}, indent=2))
    if missing:
        raise MissingError(f"to be mended: {', '.join(missing)}", hint="the lines above say how")
