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
_MARKER = b"mto is at work here, or was killed: then run any mto command\n"


def hold(handle: int, busy: str, *, wait: float = PATIENCE) -> None:
    """Take the lock on an open file or folder; it is held until the last copy of it is closed.

    A killed command's lock goes a moment after the command, so this waits before it gives up. On a
    file system without locks it does nothing: renames and git's index lock still decide.

    Raises:
        RefusedError: Another process still has it after `wait` seconds; says `busy`.
    """
    end = time.monotonic() + wait
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

    The lock holds a marker. The next mto that has the clone's lock removes a marked one: its
    owner is dead.

    Raises:
        RefusedError: A git is at work in the clone, or left its lock behind.
    """
    lock = git.git_dir() / "index.lock"
    marker = private(git) / "marker"
    clear_dead_index_lock(git)
    marker.write_bytes(_MARKER)
    try:
        _take_name(marker, lock)
    except FileExistsError:
        raise RefusedError(
            f"another git is at work in {git.folder}: {lock} exists",
            hint=f"wait until it is done; if no git runs there: rm {shlex.quote(str(lock))}",
        ) from None
    finally:
        marker.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def clear_dead_index_lock(git: Git) -> None:
    """Remove the index lock of a killed mto; needs the clone's own lock."""
    lock = git.git_dir() / "index.lock"
    if lock.exists() and lock.read_bytes() == _MARKER:
        lock.unlink()


def _take_name(marker: Path, lock: Path) -> None:
    """Give the marker the name `lock`, whole or not at all, and never over another file."""
    try:
        os.link(marker, lock)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: first the name, then the marker over it
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        marker.replace(lock)


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
