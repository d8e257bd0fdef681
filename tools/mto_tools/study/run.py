"""Run the arms side by side, show how far they are, and leave no process behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from mto_tools.errors import MtoError
from mto_tools.launch.command import OF_ONE_RUN
from mto_tools.launch.process import Started, end, start
from mto_tools.study.folder import JsonModel
from mto_tools.study.plan import Plan, Run

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
    waiting, env = deque(plan.runs), environment(plan.threads)
    running: dict[TaskID, tuple[Run, Started]] = {}
    with Progress(console=console) as progress:
        everything = progress.add_task("all runs", total=len(plan.runs) * plan.steps)
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    run = waiting.popleft()
                    log = out / "runs" / run.name / "output.txt"
                    log.parent.mkdir(parents=True, exist_ok=True)
                    task = progress.add_task(f"seed {run.seed} {run.arm}", total=plan.steps)
                    running[task] = run, start(run.command, cwd=plan.cwd, log=log, environment=env)
                time.sleep(POLL)
                for task, (run, started) in list(running.items()):
                    code = started.returncode
                    step = _last_step(started.log.with_name(plan.logs.measures))
                    progress.update(task, completed=step)
                    if code is None:
                        continue
                    del running[task]
                    end([started])
                    progress.stop_task(task)
                    seconds = round(time.monotonic() - started.began, 2)
                    Ended(exit_code=code, seconds=seconds).save(started.log.with_name(ENDED))
                    if code:
                        error = _failure(run, started, code, step)
                        if not keep_going:
                            raise error
                        console.print(f"failed: {error.message}", markup=False, highlight=False)
                done = sum(task.completed for task in progress.tasks if task.id != everything)
                progress.update(everything, completed=done)
        finally:
            end(started for _, started in running.values())


def _last_step(log: Path) -> int:
    """Step of the last whole line; 0 where there is none."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _failure(run: Run, started: Started, code: int, step: int) -> MtoError:
    how, hint = f"with exit status {code}", "mend the cause and start again"
    if code > 128:  # as the guard passes on a death by signal
        how = f"by signal {code - 128}"
    if code == 128 + signal.SIGKILL:
        hint = "if memory ran out, run fewer at once with --jobs 1"
    words = "\n".join(f"  | {line}" for line in started.cause().splitlines())
    return MtoError(
        f"seed {run.seed} {run.arm} ended {how} at step {step}; its last lines:\n"
        f"{words or '  | (it printed nothing)'}\nAll of it is in {started.log}",
        hint=hint,
    )
