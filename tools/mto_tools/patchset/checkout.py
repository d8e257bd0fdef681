"""Make the clone under `upstream/`, or open one the user made elsewhere.

An embedded upstream is a folder of the mto clone, taken as a git commit of its own. That commit
depends on the files' names and bytes only: not on the umask, the date, line-end settings, or on
whether mto itself is a git clone or an unpacked archive.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.clone_state import BASE, CloneState, write_state
from mto_tools.patchset.git import Git, restore_command
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.locks import Say, hold
from mto_tools.patchset.sources import fetch_commit, find_source, missing_files, source_hint
from mto_tools.patchset.tree_diff import commit_tree, write_tree
from mto_tools.upstreams.upstream import Upstream

DATE = 1704067200  # of embedded commits: 2024-01-01T00:00:00Z
_LITTER = ("__pycache__", ".git", ".DS_Store", "_cache", ".pyc", ".pyo", ".swp", "~")


def exists(folder: Path) -> bool:
    """Whether there is a folder with something in it."""
    return folder.is_dir() and any(folder.iterdir())


def open_clone(upstream: Upstream, repo: Path | None = None) -> Git:
    """Return the clone; checked to be a repository of its own.

    Raises:
        MissingError: There is none.
        CorruptError: The folder is no clone, or lies inside another one.
        GitError: git cannot or will not read it.
    """
    git = Git(repo or upstream.checkout)
    if not exists(git.folder):
        raise MissingError(
            f"{upstream.name} is not checked out: there is no clone in {git.folder}",
            hint=f"mto checkout {upstream.name}",
        )
    git.require_toplevel()
    return git


def ensure_clone(
    upstream: Upstream, say: Say, repo: Path | None = None, source: str | None = None
) -> Git:
    """Return the clone, with the pin in it; make it under `upstream/` when it is missing.

    Raises:
        MissingError: No source gives the pin, or `repo` does not exist.
        CorruptError: What the source gave, or the folder, is not what was pinned.
    """
    if repo is None and not exists(upstream.checkout):
        make_clone(upstream, say, source)
    git = open_clone(upstream, repo)
    if not git.resolve(f"{upstream.pin}^{{commit}}"):
        _fetch_pin(git, upstream, say, source)
    return git


def _fetch_pin(git: Git, upstream: Upstream, say: Say, source: str | None) -> dict[str, str]:
    """Bring the pin into a repository; return path to OID of files the source lacks."""
    if upstream.source == "embedded":
        if (found := embedded_commit(upstream, git)) != upstream.pin:
            folder = upstream.home / upstream.path
            raise CorruptError(
                f"{folder} differs from the pin in {upstream.folder / 'upstream.toml'}: "
                f"expected commit {upstream.pin}, found {found}",
                hint=f"if the change is yours: mto upgrade {upstream.name} --to embedded --accept; "
                f"if not: {restore_command(folder)}",
            )
        return {}
    place = find_source(upstream, source)
    say(f"{upstream.name}: fetching {upstream.pin} from {place.shown}")
    fetch_commit(git, place, upstream.pin, upstream)
    lost = missing_files(git, upstream.pin)
    lock = read_lock(upstream)
    for path, oid in lost.items():
        if lock and path in lock.touched():
            raise MissingError(
                f"{place.shown} ({place.origin}) lacks {path}, blob {oid}, which the series of "
                f"{upstream.name} patches",
                hint=source_hint(upstream),
            )
        say(f"{upstream.name}: {place.shown} lacks {path}, blob {oid}; left out, no patch needs it")
    return lost


def make_clone(upstream: Upstream, say: Say, source: str | None = None) -> None:
    """Make `upstream/NAME` at the pin, on a branch `base`; there is a whole one or none.

    Raises:
        MissingError: No source gives the pin.
        RefusedError: Another mto is making it.
    """
    part = upstream.checkout.parent / ".mto" / upstream.name
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.with_name(f"{upstream.name}.lock").open("w") as stream:
        hold(stream.fileno(), f"another mto is checking out {upstream.name}")
        if exists(upstream.checkout):
            return  # that one made it
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            _fill_clone(Git(part), upstream, say, source)
            part.rename(upstream.checkout)  # also over an empty folder
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _fill_clone(git: Git, upstream: Upstream, say: Say, source: str | None) -> None:
    git.run("init", "--quiet", "--template=", "-b", BASE.rpartition("/")[2], ".")
    # A clone of our own holds the very bytes that were pinned, whatever the user's default.
    for key, value in (("autocrlf", "false"), ("eol", "lf"), ("attributesFile", os.devnull)):
        git.run("config", f"core.{key}", value)
    if upstream.url:
        git.run("remote", "add", "origin", upstream.url)
    lost = _fetch_pin(git, upstream, say, source)
    git.run("update-ref", BASE, upstream.pin)
    if lost:
        leave_out(git, list(lost))
    git.run("read-tree", "-m", "-u", upstream.pin, convert=True)
    write_state(git, CloneState(created_by_mto=True, commits=[upstream.pin], missing=lost))


def leave_out(git: Git, paths: list[str]) -> None:
    """Sparse checkout of everything but `paths`."""
    git.run("config", "core.sparseCheckout", "true")
    git.run("config", "core.sparseCheckoutCone", "false")
    patterns = "".join("!/" + re.sub(r"[*?[\\]", r"\\\g<0>", path) + "\n" for path in paths)
    file = git.git_dir() / "info" / "sparse-checkout"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"/*\n{patterns}", "utf-8", errors="surrogateescape")


def embedded_commit(upstream: Upstream, repo: Git) -> str:
    """Write the blobs, tree and commit of an embedded recipe into `repo`; return the commit's OID.

    A file that begins with `#!` is executable, every other one is not. `repo`, any repository, gets
    no ref and no file.

    Raises:
        MissingError: The folder is missing or empty.
    """
    folder = upstream.home / upstream.path
    names = _embedded_files(upstream, folder)
    paths = "".join(f"{folder / name}\n" for name in names).encode("utf-8", "surrogateescape")
    oids = repo.text("hash-object", "-w", "--no-filters", "--stdin-paths", input=paths).split()
    entries = {}
    for name, oid in zip(names, oids, strict=True):
        script = (folder / name).read_bytes().startswith(b"#!")
        entries[name] = ("100755" if script else "100644", oid)
    tree = write_tree(repo, "", entries)
    return commit_tree(repo, tree, [], f"{upstream.name}: embedded recipe", DATE)


def _embedded_files(upstream: Upstream, folder: Path) -> list[str]:
    """Return the tracked files; all but caches where mto is no git clone, or none is tracked."""
    git = Git(upstream.home)
    tracked: list[str] = []
    if git.is_toplevel():
        tracked = git.text("ls-files", "-z", "--", upstream.path).split("\0")[:-1]
    files = [upstream.home / name for name in tracked] or folder.rglob("*")
    paths = [f.relative_to(folder) for f in files if f.is_file() and not f.is_symlink()]
    names = [p.as_posix() for p in paths if not any(part.endswith(_LITTER) for part in p.parts)]
    if not names:
        raise MissingError(f"{upstream.name}: no file in {folder}", hint=restore_command(folder))
    return sorted(names)
