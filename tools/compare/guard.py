"""Run a command; end it and all it started as soon as whoever started us goes away.

`python guard.py COMMAND...` must be the leader of its own process group, with the read end of a
pipe as stdin. The pipe closes when the starter closes it, exits, or is killed in whatever way, and
then the whole group is ended: no training run outlives `mto compare`. Standard library only, since
it starts before every run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 3.0  # seconds between SIGTERM and SIGKILL


def main(command: list[str]) -> int:
    """Run `command` and return its exit status, 128 + N for one ended by signal N."""
    # A starter that is already gone has closed the pipe: the watch below sees that at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_sigterm)
    threading.Thread(target=_end_group_at_eof, daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # helpers it left behind; we ignore it
    return code if code >= 0 else 128 - code


def _default_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would stay ignored after exec


def _end_group_at_eof() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
