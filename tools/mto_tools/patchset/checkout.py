"""Make the clone under `upstream/`, or open one the user made elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.patchset.embedded import require_pin
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock, read_lock
from mto_tools.patchset.locks import Say, hold
from mto_tools.patchset.sources import fetch_commit, find_source, missing_files, source_hint
from mto_tools.patchset.switch import BASE, CloneState, write_state
from mto_tools.upstreams.upstream import Upstream


def clone_folder(upstream: Upstream, repo: Path | None) -> Path:
    """Where the upstream's clone is, or would be."""
    return repo.absolute() if repo else upstream.checkout


def open_clone(upstream: Upstream, repo: Path | None = None) -> Git:
    """Return the clone; checked to be a repository of its own.

    Raises:
        MissingError: There is none.
        CorruptError: The folder is no clone, or lies inside another one.
        GitError: git cannot or will not read it.
    """
    folder = clone_folder(upstream, repo)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise MissingError(
            f"{upstream.name} is not checked out: there is no clone in {folder}",
            hint=f"mto checkout {upstream.name}",
        )
    git = Git(folder)
    git.require_toplevel()
    return git


def ensure_clone(
    upstream: Upstream, say: Say, repo: Path | None = None, source: str | None = None
) -> Git:
    """Return the clone; make it under `upstream/` when it is missing.

    Raises:
        MissingError: No source gives the pin, or `repo` does not exist.
        CorruptError: What the source gave, or the folder, is not what was pinned.
    """
    if repo is None and not _exists(upstream.checkout):
        make_clone(upstream, say, source)
    git = open_clone(upstream, repo)
    ensure_pin(git, upstream, say, source)
    return git


def _exists(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def ensure_pin(git: Git, upstream: Upstream, say: Say, source: str | None = None) -> None:
    """Bring the pinned commit into a clone that lacks it, e.g. after an upgrade."""
    if not git.resolve(f"{upstream.pin}^{{commit}}"):
        fetch_pin(git, upstream, say, source)


def fetch_pin(git: Git, upstream: Upstream, say: Say, source: str | None = None) -> dict[str, str]:
    """Bring the pinned commit into any repository, from wherever this upstream comes.

    Returns:
        Path to OID of files the source lacks and no patch touches.

    Raises:
        MissingError: The source cannot be reached, or lacks the pin or a file a patch touches.
        CorruptError: An embedded recipe is not what was pinned.
    """
    if upstream.source == "embedded":
        require_pin(upstream.home, upstream, git)
        return {}
    found = find_source(upstream, source)
    say(f"{upstream.name}: fetching {upstream.pin} from {found.shown}")
    fetch_commit(git, found, upstream.pin, upstream)
    lost = missing_files(git, upstream.pin)
    lock = read_lock(upstream)
    touched = (lock or Lock(upstream.pin, "")).touched()
    for path, oid in lost.items():
        if path in touched:
            raise MissingError(
                f"{found.shown} ({found.origin}) lacks {path}, blob {oid}, which the series of "
                f"{upstream.name} patches",
                hint=source_hint(upstream),
            )
        say(f"{upstream.name}: {found.shown} lacks {path}, blob {oid}; left out, no patch needs it")
    return lost


def make_clone(upstream: Upstream, say: Say, source: str | None = None) -> None:
    """Make `upstream/NAME` at the pin, on a branch `base`; there is a whole one or none.

    Raises:
        MissingError: No source gives the pin.
        RefusedError: Another mto is making it.
    """
    with _half_made(upstream) as part:
        if _exists(upstream.checkout):
            return  # another mto was faster
        git = Git(part)
        git.run("init", "--quiet", "--template=", ".")
        # A clone of our own holds the very bytes that were pinned, whatever the user's default.
        for key, value in (("autocrlf", "false"), ("eol", "lf"), ("attributesFile", os.devnull)):
            git.run("config", f"core.{key}", value)
        if upstream.url:
            git.run("config", "remote.origin.url", upstream.url)
            git.run("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        lost = fetch_pin(git, upstream, say, source)
        git.run("update-ref", BASE, upstream.pin)
        git.run("symbolic-ref", "HEAD", BASE)
        if lost:
            leave_out(git, list(lost))
        git.run("read-tree", "-m", "-u", upstream.pin, convert=True)
        write_state(git, CloneState(created_by_mto=True, commits=[upstream.pin], missing=lost))
        if upstream.checkout.is_dir():
            upstream.checkout.rmdir()  # empty, see above
        part.rename(upstream.checkout)


def leave_out(git: Git, paths: list[str]) -> None:
    """Sparse checkout of everything but `paths`."""
    git.run("config", "core.sparseCheckout", "true")
    git.run("config", "core.sparseCheckoutCone", "false")
    patterns = "".join(f"!/{_literal(path)}\n" for path in paths)
    file = git.git_dir() / "info" / "sparse-checkout"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"/*\n{patterns}", "utf-8", errors="surrogateescape")


def _literal(path: str) -> str:
    return "".join(f"\\{char}" if char in "*?[\\" else char for char in path)


@contextmanager
def _half_made(upstream: Upstream) -> Iterator[Path]:
    """Give an empty folder beside the clones, under a lock, and clear it afterwards."""
    shop = upstream.checkout.parent / ".mto"
    shop.mkdir(parents=True, exist_ok=True)
    part = shop / upstream.name
    with (shop / f"{upstream.name}.lock").open("w") as stream:
        hold(stream.fileno(), f"another mto is checking out {upstream.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
