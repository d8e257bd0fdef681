"""The lock of a series: every object that applying it must give; and how they are built.

A zero-context hunk is located by its line number alone, and git ignores the OIDs in a patch's
index lines. Such a patch is safe because every blob and tree is compared with this file.

Objects are built away from every work tree: each patch goes into a temporary index by
`git apply --cached`, becomes a tree and then a commit whose author, date and message are fixed. The
same series gives the same OIDs in every clone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasPath, Field, TypeAdapter, ValidationError

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import Git, restore_command
from mto_tools.patchset.locks import Say
from mto_tools.patchset.transaction import recover
from mto_tools.patchset.tree_diff import changes, commit_tree, refusal, temporary_index
from mto_tools.upstreams.upstream import LAYERS, OID, Upstream, layer_of, load_upstream

Oid = Annotated[str, Field(pattern=f"^{OID}$")]


@dataclass(frozen=True)
class Touched:
    """One file a patch changes."""

    path: str  # relative to the clone, with slashes
    mode: Annotated[str, Field(pattern="^100(644|755)$")]  # the same before and after
    before: Oid | None  # of the blob; None where the patch adds the file
    after: Oid


@dataclass(frozen=True)
class LockedPatch:
    """One patch and the objects that applying it gives."""

    file: str  # name of the patch file
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of its bytes
    layer: Annotated[str, Field(pattern=f"^({'|'.join(LAYERS)})$")]
    tree: Oid  # after this patch
    commit: Oid  # after this patch, reproducible
    touched: Annotated[tuple[Touched, ...], Field(min_length=1)]  # in the order of the paths


@dataclass(frozen=True)
class Lock:
    """Base and result of a series; `format_lock` writes it, pydantic reads it."""

    base_commit: Annotated[Oid, Field(validation_alias=AliasPath("base", "commit"))]  # the pin
    base_tree: Annotated[Oid, Field(validation_alias=AliasPath("base", "tree"))]  # "" if unbuilt
    patches: tuple[LockedPatch, ...] = ()
    format: Literal[1] = 1  # of the file

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

    def touched(self) -> set[str]:
        """Return the paths of all files the series changes."""
        return {file.path for patch in self.patches for file in patch.touched}


@dataclass(frozen=True)
class Series:
    """Lock and patch files of an upstream, checked against one another."""

    lock: Lock  # where there is no series yet, one that names the pin only
    files: tuple[tuple[str, bytes], ...] = ()  # (name, bytes), in order


def sha256(data: bytes) -> str:
    """Return the digest the lock keeps of a patch file."""
    return hashlib.sha256(data).hexdigest()


def lock_path(folder: Path) -> Path:
    """Where the lock of the series in `folder` stands."""
    return folder / "lock"


def format_lock(lock: Lock) -> bytes:
    """Return the one byte form of a lock: JSON, one item per line, keys in fixed order."""
    table = {
        "format": lock.format,
        "base": {"commit": lock.base_commit, "tree": lock.base_tree},
        "patches": [asdict(patch) for patch in lock.patches],
        "tree": lock.tree,
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _parse(data: bytes, where: Path) -> Lock:
    """Read a lock, in its one byte form only; `where` is named in errors."""
    try:
        lock = TypeAdapter(Lock).validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"not a lock: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
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
    lock = _parse(data, file)
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


def apply_patch(git: Git, tree: str, patch: bytes, name: str) -> str:
    """Return the OID of `tree` (or of a commit's tree) with one patch file in it.

    Raises:
        CorruptError: git cannot read the patch, or it does not fit the tree.
    """
    with temporary_index(git) as index:
        index.run("read-tree", tree)
        # --unidiff-zero: without it git moves zero-context additions to the end of the file.
        rc, _, err = index.try_run(
            "apply", "--cached", "--unidiff-zero", "--whitespace=nowarn", "-", input=patch
        )
        if rc:
            words = " ".join(err.split())
            raise CorruptError(f"{name} does not apply to tree {git.resolve(tree)}: {words}")
        # Blobs that the source lacked are none of the series' business; the OID is the check.
        return index.text("write-tree", "--missing-ok")


def build_series(git: Git, base: str, patches: Sequence[tuple[str, bytes]]) -> Lock:
    """Apply (file name, contents) of `patches` to the commit `base`; return the objects as a lock.

    Only objects are written. Commits are dated one second after another, from the base's own date.

    Raises:
        CorruptError: A patch does not apply, changes nothing, or does more than insert.
    """
    lock = Lock(base, git.resolve(f"{base}^{{tree}}"))
    if not lock.base_tree:
        raise CorruptError(f"{git.folder} does not hold the base commit {base}")
    date = int(git.text("log", "-1", "--format=%ct", base)) if patches else 0
    for number, (name, data) in enumerate(patches, start=1):
        tree = apply_patch(git, lock.tree, data, name)
        touched = []
        for path, old, new in changes(git, lock.tree, tree):
            reason = refusal(old, new)
            if reason or not new:
                raise CorruptError(f"{name}: {path}: {reason}; a series only inserts lines")
            touched.append(Touched(path, new.mode, old.oid if old else None, new.oid))
        if not touched:
            raise CorruptError(f"{name} changes nothing")
        commit = commit_tree(git, tree, [lock.commit], _message(name, data), date + number)
        patch = LockedPatch(name, sha256(data), layer_of(name), tree, commit, tuple(touched))
        lock = replace(lock, patches=(*lock.patches, patch))
    return lock


def _message(name: str, patch: bytes) -> str:
    """The patch's own message; its file name where it has none."""
    head = patch.partition(b"diff --git ")[0]
    match = re.search(rb"^Subject: \[PATCH\] (.+?)\n---\n", head, re.DOTALL | re.MULTILINE)
    return match[1].decode().strip() if match else name.removesuffix(".patch")


def rebuild(git: Git, series: Series, where: Path) -> Lock:
    """Build a series in `git`, compare every object with its lock, and return what was built.

    `where` is the folder of the series, for messages.

    Raises:
        CorruptError: A patch does not apply, or an object differs; names the first one.
    """
    built = build_series(git, series.lock.base_commit, series.files)
    locked, found = _objects(series.lock), _objects(built)
    for what, expected in locked.items() if series.files else ():
        if expected != found.get(what):
            raise CorruptError(
                f"{lock_path(where)}: {what}: expected {expected}, found {found.get(what)}",
                hint=f"{restore_command(where)}; or, if you wrote the "
                f"patches: mto export {where.name} --from-patches",
            )
    return built


def _objects(lock: Lock) -> dict[str, str]:
    found = {"tree of the base commit": lock.base_tree}
    for patch in lock.patches:
        for file in patch.touched:
            found[f"{patch.file}: {file.path}"] = f"{file.mode} {file.before} -> {file.after}"
        for part in ("layer", "tree", "commit"):
            found[f"{patch.file}: {part}"] = getattr(patch, part)
    return found
