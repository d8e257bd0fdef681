"""One word per upstream."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.checkout import clone_folder, exists
from mto_tools.patchset.clone_state import read_state
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.local_edits import edited_files
from mto_tools.patchset.lock import Lock, load_series, read_lock
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import missing_files
from mto_tools.patchset.transaction import clone_lock, interrupted
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
    if exists(folder):
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
    found.missing = sorted(read_state(git).missing)
    if lost := missing_files(git, found.head).keys() - found.missing:
        found.word, found.detail = INCOMPLETE, f"objects are missing: {', '.join(sorted(lost))}"
        return
    found.edited = sorted(edited_files(git))
    if found.edited and found.word != EDITED:  # by commits on top of the series
        found.word, found.detail = EDITED, f"edited: {_few(found.edited)}"
    if unfinished:
        found.word, found.detail = PARTLY, unfinished
    elif not found.detail and found.missing:
        found.detail = f"the source lacked {_few(found.missing)}"


def _finish(git: Git, say: Say) -> str:
    try:
        if interrupted(git):
            with clone_lock(git, say):
                pass
        return ""
    except (MtoError, OSError) as error:
        words = getattr(error, "message", error)
        return f"a command was interrupted and cannot be finished now: {words}"


def _position(git: Git, lock: Lock, head: str) -> tuple[str, str, str]:
    """Return (word, last layer applied, detail), by HEAD alone."""
    patches = lock.patches
    if head == lock.base_commit:
        return PRISTINE, "", ""
    if head in lock.commits:
        here = lock.commits.index(head)
        layer = patches[here - 1].layer
        if patches[here:] and patches[here].layer == layer:
            return PARTLY, layer, f"{here} of {len(patches)} patches"
        return APPLIED, layer, ""
    if head in read_state(git).commits:
        return WRONG_BASE, "", "at a former pin or series; mto apply moves on"
    if patches and git.ok("merge-base", "--is-ancestor", lock.commit, head):
        number = git.text("rev-list", "--count", f"{lock.commit}..{head}")
        return EDITED, patches[-1].layer, f"{number} commits of yours on top of the series"
    return WRONG_BASE, "", f"HEAD is {head}, expected {lock.base_commit}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
