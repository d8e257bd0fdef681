"""Run the arms side by side, show how far they are, and leave no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from mto_tools.compare.folder import JsonModel
from mto_tools.compare.plan import Plan, Run
from mto_tools.errors import MtoError
from mto_tools.launch.command import OF_ONE_RUN
from mto_tools.launch.process import Started, end, start

POLL = 0.2  # seconds between looks at the logs
ENDED = "ended.json"  # file in the folder of a run that ended by itself


class Ended(JsonModel):
    """How a run ended by itself. One that was stopped, or is under way, has none."""

    exit_code: int
    seconds: float


def read_end(run: Run, out: Path) -> Ended | None:
    """How the run in `out/runs` ended, if it did."""
    path = out / "runs" / run.name / ENDED
    return Ended.load(path) if path.is_file() else None


@dataclass
class _Child:
    run: Run
    process: Started
    log: Path
    step: int = 0
    loss: str = ""

    def look(self) -> None:
        """Read the last whole line of the log."""
        if self.log.is_file():
            *_, line, _ = [b"", *self.log.read_bytes().split(b"\n")]
            with contextlib.suppress(json.JSONDecodeError):
                found = json.loads(line)
                self.step = found["step"]
                self.loss = f"loss {found['loss']:.4f}" if found["loss"] is not None else ""


def environment(threads: int) -> dict[str, str]:
    """The environment of every run: the same threads, and nothing of a run around this process."""
    inherited = {k: v for k, v in os.environ.items() if k not in (*OF_ONE_RUN, "SLURM_PROCID")}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return inherited | dict.fromkeys(names, str(threads))


def execute(plan: Plan, out: Path, console: Console, *, keep_going: bool = False) -> None:
    """Run everything in `plan`, at most `plan.jobs` at a time.

    The output of a run goes to `out/runs/ARM-SEED/output.txt`, its end to `ended.json` beside it.
    However this ends (Ctrl-C, an error, a signal), the guards leave no process.

    Raises:
        MtoError: A run failed and `keep_going` is off; says its last words and where its log is.
    """
    waiting = deque(plan.runs)
    running: list[_Child] = []
    loss = TextColumn("{task.fields[loss]}", style="cyan")
    with Progress(*Progress.get_default_columns(), loss, console=console) as progress:
        tasks = {
            run.name: progress.add_task(_title(run), total=plan.steps, loss="", start=False)
            for run in plan.runs
        }
        everything = progress.add_task("all", total=len(plan.runs) * plan.steps, loss="")
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    running.append(_start(waiting.popleft(), plan, out))
                    progress.reset(tasks[running[-1].run.name])
                time.sleep(POLL)
                for child in list(running):
                    code = child.process.returncode
                    child.look()
                    task = tasks[child.run.name]
                    progress.update(task, completed=child.step, loss=child.loss)
                    if code is None:
                        continue
                    running.remove(child)
                    end([child.process])
                    progress.stop_task(task)
                    seconds = round(time.monotonic() - child.process.began, 2)
                    Ended(exit_code=code, seconds=seconds).save(child.log.with_name(ENDED))
                    if code == 0:
                        continue
                    error = _failure(child, code, out)
                    if not keep_going:
                        raise error
                    console.print(f"failed: {error.message}", markup=False, highlight=False)
                progress.update(everything, completed=sum(t.completed for t in progress.tasks[:-1]))
        finally:
            end(child.process for child in running)


def _start(run: Run, plan: Plan, out: Path) -> _Child:
    folder = out / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    started = start(run.command, cwd=plan.cwd, log=log, environment=environment(plan.threads))
    return _Child(run, started, folder / plan.logs.measures)


def _failure(child: _Child, code: int, out: Path) -> MtoError:
    how, hint = f"with exit status {code}", "mend the cause and start again"
    if code > 128:  # as the guard passes on a death by signal
        how = f"by signal {code - 128}"
        if code - 128 == signal.SIGKILL:
            hint = "if memory ran out, run fewer at once with --jobs 1"
    words = child.process.cause() or "(it printed nothing)"
    return MtoError(
        f"{_title(child.run)} ended {how} at step {child.step}; its last lines:\n"
        + "".join(f"  | {line}\n" for line in words.splitlines())
        + f"All of it is in {child.process.log}",
        hint=f"{hint}; what was done so far is kept in {out}",
    )


def _title(run: Run) -> str:
    return f"seed {run.seed} {run.arm}"
