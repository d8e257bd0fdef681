"""A series rehearsed on another upstream commit, in a scratch repository only."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mto_tools.errors import RefusedError
from mto_tools.patchset.build import rebuild
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import SHORTEST, licence_files, upstream_lines
from mto_tools.patchset.lock import load_series
from mto_tools.patchset.merge import require_merge_tree
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.replay import VERDICTS, Step, replay
from mto_tools.patchset.scratch_repo import Scratch
from mto_tools.patchset.series import ZERO, Patch
from mto_tools.patchset.tree_diff import file_patches, read_blobs


@dataclass(frozen=True)
class LicenceChange:
    """One licence file that differs; `lines` is a diff for the terminal only."""

    path: str
    what: str
    lines: list[str]


@dataclass(frozen=True)
class Rehearsal:
    """The result of an upgrade that was only tried.

    Attributes:
        name: The upstream.
        pin: Full OID of the pinned commit.
        target: Full OID of the other one.
        date: Its day.
        subject: Its first line, for the terminal only.
        ahead: Commits of the target that the pin has not; -1 where histories are not at hand.
        behind: Commits of the pin that the target has not.
        steps: The outcome of each patch.
        copied: Places of inserted lines that the target's text has, too: lint would refuse them.
        licence: Licence files that differ.
    """

    name: str
    pin: str
    target: str
    date: str
    subject: str
    ahead: int
    behind: int
    steps: list[Step]
    copied: list[str]
    licence: list[LicenceChange]

    @property
    def ok(self) -> bool:
        """Whether the series goes over without a person."""
        return not self.copied and all(step.ok for step in self.steps)

    @property
    def counts(self) -> dict[str, int]:
        """Number of hunks by verdict."""
        found = Counter(hunk.verdict for step in self.steps for hunk in step.hunks)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`: facts only, no upstream text."""
        facts = ("name", "pin", "target", "date", "ahead", "behind", "ok", "counts")
        patches = [
            {"file": s.patch.name, "ok": s.ok, "hunks": [h.as_dict() for h in s.hunks]}
            for s in self.steps
        ]
        return {
            **{key: getattr(self, key) for key in facts},
            "patches": patches,
            "copied": [place.partition(": ")[0] for place in self.copied],
            "licence": [{"path": change.path, "what": change.what} for change in self.licence],
        }


def rehearse(scratch: Scratch, ref: str) -> Rehearsal:
    """Carry the series over to the commit `ref` names at the source, in `scratch` only.

    Raises:
        MissingError: There is no such commit, or git is too old.
        CorruptError: The series is not what the lock says.
        RefusedError: The commit holds the series already.
    """
    git, upstream = scratch.git, scratch.upstream
    require_merge_tree(git)
    lock = rebuild(git, load_series(upstream), upstream.folder)
    target = scratch.resolve(ref)
    _refuse_series(git, upstream.pin, target, ref)
    steps = list(replay(git, lock, read_series(upstream), target))
    for step in steps:
        annotate_removals(git, step, upstream.pin, target)
    date, _, subject = git.text("log", "-1", "--format=%cs %s", target).partition(" ")
    rc, out, _ = git.try_run("rev-list", "--left-right", "--count", f"{upstream.pin}...{target}")
    behind, ahead = (int(part) for part in out.split()) if rc == 0 else (-1, -1)
    return Rehearsal(
        name=upstream.name,
        pin=upstream.pin,
        target=target,
        date=date,
        subject=subject,
        ahead=ahead,
        behind=behind,
        steps=steps,
        copied=[place for s in steps if s.ok for place in copied_lines(git, [target], *s.trees)],
        licence=licence_changes(git, upstream.pin, target),
    )


def _refuse_series(git: Git, pin: str, target: str, ref: str) -> None:
    """Refuse a commit on top of our own, as a checkout's HEAD is: it would empty the series."""
    ours = ("--author=<mto@invalid>", "--min-parents=1", "--format=%H %P", "--reverse")
    if found := git.text("log", *ours, target, "--not", pin, check=False):
        commit, below = found.splitlines()[0].split()[:2]
        raise RefusedError(
            f"{ref} is {target}: it holds {commit}, which mto made of a patch, so no patch "
            "would be left",
            hint=f"name a commit without the series; the one below it is {below}",
        )


def annotate_removals(git: Git, step: Step, pin: str, target: str) -> None:
    """Note at every hunk whose file is gone or renamed which commit did it."""
    for hunk in step.hunks:
        if hunk.verdict in ("renamed", "gone"):
            hunk.note = find_removing_commit(git, pin, target, hunk.path)


def find_removing_commit(git: Git, pin: str, target: str, path: str) -> str:
    """Say which commit took `path` away between two commits, or brought it, seen backwards."""
    query = ("log", "-1", "--full-history", "--no-renames", "--format=%H %cs")
    for kind, span, words in (
        ("D", f"{pin}..{target}", "removed by"),
        ("A", f"{target}..{pin}", "not there yet, added by"),
    ):
        rc, out, _ = git.try_run(*query, f"--diff-filter={kind}", span, "--", path)
        if rc == 0 and out.strip():
            oid, _, day = out.decode().strip().partition(" ")
            return f"{words} {oid} ({day})"
    return "no commit between the two removed it by itself"


def licence_changes(git: Git, pin: str, target: str) -> list[LicenceChange]:
    """Compare the licence files in the top folders of two commits."""
    sides = [licence_files(git, commit) for commit in (pin, target)]
    blobs = read_blobs(git, {oid for side in sides for oid in side.values()})
    found = []
    for path in sorted(sides[0].keys() | sides[1].keys()):
        old, new = (side.get(path, ZERO) for side in sides)
        if old == new:
            continue
        a, b = (blobs[oid].decode("utf-8", "replace").splitlines() for oid in (old, new))
        what = "added" if old == ZERO else "removed" if new == ZERO else "changed"
        found.append(LicenceChange(path, what, list(difflib.unified_diff(a, b, lineterm=""))[2:]))
    return found


def copied_lines(git: Git, commits: Sequence[str], before: str, tree: str) -> list[str]:
    """Return "path: line" of every line inserted between two trees that a commit's text has."""
    found = [
        (file.path, line.strip())
        for file in file_patches(git, before, tree)
        for hunk in file.hunks
        for line in hunk.lines
        if len(line.strip()) >= SHORTEST
    ]
    copied = {c for commit in commits for c in upstream_lines(git, commit, [x for _, x in found])}
    return [f"{path}: {line.decode(errors='replace')}" for path, line in found if line in copied]


def refuse_upstream_text(
    git: Git, commits: Sequence[str], patch: Patch, before: str, tree: str
) -> None:
    """Refuse a version of `patch`, from tree `before` to `tree`, that has lines of upstream's.

    Raises:
        RefusedError: Names every file with a line that one of `commits` has.
    """
    if places := copied_lines(git, commits, before, tree):
        raise upstream_text(patch.name, places)


def upstream_text(what: str, places: Sequence[str]) -> RefusedError:
    """Return the error for a patch, or series, whose lines at `places` are upstream's."""
    return RefusedError(
        f"{what} would hold upstream text:\n" + "\n".join(f"  {place}" for place in places),
        hint="insert lines in words of your own, and bring back no file that upstream deleted; a "
        "line that upstream took over is reworded in the checkout, exported, then upgraded",
    )
