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
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mto_tools.compare.folder import write
from mto_tools.compare.options import JsonModel
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
    return Ended.model_validate_json(path.read_bytes()) if path.is_file() else None


@dataclass
class _Child:
    run: Run
    folder: Path
    process: Started
    offset: int = 0  # bytes of mto.jsonl that were read
    step: int = 0


def environment(threads: int) -> dict[str, str]:
    """The environment of every run: the same threads, and nothing of a run around this process."""
    inherited = {k: v for k, v in os.environ.items() if k not in (*OF_ONE_RUN, "SLURM_PROCID")}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return inherited | dict.fromkeys(names, str(threads))


def execute(plan: Plan, out: Path, console: Console, *, keep_going: bool = False) -> None:
    """Run everything in `plan`, at most `plan.jobs` at a time.

    The output of a run goes to `out/runs/ARM-SEED/output.txt`, its end to `ended.json` beside it.
    However this ends (Ctrl-C, an error, a signal), the guards leave no process.

    Args:
        plan: The runs, in order.
        out: Folder that holds `runs/`.
        console: Where progress goes.
        keep_going: Go on with the other runs after one has failed.

    Raises:
        MtoError: A run failed and `keep_going` is off; says its last words and where its log is.
    """
    waiting = deque(plan.runs)
    running: list[_Child] = []
    with _progress(console) as progress:
        tasks = {
            run.name: progress.add_task(_title(run), total=plan.steps, loss="", start=False)
            for run in plan.runs
        }
        everything = progress.add_task("all", total=len(plan.runs) * plan.steps, loss="")
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    run = waiting.popleft()
                    progress.reset(tasks[run.name])
                    running.append(_start(run, plan, out))
                time.sleep(POLL)
                progress.update(everything, completed=sum(t.completed for t in progress.tasks[:-1]))
                for child in list(running):
                    code = child.process.returncode
                    _show(child, progress, tasks, plan)
                    if code is None:
                        continue
                    running.remove(child)
                    end([child.process])
                    seconds = round(time.monotonic() - child.process.began, 2)
                    ended = Ended(exit_code=code, seconds=seconds)
                    write(child.folder / ENDED, ended.model_dump_json())
                    progress.stop_task(tasks[child.run.name])
                    if code == 0:
                        continue
                    error = _failure(child, code, out)
                    if not keep_going:
                        raise error
                    console.print(f"failed: {error.message}", markup=False, highlight=False)
        finally:
            end(child.process for child in running)


def _start(run: Run, plan: Plan, out: Path) -> _Child:
    folder = out / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    started = start(run.command, cwd=plan.cwd, log=log, environment=environment(plan.threads))
    return _Child(run, folder, started)


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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[loss]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=False,
    )


def _show(child: _Child, progress: Progress, tasks: dict[str, Any], plan: Plan) -> None:
    """Show the newest line of the run's mto.jsonl; the last one may be half written."""
    path = child.folder / plan.logs.measures
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(child.offset)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    child.offset += len(whole)
    if whole:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(whole.splitlines()[-1])
            child.step, loss = int(line.get("step", 0)), line.get("loss")
            words = f"loss {loss:.4f}" if isinstance(loss, float) else ""
            progress.update(tasks[child.run.name], completed=child.step, loss=words)
