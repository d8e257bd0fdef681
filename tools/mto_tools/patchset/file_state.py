"""Files of a work tree, told apart by blob OID and mode, whatever git's index believes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence

from mto_tools.patchset.git import Git
from mto_tools.patchset.transaction import blocking_parent
from mto_tools.patchset.tree_diff import Version

SYMLINK = "120000"
SUBMODULE = "160000"


def classify_files(git: Git, files: Mapping[str, Sequence[Version | None]]) -> dict[str, int]:
    """Say for every path which of some versions stands in the work tree.

    A file matches a version by its bytes, or by the bytes that git would store for it: with
    `core.autocrlf`, filters and attributes. The executable bit counts where `core.fileMode` is on.

    Args:
        git: The clone.
        files: Path to versions; None where the path is absent.

    Returns:
        Path to the index of the first version that matches, -1 where none does.
    """
    exact = git.text("config", "--type=bool", "--default=true", "core.fileMode") == "true"
    found: dict[str, int] = {}
    modes = {path: _mode(git, path) for path in files}
    for path, mode in modes.items():
        file = git.folder / path
        data = b""
        if mode == SYMLINK:
            data = os.fsencode(file.readlink())
        elif mode in ("100644", "100755"):
            data = file.read_bytes()
        found[path] = _first(files[path], _blob_oid(data), mode, exact)
    unsure = [path for path, n in found.items() if n < 0 and modes[path] in ("100644", "100755")]
    if unsure:
        oids = git.text("hash-object", "--", *unsure, convert=True).split()
        for path, oid in zip(unsure, oids, strict=True):
            found[path] = _first(files[path], oid, modes[path], exact)
    return found


def _mode(git: Git, path: str) -> str:
    """Return the mode git would store; "" where the clone has nothing, "other" for a pipe."""
    if blocking_parent(git.folder, path):
        return ""
    try:
        kind = (git.folder / path).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISREG(kind):
        return "100755" if kind & stat.S_IXUSR else "100644"
    return SYMLINK if stat.S_ISLNK(kind) else SUBMODULE if stat.S_ISDIR(kind) else "other"


def _first(versions: Sequence[Version | None], oid: str, mode: str, exact: bool) -> int:
    for number, version in enumerate(versions):
        if version is None or not mode:
            if version is None and not mode:
                return number
        elif version.mode == mode == SUBMODULE:
            return number
        elif version.oid == oid and mode not in (SUBMODULE, "other"):
            # Without symbolic links git writes the target into an ordinary file.
            same = version.mode == mode or mode == SYMLINK or version.mode == SYMLINK
            if same or not exact:
                return number
    return -1


def _blob_oid(data: bytes) -> str:
    """Return the OID git gives `data` as it is; pins and locks are SHA-1."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
