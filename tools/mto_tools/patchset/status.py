"""One word per upstream."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.apply import unlike
from mto_tools.patchset.checkout import clone_folder
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.local_edits import classify_files, edited_files
from mto_tools.patchset.lock import Lock, load_series, read_lock
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import missing_files
from mto_tools.patchset.switch import read_state
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
    """How one upstream's clone stands.

    Attributes:
        name: Of the upstream.
        word: One of `WORDS`.
        repo: The clone.
        through: Last layer that is applied; "" for none.
        head: HEAD's commit.
        pin: The base that is expected.
        detail: The reason for the word.
        edited: Tracked files that differ from HEAD.
        missing: Files left out because the source lacked them.
        series: The fault of patches or lock; "" for nothing.
        inserted: Lines the series inserts, by layer.
        layers: Layers whose code is in the checkout. Each is off until a run turns it on.
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
        last = LAYERS.index(found.through)
        found.layers = [n for n in LAYERS[: last + 1] if n in found.inserted]
    return found


def inserted_lines(patch: bytes) -> int:
    """Return the number of lines a zero-context patch inserts, by its hunk headers."""
    total = 0
    left = 0
    for line in patch.split(b"\n"):
        if left:
            left -= line.startswith(b"+")
        elif line.startswith(b"@@ -"):
            left = int([*line.split(b" ")[2].split(b","), b"1"][1])
            total += left
    return total


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
    lost = set(missing_files(git, found.head)) - known.keys()
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


def _mixed(git: Git, lock: Lock, level: str, edited: list[str]) -> list[str]:
    """Edited files whose bytes are exactly another stage of the series: a half-done step."""
    stages: dict[str, set[Version | None]] = {}
    for patch in lock.patches:
        for file in patch.touched:
            before = Version(file.before, file.mode) if file.before else None
            stages.setdefault(file.path, {before}).add(Version(file.after, file.mode))
    found = []
    for path in edited:
        versions = list(stages.get(path, set()))
        if classify_files(git, {path: versions})[path] >= 0:
            found.append(path)
    return found


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
