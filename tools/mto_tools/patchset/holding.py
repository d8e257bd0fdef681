"""Hold a folder, git's index lock, or Ctrl-C for as long as a step takes."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mto_tools.errors import RefusedError

PATIENCE = 10.0  # seconds to wait for another mto


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


def take_name(marker: Path, lock: Path) -> None:
    """Give the marker the name `lock`, whole or not at all, and never over another one."""
    try:
        os.link(marker, lock)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: first the name, then the marker over it
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        marker.replace(lock)


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let Ctrl-C wait until the step is settled; git, in the same group, still feels it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
