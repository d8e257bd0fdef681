"""Locks on a folder and on git's index, and Ctrl-C that waits until a step is done."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.patchset.git import Git

Say = Callable[[str], None]
PATIENCE = 10.0  # seconds to wait for another mto
_MARKER = "mto is at work here, or was killed: then run any mto command"


def hold(handle: int, busy: str) -> None:
    """Take the lock on an open file or folder; it is held until the last copy of it is closed.

    A killed command's lock goes a moment after the command, so this waits before it gives up. On a
    file system without locks it does nothing: renames and git's index lock still decide.

    Raises:
        RefusedError: Another process still has it after `PATIENCE` seconds; says `busy`.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                hint = "wait until it is done, then run the command again"
                raise RefusedError(busy, hint=hint) from None
            time.sleep(0.02)
        except OSError:
            return


@contextmanager
def index_lock(git: Git) -> Iterator[None]:
    """Hold the lock every git takes before it changes the index; needs the clone's own lock.

    Ours is a link that leads nowhere: it appears in one step, and git makes none. `clone_lock`
    removes one whose owner is dead.

    Raises:
        RefusedError: A git is at work in the clone, or left its lock behind.
    """
    lock = git.git_dir() / "index.lock"
    try:
        lock.symlink_to(_MARKER)
    except FileExistsError:
        raise RefusedError(
            f"another git is at work in {git.folder}: {lock} exists",
            hint=f"wait until it is done; if no git runs there: rm {shlex.quote(str(lock))}",
        ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def private(git: Git) -> Path:
    """Our folder in the clone's git directory; made when missing."""
    folder = git.git_dir() / "mto"
    folder.mkdir(exist_ok=True)
    return folder


def write_file(file: Path, data: bytes) -> None:
    """Replace `file` in one step: a reader, or a crash, meets the old bytes or the new ones."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let Ctrl-C wait until the step is done, for the git processes it starts as well."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
