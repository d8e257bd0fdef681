"""The lock of a series: every object that applying it must give.

A zero-context hunk is located by its line number alone, and git ignores the OIDs in a patch's
index lines. What makes such a patch safe is that every blob and tree is compared with this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import OID
from mto_tools.upstreams.upstream import LAYERS, Upstream, layer_of

FORMAT = 1


@dataclass(frozen=True)
class Touched:
    """One file a patch changes.

    Attributes:
        path: Relative to the clone, with slashes.
        mode: "100644" or "100755", the same before and after.
        before: OID of the blob before; None where the patch adds the file.
        after: OID of the blob after.
    """

    path: str
    mode: str
    before: str | None
    after: str


@dataclass(frozen=True)
class LockedPatch:
    """One patch and what applying it gives.

    Attributes:
        file: Name of the patch file.
        sha256: Of that file's bytes.
        layer: compat, mto or deepspeed.
        tree: OID of the tree after this patch.
        commit: OID of the reproducible commit after this patch.
        touched: Files it changes, in the order of their paths.
    """

    file: str
    sha256: str
    layer: str
    tree: str
    commit: str
    touched: tuple[Touched, ...]


@dataclass(frozen=True)
class Lock:
    """Base and result of a series.

    Attributes:
        base_commit: The pin.
        base_tree: Its tree.
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


def sha256(data: bytes) -> str:
    """Return the digest the lock keeps of a patch file."""
    return hashlib.sha256(data).hexdigest()


def lock_path(folder: Path) -> Path:
    """Where the lock of the series in `folder` stands."""
    return folder / "lock"


def format_lock(lock: Lock) -> bytes:
    """Return the one byte form of a lock: JSON, one item per line, keys in fixed order."""
    base = {"commit": lock.base_commit, "tree": lock.base_tree}
    table = {
        "format": FORMAT,
        "base": base,
        "patches": [asdict(patch) for patch in lock.patches],
        "tree": lock.tree,
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def parse_lock(data: bytes, where: Path) -> Lock:
    """Read a lock; `where` is only named in errors.

    Raises:
        CorruptError: Not a lock, not in its one byte form, or at odds with itself.
    """
    try:
        table = json.loads(data.decode("utf-8"))
        if table["format"] != FORMAT:
            raise CorruptError(
                f"{where}: format {table['format']!r}, this mto reads {FORMAT}",
                hint="use the mto that wrote it, or write it again: "
                f"mto export {where.parent.name} --from-patches",
            )
        patches = tuple(
            LockedPatch(**{**patch, "touched": tuple(Touched(**file) for file in patch["touched"])})
            for patch in table["patches"]
        )
        lock = Lock(table["base"]["commit"], table["base"]["tree"], patches)
        _check(lock, where)
        canonical = format_lock(lock)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{where}: not a lock: {error!r}", hint=_hint(where)) from error
    if canonical != data:
        crlf = b"\r\n" in data
        raise CorruptError(
            f"{where}: not in its one byte form"
            + (": it has CRLF line ends" if crlf else ": edited by hand or damaged in transfer"),
            hint=_hint(where),
        )
    return lock


def _hint(where: Path) -> str:
    return f"git checkout -- {where}    # in the mto clone"


def _check(lock: Lock, where: Path) -> None:
    def expect(good: bool, what: str) -> None:
        if not good:
            raise CorruptError(f"{where}: {what}", hint=_hint(where))

    is_oid: Callable[[Any], bool] = lambda oid: isinstance(oid, str) and bool(OID.fullmatch(oid))  # noqa: E731
    expect(is_oid(lock.base_commit) and is_oid(lock.base_tree), "base: not a full OID")
    blobs: dict[str, str] = {}
    for patch in lock.patches:
        expect(layer_of(patch.file) == patch.layer, f"{patch.file} is not of layer {patch.layer}")
        expect(is_oid(patch.tree) and is_oid(patch.commit), f"{patch.file}: not a full OID")
        expect(bool(re.fullmatch(r"[0-9a-f]{64}", patch.sha256)), f"{patch.file}: not a sha256")
        expect(bool(patch.touched), f"{patch.file}: touches no file")
        paths = [file.path for file in patch.touched]
        expect(paths == sorted(set(paths)), f"{patch.file}: paths out of order or double")
        for file in patch.touched:
            name = f"{patch.file}: {file.path}"
            expect(file.mode in ("100644", "100755"), f"{name}: mode {file.mode}")
            expect(is_oid(file.after), f"{name}: blob after is not a full OID")
            expect(file.before is None or is_oid(file.before), f"{name}: blob before")
            known = blobs.get(file.path, file.before)
            expect(file.before == known, f"{name}: blob before is not what the last patch left")
            blobs[file.path] = file.after


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
        patches = upstream.patch_files()
        if patches:
            raise MissingError(
                f"{file} is missing, but there are {len(patches)} patches", hint=_hint(file)
            ) from None
        return None
    lock = parse_lock(data, file)
    if lock.base_commit != upstream.pin:
        raise CorruptError(
            f"{file}: base is {lock.base_commit}, but upstream.toml pins {upstream.pin}",
            hint=f"git checkout -- {upstream.folder}; or, to move the pin, set it to "
            f"{lock.base_commit} again and let mto upgrade {upstream.name} --to {upstream.pin} "
            "--accept write both",
        )
    return lock


def verify(lock: Lock, upstream: Upstream) -> list[bytes]:
    """Compare the patch files with the lock and return their bytes, in order.

    Raises:
        CorruptError: A file is missing, was added, or is not the one that was locked.
    """
    files = upstream.patch_files()
    found, locked = [file.name for file in files], [patch.file for patch in lock.patches]
    if found != locked:
        odd = sorted(set(found) ^ set(locked)) or found
        raise CorruptError(
            f"{upstream.folder}: the series and its lock name different patches: {', '.join(odd)}",
            hint=f"if the patches are as you want them: mto export {upstream.name} "
            f"--from-patches; otherwise git checkout -- {upstream.folder}, and move away the "
            "patches that git status shows as untracked there",
        )
    contents = []
    for file, patch in zip(files, lock.patches, strict=True):
        data = file.read_bytes()
        if sha256(data) != patch.sha256:
            crlf = ": it has CRLF line ends" if b"\r\n" in data else ""
            raise CorruptError(
                f"{file}: not the patch that was locked{crlf}: sha256 {sha256(data)}, "
                f"expected {patch.sha256}",
                hint=_hint(file),
            )
        contents.append(data)
    return contents


def write_atomically(file: Path, data: bytes) -> None:
    """Replace `file` in one step: a reader, or a crash, meets the old bytes or the new ones."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
