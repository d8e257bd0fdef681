"""Run a command; end it and all it started as soon as whoever started us goes away.

`python guard.py COMMAND...` must be the leader of its own process group, with the read end of a
pipe as stdin. The pipe closes when the starter closes it, exits, or is killed in whatever way, and
then all that the command started is ended: no training run outlives its driver. torchrun gives
its workers sessions of their own, so the group is not enough; on Linux we adopt every orphan below
us and find the others in /proc. Standard library only, since it starts before every run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 3.0  # seconds between SIGTERM and SIGKILL
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run `command` and return its exit status, 128 + N for one ended by signal N."""
    # A starter that is already gone has closed the pipe: the watch below sees that at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_sigterm)
    threading.Thread(target=_end_all_at_eof, daemon=True).start()
    code = child.wait()
    _end_all()  # helpers it left behind
    return code if code >= 0 else 128 - code


def _default_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would stay ignored after exec


def _adopt_orphans() -> None:
    """Whose parent dies becomes our child, not init's, and can still be found. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_all_at_eof() -> None:
    os.read(0, 1)
    _end_all()
    os.killpg(0, signal.SIGKILL)  # ourselves too, and where there is no /proc, all we can reach


def _end_all() -> None:
    """SIGTERM, and SIGKILL for what is left after the grace, until nothing is."""
    os.killpg(0, signal.SIGTERM)  # we ignore it
    _signal(_descendants(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while (left := _descendants()) and time.monotonic() < deadline + 1:
        if time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
        time.sleep(0.02)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    """All living processes below this one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "PID (NAME) STATE PARENT ...", and a name may hold anything
            state, parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":  # a zombie is dead, and its children are ours
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
