"""Files of a work tree, told apart by OID: as before, as after, half written, or the user's own."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mto_tools.patchset.git import Git

SYMLINK = "120000"
SUBMODULE = "160000"
State = Literal["from", "to", "partial", "other"]


@dataclass(frozen=True)
class Version:
    """One version of a file.

    Attributes:
        oid: Blob OID.
        mode: "100644", "100755" or "120000".
    """

    oid: str
    mode: str


Change = tuple[Version | None, Version | None]  # (from, to); None where the file is absent


def changes(git: Git, start: str, goal: str) -> dict[str, Change]:
    """Return the files that differ between two commits or trees.

    Submodules are left out: what stands in one is a repository of its own, which git does not
    touch either when it switches.
    """
    raw = git.run("diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", start, goal)
    fields = raw.decode("utf-8", "surrogateescape").split("\0")[:-1]
    found: dict[str, Change] = {}
    for meta, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old, new, kind = meta.lstrip(":").split()
        if SUBMODULE in (old_mode, new_mode):
            continue
        before = None if kind == "A" else Version(old, old_mode)
        found[path] = (before, None if kind == "D" else Version(new, new_mode))
    return found


def blob_oid(data: bytes, like: str) -> str:
    """Return the OID git gives `data` as it is, in the object format of the OID `like`."""
    digest = hashlib.sha1 if len(like) == 40 else hashlib.sha256
    return digest(b"blob %d\0" % len(data) + data).hexdigest()


def content(git: Git, path: str, oid: str) -> bytes:
    """Return a blob as the user's configuration writes it into the work tree."""
    return git.run("cat-file", "--filters", f"--path={path}", oid, convert=True)


def obstacle(folder: Path, path: str) -> Path | None:
    """Return the first thing on the way to `path` that is no folder, such as a link elsewhere.

    Nothing behind it belongs to the clone, whatever `open` would find there.
    """
    here = folder
    for part in Path(path).parts[:-1]:
        here /= part
        if here.is_symlink() or (here.exists() and not here.is_dir()):
            return here
    return None


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path.2`, `path.3` and so on where nothing stands."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not os.path.lexists(name))


def states(git: Git, files: Mapping[str, Change], *, cut: bool = False) -> dict[str, State]:
    """Say for every path which version stands in the work tree, by content and mode.

    Args:
        git: The clone.
        files: Path to (from, to).
        cut: Call a file "partial" that is missing, or a beginning of one of its two versions:
            what a checkout leaves that was killed while writing. Without `cut` that is "other".
    """
    found: dict[str, State] = {}
    unsure: list[str] = []
    exact = git.text("config", "--type=bool", "--default=true", "core.fileMode") == "true"
    for path, change in files.items():
        blocked = obstacle(git.folder, path)
        data = None if blocked else _read(git.folder, path)
        if data is None:
            absent = "from" if change[0] is None else "to" if change[1] is None else None
            rest = "partial" if cut and not blocked else "other"
            found[path] = absent or rest  # type: ignore[assignment]
            continue
        like = next((version.oid for version in change if version), "")
        found[path] = _which(git.folder / path, blob_oid(data, like), change, exact)
        if found[path] == "other" and not (git.folder / path).is_symlink():
            unsure.append(path)
    for path, oid in _converted(git, unsure).items():
        found[path] = _which(git.folder / path, oid, files[path], exact)
        if found[path] == "other" and cut and _is_cut(git, path, files[path]):
            found[path] = "partial"
    return found


def _which(file: Path, oid: str, change: Change, exact: bool) -> State:
    """Tell the version by OID and, where `exact`, by the bit that makes a file executable."""
    mode = "100755" if file.lstat().st_mode & stat.S_IXUSR else "100644"
    for name, version in (("from", change[0]), ("to", change[1])):
        if version is None or oid != version.oid:
            continue
        if version.mode in (mode, SYMLINK) or not exact or file.is_symlink():
            return name  # type: ignore[return-value]
    return "other"


def _read(folder: Path, path: str) -> bytes | None:
    """Bytes at `path`, a link's target for a link, None where nothing stands."""
    file = folder / path
    try:
        kind = file.lstat().st_mode
        if stat.S_ISLNK(kind):
            return os.fsencode(file.readlink())
        return file.read_bytes() if stat.S_ISREG(kind) else b"\0neither file nor link"
    except (FileNotFoundError, NotADirectoryError):
        return None


def _converted(git: Git, paths: Iterable[str]) -> dict[str, str]:
    paths = [path for path in paths if (git.folder / path).is_file()]
    if not paths:
        return {}
    oids = git.text("hash-object", "--", *paths, convert=True).split()
    return dict(zip(paths, oids, strict=True))


def _is_cut(git: Git, path: str, change: Change) -> bool:
    data = (git.folder / path).read_bytes()
    wholes = [content(git, path, version.oid) for version in change if version]
    return any(whole != data and whole.startswith(data) for whole in wholes)


def put(git: Git, path: str, version: Version | None) -> None:
    """Write one version of a file into the work tree, whole or not at all; None removes it."""
    file = git.folder / path
    if version is None:
        file.unlink(missing_ok=True)
        for parent in file.parents:
            if parent == git.folder:
                break
            try:
                parent.rmdir()
            except OSError:  # not empty
                break
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    private = git.git_dir() / "mto"
    temporary = Path(tempfile.mkdtemp(prefix="put-", dir=private)) / "file"
    try:
        if version.mode == SYMLINK:
            temporary.symlink_to(os.fsdecode(git.run("cat-file", "blob", version.oid)))
        else:
            temporary.write_bytes(content(git, path, version.oid))
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod((0o777 if version.mode == "100755" else 0o666) & ~mask)
        try:
            temporary.replace(file)
        except OSError as error:
            if error.errno != errno.EXDEV or version.mode == SYMLINK:
                raise
            file.unlink(missing_ok=True)  # .git stands on another file system
            file.write_bytes(temporary.read_bytes())
            file.chmod(temporary.stat().st_mode)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.parent.rmdir()
