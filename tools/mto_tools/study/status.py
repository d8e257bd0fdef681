"""`mto study status DIR`: how far each task is."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from mto_tools.study.run import last_step, step_ms
from mto_tools.study.tasks import State, Task
from mto_tools.upstreams.recipe import Recipe


def table(tasks: list[Task], states: dict[str, State], folder: Path, recipe: Recipe) -> Table:
    """A row per task of the study."""
    found = Table("task", "status", "step", "attempts", "time")
    for task in tasks:
        state = states.get(task.id)
        step = last_step(folder / task.place / recipe.logs.measures) if task.steps else 0
        found.add_row(
            task.id,
            _status(state),
            f"{step} of {task.steps}" if task.steps else "",
            str(state.attempts) if state else "",
            f"{state.seconds:.0f} s" if state and state.seconds else "",
        )
    return found


def _status(state: State | None) -> str:
    if state is None:
        return "waits"
    if state.status == "failed":
        return f"failed: {state.exit_code}"
    return f"job {state.job}" if state.job else state.status


def hours(task: Task, nproc: int, tasks: list[Task], folder: Path, recipe: Recipe) -> float | None:
    """Hours of all its GPUs, from the step times in the runs of `folder`; None: not known."""
    if not task.steps:
        return None
    runs = [task, *(one for one in tasks if one.kind == task.kind)]  # its own first
    logs = (folder / one.place / recipe.logs.measures for one in runs)
    milliseconds = next(filter(None, map(step_ms, logs)), None)
    return milliseconds and milliseconds * task.steps * nproc / 3.6e6
