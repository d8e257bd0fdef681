"""A person's edits of a checkout, found by blob OID and mode."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.series import MODES
from mto_tools.patchset.tree_diff import Version, temporary_index

SYMLINK = "120000"
SUBMODULE = "160000"


def file_version(root: Path, path: str) -> Version | None:
    """Return what stands at `root/path`, as git would store it without conversion.

    Returns:
        Blob OID and mode; a folder has the mode of a submodule, a pipe "other", both without an
        OID. None where nothing stands, or only behind a link.
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


def unlike(git: Git, expected: Mapping[str, Collection[Version | None]]) -> set[str]:
    """Return the paths at which none of the expected versions stands in the work tree.

    A file matches a version by its bytes, or by the bytes that git would store for it: with
    `core.autocrlf`, filters and attributes. The executable bit counts where `core.fileMode` is on.

    Args:
        git: The clone.
        expected: Path to versions; None where the path is absent.
    """
    exact = git.text("config", "--type=bool", "--default=true", "core.fileMode") == "true"
    found = {path: file_version(git.folder, path) for path in expected}
    differ = {p for p in expected if not _is_one_of(found[p], expected[p], exact)}
    files = [(path, v) for path, v in found.items() if path in differ and v and v.mode in MODES]
    if files:
        oids = git.text("hash-object", "--", *(path for path, _ in files), convert=True).split()
        for (path, version), oid in zip(files, oids, strict=True):
            if _is_one_of(Version(oid, version.mode), expected[path], exact):
                differ.remove(path)
    return differ


def _is_one_of(found: Version | None, wanted: Collection[Version | None], exact: bool) -> bool:
    if not found:
        return None in wanted
    for version in filter(None, wanted):
        # Without symbolic links git writes the target into an ordinary file.
        alike = not exact or version.mode == found.mode or SYMLINK in (version.mode, found.mode)
        if version.mode == found.mode == SUBMODULE or (version.oid == found.oid and alike):
            return True
    return False


def edited_files(git: Git) -> dict[str, str]:
    """Return tracked files that differ from HEAD, each with git's two letters (index, file).

    The user's configuration decides, so CRLF under autocrlf=true is no edit.
    """
    flags = ("--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    listed = git.text("status", *flags, convert=True)
    return {entry[3:]: entry[:2] for entry in listed.split("\0") if entry}


def untracked(git: Git) -> tuple[str, ...]:
    """Return files git would track but does not."""
    out = git.text("ls-files", "-z", "--others", "--exclude-standard", convert=True)
    return tuple(out.split("\0")[:-1])


def edited_tree(git: Git) -> str:
    """Return the tree of all tracked files as they stand in the work tree.

    Raises:
        ConflictError: The index has unmerged files.
        RefusedError: A file differs that git was told to overlook.
    """
    unmerged = git.text("diff", "--name-only", "--diff-filter=U")
    if unmerged:
        raise ConflictError(
            f"{git.folder} has unmerged files: {', '.join(unmerged.splitlines())}",
            hint="resolve them and git add them",
        )
    with copied_index(git) as away:
        away.run("add", "-u", convert=True)
        return away.text("write-tree", "--missing-ok")


@contextmanager
def copied_index(git: Git) -> Iterator[Git]:
    """Give the same repository with a copy of its index, in which nothing is overlooked.

    Raises:
        MissingError: There is no index.
        RefusedError: A file differs that git was told to overlook.
    """
    with temporary_index(git) as away:
        index = git.git_dir() / "index"
        if not index.exists():
            raise MissingError(f"{git.folder} has no index: nothing is checked out there")
        shutil.copy2(index, away.env["GIT_INDEX_FILE"])
        _refuse_overlooked(away)
        yield away


def _refuse_overlooked(away: Git) -> None:
    """Clear assume-unchanged and skip-worktree in the copy, and refuse the files that differ."""
    listed = away.text("ls-files", "-z", "-v").split("\0")[:-1]
    told = [(entry[0], entry[2:]) for entry in listed if entry[0] == "S" or entry[0].islower()]
    # A file that a sparse checkout left out is no edit.
    marked = {p for tag, p in told if tag not in "Ss" or os.path.lexists(away.folder / p)}
    if not marked:
        return
    names = "\0".join(sorted(marked)).encode("utf-8", "surrogateescape")
    for flag in ("--no-assume-unchanged", "--no-skip-worktree"):  # git takes one at a time
        away.run("update-index", flag, "-z", "--stdin", input=names)
    away.run("update-index", "-q", "--refresh", check=False, convert=True)
    differ = away.text("diff-files", "--name-only", "-z", convert=True).split("\0")[:-1]
    if hidden := sorted(marked.intersection(differ)):
        raise RefusedError(
            f"{away.folder} has edits that git was told to overlook: {', '.join(hidden)}",
            hint=f"{away.command('update-index', '--no-assume-unchanged', *hidden)}    # or "
            "--no-skip-worktree: makes them part; git diff then shows them",
        )
