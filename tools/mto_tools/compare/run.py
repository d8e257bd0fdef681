"""Run the arms side by side, show how far they are, and leave no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mto_tools.compare import guard
from mto_tools.compare.folder import write
from mto_tools.compare.options import JsonModel
from mto_tools.compare.plan import Plan, Run
from mto_tools.errors import MtoError

POLL = 0.2  # seconds between looks at the logs
ENDED = "ended.json"  # file in the folder of a run that ended by itself
TAIL = 15  # lines of a failed run's output that are shown


class Ended(JsonModel):
    """How a run ended by itself. One that was stopped, or is under way, has none."""

    exit_code: int
    seconds: float


def ended(run: Run, out: Path) -> Ended | None:
    """How the run in `out/runs` ended, if it did."""
    path = out / "runs" / run.name / ENDED
    return Ended.model_validate_json(path.read_bytes()) if path.is_file() else None


@dataclass
class _Child:
    run: Run
    folder: Path
    process: subprocess.Popen[bytes]
    started: float
    offset: int = 0  # bytes of mto.jsonl that were read
    step: int = 0


def environment(threads: int) -> dict[str, str]:
    """The environment of every run: the same threads for all, and no file written to the clone."""
    count = str(threads)
    inherited = {k: v for k, v in os.environ.items() if k != "MTO_SETTINGS"}  # arms have their own
    return {
        **inherited,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # a __pycache__ would make the checkout look edited
    }


def execute(plan: Plan, out: Path, console: Console, *, keep_going: bool = False) -> None:
    """Run everything in `plan`, at most `plan.jobs` at a time.

    The output of a run goes to `out/runs/ARM-SEED/output.txt`, its end to `ended.json` beside it.
    However this ends (Ctrl-C, an error, the parent's death), no process is left.

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
                    done = child.process.poll() is not None
                    _show(child, progress, tasks, plan)
                    if not done:
                        continue
                    running.remove(child)
                    _end([child])
                    seconds = round(time.monotonic() - child.started, 2)
                    end = Ended(exit_code=child.process.returncode, seconds=seconds)
                    write(child.folder / ENDED, end.model_dump_json())
                    progress.stop_task(tasks[child.run.name])
                    if end.exit_code == 0:
                        continue
                    error = _failure(child, out)
                    if not keep_going:
                        raise error
                    console.print(f"failed: {error.message}", markup=False, highlight=False)
        finally:
            _end(running)


def _start(run: Run, plan: Plan, out: Path) -> _Child:
    folder = out / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard.__file__), *run.command],
            cwd=plan.cwd,
            env=environment(plan.threads),
            stdin=subprocess.PIPE,  # held open for as long as the run may live
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Child(run, folder, process, time.monotonic())


def _end(children: list[_Child]) -> None:
    for child in children:
        assert child.process.stdin is not None
        child.process.stdin.close()  # the guard ends its group
    deadline = time.monotonic() + guard.GRACE + 5  # the guard itself needs GRACE + 1
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


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
    code = child.process.returncode
    how, hint = f"with exit status {code}", "mend the cause and start again"
    if code > 128:  # as the guard passes on a death by signal
        how = f"by signal {code - 128}"
        if code - 128 == signal.SIGKILL:
            hint = "if memory ran out, run fewer at once with --jobs 1"
    last = log.read_text("utf-8", "replace").strip().splitlines()[-TAIL:]
    words = "\n".join(f"  | {line}" for line in last) or "  | (it printed nothing)"
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
