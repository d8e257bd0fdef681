"""One word per upstream."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.apply import edited_since
from mto_tools.patchset.checkout import clone_folder
from mto_tools.patchset.clone_state import read_state
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.local_edits import edited_files, unlike
from mto_tools.patchset.lock import Lock, load_series, read_lock
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import missing_files
from mto_tools.patchset.transaction import clone_lock, interrupted
from mto_tools.patchset.tree_diff import Version
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
    """How one upstream's clone stands; `layers` are in the checkout, off until a run asks."""

    name: str  # of the upstream
    word: str  # one of WORDS
    repo: str  # the clone
    pin: str  # the base that is expected
    through: str = ""  # last layer that is applied
    head: str = ""  # commit
    detail: str = ""  # the reason for the word
    edited: list[str] = field(default_factory=list)  # tracked files that differ from HEAD
    missing: list[str] = field(default_factory=list)  # files left out: the source lacked them
    series: str = ""  # the fault of patches or lock
    inserted: dict[str, int] = field(default_factory=dict)  # lines of the series by layer
    layers: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether clone and series are in one of the states a command leaves behind."""
        return self.word in GOOD and not self.series


def status(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Status:
    """Look at one upstream's clone; finishes what a killed command left, changes nothing else."""
    folder = clone_folder(upstream, repo)
    found = Status(upstream.name, ABSENT, str(folder), upstream.pin)
    lock = Lock(upstream.pin, "")
    try:
        series = load_series(upstream)
        lock = series.lock
        for patch, (_, data) in zip(lock.patches, series.files, strict=True):
            count = found.inserted.get(patch.layer, 0) + inserted_lines(data)
            found.inserted[patch.layer] = count
    except MtoError as error:
        found.series = error.message
        with suppress(MtoError):
            lock = read_lock(upstream) or lock
    if folder.is_dir() and any(folder.iterdir()):
        _look(Git(folder), lock, found, say)
    if found.through:
        present = {patch.layer for patch in lock.through(found.through)}
        found.layers = [layer for layer in LAYERS if layer in present]
    return found


def inserted_lines(patch: bytes) -> int:
    """Return the number of lines a zero-context patch inserts, by its hunk headers."""
    counts = re.findall(rb"^@@ -[\d,]+ \+\d+(?:,(\d+))? @@", patch, re.MULTILINE)
    return sum(int(count or 1) for count in counts)


def _look(git: Git, lock: Lock, found: Status, say: Say) -> None:
    found.word = INCOMPLETE
    try:
        git.require_toplevel()
    except (CorruptError, GitError) as error:
        found.detail = error.message
        return
    unfinished = _finish(git, say)
    found.head = git.resolve("HEAD")
    if not found.head:
        found.detail = "no commit is checked out"
        return
    found.word, found.through, found.detail = _position(git, lock, found.head)
    if found.word == WRONG_BASE:
        return
    known = read_state(git).missing
    found.missing = sorted(known)
    if lost := set(missing_files(git, found.head)) - known.keys():
        found.word, found.detail = INCOMPLETE, f"objects are missing: {', '.join(sorted(lost))}"
        return
    if found.word == EDITED:  # by commits on top of the series
        found.edited = sorted(edited_files(git))
    elif edited := edited_since(git, lock, found.head):
        found.edited, mixed = edited, _mixed(git, lock, edited)
        found.word = PARTLY if mixed else EDITED
        found.detail = f"{'of another stage' if mixed else 'edited'}: {_few(mixed or edited)}"
    if unfinished:
        found.word, found.detail = PARTLY, unfinished
    elif not found.detail and found.missing:
        found.detail = f"the source lacked {_few(found.missing)}"


def _finish(git: Git, say: Say) -> str:
    try:
        if interrupted(git):
            with clone_lock(git, say, wait=PATIENCE):
                pass
        return ""
    except (MtoError, OSError) as error:
        words = error.message if isinstance(error, MtoError) else str(error)
        return f"a command was interrupted and cannot be finished now: {words}"


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
    if head in read_state(git).commits:
        return WRONG_BASE, "", "at a former pin or series; mto apply moves on"
    if commits and git.ok("merge-base", "--is-ancestor", commits[-1], head):
        number = git.text("rev-list", "--count", f"{commits[-1]}..{head}")
        return EDITED, lock.patches[-1].layer, f"{number} commits of yours on top of the series"
    return WRONG_BASE, "", f"HEAD is {head}, expected {lock.base_commit}"


def _mixed(git: Git, lock: Lock, edited: list[str]) -> list[str]:
    """Return edited files that hold another stage of the series: of a half-done step."""
    stages: dict[str, set[Version | None]] = {}
    for patch in lock.patches:
        for file in patch.touched:
            before = Version(file.before, file.mode) if file.before else None
            stages.setdefault(file.path, {before}).add(Version(file.after, file.mode))
    other = unlike(git, {path: stages.get(path, set()) for path in edited})
    return [path for path in edited if path not in other]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
