"""The command of every task of a study, from its file and recipe.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.command import Launch
from mto_tools.launch.inputs import Inputs
from mto_tools.study.spec import Arm, Study
from mto_tools.study.tasks import CHECKPOINT, Task, finetuned
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.facts import Schedule as PlanSchedule
from mto_tools.upstreams.recipe import FineTune, Recipe
from mto_tools.upstreams.upstream import fill

MAX_LOG_EVERY = 500  # steps


@dataclass(frozen=True)
class Schedule:
    """The length of every pre-training."""

    steps: int
    epochs: int | None  # None: the recipe counts steps
    batch: int | None  # images of a step; None: the recipe's own
    log_every: int

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


@dataclass(frozen=True)
class Maker:
    """Turns a study into commands.

    Args:
        study: What is asked for.
        recipe: How its upstream is run.
        inputs: Checkout and data.
        folder: Of the study.
        gpu: Whether there is one; CUDA-only scripts run on the CPU otherwise.
    """

    study: Study
    recipe: Recipe
    inputs: Inputs
    folder: Path
    gpu: bool
    style: str = field(init=False)

    def __post_init__(self) -> None:
        style = self.recipe.style(self.study.style or None, self.study.upstream)
        object.__setattr__(self, "style", style)

    @property
    def schedule(self) -> Schedule:
        """Steps and epochs of every pre-training.

        Raises:
            MissingError: The recipe has no table for this size, or the images make no batch.
            MtoError: Steps are asked of a recipe that counts epochs, in full size, or the reverse.
        """
        study, recipe = self.study, self.recipe
        check_size(study, recipe)
        if study.size == "full":
            plan = self._plan()
            batch: int | None = study.batch or plan.total_batch
            steps, epochs = study.steps, study.epochs or plan.epochs or None
        else:
            assert recipe.compare  # as check_size saw
            batch = study.batch or recipe.compare.batch
            steps, epochs = study.steps or recipe.compare.steps, study.epochs
        if counts_epochs(recipe):
            assert batch
            per_epoch = steps_per_epoch(self.inputs.images, batch)
            epochs = epochs or -(-(steps or per_epoch) // per_epoch)
            steps = epochs * per_epoch
        elif study.epochs or not steps:
            raise MtoError(f"{study.upstream} counts steps, not epochs", hint="steps = 900")
        else:
            epochs = None
        log_every = min(max(1, steps // 90), MAX_LOG_EVERY)
        return Schedule(steps, epochs, batch, log_every)

    def tasks(self) -> list[Task]:
        """All tasks, in the order in which they should start: the arms of a seed are neighbours."""
        schedule = self.schedule
        found: list[Task] = []
        for seed in self.study.seeds:
            found += [
                self._pretrain(name, arm, seed, schedule) for name, arm in self.study.arms.items()
            ]
        for pretrain in list(found):
            found += [self._evaluate(pretrain, at) for at in self.study.evaluate_at]
            found += [self._finetune(pretrain, at) for at in self.study.finetune_at]
        return found

    def _pretrain(self, name: str, arm: Arm, seed: int, schedule: Schedule) -> Task:
        study, recipe, options = self.study, self.recipe, self.recipe.options
        out = self.folder / "runs" / f"{name}-{seed}"
        points = {*study.evaluate_at, *study.finetune_at}
        length = schedule.epochs or schedule.steps
        if late := sorted(point for point in points if point > length):
            raise MtoError(
                f"a run of {length} has no checkpoint at {late[0]}", hint="evaluate_at, finetune_at"
            )
        save = study.save or (gcd(*points) if points else max(1, schedule.steps // 10))
        if schedule.epochs and not study.save and not points:
            save = schedule.epochs
        words = (
            self._small(schedule, seed, out, save)
            if study.size == "small"
            else self._full(schedule, seed, out, save)
        )
        if not schedule.epochs and options.save:
            words += [options.save, str(save)]
        if points and options.keep:
            words += [options.keep, *map(str, sorted(points))]
        # All arms measure the same things; those that only observe add nothing.
        every = schedule.log_every
        measures: dict[str, object] = {"log_every": every, "grad_every": 5 * every}
        if recipe.styles[self.style].maps:
            measures["affinity_steps"] = schedule.steps
        words += recipe.options.mto({**measures, **arm.mto})
        words += [*study.arguments, *arm.arguments]
        keys = ("upstream", "size", "model", "nproc", "images_per_gpu", "arguments")
        settings = {
            **{key: getattr(study, key) for key in keys},
            **{"style": self.style, "steps": schedule.steps, "batch": schedule.batch},
            **{"data": str(self.inputs.data), "images": self.inputs.images},
            **{f"arms.{name}.{key}": value for key, value in arm.mto.items()},
            f"arms.{name}.arguments": arm.arguments,
        }
        command = self._launch(recipe.pretrain, words, seed)
        return Task("pretrain", name, seed, None, command, settings, steps=schedule.steps)

    def _small(self, schedule: Schedule, seed: int, out: Path, save: int) -> list[str]:
        batch = schedule.batch
        return self.recipe.words(
            self.recipe.arguments,
            self.style,
            **{"checkout": self.inputs.checkout, "data": self.inputs.data, "out": out},
            **{"steps": schedule.steps, "middle": schedule.steps, "epochs": schedule.epochs},
            **{"save": save, "warmup": (schedule.epochs or 0) // 10, "total": batch, "seed": seed},
            **{"log_every": schedule.log_every, "eval_every": max(1, schedule.steps // 9)},
            **{"batch": batch and self._share(batch, batch)[0], "workers": 0},
        )

    def _full(self, schedule: Schedule, seed: int, out: Path, save: int) -> list[str]:
        """The arguments of `[plan]`, without DeepSpeed's configuration."""
        facts, options = self._facts(), self.recipe.options
        plan = self._plan()
        assert schedule.batch
        most = self.study.images_per_gpu or plan.images_per_gpu or schedule.batch
        micro, accumulation = self._share(schedule.batch, most)
        template = facts.arguments.replace("{flags}", plan.flags).split()
        while "{config}" in template:
            where = template.index("{config}")
            del template[where - 1 : where + 1]
        if accumulation > 1 and "{accumulation}" not in template:
            raise RefusedError(
                f"{self.study.upstream} cannot accumulate: {schedule.batch} images a step need "
                f"{schedule.batch // micro} GPUs with {micro} images each",
                hint=f"nproc = {schedule.batch // micro}, or another images_per_gpu",
            )
        words = fill(
            " ".join(template),
            {
                **{"model": plan.model, "total": schedule.batch, "micro": micro},
                **{"accumulation": accumulation, "epochs": schedule.epochs, "rate": plan.rate},
                **{"warmup": min(facts.warmup_epochs, (schedule.epochs or 0) // 10)},
                **{"checkout": self.inputs.checkout, "data": self.inputs.data, "output": out},
                "arm": "run",  # as the paths in `[logs]` have it
            },
        )
        words += [options.seed, str(seed)]
        return [*words, options.save, str(save)] if schedule.epochs and options.save else words

    def _evaluate(self, pretrain: Task, at: int) -> Task:
        command = [sys.executable, "-m", "mto_tools.cli", "evaluate", self.study.upstream]
        command += [CHECKPOINT, "--data", str(self.inputs.data)]
        if self.study.nproc > 1:
            command += ["--nproc", str(self.study.nproc)]
        command += [] if self.gpu else ["--cpu"]
        settings = {"data": str(self.inputs.data)}
        arm, seed = pretrain.arm, pretrain.seed
        return Task("evaluate", arm, seed, at, tuple(command), settings, pretrain.id)

    def _finetune(self, pretrain: Task, at: int) -> Task:
        asked, facts = self.study.finetune, self._finetuning()
        total = asked.batch or facts.total_batch
        micro, accumulation = self._share(total, asked.images_per_gpu or facts.images_per_gpu)
        epochs = asked.epochs or facts.epochs
        model = self.study.model if self.study.size == "full" else ""
        own = facts.models.get(model) or next(iter(facts.models.values()))
        words = fill(
            facts.arguments,
            {
                **own,
                **{"micro": micro, "accumulation": accumulation, "total": total, "epochs": epochs},
                **{"warmup": min(facts.warmup_epochs, epochs // 5), "seed": pretrain.seed},
                **{"checkout": self.inputs.checkout, "checkpoint": CHECKPOINT},
                **{"classes": self._classes(), "data": self.inputs.data},
                "out": self.folder / finetuned(pretrain.run, at),
            },
        )
        command = self._launch(facts.script, [*words, *asked.arguments], pretrain.seed)
        settings = {
            **{f"finetune.{key}": value for key, value in asked.model_dump().items()},
            **{"nproc": self.study.nproc, "data": str(self.inputs.data)},
        }
        arm, seed = pretrain.arm, pretrain.seed
        return Task("finetune", arm, seed, at, command, settings, pretrain.id)

    def _launch(self, script: str, words: list[str], seed: int) -> tuple[str, ...]:
        study, path = self.study, (self.inputs.checkout / script).absolute()
        launch = Launch(
            study.upstream, self.recipe, path, words, study.nproc, cpu=not self.gpu, seed=seed
        )
        return tuple(launch.argv())

    def _share(self, total: int, most: int) -> tuple[int, int]:
        """Images of a process and micro batch, at most so many; and micro batches of a step."""
        each, rest = divmod(total, self.study.nproc)
        micro = min(most, each)
        if rest or each % micro:
            raise RefusedError(
                f"{total} images a step cannot be shared out evenly to {self.study.nproc} "
                f"processes of {micro} images at a time",
                hint="another nproc, batch or images_per_gpu",
            )
        return micro, each // micro

    def _classes(self) -> int:
        folder = self.inputs.data / self.recipe.data.images
        return sum(path.is_dir() for path in folder.iterdir()) if folder.is_dir() else 0

    def _facts(self) -> Facts:
        if self.recipe.plan is None:
            raise MissingError(
                f"{self.study.upstream} has no full size: its recipe.toml has no table [plan]",
                hint="size = 'small'",
            )
        return self.recipe.plan

    def _plan(self) -> PlanSchedule:
        """The schedule of `[plan]`; its epochs may differ where they are an argument."""
        facts, study = self._facts(), self.study
        fixed = "{epochs}" not in facts.arguments
        return facts.schedule(study.model or None, study.epochs if fixed else None)

    def _finetuning(self) -> FineTune:
        facts = self.recipe.finetune
        if facts is None:
            raise MissingError(
                f"{self.study.upstream} cannot be fine-tuned: its recipe.toml has no table "
                "[finetune]",
                hint="finetune_at = []",
            )
        if self.study.size == "full" and self.study.model and self.study.model not in facts.models:
            raise MissingError(
                f"{self.study.upstream}: no fine-tuning model for {self.study.model} is known",
                hint=f"[finetune.models] in patches/{self.study.upstream}/recipe.toml",
            )
        return facts


def check_size(study: Study, recipe: Recipe) -> None:
    """Look at what the recipe knows, before anything is made ready.

    Raises:
        MissingError: The recipe has no table for a small comparison.
        MtoError: A batch is asked of a recipe that takes it among its own arguments.
    """
    recipe.style(study.style or None, study.upstream)
    if study.size == "full":
        return
    if recipe.compare is None:
        raise MissingError(
            f"{study.upstream} cannot be compared: its recipe.toml has no table [compare]",
            hint=f"write it into patches/{study.upstream}/recipe.toml, as in "
            "patches/mini/recipe.toml",
        )
    if study.batch and recipe.compare.batch is None:
        option = recipe.options.batch
        raise MtoError(
            f"{study.upstream} takes its batch among its own arguments, not by --batch or batch",
            hint=f"-- {option} {study.batch}, or arguments = ['{option}', '{study.batch}']",
        )


def counts_epochs(recipe: Recipe) -> bool:
    """Whether its schedule and checkpoints count epochs, else optimizer steps."""
    return "{epoch" in recipe.checkpoint


def steps_per_epoch(images: int, batch: int) -> int:
    """Every recipe that counts epochs drops the images left over from its last batch.

    Raises:
        MissingError: The images do not make one batch.
    """
    if images < batch:
        raise MissingError(
            f"the data set holds {images} images, which do not make one batch of {batch}",
            hint=f"--batch {images}",
        )
    return images // batch
