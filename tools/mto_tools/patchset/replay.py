"""A series carried over to another commit, patch by patch, and what became of every hunk."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock
from mto_tools.patchset.merge import (
    Conflict,
    Merged,
    conflict_text,
    conflicting_hunks,
    merge_trees,
)
from mto_tools.patchset.series import ZERO, FilePatch, Hunk, Patch, split_lines
from mto_tools.patchset.tree_diff import NotAdditiveError, file_patches, read_blobs, write_tree

VERDICTS = ("clean", "moved", "absorbed", "renamed", "conflict", "gone")
NEAR = 3
"""Upstream lines on either side of a hunk that count as its surroundings."""


@dataclass
class HunkReport:
    """What became of one hunk.

    Attributes:
        path: File in the pinned upstream.
        after: Line behind which the hunk stands there, other patches included.
        count: Number of inserted lines.
        verdict: clean (merges, same place), moved (merges; only the line number differs), absorbed
            (upstream has these lines now), renamed (merges into the renamed file), conflict (a
            person must decide), gone (upstream has no such file).
        now: (path, line) in the new upstream; None for conflict and gone.
        around: Upstream's changes within three lines, as diff lines; upstream text, for the
            terminal only.
        note: What else a person should know, e.g. which commit removed the file.
    """

    path: str
    after: int
    count: int
    verdict: str
    now: tuple[str, int] | None = None
    around: list[str] = field(default_factory=list)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`, without upstream text."""
        facts = asdict(self)
        return {**facts, "changed_around": len(facts.pop("around"))}


@dataclass
class Step:
    """One patch carried over.

    Attributes:
        patch: As it is in the series.
        before: Tree it goes onto.
        after: Tree with it; where it conflicts, with what could be merged.
        merged: git's own answer.
        refused: Why git's answer is not taken although it is no conflict.
        hunks: What became of its hunks.
        sides: Conflicting parts with both sides, for the terminal only.
    """

    patch: Patch
    before: str
    after: str
    merged: Merged
    refused: str = ""
    hunks: list[HunkReport] = field(default_factory=list)
    sides: dict[str, list[str]] = field(default_factory=dict)

    @property
    def trees(self) -> tuple[str, str]:
        """The tree before and after it."""
        return self.before, self.after

    @property
    def ok(self) -> bool:
        """Whether the patch goes over without a person."""
        return not self.merged.conflicts and not self.refused


def replay(git: Git, lock: Lock, series: Sequence[Patch], target: str) -> Iterator[Step]:
    """Carry `series` over to the tree `target`; never stops at a conflict.

    Args:
        git: A repository with the trees of `lock` and of the target.
        lock: The lock of the series.
        series: Its patches.
        target: Tree or commit of the new upstream.
    """
    base, tree = lock.base_tree, git.resolve(f"{target}^{{tree}}")
    for patch, locked in zip(series, lock.patches, strict=True):
        step = rebase_patch(git, patch, base, tree, locked.tree)
        yield step
        base, tree = locked.tree, step.after


def rebase_patch(git: Git, patch: Patch, base: str, onto: str, ours: str) -> Step:
    """Carry the change from tree `base` to tree `ours`, which is `patch`, over to tree `onto`."""
    merged = merge_trees(git, base, onto, ours)
    step = Step(patch, onto, merged.tree, merged)
    inserted: tuple[FilePatch, ...] = ()
    if merged.conflicts:
        step.after = without_conflicts(git, onto, merged)
    else:
        try:
            inserted = file_patches(git, onto, merged.tree)
        except NotAdditiveError as error:
            step.refused = error.message
            step.after = onto
    conflicts = {conflict.path: conflict for conflict in merged.conflicts}
    if merged.conflicts and not step.refused:
        inserted = _additive(git, onto, step.after)
    _judge(git, step, {file.path: file for file in inserted}, conflicts)
    return step


def without_conflicts(git: Git, onto: str, merged: Merged) -> str:
    """Return the merged tree with the conflicting files as they are in `onto`."""
    entries: dict[str, tuple[str, str] | None] = {}
    for conflict in merged.conflicts:
        for path in {conflict.path} - {""}:
            listed = git.text("ls-tree", onto, "--", path)
            mode, _, oid = listed.split("\t")[0].split(" ") if listed else ("", "", ZERO)
            entries[path] = (mode, oid) if listed else None
    return write_tree(git, merged.tree, entries)


def _additive(git: Git, onto: str, tree: str) -> tuple[FilePatch, ...]:
    try:
        return file_patches(git, onto, tree)
    except NotAdditiveError:
        return ()


def _judge(
    git: Git, step: Step, inserted: dict[str, FilePatch], conflicts: dict[str, Conflict]
) -> None:
    moved = _renamed_files(step.patch, inserted)
    for file in step.patch.files:
        conflict = conflicts.get(file.path)
        new = inserted.get(file.path) or moved.get(file.path)
        if conflict is None and new is None and conflicts:
            conflict = _by_base(conflicts, file)
        if conflict is not None:
            step.hunks += _in_conflict(git, step, file, conflict)
        elif step.refused or (new is None and conflicts and "" in conflicts):
            step.hunks += [
                HunkReport(file.path, h.after, len(h.lines), "conflict", note=step.refused)
                for h in file.hunks
            ]
        elif new is None:
            step.hunks += [
                HunkReport(file.path, h.after, len(h.lines), "absorbed") for h in file.hunks
            ]
        else:
            step.hunks += _merged(git, file, new)


def _renamed_files(patch: Patch, inserted: dict[str, FilePatch]) -> dict[str, FilePatch]:
    """Match files of the patch to files under other names by what is inserted into them."""
    known = {file.path for file in patch.files}
    strangers = [file for path, file in inserted.items() if path not in known]
    found = {}
    for file in patch.files:
        if file.path not in inserted:
            for other in strangers:
                if _flat(other.hunks) == _flat(file.hunks):
                    found[file.path] = other
    return found


def _by_base(conflicts: dict[str, Conflict], file: FilePatch) -> Conflict | None:
    """Find the conflict of a file that git reports under its new name."""
    for conflict in conflicts.values():
        if file.before in (conflict.stages.get(1), "") or file.after == conflict.stages.get(3):
            return conflict
    return None


def _in_conflict(git: Git, step: Step, file: FilePatch, conflict: Conflict) -> Iterator[HunkReport]:
    gone = 2 not in conflict.stages and not file.is_new
    if not gone:
        step.sides[conflict.path] = conflict_text(git, conflict)
    guilty = conflicting_hunks(git, file, conflict)
    for hunk, bad in zip(file.hunks, guilty, strict=True):
        verdict = "gone" if gone else "conflict" if bad else "clean"
        note = "" if gone or bad else "another hunk of this file conflicts"
        yield HunkReport(file.path, hunk.after, len(hunk.lines), verdict, note=note)
    if not file.hunks:
        yield HunkReport(file.path, 0, 0, "gone" if gone else "conflict")


def _merged(git: Git, old: FilePatch, new: FilePatch) -> Iterator[HunkReport]:
    renamed = new.path != old.path
    if old.before == new.before and not renamed:
        for hunk in old.hunks:
            yield HunkReport(old.path, hunk.after, len(hunk.lines), "clean", (new.path, hunk.after))
        return
    blobs = read_blobs(git, [old.before, new.before])
    before, now = split_lines(blobs[old.before]), split_lines(blobs[new.before])
    for hunk, at in zip(old.hunks, _places(old, new), strict=True):
        report = HunkReport(old.path, hunk.after, len(hunk.lines), "clean")
        yield report
        if at is None:
            report.verdict = "absorbed"
            continue
        report.now = (new.path, at)
        report.around = _around(before, hunk.after, now, at)
        if renamed:
            report.verdict = "renamed"
        elif not report.around and at != hunk.after:
            report.verdict = "moved"


def _places(old: FilePatch, new: FilePatch) -> list[int | None]:
    """Return for every hunk of `old` the line behind which it stands in `new`; None if absent."""
    lines = [(line, hunk.after) for hunk in new.hunks for line in hunk.lines]
    places: list[int | None] = []
    at = 0
    for hunk in old.hunks:
        here = [line for line, _ in lines[at : at + len(hunk.lines)]]
        if here == list(hunk.lines) or sorted(here) == sorted(hunk.lines):
            places.append(lines[at][1])
            at += len(hunk.lines)
        else:
            places.append(None)
    return places


def _around(old: Sequence[bytes], a: int, new: Sequence[bytes], b: int) -> list[str]:
    before = [*_window(old, a - NEAR, a), *_window(old, a, a + NEAR)]
    after = [*_window(new, b - NEAR, b), *_window(new, b, b + NEAR)]
    if before == after:
        return []
    diff = difflib.ndiff([_text(line) for line in before], [_text(line) for line in after])
    return [line for line in diff if line[:2] in ("- ", "+ ")]


def _window(lines: Sequence[bytes], start: int, stop: int) -> Sequence[bytes]:
    return lines[max(start, 0) : max(stop, 0)]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _flat(hunks: Sequence[Hunk]) -> list[bytes]:
    return [line for hunk in hunks for line in hunk.lines]
