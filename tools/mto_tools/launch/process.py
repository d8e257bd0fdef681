"""Processes that this one starts and watches; however it ends, none of them is left."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mto_tools.launch import guard

_TORCHRUN = re.compile(r"torch.distributed.elastic.*(failed \(exitcode|closing signal)")


@dataclass(frozen=True)
class Started:
    """A running command, below a guard that ends it and all it started."""

    log: Path  # all that it prints
    process: subprocess.Popen[bytes]  # the guard
    began: float  # by `time.monotonic`, in seconds

    @property
    def returncode(self) -> int | None:
        """Exit status, 128 + N for one that signal N ended; None while it runs."""
        return self.process.poll()

    def wait(self) -> int:
        """Wait for its end and return its exit status; an interrupt ends it."""
        try:
            return self.process.wait()
        finally:
            end([self])

    def cause(self, lines: int = 15) -> str:
        """The last lines it printed, without torchrun's own report."""
        return last_words(self.log, lines)


def last_words(log: Path, lines: int = 15) -> str:
    """The last lines of an output, before torchrun's own report, which has no cause in it."""
    text = log.read_text("utf-8", "replace").strip().splitlines()
    footer = (number for number, line in enumerate(text) if _TORCHRUN.search(line))
    return "\n".join(text[: next(footer, None) or None][-lines:])


def start(
    command: Sequence[str],
    *,
    cwd: Path | str,
    log: Path,
    environment: Mapping[str, str],
    held: Sequence[int] = (),
) -> Started:
    """Start a command; its output goes to `log`, and its guard holds the descriptors `held`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard.__file__), *command],
            cwd=cwd,
            env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,  # held open for as long as the command may live
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=held,
        )
    return Started(log, process, time.monotonic())


def end(started: Iterable[Started]) -> None:
    """End commands that run still, at the same time, and wait for them."""
    processes = [one.process for one in started]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # the guard ends its group, within a second more than its grace
    for process in processes:
        process.wait()
