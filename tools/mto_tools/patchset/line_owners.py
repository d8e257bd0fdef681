"""Which patch does an edited line belong to?

Every line of the edited tree is upstream's or some patch's. Leaving out the lines of later patches
gives the tree after each patch, and each of these trees contains the one before, line for line: so
whatever the edit was, the series made from them only inserts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mto_tools.patchset.git import Git
from mto_tools.patchset.series import FilePatch, Hunk, split_lines
from mto_tools.patchset.tree_diff import (
    Range,
    changes,
    file_patches,
    ranges,
    read_blob,
    write_blob,
    write_tree,
)

UPSTREAM = 0


def split_edit(
    git: Git,
    base: str,
    applied: str,
    edited: str,
    history: Sequence[Sequence[FilePatch]],
    new: int,
) -> list[str]:
    """Return the tree after each patch, the last of which is the tree `edited`.

    The edit started from the tree `applied` of the series on `base`. `history` has the insertions
    of each patch of the series to be; the `new`-th gets the inserted lines, but a reworded line
    stays in its patch.

    Raises:
        NotAdditiveError: The edit takes something of upstream away.
    """
    whole = {file.path: file for file in file_patches(git, base, edited)}
    by_edit = ranges(git, applied, edited)
    added = {c.path for c in changes(git, applied, edited) if not c.before}
    trees: list[dict[str, tuple[str, str] | None]] = [{} for _ in history]
    for path, file in whole.items():
        past = [next((f for f in files if f.path == path), None) for files in history]
        edit = [Range(0, 0, 0, file.inserted)] if path in added else by_edit.get(path, [])
        before = read_blob(git, file.before)
        owners = relabel(labels(before, past), edit, new + 1)
        if owners.count(UPSTREAM) != len(split_lines(before)):
            owners = within(file, owners, new + 1)
        lines = split_lines(read_blob(git, file.after))
        creator = next((n for n, f in enumerate(past, 1) if f and f.is_new), new + 1)
        first = min(owners, default=creator) if file.is_new else 0
        for number, tree in enumerate(trees, 1):
            if number >= first:
                kept = [line for line, owner in zip(lines, owners, strict=True) if owner <= number]
                tree[path] = (file.mode, write_blob(git, b"".join(kept)))
    return [write_tree(git, base, tree) for tree in trees]


def labels(base: bytes, history: Sequence[FilePatch | None]) -> list[int]:
    """Return the owner of every line after the patches: 0 upstream, n the n-th of `history`."""
    owners = [UPSTREAM] * len(split_lines(base))
    for number, file in enumerate(history, 1):
        for hunk in reversed(file.hunks if file else ()):
            owners[hunk.after : hunk.after] = [number] * len(hunk.lines)
    return owners


def relabel(owners: Sequence[int], edit: Sequence[Range], new: int) -> list[int]:
    """Carry the owners of lines over an edit.

    Inserted lines belong to `new`, but those which replace lines of one patch stay in that patch.
    """
    result: list[int] = []
    done = 0
    for r in edit:
        result += owners[done : r.old]
        replaced = set(owners[r.old : r.old + r.removed])
        keep = len(replaced) == 1 and UPSTREAM not in replaced
        result += [replaced.pop() if keep else new] * r.added
        done = r.old + r.removed
    return result + list(owners[done:])


def within(file: FilePatch, owners: Sequence[int], new: int) -> list[int]:
    """Take what is upstream's from `file`, the diff to the pin.

    For when the diff to the patched tree took an upstream line for removed, and an equal line of
    ours for the one that stayed.
    """
    hunks: Mapping[int, Hunk] = {hunk.after: hunk for hunk in file.hunks}
    result: list[int] = []
    after = 0
    while len(result) < len(owners):
        if hunk := hunks.get(after):
            mine = owners[len(result) : len(result) + len(hunk.lines)]
            result += [owner or new for owner in mine]
        if len(result) < len(owners):
            result.append(UPSTREAM)
        after += 1
    return result
