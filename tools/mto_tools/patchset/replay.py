"""A series carried over to another commit as `git cherry-pick` would, without a work tree.

`git merge-tree --write-tree` (git 2.38) finds its base among commits, so three throw-away ones are
made: the base, and the two sides as its children.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import OLDEST, Git
from mto_tools.patchset.lock import Lock
from mto_tools.patchset.series import FilePatch, Patch, split_lines
from mto_tools.patchset.tree_diff import (
    NotAdditiveError,
    commit_tree,
    file_patches,
    read_blob,
    write_blob,
    write_tree,
)

NEEDED = (2, 38)
# Pinned, so that a user's settings cannot turn a conflict into a guess.
SETTINGS = {
    "merge.renames": "true",
    "merge.directoryRenames": "conflict",
    "merge.renameLimit": "7000",
    "merge.renormalize": "false",
}
VERDICTS = {  # of a hunk, each with its words and style in the report
    "clean": ("clean", "green"),  # merges
    "moved": ("only moved", "green"),  # merges; only the line number differs
    "absorbed": ("upstream has it", "yellow"),
    "renamed": ("file renamed", "yellow"),  # merges into the renamed file
    "conflict": ("conflict", "bold red"),  # a person must decide
    "gone": ("file gone", "bold red"),
}
NEAR = 3  # upstream lines on either side of a hunk that count as its surroundings

Stages = Mapping[int, tuple[str, str]]  # 1 base, 2 upstream, 3 ours: (mode, blob OID)


@dataclass
class HunkReport:
    """What became of one hunk."""

    path: str  # in the pinned upstream
    after: int  # line behind which the hunk stands there, other patches included
    count: int  # of inserted lines
    verdict: str  # one of VERDICTS
    now: tuple[str, int] | None = None  # (path, line) in the new upstream, if it has a place there
    changed_around: bool = False  # upstream changed one of the `NEAR` lines on either side
    note: str = ""  # the commit that removed the file


@dataclass
class Step:
    """One patch carried over."""

    patch: Patch  # as it is in the series
    before: str  # tree it goes onto
    after: str  # tree with it; where it conflicts, with the hunks that could be merged
    ok: bool  # goes over without a person
    refused: str = ""  # why git's answer is not taken although it is no conflict
    hunks: list[HunkReport] = field(default_factory=list)
    sides: dict[str, list[str]] = field(default_factory=dict)  # by path; for the terminal only


def git_version(git: Git) -> tuple[int, ...]:
    """Return the version of the git on PATH, such as (2, 39, 5)."""
    return tuple(map(int, re.findall(r"\d+", git.text("version"))[:3]))


def read_stages(listed: str) -> dict[str, Stages]:
    """Read "MODE OID STAGE<tab>PATH" entries, each ended by NUL, as git lists unmerged files."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for entry in listed.split("\0")[:-1]:
        head, path = entry.split("\t", 1)
        mode, oid, stage = head.split(" ")
        found.setdefault(path, {})[int(stage)] = (mode, oid)
    return dict(found)


def merge_trees(
    git: Git, base: str, upstream: str, ours: str
) -> tuple[str, bool, Mapping[str, Stages]]:
    """Carry the change from tree `base` to tree `ours` over to tree `upstream`.

    Return the merged tree, whether git could merge all, and the versions of each path it could not.

    Raises:
        MissingError: git is older than 2.38.
    """
    root = commit_tree(git, base, [], "base", 1)
    sides = [commit_tree(git, tree, [root], "side", 1) for tree in (upstream, ours)]
    settings = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
    command = ("merge-tree", "--write-tree", "-z", "--no-messages", *sides)
    rc, out, err = git.try_run(*settings, *command)
    if rc == 129:  # git shows how merge-tree was used before
        raise MissingError(
            "this git is too old: mto upgrade needs 2.38 or newer",
            hint="conda install -c conda-forge git needs no root; the rest of mto works with "
            + ".".join(map(str, OLDEST)),
        )
    if rc not in (0, 1):
        raise CorruptError(f"git merge-tree failed in {git.folder}: {err.strip()}")
    tree, _, listed = out.decode("utf-8", "surrogateescape").partition("\0")
    return tree, rc == 0, read_stages(listed)


def replay(git: Git, lock: Lock, series: Sequence[Patch], target: str) -> Iterator[Step]:
    """Carry `series` with its `lock` over to the tree `target`; never stops at a conflict.

    `git` has the trees of both.
    """
    base, onto = lock.base_tree, git.resolve(f"{target}^{{tree}}")
    for patch, locked in zip(series, lock.patches, strict=True):
        step = rebase_patch(git, patch, base, onto, locked.tree)
        yield step
        base, onto = locked.tree, step.after


def rebase_patch(git: Git, patch: Patch, base: str, onto: str, ours: str) -> Step:
    """Carry the change from tree `base` to tree `ours`, which is `patch`, over to tree `onto`."""
    tree, clean, conflicts = merge_trees(git, base, onto, ours)
    step = Step(patch, onto, tree, clean)
    if not clean:
        step.after = _merge_the_rest(git, step, conflicts) if conflicts else onto
    try:
        inserted = {file.path: file for file in file_patches(git, onto, step.after)}
    except NotAdditiveError as error:
        step.refused = error.message if clean else ""
        step.ok, step.after, inserted = False, onto, {}
    renamed = _renames(git, base, onto)
    for file in patch.files:
        path = renamed.get(file.path, file.path)
        step.hunks += _judge(git, file, path, inserted.get(path), step.ok)
    return step


def _merge_the_rest(git: Git, step: Step, conflicts: Mapping[str, Stages]) -> str:
    """Return the merged tree with upstream's side wherever the two conflict; note both sides."""
    entries: dict[str, tuple[str, str] | None] = {}
    for path, stages in conflicts.items():
        entries[path] = stages.get(2)
        if stages.keys() == {1, 2, 3}:
            text = _merge_file(git, stages, "--zdiff3").decode("utf-8", "replace")
            parts = re.findall(r"^<{7} .*?^>{7} [^\n]*", text, re.DOTALL | re.MULTILINE)
            step.sides[path] = "\n".join(parts).splitlines()
            rest = write_blob(git, _merge_file(git, stages, "--ours"))
            entries[path] = (stages[2][0], rest)
    return write_tree(git, step.after, entries)


def _merge_file(git: Git, stages: Stages, how: str) -> bytes:
    """Merge the three versions of a file; empty where git cannot, as with binary content."""
    words = {2: "upstream", 1: "pinned upstream", 3: "our patch"}
    with tempfile.TemporaryDirectory() as folder:
        for stage, word in words.items():
            (Path(folder) / word).write_bytes(read_blob(git, stages[stage][1]))
        labels = [part for word in words.values() for part in ("-L", word)]
        files = [str(Path(folder) / word) for word in words.values()]
        return git.run("merge-file", "-p", how, *labels, *files, check=False)


def _renames(git: Git, old: str, new: str) -> dict[str, str]:
    """Return the paths of `old` that `new` has under another name, or not at all: then ""."""
    flags = ("-r", "-M", f"-l{SETTINGS['merge.renameLimit']}", "--diff-filter=DR")
    listed = git.text("diff-tree", *flags, "--name-status", "-z", old, new).split("\0")[:-1]
    found, fields = {}, iter(listed)
    for status in fields:
        path = next(fields)
        found[path] = next(fields) if status.startswith("R") else ""
    return found


def _judge(
    git: Git, old: FilePatch, path: str, new: FilePatch | None, ok: bool
) -> Iterator[HunkReport]:
    """Say of every hunk of `old` where it is in `new`, the insertions into `path` of upstream."""
    lost = "absorbed" if ok else "gone" if not path else "conflict"
    places = _places(old, new) if new else [None] * len(old.hunks)
    was, now = (read_blob(git, file.before) if file else b"" for file in (old, new))
    for hunk, at in zip(old.hunks, places, strict=True):
        report = HunkReport(old.path, hunk.after, len(hunk.lines), lost)
        if new and at is not None:
            report.now = (path, at)
            report.changed_around = _near(was, hunk.after) != _near(now, at)
            moved = at != hunk.after and not report.changed_around
            report.verdict = "renamed" if path != old.path else "moved" if moved else "clean"
        yield report


def _places(old: FilePatch, new: FilePatch) -> list[int | None]:
    """Return for every hunk of `old` the line behind which it stands in `new`; None if absent."""
    lines = [(line, hunk.after) for hunk in new.hunks for line in hunk.lines]
    places: list[int | None] = []
    at = 0
    for hunk in old.hunks:
        here = lines[at : at + len(hunk.lines)]
        found = sorted(line for line, _ in here) == sorted(hunk.lines)
        places.append(here[0][1] if found else None)
        at += len(hunk.lines) if found else 0
    return places


def _near(text: bytes, at: int) -> list[bytes]:
    return split_lines(text)[max(at - NEAR, 0) : at + NEAR]
