"""`mto doctor`: programs, packages, disk and upstreams of this machine, with what mends a gap."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home
from mto_tools.launch.needs import missing_modules, package, required
from mto_tools.patchset.git import OLDEST, Git, clean_environment, hide
from mto_tools.patchset.lint import lint
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.replay import NEEDED, git_version
from mto_tools.patchset.sources import find_source
from mto_tools.patchset.status import ABSENT, APPLIED, PRISTINE, status
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import Upstream, load_upstream, upstream_names

PATIENCE = 8.0
"""Seconds a source has for its answer."""
_ROOM = 2.0
"""GB that clones of all upstreams, a data set of digits and some checkpoints take."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: E.g. "git" or "mae source".
        state: "ok"; "note" for what only some tasks need; "missing" for what must be mended.
        found: What is there.
        hint: What mends it; "" where nothing needs to be.
    """

    what: str
    state: str
    found: str
    hint: str = ""


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
    yield Finding("disk", "ok" if free > _ROOM else "note", f"{free:.1f} GB free at {home}")
    yield from _packages()
    yield _gpu()
    for name in names:
        try:
            upstream = load_upstream(home, name)
            yield _source(upstream, network)
            yield _series(upstream)
            yield from _needs(upstream)
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
    if version < NEEDED:
        return Finding("git", "note", found, f"mto upgrade needs {needed}; the rest works")
    return Finding("git", "ok", found)


def _packages() -> Iterator[Finding]:
    torch = _found("torch", ["torch"], needed=True)
    yield replace(torch, found=f"{torch.found}{_cuda()}")
    yield _found("einops", ["einops"], needed=True)
    for extra, use in (("tools", "mini and the recipes"), ("deepspeed", "the layer deepspeed")):
        names = [needed.name for group, needed in required() if group == extra]
        yield _found(extra, names, use=f", for {use}")


def _needs(upstream: Upstream) -> Iterator[Finding]:
    """Packages of the recipe; they must be there once it is checked out."""
    if (upstream.folder / "recipe.toml").is_file():
        recipe = load_recipe(upstream)
        modules = missing_modules(recipe, upstream.checkout)
        needed = upstream.checkout.is_dir()
        yield _found(f"{upstream.name} packages", recipe.needs, modules=modules, needed=needed)


def _found(
    what: str,
    names: Iterable[str],
    *,
    use: str = "",
    modules: Iterable[str] = (),
    needed: bool = False,
) -> Finding:
    """Packages in their versions, and modules that are absent."""
    packages = [package(name) for name in names]
    bad = [found for found in packages if not found.ok]
    words = [*map(str, bad), *(f"no module {name}" for name in modules)]
    if not words:
        return Finding(what, "ok", ", ".join(map(str, packages)))
    old = any(found.version for found in bad)
    hint = "; ".join(dict.fromkeys(f"{found.install}{use}" for found in bad))
    state = "missing" if old or needed else "note"
    return Finding(what, state, ", ".join(words), hint or "install the package that has it")


def _cuda() -> str:
    """What torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    text = Path(spec.origin).with_name("version.py").read_text()
    match = re.search(r"^cuda.*= '([\d.]+)'", text, re.M)
    return f", built for CUDA {match[1]}" if match else ", built for the CPU"


def _gpu() -> Finding:
    """Ask the driver, not torch, whose import takes seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return Finding("gpu", "ok", "; ".join(run.stdout.strip().splitlines()))
    except (OSError, subprocess.SubprocessError):
        return Finding("gpu", "note", "none seen", "mini and the tests run on the CPU, too")


def _source(upstream: Upstream, network: bool) -> Finding:
    what = f"{upstream.name} source"
    if upstream.source == "embedded":
        return Finding(what, "ok", f"in this clone: {upstream.path}")
    try:
        source = find_source(upstream)
    except MtoError as error:
        return Finding(what, "missing", error.message, error.hint)
    place = f"{hide(source.value)} ({source.origin.removeprefix(f'{upstream.home}/')})"
    if source.kind != "url":
        return Finding(what, "ok", place)
    if not network:
        return Finding(what, "note", f"{place}, not asked")
    command = ["git", "ls-remote", "--exit-code", "--quiet", source.value, "HEAD"]
    how = {"capture_output": True, "text": True, "timeout": PATIENCE, "stdin": subprocess.DEVNULL}
    try:
        with clean_environment():
            quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
            subprocess.run(command, check=True, env=quiet, **how)  # type: ignore[call-overload]
        return Finding(what, "ok", place)
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[-120:]
    except (FileNotFoundError, subprocess.TimeoutExpired):
        reason = f"no answer within {PATIENCE:.0f} s"
    hint = f"mto checkout {upstream.name} --source PATH takes a mirror, clone or bundle"
    # With a complete clone nobody needs the source.
    state = "note" if _has_pin(upstream) else "missing"
    return Finding(what, state, f"{place} does not answer: {hide(reason)}", hint)


def _series(upstream: Upstream) -> Finding:
    what = f"{upstream.name} series"
    linted = lint(upstream.home, upstream.name)
    if linted.problems:
        hint = f"mto lint {upstream.name}"
        return Finding(what, "missing", str(linted.problems[0]), hint)
    lock = read_lock(upstream)
    if lock is None or not lock.patches:
        return Finding(what, "note", "no patches yet", f"mto export {upstream.name} writes them")
    size = f"{linted.patches} patches, {linted.inserted} lines"
    if not _has_pin(upstream):
        hint = f"mto checkout {upstream.name}; mto apply {upstream.name}"
        return Finding(what, "note", f"{size}; not checked out", hint)
    place = status(upstream, lambda line: None)
    good = {APPLIED: "applied"} | dict.fromkeys((PRISTINE, ABSENT), "checked out, ready to apply")
    if place.word in good:
        return Finding(what, "ok", f"{size}; {good[place.word]}")
    detail = f"{size}; {place.word}: {place.detail}"
    return Finding(what, "note", detail, f"mto status {upstream.name}")


def _has_pin(upstream: Upstream) -> bool:
    folder = upstream.checkout
    return folder.is_dir() and bool(Git(folder).resolve(f"{upstream.pin}^{{commit}}"))


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
    from rich.console import Console
    from rich.text import Text

    home = find_home()
    console, found = Console(highlight=False), []
    colours = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for finding in doctor(home, names or upstream_names(home), network=not offline):
        found.append(finding)
        if not as_json:
            state = (f"{finding.state:8}", colours[finding.state])
            line = Text.assemble(f"{finding.what:18}", state, finding.found)
            console.print(line, soft_wrap=True)
            if finding.hint:
                console.print(Text(f"{'':26}{finding.hint}", "dim"), soft_wrap=True)
    missing = [finding.what for finding in found if finding.state == "missing"]
    if as_json:
        findings = [asdict(finding) for finding in found]
        print(json.dumps({"ok": not missing, "findings": findings}, indent=2))
    if missing:
        raise MissingError(f"to be mended: {', '.join(missing)}", hint="the lines above say how")
