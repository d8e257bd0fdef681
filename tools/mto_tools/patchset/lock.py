"""The lock of a series: every object that applying it must give.

A zero-context hunk is located by its line number alone, and git ignores the OIDs in a patch's
index lines. Such a patch is safe because every blob and tree is compared with this file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import restore_command
from mto_tools.patchset.locks import Say
from mto_tools.patchset.transaction import recover
from mto_tools.upstreams.upstream import LAYERS, OID, Upstream, load_upstream

Oid = Annotated[str, Field(pattern=f"^{OID}$")]


@dataclass(frozen=True)
class Touched:
    """One file a patch changes.

    Attributes:
        path: Relative to the clone, with slashes.
        mode: Of the file, the same before and after.
        before: OID of the blob before; None where the patch adds the file.
        after: OID of the blob after.
    """

    path: str
    mode: Annotated[str, Field(pattern="^100(644|755)$")]
    before: Oid | None
    after: Oid


@dataclass(frozen=True)
class LockedPatch:
    """One patch and the objects that applying it gives.

    Attributes:
        file: Name of the patch file.
        sha256: Of that file's bytes.
        layer: compat, mto or deepspeed.
        tree: OID of the tree after this patch.
        commit: OID of the reproducible commit after this patch.
        touched: Files it changes, in the order of their paths.
    """

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    layer: Annotated[str, Field(pattern=f"^({'|'.join(LAYERS)})$")]
    tree: Oid
    commit: Oid
    touched: Annotated[tuple[Touched, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Lock:
    """Base and result of a series.

    Attributes:
        base_commit: The pin.
        base_tree: Its tree; "" where no series has been built yet.
        patches: In the order of the series.
    """

    base_commit: str
    base_tree: str
    patches: tuple[LockedPatch, ...] = ()

    @property
    def tree(self) -> str:
        """The tree after the whole series."""
        return self.patches[-1].tree if self.patches else self.base_tree

    @property
    def commit(self) -> str:
        """The commit after the whole series."""
        return self.patches[-1].commit if self.patches else self.base_commit

    @property
    def trees(self) -> list[str]:
        """The tree of the pin, then the tree after each patch."""
        return [self.base_tree, *(patch.tree for patch in self.patches)]

    @property
    def commits(self) -> list[str]:
        """The pin, then the commit after each patch."""
        return [self.base_commit, *(patch.commit for patch in self.patches)]

    def through(self, layer: str | None) -> tuple[LockedPatch, ...]:
        """Return the patches up to and with `layer`; all of them for None."""
        last = len(LAYERS) if layer is None else LAYERS.index(layer)
        return tuple(p for p in self.patches if LAYERS.index(p.layer) <= last)

    def touched(self) -> dict[str, tuple[str | None, str]]:
        """Return for every path of the series (blob in the base or None, blob at the end)."""
        paths: dict[str, tuple[str | None, str]] = {}
        for patch in self.patches:
            for file in patch.touched:
                first = paths[file.path][0] if file.path in paths else file.before
                paths[file.path] = (first, file.after)
        return paths


@dataclass(frozen=True)
class Series:
    """Lock and patch files of an upstream, checked against one another.

    Attributes:
        lock: The lock; where there is no series yet, one that names the pin only.
        files: (name, bytes) of the patch files, in order.
    """

    lock: Lock
    files: tuple[tuple[str, bytes], ...] = ()


class _Base(BaseModel):
    commit: Oid
    tree: Oid


class _LockFile(BaseModel):
    format: Literal[1]
    base: _Base
    patches: tuple[LockedPatch, ...]


def sha256(data: bytes) -> str:
    """Return the digest the lock keeps of a patch file."""
    return hashlib.sha256(data).hexdigest()


def lock_path(folder: Path) -> Path:
    """Where the lock of the series in `folder` stands."""
    return folder / "lock"


def format_lock(lock: Lock) -> bytes:
    """Return the one byte form of a lock: JSON, one item per line, keys in fixed order."""
    table = {
        "format": 1,
        "base": {"commit": lock.base_commit, "tree": lock.base_tree},
        "patches": [asdict(patch) for patch in lock.patches],
        "tree": lock.tree,
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def parse_lock(data: bytes, where: Path) -> Lock:
    """Read a lock; `where` is only named in errors.

    Raises:
        CorruptError: Not a lock, or not in its one byte form.
    """
    try:
        file = _LockFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"not a lock: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        lock = Lock(file.base.commit, file.base.tree, file.patches)
        if format_lock(lock) == data:
            return lock
        problem = "not in its one byte form: edited by hand or damaged in transfer"
    raise CorruptError(
        f"{where}: {problem}",
        hint=f"{restore_command(where)}; or write it from the patches: "
        f"mto export {where.parent.name} --from-patches",
    )


def read_lock(upstream: Upstream) -> Lock | None:
    """Read the lock beside a series; None where there is neither lock nor patch.

    Raises:
        MissingError: There are patches but no lock.
        CorruptError: The lock cannot be read, or names another base than `upstream.toml`.
    """
    file = lock_path(upstream.folder)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        if patches := upstream.patch_files():
            raise MissingError(
                f"{file} is missing, but there are {len(patches)} patches",
                hint=restore_command(file),
            ) from None
        return None
    lock = parse_lock(data, file)
    if lock.base_commit != upstream.pin:
        raise CorruptError(
            f"{file}: base is {lock.base_commit}, but upstream.toml pins {upstream.pin}",
            hint=f"{restore_command(upstream.folder)}; or, to move the pin, set it to "
            f"{lock.base_commit} again and let mto upgrade {upstream.name} --to {upstream.pin} "
            "--accept write both",
        )
    return lock


def load_series(upstream: Upstream) -> Series:
    """Read lock and patch files, and compare them.

    Raises:
        MissingError: There are patches but no lock.
        CorruptError: The lock cannot be read; or a patch is missing, was added or changed.
    """
    lock = read_lock(upstream)
    if lock is None:
        return Series(Lock(upstream.pin, ""))
    files = upstream.patch_files()
    found, locked = [file.name for file in files], [patch.file for patch in lock.patches]
    if found != locked:
        odd = sorted(set(found) ^ set(locked)) or found
        raise CorruptError(
            f"{upstream.folder}: the series and its lock name different patches: {', '.join(odd)}",
            hint=f"if the patches are as you want them: mto export {upstream.name} "
            f"--from-patches; otherwise {restore_command(upstream.folder)}, and move away the "
            "patches that git status shows as untracked there",
        )
    contents = [file.read_bytes() for file in files]
    for file, data, patch in zip(files, contents, lock.patches, strict=True):
        if sha256(data) != patch.sha256:
            raise CorruptError(
                f"{file}: not the patch that was locked: sha256 {sha256(data)}, "
                f"expected {patch.sha256}",
                hint=restore_command(file),
            )
    return Series(lock, tuple(zip(found, contents, strict=True)))


def open_upstream(home: Path, name: str, say: Say) -> Upstream:
    """Finish what a killed export or upgrade left in `patches/NAME`, then read it.

    Names are in small letters, and may be given in any.
    """
    name = name.lower()
    upstream = load_upstream(home, name)  # refuses a name that is a path
    recover(upstream.folder, say)
    return load_upstream(home, name)
