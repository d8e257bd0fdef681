"""Small runs of one recipe: the model of its real size, a few images, a few steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mto_tools.errors import MtoError
from mto_tools.launch.command import Launch
from mto_tools.launch.digits import CLASSES, lay_out
from mto_tools.launch.process import start
from mto_tools.upstreams.upstream import fill

BATCH = 2  # images of a step, of each process
STEPS = 4  # of an epoch
RECORD = Path(__file__).with_name("record.py")


@dataclass(frozen=True)
class Run:
    """A run's output folder, and its record on rank 0: see record.py."""

    out: Path
    loss: list[str]  # hexadecimal floats, of each backward pass
    rng: list[str]  # checksums of all generators, at each backward pass
    grads: list[str]  # checksums of all gradients, at each optimizer step
    mask_token: list[str]  # checksums of the mask token's gradient, at each optimizer step


@dataclass(frozen=True)
class Runner:
    """Starts runs of one recipe below one folder."""

    launch: Launch  # how each is started; `before` holds for pre-training only
    style: str  # one of the recipe's
    work: Path  # folder for data, outputs and logs
    workers: int = 0  # processes that load images, for each process of a run

    def data(self, steps: int) -> Path:
        """Lay out images for `steps` steps an epoch; 8 images, or a multiple, are 1 per class."""
        per_class = max(1, steps * BATCH * self.launch.processes // CLASSES)
        return lay_out(self.launch.recipe.data, self.work / f"data{per_class}", per_class)

    def log(self, out: Path) -> list[dict[str, object]]:
        """The lines of MTO's log in an output folder."""
        text = (out / self.launch.recipe.logs.measures).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def checkpoint(self, out: Path, epoch: int, steps: int = STEPS) -> Path:
        """The checkpoint of an epoch, counted from 0, of so many steps each."""
        return out / self.launch.recipe.checkpoint.format(epoch=epoch, step=(epoch + 1) * steps)

    def arguments(self, checkout: Path, out: Path, steps: int, epochs: int) -> list[str]:
        """Arguments of a pre-training run; a recipe that counts steps always runs two epochs."""
        return self.launch.recipe.words(
            f"{self.launch.recipe.arguments} {self.launch.recipe.smoke}",
            self.style,
            **{"checkout": checkout, "data": self.data(steps), "out": out, "seed": 0},
            **{"batch": BATCH, "total": BATCH * self.launch.processes, "workers": self.workers},
            **{"epochs": epochs, "steps": 2 * steps, "middle": steps, "eval_every": 2 * steps},
            **{"warmup": 1, "save": 1, "log_every": 1},
        )

    def pretrain(
        self,
        name: str,
        checkout: Path,
        arguments: Sequence[str] = (),
        *,
        patched: bool = True,
        steps: int = STEPS,
        epochs: int = 1,
        resume: Path | None = None,
    ) -> Run:
        """Pre-train for `epochs` of `steps`.

        Args:
            name: Of the output folder, the log and the record.
            checkout: Folder of the scripts.
            arguments: More of them, which win.
            patched: A series is applied there.
            steps: Optimizer steps of an epoch.
            epochs: Of the whole schedule.
            resume: Output folder of an earlier run, to go on from its first epoch.

        Raises:
            MtoError: The script failed; the message has the end of its log.
        """
        recipe, out, record = self.launch.recipe, self.work / name, self.work / f"{name}.record"
        given = [*self.arguments(checkout, out, steps, epochs), *arguments]
        if resume:
            given += fill(recipe.resume, {"folder": resume, "epoch": 0})
            if recipe.resume_from:
                out.mkdir(parents=True)
                shutil.copy(self.checkpoint(resume, 0, steps), out / recipe.resume_from)
        self.start(name, checkout / recipe.pretrain, given, patched=patched, record=record)
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        keys = ("loss", "rng", "grads", "mask_token")
        return Run(out, *([line[key] for line in lines if key in line] for key in keys))

    def start(
        self,
        name: str,
        script: Path,
        arguments: Sequence[str],
        *,
        patched: bool = True,
        record: Path | None = None,
    ) -> str:
        """Run a script to its end, with a record or without; return all it printed.

        Raises:
            MissingError: There is no such script.
            MtoError: It failed.
        """
        launch = replace(
            self.launch,
            script=script,
            arguments=arguments,
            unpatched=not patched,
            before=[RECORD, *self.launch.before] if record else (),
            seed=0,
        )
        launch.check()
        log = self.work / f"{name}.log"
        variables = launch.environment()
        if record:
            variables["MTO_RECORD"] = str(record)
        run = start(launch.argv(), cwd=self.work, log=log, environment=variables)
        if code := run.wait():
            raise MtoError(
                f"{script.name} exited with {code}:\n{run.cause()}", hint=f"all it printed: {log}"
            )
        return log.read_text(errors="replace")
