"""Run the tasks of a study: each when what it needs is done, and on from where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from mto_tools.bars import progress_bars
from mto_tools.errors import MtoError
from mto_tools.launch.process import last_words
from mto_tools.study.launchers import LOST, Handle, Launcher, Work
from mto_tools.study.resume import check_model, checkpoint_at, go_on
from mto_tools.study.tasks import CHECKPOINT, State, Task, read_states
from mto_tools.upstreams.recipe import Recipe

POLL = 0.2  # seconds between looks at the logs
NO_ROOM = ("No space left on device", "Disk quota exceeded")  # in a task's last words
LITTLE_MB = 200  # room below which a failure is likely one of the disk


@dataclass
class Driver:
    """Runs tasks and writes down how they end, in `folder/tasks`.

    Args:
        folder: Of the study.
        recipe: How its runs are read and resumed.
        cwd: Where the scripts are started.
        nproc: Processes of a task.
        launcher: What starts them.
        console: For progress, and a line for each start and end where it is no terminal.
        keep_going: Go on with other tasks when one fails.
    """

    folder: Path
    recipe: Recipe
    cwd: str
    nproc: int
    launcher: Launcher
    console: Console
    keep_going: bool = False
    states: dict[str, State] = field(init=False)

    def run(self, tasks: Sequence[Task]) -> list[str]:
        """Run all that is not done; return the ids of those that failed.

        Raises:
            MtoError: A task failed and `keep_going` is off; says its last words and where its
                output is.
        """
        (self.folder / "tasks").mkdir(exist_ok=True)
        self.states = read_states(self.folder)
        waiting = deque(task for task in tasks if not self._done(task.id))
        running: dict[str, tuple[Task, Handle]] = {}
        failed: list[str] = []
        progress = progress_bars(self.console)
        everything = progress.add_task("all tasks", total=len(tasks))
        bars: dict[str, TaskID] = {}
        with progress:
            try:
                while waiting or running:
                    for task in self._ready(waiting, failed, self.launcher.jobs - len(running)):
                        running[task.id] = task, self._start(task)
                        begun = last_step(self._measures(task)) if task.steps else 0
                        total = task.steps or None
                        bars[task.id] = progress.add_task(task.id, total=total, completed=begun)
                    if not running:
                        break  # what is left needs a task that failed
                    time.sleep(POLL)
                    for id, (task, handle) in list(running.items()):
                        code = handle.code()
                        step = last_step(self._measures(task)) if task.steps else 0
                        progress.update(bars[id], completed=step)
                        if code is None:
                            continue
                        del running[id]
                        progress.remove_task(bars.pop(id))
                        self._end(task, code, round(handle.seconds, 2))
                        if code:
                            failed.append(id)
                            error = self._failure(task, code, step)
                            if not self.keep_going:
                                raise error
                            self.console.print(f"failed: {error.message}", markup=False)
                    progress.update(everything, completed=sum(self._done(t.id) for t in tasks))
            finally:
                self.launcher.close()
        return failed

    def _done(self, id: str) -> bool:
        return id in self.states and self.states[id].status == "done"

    def _ready(self, waiting: deque[Task], failed: list[str], free: int) -> list[Task]:
        found = [t for t in waiting if not t.needs or self._done(t.needs)][: max(0, free)]
        for task in found:
            waiting.remove(task)
        return found

    def _start(self, task: Task) -> Handle:
        out = self.folder / task.place
        work = Work(task.id, (), self.cwd, self._log(task), self.nproc)
        before = self.states.get(task.id)
        job = before.job if before and before.status == "running" else ""
        if found := self.launcher.find(job, work):
            self._say(task, "goes on as job", job)
            return found
        words = list(task.command)
        if task.at is not None:
            at, path = checkpoint_at(self.recipe, self.folder / "runs" / task.run, task.at)
            words = [word.replace(CHECKPOINT, str(path)) for word in words]
            if task.kind == "finetune":
                check_model(self.recipe, path)
            if task.kind == "finetune" and at != task.at:
                self._say(task, f"begins with the checkpoint of {at},", "the first one at or after")
        resumed: list[str] = []
        if task.kind != "evaluate":
            resumed = go_on(self.recipe, task.kind, out)
            out.mkdir(parents=True, exist_ok=True)
        state = State(
            status="running",
            attempts=before.attempts + 1 if before else 1,
            seconds=before.seconds if before else 0.0,
            command=[*words, *resumed],
            settings=task.settings,
        )
        self._save(task, state)
        handle = self.launcher.start(Work(task.id, state.command, self.cwd, work.log, self.nproc))
        if handle.job:
            self._save(task, state.model_copy(update={"job": handle.job}))
        self._say(task, "starts", " ".join(resumed) and f"again, with {' '.join(resumed)}")
        return handle

    def _end(self, task: Task, code: int, took: float) -> None:
        before = self.states[task.id]
        ended = {"exit_code": code, "seconds": before.seconds + took, "job": ""}
        status = "failed" if code else "done"
        self._save(task, before.model_copy(update={"status": status, **ended}))
        self._say(task, status, f"after {took:.0f} s")

    def _save(self, task: Task, state: State) -> None:
        self.states[task.id] = state
        state.save(self.folder / "tasks" / f"{task.id}.json")

    def _say(self, task: Task, *words: str) -> None:
        if not self.console.is_terminal:
            line = " ".join(filter(None, (task.id, *words)))
            self.console.print(line, markup=False, highlight=False)

    def _log(self, task: Task) -> Path:
        return self.folder / "tasks" / f"{task.id}.txt"

    def _measures(self, task: Task) -> Path:
        return self.folder / task.place / self.recipe.logs.measures

    def _failure(self, task: Task, code: int, step: int) -> MtoError:
        log = self._log(task)
        text = last_words(log) if log.is_file() else ""
        how, hint = f"with exit status {code}", "mend the cause and start again; it goes on"
        if code == LOST:
            how, hint = "as a job that is gone", f"see {self.folder / 'tasks' / 'slurm'}"
        elif code > 128:  # as the guard passes on a death by signal
            how = f"by signal {code - 128}"
        if code == 128 + signal.SIGKILL:
            hint = "if memory ran out, run fewer at once with --jobs 1"
        free_mb = shutil.disk_usage(self.folder).free // 10**6
        if any(words in text for words in NO_ROOM) or free_mb < LITTLE_MB:
            hint = f"{self.folder} has {free_mb} MB free: make room and start again; it goes on"
        words = "\n".join(f"  | {line}" for line in text.splitlines())
        where = f" at step {step}" if step else ""
        return MtoError(
            f"{task.id} ended {how}{where}; its last lines:\n"
            f"{words or '  | (it printed nothing)'}\nAll of it is in {log}",
            hint=hint,
        )


def last_step(log: Path) -> int:
    """Step of the last whole line; 0 where there is none."""
    lines = _last_lines(log)
    return int(lines[-1]["step"]) if lines else 0


def step_ms(log: Path) -> float | None:
    """Median time of a step in the last lines, in milliseconds."""
    times = [line["step_ms"] for line in _last_lines(log) if line.get("step_ms")]
    return median(times) if times else None


def _last_lines(log: Path) -> list[dict[str, Any]]:
    try:
        with log.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - (1 << 18))
            file.seek(begin)
            lines = file.read().split(b"\n")[1 if begin else 0 : -1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
