"""One word per upstream."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.apply import unlike
from mto_tools.patchset.checkout import clone_folder
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.journal import Say, locked
from mto_tools.patchset.lock import Lock, read_lock, verify
from mto_tools.patchset.sources import missing_files
from mto_tools.patchset.switch import edited_files, read_record
from mto_tools.patchset.worktree import Change, Version, states
from mto_tools.upstreams.upstream import LAYERS, Upstream

ABSENT = "absent"
PRISTINE = "pristine"
APPLIED = "applied"
PARTLY = "partly applied"
EDITED = "edited since"
WRONG_BASE = "wrong base"
INCOMPLETE = "incomplete clone"
WORDS = (ABSENT, PRISTINE, APPLIED, PARTLY, EDITED, WRONG_BASE, INCOMPLETE)
GOOD = (ABSENT, PRISTINE, APPLIED)
PATIENCE = 3.0  # seconds to wait for a command that is under way; it is nearly done


@dataclass
class Status:
    """How one upstream's clone stands.

    Attributes:
        name: Of the upstream.
        word: One of `WORDS`.
        repo: The clone.
        through: Last layer that is applied; "" for none.
        head: HEAD's commit.
        pin: The base that is expected.
        detail: Why the word is what it is.
        edited: Tracked files that differ from HEAD.
        missing: Files left out because the source lacked them.
        series: What is wrong with patches or lock; "" for nothing.
        inserted: Lines the series inserts, by layer.
    """

    name: str
    word: str
    repo: str
    pin: str
    through: str = ""
    head: str = ""
    detail: str = ""
    edited: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    series: str = ""
    inserted: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether clone and series are in one of the states a command leaves behind."""
        return self.word in GOOD and not self.series


def status(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Status:
    """Look at one upstream's clone; settles what a killed command left, changes nothing else."""
    folder = clone_folder(upstream, repo)
    found = Status(upstream.name, ABSENT, str(folder), upstream.pin)
    lock: Lock | None = None
    try:
        lock = read_lock(upstream)
        contents = verify(lock, upstream) if lock else []
        for patch, data in zip(lock.patches if lock else (), contents, strict=True):
            count = found.inserted.get(patch.layer, 0) + inserted_lines(data)
            found.inserted[patch.layer] = count
    except MtoError as error:
        found.series = error.message
    if folder.is_dir() and any(folder.iterdir()):
        _look(Git(folder), upstream, lock, found, say)
    return found


def inserted_lines(patch: bytes) -> int:
    """Number of lines a zero-context patch inserts, by its hunk headers."""
    total = 0
    left = 0
    for line in patch.split(b"\n"):
        if left:
            left -= line.startswith(b"+")
        elif line.startswith(b"@@ -"):
            left = int([*line.split(b" ")[2].split(b","), b"1"][1])
            total += left
    return total


def _look(git: Git, upstream: Upstream, lock: Lock | None, found: Status, say: Say) -> None:
    found.word = INCOMPLETE
    try:
        git.require_toplevel()
    except (CorruptError, GitError) as error:
        found.detail = error.message
        return
    unsettled = _settle(git, say)
    found.head = git.resolve("HEAD")
    if not found.head:
        found.detail = "no commit is checked out"
        return
    lock = lock or Lock(upstream.pin, "")
    found.word, found.through, found.detail = _position(git, lock, found.head)
    if found.word == WRONG_BASE:
        return
    record = read_record(git)
    found.missing = sorted(record.missing)
    lost = set(missing_files(git, found.head)) - record.missing.keys()
    if lost:
        found.word, found.detail = INCOMPLETE, f"objects are missing: {', '.join(sorted(lost))}"
        return
    level = found.head if found.head in {p.commit for p in lock.patches} else lock.base_commit
    on_top = found.word == EDITED
    hidden = [] if on_top else unlike(git, lock, level)
    found.edited = sorted({*edited_files(git), *hidden})
    if found.edited and not on_top:
        mixed = _mixed(git, lock, level, found.edited)
        found.word = PARTLY if mixed else EDITED
        found.detail = f"{'of another stage' if mixed else 'edited'}: {_few(mixed or found.edited)}"
    if unsettled:
        found.word, found.detail = PARTLY, unsettled
    elif not found.detail and found.missing:
        found.detail = f"the source lacked {_few(found.missing)}"


def _settle(git: Git, say: Say) -> str:
    try:
        if (git.git_dir() / "mto" / "journal").exists():
            with locked(git, say, wait=PATIENCE):
                pass
        return ""
    except (MtoError, OSError) as error:
        words = error.message if isinstance(error, MtoError) else str(error)
        return f"a command was interrupted and cannot be settled now: {words}"


def _position(git: Git, lock: Lock, head: str) -> tuple[str, str, str]:
    """Return (word, last layer applied, detail), by HEAD alone."""
    if head == lock.base_commit:
        return PRISTINE, "", ""
    commits = [patch.commit for patch in lock.patches]
    if head in commits:
        here = commits.index(head)
        patch, after = lock.patches[here], lock.patches[here + 1 : here + 2]
        if after and after[0].layer == patch.layer:
            return PARTLY, patch.layer, f"{here + 1} of {len(commits)} patches"
        return APPLIED, patch.layer, ""
    if head in read_record(git).ours:
        return WRONG_BASE, "", "at a former pin or series; mto apply moves on"
    if commits and git.ok("merge-base", "--is-ancestor", commits[-1], head):
        number = git.text("rev-list", "--count", f"{commits[-1]}..{head}")
        return EDITED, lock.patches[-1].layer, f"{number} commits of yours on top of the series"
    return WRONG_BASE, "", f"HEAD is {head}, expected {lock.base_commit}"


def _mixed(git: Git, lock: Lock, level: str, edited: list[str]) -> list[str]:
    """Edited files whose bytes are exactly another stage of the series: a half-done step."""
    stages: dict[str, set[Version | None]] = {}
    for patch in lock.patches:
        for file in patch.touched:
            before = Version(file.before, file.mode) if file.before else None
            stages.setdefault(file.path, {before}).add(Version(file.after, file.mode))
    found = []
    for path in edited:
        for version in stages.get(path, set()):
            change: Change = (version, version)
            if states(git, {path: change})[path] != "other":
                found.append(path)
                break
    return found


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def layers_text(inserted: dict[str, int]) -> str:
    """E.g. "compat 12, mto 5"."""
    return ", ".join(f"{layer} {inserted[layer]}" for layer in LAYERS if layer in inserted)
