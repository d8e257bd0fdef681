"""A person's edits of a checkout, found by blob OID and mode."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from os.path import lexists
from pathlib import Path

from mto_tools.errors import ConflictError, RefusedError
from mto_tools.patchset.clone_state import index_copy
from mto_tools.patchset.git import Git
from mto_tools.patchset.series import MODES
from mto_tools.patchset.tree_diff import Version, temporary_index

SYMLINK = "120000"
SUBMODULE = "160000"


def file_version(root: Path, path: str) -> Version | None:
    """Return what stands at `root/path`, as git would store it without conversion.

    A folder has the mode of a submodule, a pipe "other", both without an OID. None where nothing
    stands, or only behind a link.
    """
    file = root / path
    try:
        kind = file.lstat().st_mode
        if blocking_parent(root, path):
            return None
        if stat.S_ISLNK(kind):
            return Version(_blob_oid(os.fsencode(file.readlink())), SYMLINK)
        if stat.S_ISREG(kind):
            return Version(_blob_oid(file.read_bytes()), MODES[bool(kind & stat.S_IXUSR)])
        return Version("", SUBMODULE if stat.S_ISDIR(kind) else "other")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as in pins and locks


def blocking_parent(folder: Path, path: str) -> Path | None:
    """Return the first thing on the way to `path` that is no folder, such as a link elsewhere.

    Nothing behind it belongs to `folder`, whatever `open` would find there.
    """
    here = folder
    for part in Path(path).parts[:-1]:
        here /= part
        if here.is_symlink() or (here.exists() and not here.is_dir()):
            return here
    return None


@contextmanager
def unmarked_index(git: Git) -> Iterator[tuple[Git, set[str]]]:
    """Give the repository with a copy of its index in which git overlooks nothing.

    The files that were marked assume-unchanged or skip-worktree come with it. One that a sparse
    checkout left out keeps its mark: it is no edit.
    """
    with temporary_index(git) as empty:
        away = index_copy(git, Path(empty.env["GIT_INDEX_FILE"]))
        listed = [entry.split(" ", 1) for entry in git.text("ls-files", "-zv").split("\0")[:-1]]
        told = {path: tag for tag, path in listed if tag == "S" or tag.islower()}
        marked = {p for p, tag in told.items() if tag not in "Ss" or lexists(git.folder / p)}
        names = "\0".join(marked).encode("utf-8", "surrogateescape")
        both = ("--no-assume-unchanged", "--no-skip-worktree")  # git takes one at a time
        for flag in both if marked else ():
            away.run("update-index", flag, "-z", "--stdin", input=names)
        yield away, marked


def edited_files(git: Git) -> dict[str, str]:
    """Return tracked files that differ from HEAD, each with git's two letters (index, file).

    The user's configuration decides, so CRLF under autocrlf=true is no edit; but an edit that git
    was told to overlook is one.
    """
    flags = ("--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    with unmarked_index(git) as (away, _):
        listed = away.text("status", *flags, convert=True)
    return {entry[3:]: entry[:2] for entry in listed.split("\0") if entry}


def untracked(git: Git) -> tuple[str, ...]:
    """Return files git would track but does not."""
    out = git.text("ls-files", "-z", "--others", "--exclude-standard", convert=True)
    return tuple(out.split("\0")[:-1])


def require_visible(git: Git, paths: Collection[str] = ()) -> None:
    """Raise RefusedError for edits, of `paths` or of any file, that git was told to overlook."""
    with unmarked_index(git) as (away, marked):
        differ = away.text("diff", "--name-only", "-z", convert=True).split("\0") if marked else []
    if hidden := sorted(marked.intersection(differ).intersection(paths or differ)):
        raise RefusedError(
            f"{git.folder} has edits that git was told to overlook: {', '.join(hidden)}",
            hint=f"{git.command('update-index', '--no-assume-unchanged', *hidden)}    # or "
            "--no-skip-worktree: makes them part; git diff then shows them",
        )


def edited_tree(git: Git) -> str:
    """Return the tree of all tracked files as they stand in the work tree.

    Raises:
        ConflictError: The index has unmerged files.
        RefusedError: A file differs that git was told to overlook.
    """
    if unmerged := git.text("diff", "--name-only", "--diff-filter=U"):
        raise ConflictError(
            f"{git.folder} has unmerged files: {', '.join(unmerged.splitlines())}",
            hint="resolve them and git add them",
        )
    require_visible(git)
    with unmarked_index(git) as (away, _):
        away.run("add", "-u", convert=True)
        return away.text("write-tree", "--missing-ok")
