"""`mto doctor`: what this machine has, and what each upstream still needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import MtoError
from mto_tools.patchset.git import OLDEST, Git, clean_environment
from mto_tools.patchset.lint import lint
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.merge import NEEDED, git_version
from mto_tools.patchset.sources import find_source
from mto_tools.upstreams.upstream import Upstream, load_upstream

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

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return asdict(self)


def doctor(home: Path, names: list[str], *, network: bool = True) -> Iterator[Finding]:
    """Look at programs, packages, disk and upstreams; every finding comes as it is made.

    Args:
        home: Root of the mto clone.
        names: The upstreams to look at.
        network: Ask sources that are not on this machine.
    """
    yield _python()
    yield _git(home)
    yield _disk(home)
    yield from _packages()
    yield _gpu()
    for name in names:
        try:
            upstream = load_upstream(home, name)
            yield _source(upstream, network)
            yield _series(upstream)
        except MtoError as error:
            yield Finding(name, "missing", error.message, error.hint)


def _python() -> Finding:
    version = platform.python_version()
    good = sys.version_info >= (3, 10)
    return Finding("python", "ok" if good else "missing", f"{version}, {sys.executable}")


def _git(home: Path) -> Finding:
    try:
        version = git_version(Git(home))
    except MtoError as error:
        return Finding("git", "missing", error.message, error.hint)
    found = ".".join(map(str, version))
    if version < OLDEST:
        return Finding("git", "missing", found, f"mto needs {'.'.join(map(str, OLDEST))} or newer")
    if version < NEEDED:
        wanted = ".".join(map(str, NEEDED))
        return Finding("git", "note", found, f"mto upgrade needs {wanted}; the rest works")
    return Finding("git", "ok", found)


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home).free / 1e9
    state = "ok" if free > _ROOM else "note"
    return Finding("disk", state, f"{free:.1f} GB free at {home}")


def _packages() -> Iterator[Finding]:
    for name, needed, hint in (
        ("torch", True, "pip install torch"),
        ("einops", True, "pip install einops"),
        ("timm", False, "pip install 'mto-core[tools]', for mini and the recipes"),
        ("torchvision", False, "pip install 'mto-core[tools]', for mini and the recipes"),
        ("deepspeed", False, "pip install 'mto-core[deepspeed]', for the layer deepspeed"),
    ):
        try:
            found = importlib.metadata.version(name) + (_cuda() if name == "torch" else "")
            yield Finding(name, "ok", found)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing" if needed else "note", "not installed", hint)


def _cuda() -> str:
    """What torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin or "").with_name("version.py") if spec else Path()
    match = re.search(r"^cuda.*= '([\d.]+)'", file.read_text() if file.is_file() else "", re.M)
    return f", built for CUDA {match[1]}" if match else ", built for the CPU"


def _gpu() -> Finding:
    """Ask the driver, not torch, whose import takes seconds."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return Finding("gpu", "note", "none seen", "mini and the tests run on the CPU, too")
    found = "; ".join(line.strip() for line in run.stdout.splitlines())
    if run.returncode or not found:
        return Finding("gpu", "note", "none seen", "mini and the tests run on the CPU, too")
    return Finding("gpu", "ok", found)


def _source(upstream: Upstream, network: bool) -> Finding:
    what = f"{upstream.name} source"
    if upstream.source == "embedded":
        return Finding(what, "ok", f"in this clone: {upstream.path}")
    try:
        source = find_source(upstream)
    except MtoError as error:
        return Finding(what, "missing", error.message, error.hint)
    place = f"{_public(source.value)} ({_short(source.origin, upstream)})"
    if source.kind != "url":
        return Finding(what, "ok", place)
    if not network:
        return Finding(what, "note", f"{place}, not asked")
    command = ["git", "ls-remote", "--exit-code", "--quiet", source.value, "HEAD"]
    try:
        with clean_environment():
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        reason = f"no answer within {PATIENCE:.0f} s"
    else:
        if run.returncode == 0:
            return Finding(what, "ok", place)
        reason = " ".join(run.stderr.split())[-120:]
    hint = f"mto checkout {upstream.name} --source PATH takes a mirror, clone or bundle"
    # With a complete clone nobody needs the source.
    state = "note" if _has_pin(upstream) else "missing"
    return Finding(what, state, f"{place} does not answer: {_public(reason)}", hint)


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
    return Finding(what, "ok", f"{size}; checked out, ready to apply")


def _has_pin(upstream: Upstream) -> bool:
    folder = upstream.checkout
    return folder.is_dir() and bool(Git(folder).resolve(f"{upstream.pin}^{{commit}}"))


def _short(origin: str, upstream: Upstream) -> str:
    return origin.removeprefix(f"{upstream.home}/")


def _public(text: str) -> str:
    """Leave out a password in a URL."""
    return re.sub(r"://[^/@\s]+@", "://", text)
