"""Run an action in a child process that kills itself before its n-th act that matters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

_EVENTS = {
    *("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"),
    "subprocess.Popen",
}


def run_killed(action: Callable[[], object], at: int, *, decided: bool = False) -> int:
    """Run `action` in a fork that dies by SIGKILL right before its `at`-th event.

    Events are renames, links, removals, new folders, opening for writing and starting a process.
    The clock plays no part, so a busy machine changes nothing.

    Args:
        action: The work; its output is dropped.
        at: Number of the event, counted from 1; 0 never kills.
        decided: Count from the moment a transaction's log has its final name.

    Returns:
        Number of events reached.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count, counting = 0, not decided

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal count, counting
            writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
            if counting and (event in _EVENTS or writes):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            if event == "os.rename" and str(args[1]).endswith("transaction"):
                counting = True

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(hook)
        try:
            action()
        finally:
            os.write(write, str(count).encode())
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return int(stream.read() or at)
