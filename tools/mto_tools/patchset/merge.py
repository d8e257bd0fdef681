"""Three trees merged as `git cherry-pick` would, without a work tree.

`git merge-tree --write-tree` (git 2.38) finds its base among commits, so three throw-away ones are
made: the base, and the two sides as its children.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import OLDEST, Git
from mto_tools.patchset.series import FilePatch, insert
from mto_tools.patchset.tree_diff import commit_tree, read_blobs

NEEDED = (2, 38)
# Pinned, so that a user's settings cannot turn a conflict into a guess.
SETTINGS = {
    "merge.renames": "true",
    "merge.directoryRenames": "conflict",
    "merge.renameLimit": "7000",
    "merge.renormalize": "false",
}


@dataclass(frozen=True)
class Conflict:
    """One path git could not merge: blob OIDs by stage (1 base, 2 upstream, 3 ours)."""

    path: str
    stages: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """The outcome; `tree` holds conflict markers where there are `conflicts`."""

    tree: str
    conflicts: tuple[Conflict, ...]
    messages: tuple[str, ...]


def git_version(git: Git) -> tuple[int, ...]:
    """Return the version of the git on PATH, such as (2, 39, 5)."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", git.text("version"))
    return tuple(int(part or 0) for part in match.groups()) if match else (0,)


def require_merge_tree(git: Git) -> None:
    """Refuse a git without `merge-tree --write-tree`.

    Raises:
        MissingError: git is older than 2.38.
    """
    version = git_version(git)
    if version < NEEDED:
        raise MissingError(
            f"git {'.'.join(map(str, version))} is too old: mto upgrade needs 2.38 or newer",
            hint="conda install -c conda-forge git needs no root; the rest of mto works with "
            + ".".join(map(str, OLDEST)),
        )


def merge_trees(git: Git, base: str, upstream: str, ours: str) -> Merged:
    """Carry the change from tree `base` to tree `ours` over to tree `upstream`."""
    if base == ours:
        return Merged(upstream, (), ())
    root = commit_tree(git, base, [], "base", 1)
    sides = [commit_tree(git, tree, [root], "side", 1) for tree in (upstream, ours)]
    settings = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
    rc, out, err = git.try_run(*settings, "merge-tree", "--write-tree", "-z", "--messages", *sides)
    if rc not in (0, 1):
        raise CorruptError(f"git merge-tree failed in {git.folder}: {err.strip()}")
    fields = out.decode("utf-8", "surrogateescape").split("\0")
    tree, at = fields[0], 1
    stages: dict[str, dict[int, str]] = {}
    while at < len(fields) and fields[at]:
        head, path = fields[at].split("\t", 1)
        _, oid, stage = head.split(" ")
        stages.setdefault(path, {})[int(stage)] = oid
        at += 1
    messages = []
    at += 1
    while at < len(fields) and fields[at]:
        count = int(fields[at])
        kind, text = fields[at + 1 + count : at + 3 + count]
        if kind.startswith("CONFLICT"):
            messages.append(text.strip())
        at += count + 3
    conflicts = tuple(Conflict(path, found) for path, found in stages.items())
    if rc and not conflicts:  # a conflict that is none of a file's content
        conflicts = (Conflict("", {}),)
    return Merged(tree, conflicts, tuple(messages))


def merge_text(base: bytes, upstream: bytes, ours: bytes, git: Git) -> tuple[bytes, bool]:
    """Merge three texts with zdiff3 markers; return the text and whether it conflicts."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name, data in (("upstream", upstream), ("base", base), ("ours", ours)):
            path = Path(folder) / name
            path.write_bytes(data)
            names.append(str(path))
        labels = ("-L", "upstream", "-L", "pinned upstream", "-L", "our patch")
        rc, out, _ = git.try_run("merge-file", "-p", "--zdiff3", *labels, *names)
    return out, rc != 0  # above 127 git cannot merge them at all, as with binary content


def conflicting_hunks(git: Git, file: FilePatch, conflict: Conflict) -> list[bool]:
    """Say for every hunk of `file` whether it is the one that cannot be placed."""
    if not {1, 2, 3} <= set(conflict.stages):
        return [True] * len(file.hunks)
    blobs = read_blobs(git, [conflict.stages[1], conflict.stages[2]])
    base, upstream = (blobs[conflict.stages[stage]] for stage in (1, 2))
    alone = [merge_text(base, upstream, insert(base, [h]), git)[1] for h in file.hunks]
    return alone if any(alone) else [True] * len(alone)


def conflict_text(git: Git, conflict: Conflict) -> list[str]:
    """Return the conflicting parts of a file with both sides, as lines for the terminal."""
    if not {1, 2, 3} <= set(conflict.stages):
        return []
    blobs = read_blobs(git, conflict.stages.values())
    base, upstream, ours = (blobs[conflict.stages[stage]] for stage in (1, 2, 3))
    text, _ = merge_text(base, upstream, ours, git)
    return _blocks(text.decode("utf-8", "replace").splitlines())


def _blocks(lines: Sequence[str]) -> list[str]:
    found, inside = [], False
    for line in lines:
        inside = inside or line.startswith("<<<<<<< ")
        if inside:
            found.append(line)
        if line.startswith(">>>>>>> "):
            inside = False
    return found
