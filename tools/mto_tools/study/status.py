"""`mto study status DIR`: how far each task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.table import Table

from mto_tools.study.run import last_step, step_ms
from mto_tools.study.tasks import State, Task
from mto_tools.upstreams.recipe import Recipe


def table(
    tasks: list[Task], states: dict[str, State], folder: Path, recipe: Recipe, nproc: int
) -> Table:
    """A row per task of the study."""
    found = Table("task", "status", "step", "attempts", "time", "GPU hours")
    for task in tasks:
        state = states.get(task.id)
        step = last_step(folder / task.place / recipe.logs.measures) if task.steps else 0
        cost = hours(task, tasks, states, folder, recipe, nproc)
        found.add_row(
            task.id,
            _status(state),
            f"{step} of {task.steps}" if task.steps else "",
            str(state.attempts) if state else "",
            f"{state.seconds:.0f} s" if state and state.seconds else "",
            "unknown" if cost is None else f"{cost:.2f}",
        )
    return found


def _status(state: State | None) -> str:
    if state is None:
        return "waits"
    if state.status == "failed":
        return f"failed: {state.exit_code}"
    return f"job {state.job}" if state.job else state.status


def hours(
    task: Task,
    tasks: Sequence[Task],
    states: Mapping[str, State],
    folder: Path,
    recipe: Recipe,
    nproc: int,
) -> float | None:
    """Hours of all GPUs of a task; None: nothing like it was measured in `folder`.

    The tasks of a kind are alike. One that was done in one attempt has its time, its own first;
    else the step times in the logs of a pre-training tell.
    """
    alike = [one for one in tasks if one.kind == task.kind]
    whole = {
        one.id: states[one.id].seconds
        for one in alike
        if one.id in states and states[one.id].status == "done" and states[one.id].attempts == 1
    }
    if whole:
        return whole.get(task.id, median(whole.values())) * nproc / 3600
    logs = (folder / one.place / recipe.logs.measures for one in (task, *alike) if one.steps)
    milliseconds = next(filter(None, map(step_ms, logs)), None)
    return milliseconds and milliseconds * task.steps * nproc / 3.6e6
