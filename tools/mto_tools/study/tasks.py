"""The tasks of a study: a command each, and how far they are, in `tasks/ID.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mto_tools.errors import RefusedError
from mto_tools.study.folder import JsonModel

Kind = Literal["pretrain", "evaluate", "finetune"]
CHECKPOINT = "{checkpoint}"  # word of a command that stands for a file, found when it starts


class State(JsonModel):
    """How a task stands; a task that has none was never started."""

    status: Literal["running", "done", "failed"]
    attempts: int = 1
    exit_code: int | None = None
    seconds: float = 0.0  # of all attempts that ended
    command: list[str]
    settings: dict[str, Any]  # all that decides the task's numbers
    job: str = ""  # of SLURM


@dataclass(frozen=True)
class Task:
    """One process, or one torchrun, that ends by itself."""

    kind: Kind
    arm: str
    seed: int
    at: int | None  # epoch or step of the checkpoint it begins with
    command: tuple[str, ...]
    settings: dict[str, Any]
    needs: str = ""  # id of the task that must be done before
    steps: int = 0  # optimizer steps; 0: not known

    @property
    def run(self) -> str:
        """`ARM-SEED`."""
        return f"{self.arm}-{self.seed}"

    @property
    def id(self) -> str:
        """Name of its files."""
        return "-".join(map(str, filter(None, (self.kind, self.run, self.at))))

    @property
    def place(self) -> str:
        """Its output folder, inside that of the study."""
        return finetuned(self.run, self.at) if self.kind == "finetune" else f"runs/{self.run}"


def finetuned(run: str, at: int | None) -> str:
    """Output folder of a fine-tuning."""
    return f"finetuned/{run}-{at}"


def read_states(folder: Path) -> dict[str, State]:
    """The states of all tasks that were started, by id."""
    return {file.stem: State.load(file) for file in sorted((folder / "tasks").glob("*.json"))}


def check_settings(tasks: Sequence[Task], states: dict[str, State], folder: Path) -> None:
    """Compare what tasks were started with, and what the study says now.

    Raises:
        RefusedError: They differ; names the key.
    """
    for task in tasks:
        state = states.get(task.id)
        if state is None:
            continue
        now = State(status="done", command=[], settings=task.settings)
        now = State.model_validate_json(now.model_dump_json())  # tuples become lists
        for key in sorted(state.settings.keys() | now.settings.keys()):
            old, new = state.settings.get(key), now.settings.get(key)
            if old != new:
                raise RefusedError(
                    f"{task.id} was made with {key} = {old!r}, and the study now says {new!r}",
                    hint=f"put {key} in {folder / 'study.toml'} back, or begin another study in "
                    "another folder",
                )
