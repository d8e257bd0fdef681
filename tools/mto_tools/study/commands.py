"""The command of every task of a study, from its file and recipe.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.command import Launch
from mto_tools.launch.inputs import Inputs
from mto_tools.study.schedule import Schedule, full_size, schedule_of
from mto_tools.study.spec import Arm, Study
from mto_tools.study.tasks import CHECKPOINT, Task, finetuned
from mto_tools.upstreams.recipe import FineTune, Recipe
from mto_tools.upstreams.upstream import fill


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
        """Steps and epochs of every pre-training; raises as `schedule_of`."""
        return schedule_of(self.study, self.recipe, self.inputs.images)

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
        facts, plan = full_size(self.study, self.recipe)
        options = self.recipe.options
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
        values: dict[str, object] = {
            **{"model": plan.model, "total": schedule.batch, "micro": micro},
            **{"accumulation": accumulation, "epochs": schedule.epochs, "rate": plan.rate},
            **{"warmup": min(facts.warmup_epochs, (schedule.epochs or 0) // 10)},
            **{"checkout": self.inputs.checkout, "data": self.inputs.data, "output": out},
            "arm": "run",  # as the paths in `[logs]` have it
        }
        words = [*fill(" ".join(template), values), options.seed, str(seed)]
        words += fill(options.epochs, values) if schedule.epochs != plan.epochs else []
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
        model = (self.study.size == "full" and self.study.model) or facts.models[0]
        words = fill(
            facts.arguments,
            {
                **self.recipe.finetuned[model].values,
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
                hint=f"models of [finetune] in patches/{self.study.upstream}/recipe.toml",
            )
        return facts
