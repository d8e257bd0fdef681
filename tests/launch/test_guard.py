"""The guard passes the exit status on, and ends all that the command started."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A worker that does not obey SIGTERM, with or without a session of its own as torchrun's have.
RUN = """
import os, subprocess, sys, time
ready, started = os.pipe()
worker = f'''
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told "))
os.write({started}, b".")
time.sleep(60)
'''
session = sys.argv[1] == "True"
subprocess.Popen([sys.executable, "-c", worker], start_new_session=session, pass_fds=[started])
os.read(ready, 1)
print("begun", flush=True)
"""


GUARD = """
import sys
from mto_tools.launch import guard
guard.GRACE = 1.0
sys.exit(guard.main(sys.argv[1:]))
"""


def guarded(code: str, *words: str) -> subprocess.Popen[str]:
    """Python code under the guard; its output ends when the last process is gone."""
    command = [sys.executable, "-c", GUARD, sys.executable, "-c", code, *words]
    return subprocess.Popen(command, stdin=-1, stdout=-1, text=True, start_new_session=True)


@pytest.mark.parametrize(
    ("code", "status"),
    [("exit(0)", 0), ("exit(9)", 9), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)
def test_the_exit_status_is_passed_on(code: str, status: int) -> None:
    with guarded(code) as process:
        assert process.wait(60) == status


@pytest.mark.timeout(50)
@pytest.mark.parametrize("end", ["time.sleep(60)", "os.kill(os.getpid(), 9)", "exit(0)"])
@pytest.mark.parametrize("session", [False, pytest.param(True, marks=pytest.mark.skipif(
    sys.platform != "linux", reason="only the group is ended"))])  # fmt: skip
def test_all_that_a_run_started_is_ended(end: str, session: bool) -> None:
    """By the pipe's end, by the run's death, and by the run's own end."""
    with guarded(RUN + end, str(session)) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        if "sleep" in end:
            process.stdin.close()
        assert set(process.stdout.read().split()) == {"told"}
