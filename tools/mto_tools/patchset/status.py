"""One word per upstream."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.checkout import exists
from mto_tools.patchset.clone_state import find_base, read_state
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.local_edits import edited_files
from mto_tools.patchset.lock import Lock, load_series, read_lock
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import missing_files
from mto_tools.patchset.transaction import clone_lock, interrupted
from mto_tools.upstreams.upstream import Upstream

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
    layers: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether clone and series are in one of the states a command leaves behind."""
        return self.word in GOOD and not self.series


def status(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Status:
    """Look at one upstream's clone; finishes what a killed command left, changes nothing else."""
    git = Git(repo or upstream.checkout)
    found = Status(upstream.name, ABSENT, str(git.folder), upstream.pin)
    lock = Lock(upstream.pin, "")
    try:
        lock = load_series(upstream).lock
    except MtoError as error:
        found.series = error.message
        with suppress(MtoError):
            lock = read_lock(upstream) or lock
    if exists(git.folder):
        _look(git, lock, found, say)
    if found.through:
        found.layers = list(dict.fromkeys(p.layer for p in lock.through(found.through)))
    return found


def _look(git: Git, lock: Lock, found: Status, say: Say) -> None:
    found.word = INCOMPLETE
    try:
        git.require_toplevel()
    except (CorruptError, GitError) as error:
        found.detail = error.message
        return
    try:
        if interrupted(git):
            with clone_lock(git, say):
                pass
    except (MtoError, OSError) as error:
        words = getattr(error, "message", error)
        found.word = PARTLY
        found.detail = f"a command was interrupted and cannot be finished now: {words}"
        return
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
    if not found.detail and found.missing:
        found.detail = f"the source lacked {_few(found.missing)}"


def _position(git: Git, lock: Lock, head: str) -> tuple[str, str, str]:
    """Return (word, last layer applied, detail), by HEAD alone."""
    base, ahead = find_base(git, {*lock.commits, *read_state(git).commits})
    if not base or (ahead and base not in lock.commits[1:]):
        return WRONG_BASE, "", f"HEAD is {head}, expected {lock.base_commit}"
    if base not in lock.commits:
        return WRONG_BASE, "", "at a former pin or series; mto apply moves on"
    if base == lock.base_commit:
        return PRISTINE, "", ""
    here = lock.commits.index(base)
    layer = lock.patches[here - 1].layer
    if ahead:
        return EDITED, layer, f"{ahead} commits of yours on top of the series"
    if lock.patches[here:] and lock.patches[here].layer == layer:
        return PARTLY, layer, f"{here} of {len(lock.patches)} patches"
    return APPLIED, layer, ""


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
