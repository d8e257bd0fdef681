"""Run a script, and kill it at one counted event of its own code, so that no clock decides.

    python kill_at.py N WHERE FUNCTION SCRIPT [ARGUMENTS of the script]

An event is a call, a return or a call of C (a write, a rename) in a file whose path holds one of
WHERE, separated by commas, and in FUNCTION, where it is not empty. At event N the process sends
itself SIGKILL. With N = 0 it lives, and the last line it prints is the number of events.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the words above from `sys.argv`, and leave the rest to the script."""
    last, where, function, *sys.argv = sys.argv[1:]
    places = tuple(where.split(","))
    known: dict[Any, bool] = {}
    events = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal events
        code = frame.f_code
        if code not in known:
            inside = any(place in code.co_filename for place in places)
            known[code] = inside and function in ("", code.co_name)
        if known[code]:
            events += 1
            if events == int(last):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.setprofile(count)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.setprofile(None)
    print(events, flush=True)


if __name__ == "__main__":
    main()
