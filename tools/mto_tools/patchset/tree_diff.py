"""Trees compared and made by git, without the user's index or work tree.

Where the lines of an insertion go is git's choice among equals, so that exports read like git's own
diffs; whether a change only inserts is decided here, because git's diff sometimes shows a deletion
where none is needed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.series import (
    MODES,
    ZERO,
    FilePatch,
    Hunk,
    Problem,
    insert,
    path_problem,
    split_lines,
)

_DIFF = (
    *("diff-tree", "-r", "-p", "-U0", "--full-index", "--minimal", "--no-renames", "--no-color"),
    *("--no-ext-diff", "--no-textconv", "--text", "--indent-heuristic", "--inter-hunk-context=0"),
    "--diff-filter=M",
)
_RANGE = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class NotAdditiveError(RefusedError):
    """A change takes something of upstream away; the message names every place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Name all of `problems`, of which there is at least one."""
        super().__init__(
            "a patch may only insert lines, but\n" + "\n".join(f"  {p}" for p in problems),
            hint="leave the upstream line as it is and insert one that replaces its effect: rebind "
            "the name on the next line, set args.x = ... behind it, or define an override; see "
            "docs/patches.md, 'How to write an additive patch'",
        )


class Version(NamedTuple):
    """One version of a file: blob OID and mode, such as "100644", "100755" or "120000"."""

    oid: str
    mode: str


class Change(NamedTuple):
    """One path that differs between two trees, with its versions; None where it is absent."""

    path: str
    before: Version | None
    after: Version | None


@dataclass(frozen=True)
class Range:
    """Lines `old` to `old + removed` replaced by lines `new` to `new + added`, counted from 0."""

    old: int
    removed: int
    new: int
    added: int


def changes(git: Git, old: str, new: str) -> list[Change]:
    """Return the paths in which two trees differ, in git's order."""
    raw = git.run("diff-tree", "-r", "--raw", "-z", "--no-abbrev", "--no-renames", old, new)
    fields = raw.decode("utf-8", "surrogateescape").split("\0")[:-1]
    found = []
    for head, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old_oid, new_oid, _ = head.removeprefix(":").split(" ")
        before = None if old_oid == ZERO else Version(old_oid, old_mode)
        found.append(Change(path, before, None if new_oid == ZERO else Version(new_oid, new_mode)))
    return found


def ranges(git: Git, old: str, new: str) -> dict[str, list[Range]]:
    """Return git's minimal line diff of every file that both trees have and that differs."""
    found_by_git = changes(git, old, new)
    # git shows a file that becomes a link as two files; the first digits are those of the kind.
    paths = iter([p for p, a, b in found_by_git if a and b and a.mode[:3] == b.mode[:3]])
    found: dict[str, list[Range]] = {}
    here: list[Range] = []
    for line in git.run(*_DIFF, old, new).split(b"\n"):
        if line.startswith(b"diff --git "):
            here = found.setdefault(next(paths), [])
        elif match := _RANGE.match(line):
            a, b, c, d = (1 if group is None else int(group) for group in match.groups())
            # With nothing on a side git names the line before, otherwise the first one.
            here.append(Range(a - (b > 0), b, c - (d > 0), d))
    return found


def read_blob(git: Git, oid: str) -> bytes:
    """Read a blob; the zero OID is the empty text.

    Raises:
        CorruptError: The repository lacks it.
    """
    if oid == ZERO:
        return b""
    rc, data, _ = git.try_run("cat-file", "blob", oid)
    if rc:
        raise CorruptError(f"blob {oid} is missing in {git.folder}", hint="fetch it again")
    return data


@contextmanager
def temporary_index(git: Git) -> Iterator[Git]:
    """Give the same repository with an empty index of its own, outside the repository."""
    with tempfile.TemporaryDirectory(prefix="mto-index-") as folder:
        yield git.with_env(GIT_INDEX_FILE=str(Path(folder) / "index"))


def write_tree(git: Git, base: str, entries: Mapping[str, tuple[str, str] | None]) -> str:
    """Write `base` ("" for nothing) with some paths replaced by (mode, OID), or removed by None."""
    with temporary_index(git) as index:
        if base:
            index.run("read-tree", base)
        lines = [f"{' '.join(entry or ('0', ZERO))}\t{path}\0" for path, entry in entries.items()]
        text = "".join(lines).encode("utf-8", "surrogateescape")
        index.run("update-index", "-z", "--index-info", input=text)
        return index.text("write-tree", "--missing-ok")


def commit_tree(git: Git, tree: str, parents: Sequence[str], message: str, seconds: int) -> str:
    """Write a commit with our fixed identity at `seconds` since 1970, UTC; return its OID."""
    who = {"NAME": "mto", "EMAIL": "mto@invalid", "DATE": f"@{seconds} +0000"}
    env = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
    args = [arg for parent in parents for arg in ("-p", parent)]
    return git.with_env(**env).text("commit-tree", tree, *args, input=f"{message}\n".encode())


def write_blob(git: Git, data: bytes) -> str:
    """Store `data` as it is and return its OID."""
    return git.text("hash-object", "-w", "--stdin", "--no-filters", input=data)


def file_patches(git: Git, base: str, tree: str) -> tuple[FilePatch, ...]:
    """Return what `tree` inserts into `base`, file by file.

    Raises:
        NotAdditiveError: Something of `base` is changed or missing in `tree`.
    """
    by_git = ranges(git, base, tree)
    files, problems = [], []
    for path, before, after in changes(git, base, tree):
        reason = path_problem(path) or refusal(before, after)
        if reason or not after:
            problems.append(Problem(path, 1, reason))
            continue
        oid = before.oid if before else ZERO
        old, new = read_blob(git, oid), read_blob(git, after.oid)
        hunks = additive_hunks(old, new, by_git.get(path))
        if b"\0" in new:
            problems.append(Problem(path, 1, "binary content"))
        elif hunks is None:
            problems += _explain(path, old, new, by_git.get(path, ()))
        else:
            files.append(FilePatch(path, oid, after.oid, after.mode, hunks))
    if problems:
        raise NotAdditiveError(problems)
    return tuple(files)


def additive_hunks(old: bytes, new: bytes, by_git: list[Range] | None) -> tuple[Hunk, ...] | None:
    """Return the insertions that make `new` of `old`, or None where insertions do not suffice."""
    lines = split_lines(new)
    if by_git is None:  # a new file
        by_git = [Range(0, 0, 0, len(lines))] if lines else []
    if any(r.removed for r in by_git):
        by_git = subsequence(split_lines(old), lines) or []
    hunks = []
    for r in by_git:
        inserted = lines[r.new : r.new + r.added]
        if not inserted[-1].endswith(b"\n"):
            return None
        hunks.append(Hunk(r.old, tuple(line[:-1] for line in inserted)))
    try:
        return tuple(hunks) if insert(old, hunks) == new else None
    except ValueError:
        return None


def subsequence(old: Sequence[bytes], new: Sequence[bytes]) -> list[Range] | None:
    """Return insertions that make `new` of `old`, each old line at its first place; or None."""
    found: list[Range] = []
    at = 0
    for number, line in enumerate(old):
        start = at
        while at < len(new) and new[at] != line:
            at += 1
        if at == len(new):
            return None
        if at > start:
            found.append(Range(number, 0, start, at - start))
        at += 1
    if at < len(new):
        found.append(Range(len(old), 0, at, len(new) - at))
    return found


def refusal(before: Version | None, after: Version | None) -> str:
    """Say why a file's change can be no part of a series; empty where it can, by its modes."""
    if not after:
        return "upstream file deleted"
    if any(version and version.mode not in MODES for version in (before, after)):
        return f"mode {after.mode}: only ordinary files can be patched"
    if before and before.mode != after.mode:
        return f"mode changed from {before.mode} to {after.mode}"
    return ""


def _explain(path: str, old: bytes, new: bytes, by_git: Iterable[Range]) -> Iterator[Problem]:
    for r in by_git:
        last = r.old + r.removed
        which = f"line {last}" if r.removed == 1 else f"lines {r.old + 1} to {last}"
        what = "changed" if r.added else "deleted"
        if r.removed:
            yield Problem(path, r.old + 1, f"upstream {which} {what}")
    before, after = split_lines(old), split_lines(new)
    for lines, mend in ((before, "insert before it"), (after, "add one")):
        if before[-1:] != after[-1:] and lines and not lines[-1].endswith(b"\n"):
            reason = f"the last line does not end with a line feed: {mend}"
            yield Problem(path, len(lines), reason)
