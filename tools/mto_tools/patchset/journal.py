"""The one moment in which a clone can be caught in between, and the way out of it.

Everything is built as objects first. Then, under a lock, a journal is written that names every
file with its blob before and after; git switches the work tree with an index of our own; the
index goes into place by a rename; HEAD is attached; the journal is removed. Whoever finds a
journal whose owner is gone settles it: HEAD tells whether the step is to be undone or finished,
and a file that is neither version is the user's and stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.holding import PATIENCE, hold, take_name
from mto_tools.patchset.lock import write_atomically
from mto_tools.patchset.worktree import Change, Version, free_name, obstacle, put, states

Say = Callable[[str], None]


@dataclass
class Journal:
    """One step that is under way.

    Attributes:
        verb: What the user asked for, for messages.
        start: HEAD's commit before.
        goal: HEAD's commit after.
        files: Path to (version before, version after).
        index: sha256 of the index before; "" where there was none.
        refs: [ref, new OID or "" to delete it, old OID or "" for none], done after the switch.
        attach: Branch HEAD is put on afterwards; "" leaves it detached.
        forward: Finish the step even where HEAD has not moved.
        note: Shown to the user when the step had to be settled later.
        nonce: Marks the index lock as ours.
    """

    verb: str
    start: str
    goal: str
    files: dict[str, Change]
    index: str
    refs: list[list[str]] = field(default_factory=list)
    attach: str = ""
    forward: bool = False
    note: str = ""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def marker(self) -> bytes:
        """What our index lock holds; git tells people to look at it."""
        words = f"mto {self.verb} is at work here, or was killed: then run any mto command"
        return f"{words}\n{self.nonce}\n".encode()


@dataclass
class Settled:
    """What became of a step.

    Attributes:
        done: In a few words.
        kept: Files that are neither version and were left alone.
        mended: Files that were cut short or missing, each with what it was and is now.
    """

    done: str = ""
    kept: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)


def private(git: Git) -> Path:
    """Our folder in the clone's git directory; made when missing."""
    folder = git.git_dir() / "mto"
    folder.mkdir(exist_ok=True)
    return folder


def index_digest(git: Git) -> str:
    """sha256 of the index file, "" where there is none."""
    try:
        return hashlib.sha256((git.git_dir() / "index").read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


@contextmanager
def locked(git: Git, say: Say, *, wait: float = PATIENCE) -> Iterator[Git]:
    """Hold the clone's lock; settle first what a killed command left.

    Yields:
        The clone, with the lock passed on to every git it starts.

    Raises:
        RefusedError: Another mto, or a git it started, is at work in this clone.
    """
    with (private(git) / "lock").open("w") as stream:
        hold(stream.fileno(), f"another mto is at work in {git.folder}", wait=wait)
        held = Git(git.folder, git.env, stream.fileno())
        recover(held, say)
        yield held


def recover(git: Git, say: Say) -> None:
    """Settle the journal of a command that was killed, if there is one; needs the lock."""
    folder = private(git)
    for left in [*folder.glob("index-*"), *folder.glob("put-*")]:
        shutil.rmtree(left, ignore_errors=True)
    journal = read_journal(git)
    if journal is None:
        (folder / "index").unlink(missing_ok=True)
        (folder / "index.lock").unlink(missing_ok=True)
        return
    clear_stale_locks(git, journal)
    settled = settle(git, journal, aside=folder / f"cut-{journal.nonce[:8]}")
    say(f"{git.folder}: mto {journal.verb} was interrupted: {settled.done}")
    if settled.kept:
        say(f"  kept as you left them: {', '.join(settled.kept)}")
    for line in settled.mended:
        say(f"  written anew: {line}")
    if journal.note:
        say(f"  {journal.note}")


def read_journal(git: Git) -> Journal | None:
    """Return the journal in the clone, if there is one."""
    file = git.git_dir() / "mto" / "journal"
    try:
        table = json.loads(file.read_bytes())
        files = {
            path: (Version(**before) if before else None, Version(**after) if after else None)
            for path, (before, after) in table.pop("files").items()
        }
        return Journal(files=files, **table)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptError(
            f"{file}: not a journal of mto: {error!r}",
            hint=f"see `git -C {git.folder} status`, then remove that file",
        ) from error


def begin(git: Git, journal: Journal) -> Path:
    """Write the journal, hold git's own index lock, and return our copy of the index.

    Raises:
        RefusedError: A git is at work in the clone, or left its lock behind.
    """
    folder = private(git)
    place = git.git_dir() / "index"
    copy = folder / "index"
    if not journal.forward:  # otherwise the caller has prepared it
        copy.unlink(missing_ok=True)
        if place.exists():
            shutil.copyfile(place, copy)
    write_atomically(folder / "journal", json.dumps(asdict(journal)).encode())
    marker = folder / "marker"
    marker.write_bytes(journal.marker())
    lock = place.with_name("index.lock")
    try:
        take_name(marker, lock)
    except OSError as error:
        (folder / "journal").unlink()
        if not isinstance(error, FileExistsError):
            raise
        raise RefusedError(
            f"another git is at work in {git.folder}: {lock} exists",
            hint=f"wait until it is done; if no git runs there: rm {lock}",
        ) from None
    finally:
        marker.unlink(missing_ok=True)
    return copy


def settle(git: Git, journal: Journal, aside: Path | None = None) -> Settled:
    """Finish or undo the step, and remove the journal.

    Args:
        git: The clone.
        journal: The step.
        aside: Folder that gets what files hold which are the beginning of a version: nobody can
            tell whether git was killed while writing or the user cut the end off since. None for
            a step of our own process, where it was git.
    """
    head = git.resolve("HEAD")
    forward = journal.forward or head == journal.goal
    settled = Settled("undid it" if head == journal.start else "left it, for HEAD has moved since")
    back = False
    # Removals first: a folder can stand where a link belongs, and a link where a folder does.
    for removing in (True, False) if forward or head == journal.start else ():
        files = {p: c for p, c in journal.files.items() if (c[forward] is None) is removing}
        for path, state in states(git, files, cut=True).items():
            if state == "other" or (not removing and obstacle(git.folder, path)):
                settled.kept.append(path)
            elif state != ("to" if forward else "from"):
                if state == "partial" and aside:
                    settled.mended.append(_set_aside(git.folder / path, aside / path))
                put(git, path, files[path][forward])
                back = True
    _settle_index(git, journal, forward, back)
    if forward:
        settled.done = "finished it"
        _finish_refs(git, journal)
    lock = git.git_dir() / "index.lock"
    if lock.exists() and lock.read_bytes() == journal.marker():
        lock.unlink()
    (private(git) / "journal").unlink()
    return settled


def _set_aside(file: Path, copy: Path) -> str:
    if not os.path.lexists(file):
        return f"{file} (was missing)"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy = free_name(copy)
    shutil.copyfile(file, copy)
    return f"{file} (was cut short; what it held is in {copy})"


def _settle_index(git: Git, journal: Journal, forward: bool, back: bool) -> None:
    """Put our copy of the index into place, by a rename under git's index lock.

    Never let git write the real index here: killed, it would leave a lock that is not marked.
    """
    place, copy = git.git_dir() / "index", private(git) / "index"
    ours = {"GIT_INDEX_FILE": str(copy)}
    if index_digest(git) != journal.index:  # already in place, or the user staged something since
        if forward and copy.exists():
            shutil.copyfile(place, copy)
            forward = git.try_run("read-tree", "-m", journal.start, journal.goal, env=ours)[0] == 0
    elif not forward and back:
        shutil.copyfile(place, copy)
        forward = True
    if forward and copy.exists():
        if back:  # files put back have new times; let no git command take them for edited
            git.try_run("update-index", "-q", "--really-refresh", env=ours, convert=True)
        copy.replace(place)
    copy.unlink(missing_ok=True)


def _finish_refs(git: Git, journal: Journal) -> None:
    for ref, new, old in journal.refs:
        if new and git.resolve(ref) == old:
            git.run("update-ref", ref, new, old or "0" * len(new))
    if journal.attach and git.resolve(journal.attach) == journal.goal:
        git.run("symbolic-ref", "HEAD", journal.attach)
    for ref, new, old in journal.refs:
        if not new and git.resolve(ref) == old:
            if git.text("symbolic-ref", "-q", "HEAD", check=False) == ref:
                git.run("update-ref", "--no-deref", "HEAD", old)  # or HEAD would name nothing
            git.run("update-ref", "-d", ref, old)


def clear_stale_locks(git: Git, journal: Journal) -> None:
    """Remove ref locks a killed git left: our gits are dead, and a living one is soon done."""
    common = git.common_dir()
    names = ["packed-refs", *(ref for ref, _, _ in journal.refs), journal.attach or "HEAD"]
    locks = [common / f"{name}.lock" for name in names] + [git.git_dir() / "HEAD.lock"]
    seen = {lock: lock.stat().st_ino for lock in locks if lock.exists()}
    if seen:
        time.sleep(1)
    for lock, inode in seen.items():
        if lock.exists() and lock.stat().st_ino == inode:
            lock.unlink()
    (private(git) / "index.lock").unlink(missing_ok=True)
