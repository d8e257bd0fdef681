"""Build the trees and commits of a series, away from every work tree.

Each patch goes into a temporary index by `git apply --cached`, becomes a tree and then a commit
whose author, date and message are fixed: the same series gives the same OIDs in every clone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mto_tools.errors import CorruptError
from mto_tools.patchset.git import Git, restore_command
from mto_tools.patchset.lock import Lock, LockedPatch, Series, Touched, lock_path, sha256
from mto_tools.patchset.series import MODES
from mto_tools.patchset.tree_diff import changes, commit_tree, temporary_index
from mto_tools.upstreams.upstream import layer_of


def apply_patch(git: Git, tree: str, patch: bytes, name: str) -> str:
    """Return the OID of `tree` with one patch in it.

    Args:
        git: Any clone that holds `tree` and the blobs the patch touches.
        tree: Tree or commit to apply to.
        patch: A whole patch file.
        name: Of the patch, for the error.

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


def touched_files(git: Git, before: str, after: str, name: str) -> tuple[Touched, ...]:
    """Return the files that differ between two trees, in the order of their paths.

    Raises:
        CorruptError: A file is removed, changes its mode, or is no regular file.
    """
    files = []
    for path, old, new in changes(git, before, after):
        if not new or new.mode not in MODES or (old and old.mode != new.mode):
            modes = [version.mode if version else "000000" for version in (old, new)]
            raise CorruptError(
                f"{name}: {path} goes from mode {modes[0]} to {modes[1]}; a series only "
                "inserts lines into regular files or adds such files"
            )
        files.append(Touched(path, new.mode, old.oid if old else None, new.oid))
    return tuple(sorted(files, key=lambda file: file.path))


def build_series(git: Git, base: str, patches: Sequence[tuple[str, bytes]]) -> Lock:
    """Apply a series to `base` and return what came of it, as a lock.

    Only objects are written: no ref, no index, no file of the work tree. Commits are dated one
    second after another from the base commit's own date.

    Args:
        git: A clone that holds the base.
        base: Full OID of the base commit.
        patches: (file name, contents) in order.

    Raises:
        CorruptError: A patch does not apply, changes nothing, or does more than insert.
    """
    base_tree = git.resolve(f"{base}^{{tree}}")
    if not base_tree:
        raise CorruptError(f"{git.folder} does not hold the base commit {base}")
    tree, commit = base_tree, base
    date = int(git.text("log", "-1", "--format=%ct", base)) if patches else 0
    built = []
    for number, (name, data) in enumerate(patches, start=1):
        after = apply_patch(git, tree, data, name)
        touched = touched_files(git, tree, after, name)
        if not touched:
            raise CorruptError(f"{name} changes nothing")
        commit = commit_tree(git, after, [commit], _message(name, data), date + number)
        built.append(LockedPatch(name, sha256(data), layer_of(name), after, commit, touched))
        tree = after
    return Lock(base, base_tree, tuple(built))


def _message(name: str, patch: bytes) -> str:
    """The patch's own message; its file name where it has none."""
    head = patch.partition(b"diff --git ")[0]
    match = re.search(rb"^Subject: \[PATCH\] (.+?)\n---\n", head, re.DOTALL | re.MULTILINE)
    return match[1].decode().strip() if match else name.removesuffix(".patch")


def rebuild(git: Git, series: Series, where: Path) -> Lock:
    """Build a series in `git` and compare every object with its lock.

    Args:
        git: A clone that holds the base.
        series: As `load_series` gives it.
        where: Folder of the series, for messages.

    Returns:
        The lock; of an empty series, too, it names the base's tree.

    Raises:
        CorruptError: A patch does not apply, or an object differs; names the first one.
    """
    built = build_series(git, series.lock.base_commit, series.files)
    wanted, found = _objects(series.lock), _objects(built)
    for what in {**wanted, **found} if series.files else ():
        if wanted.get(what) != found.get(what):
            raise CorruptError(
                f"{lock_path(where)}: {what}: expected {wanted.get(what)}, found {found.get(what)}",
                hint=f"{restore_command(where)}; or, if you wrote the "
                f"patches: mto export {where.name} --from-patches",
            )
    return built


def _objects(lock: Lock) -> dict[str, str]:
    found = {"tree of the base commit": lock.base_tree}
    for patch in lock.patches:
        for file in patch.touched:
            found[f"{patch.file}: {file.path}"] = f"{file.mode} {file.before} -> {file.after}"
        for part in ("sha256", "layer", "tree", "commit"):
            found[f"{patch.file}: {part}"] = getattr(patch, part)
    return found
