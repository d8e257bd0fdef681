"""Run the arms side by side, show how far they are, and leave no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mto_tools.compare.plan import Plan, Run
from mto_tools.errors import MtoError
from mto_tools.launch.command import OF_ONE_RUN
from mto_tools.launch.process import Started, end, start

POLL = 0.2  # seconds between looks at the logs
FAILED = "failed"  # file in the folder of a run that failed: its exit status
TAIL = 15  # lines of a failed run's output that are shown


@dataclass
class Outcome:
    """How one run ended; `exit_code` None means it was stopped because another one failed."""

    run: Run
    exit_code: int | None
    seconds: float


@dataclass
class _Child:
    run: Run
    folder: Path
    process: Started
    offset: int = 0
    step: int = 0
    last: dict[str, Any] = field(default_factory=dict)


def environment(threads: int) -> dict[str, str]:
    """The environment of every run: the same threads for all, and no file written to the clone."""
    count = str(threads)
    inherited = {k: v for k, v in os.environ.items() if k not in (*OF_ONE_RUN, "SLURM_PROCID")}
    return {
        **inherited,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def execute(plan: Plan, out: Path, console: Console, *, keep_going: bool = False) -> list[Outcome]:
    """Run everything in `plan`, at most `plan.jobs` at a time.

    What a run prints goes to `out/runs/ARM-SEED/output.txt`. However this ends (Ctrl-C, an error,
    the parent's death), no process is left.

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
    outcomes: list[Outcome] = []
    with _progress(console) as progress, _sigterm_is_an_exception():
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
                    done = child.process.returncode is not None
                    _show(child, progress, tasks, plan)
                    if not done:
                        continue
                    running.remove(child)
                    end([child.process])
                    seconds = time.monotonic() - child.process.began
                    outcomes.append(Outcome(child.run, child.process.returncode, seconds))
                    progress.stop_task(tasks[child.run.name])
                    if child.process.returncode == 0:
                        continue
                    (child.folder / FAILED).write_text(f"{child.process.returncode}\n")
                    error = _failure(child, out)
                    if not keep_going:
                        raise error
                    console.print(f"failed: {error.message}", markup=False, highlight=False)
        finally:
            end(child.process for child in running)
    return outcomes


def _start(run: Run, plan: Plan, out: Path) -> _Child:
    folder = out / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    started = start(run.command, cwd=plan.cwd, log=log, environment=environment(plan.threads))
    return _Child(run, folder, started)


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that it takes the same way out as Ctrl-C."""


@contextlib.contextmanager
def _sigterm_is_an_exception() -> Any:
    def stop(number: int, frame: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread; the guards still see our death
        yield
        return
    try:
        yield
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(child: _Child, out: Path) -> MtoError:
    log = child.folder / "output.txt"
    code = child.process.returncode or 0
    how, hint = f"with exit status {code}", "mend the cause and start again"
    if code > 128:  # as the guard passes on a death by signal
        how = f"by signal {code - 128}"
        if code - 128 == signal.SIGKILL:
            hint = "if memory ran out, run fewer at once with --jobs 1"
    words = (
        "\n".join(f"  | {line}" for line in child.process.cause(TAIL).splitlines())
        or "  | (it printed nothing)"
    )
    return MtoError(
        f"{_title(child.run)} ended {how} at step {child.step}; its last lines:\n"
        f"{words}\nAll of it is in {log}",
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
    logs = plan.logs
    path = child.folder / (logs.train or logs.measures)
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(child.offset)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
    child.offset += len(whole)
    for line in whole.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            child.last.update(record)
    child.step = int(child.last.get(logs.step if logs.train else "step", 0))
    loss = child.last.get(logs.loss if logs.train else "loss")
    words = f"loss {loss:.4f}" if isinstance(loss, float) else ""
    progress.update(tasks[child.run.name], completed=child.step, loss=words)
