"""What will be run: a recipe's compare.toml and the user's options, turned into commands."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mto_tools.compare.spec import Launch, LogSpec, Score
from mto_tools.errors import MissingError, MtoError
from mto_tools.launch.command import Launch as Start

ArmName = Literal["baseline", "mto"]
ARMS: tuple[ArmName, ...] = ("baseline", "mto")


class JsonModel(BaseModel):
    """What is written to JSON and read back: NaN and infinity survive, as strings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Run(JsonModel):
    """One training run: an arm and a seed."""

    arm: ArmName
    seed: int
    command: list[str]

    @property
    def name(self) -> str:
        """Folder of the run inside `runs/`."""
        return f"{self.arm}-{self.seed}"


class Plan(JsonModel):
    """Everything that decides the numbers, written down before the first run starts."""

    schema_version: int = 1
    upstream: str
    style: str
    preset: str
    steps: int
    seeds: list[int]
    log_every: int
    eval_every: int
    grad_every: int
    affinity_steps: list[int]
    jobs: int
    threads: int
    cwd: str
    data: str
    scores: list[Score]
    moving_target: bool = False
    logs: LogSpec
    runs: list[Run]
    disk_mb_per_run: int
    made_by: str  # the command line that made this plan
    versions: dict[str, str]
    batch: int | None = None
    epochs: int | None = None

    @property
    def last_logged(self) -> int:
        """The last step with a line in the log; mto.jsonl has none for a remainder."""
        return self.steps if self.logs.train else self.steps - self.steps % self.log_every


class Options(BaseModel):
    """What the user chose; None is the recipe's own default."""

    model_config = ConfigDict(frozen=True)
    style: str | None = None
    preset: str | None = None
    seeds: int = 3
    steps: int | None = None
    jobs: int | None = None
    batch: int | None = None
    extra: list[str] = []


def with_defaults(options: Options, launch: Launch, upstream: str, cores: int) -> Options:
    """Put defaults in.

    Raises:
        MtoError: Style, seeds, steps, jobs or batch that cannot be run.
    """
    first = next(iter(launch.styles))
    style = options.style or first
    if style not in launch.styles:
        raise MtoError(
            f"{upstream} has no style {style!r}; it has {', '.join(launch.styles)}",
            hint=f"mto compare {upstream} --style {first}",
        )
    steps = launch.steps if options.steps is None else options.steps
    jobs = default_jobs(cores, 2 * options.seeds) if options.jobs is None else options.jobs
    batch = launch.batch if options.batch is None else options.batch
    if batch is not None and launch.batch is None:
        raise MtoError(
            f"{upstream} counts steps and takes its batch among its own arguments, not by --batch",
            hint=f"mto compare {upstream} -- and the recipe's own option",
        )
    for name, value, least in (
        ("seeds", options.seeds, 1),
        ("steps", steps, 2),
        ("jobs", jobs, 1),
        ("batch", batch, 1),
    ):
        if value is not None and value < least:
            raise MtoError(
                f"--{name} must be at least {least}, not {value}",
                hint=f"mto compare {upstream} --{name} {max(least, 2)}",
            )
    preset = options.preset or launch.styles[style]
    known = {"style": style, "preset": preset, "steps": steps, "jobs": jobs, "batch": batch}
    return options.model_copy(update=known)


def whole_epochs(options: Options, images: int, upstream: str) -> tuple[int | None, int]:
    """Epochs that hold the steps asked for, None where the recipe counts steps, and their steps.

    Every recipe that counts epochs drops the images left over from its last batch.

    Args:
        options: As `with_defaults` returns them.
        images: Images of one epoch.
        upstream: Name of the recipe.

    Raises:
        MissingError: The images do not make one batch.
    """
    assert options.steps is not None
    if options.batch is None:
        return None, options.steps
    per_epoch = images // options.batch
    if not per_epoch:
        raise MissingError(
            f"the data set holds {images} images, which do not make one batch of {options.batch}",
            hint=f"mto compare {upstream} --batch {images}" if images else "",
        )
    epochs = -(-options.steps // per_epoch)
    return epochs, epochs * per_epoch


def make_plan(
    launch: Launch,
    options: Options,
    *,
    upstream: str,
    checkout: Path,
    out: Path,
    data: Path,
    images: int = 0,
    cwd: Path | None = None,
    gpu: bool = False,
    cores: int | None = None,
    versions: dict[str, str] | None = None,
) -> Plan:
    """Turn options into the full list of commands; every run writes into `out/runs/ARM-SEED`.

    Both arms of a seed stand next to each other, so that they run at the same time and meet the
    same machine; every run gets the same number of threads.

    Args:
        launch: How the recipe is run.
        options: What the user chose.
        upstream: Name of the recipe.
        checkout: Where its scripts are.
        out: Folder of the comparison.
        data: The data set.
        images: Images of one epoch, for a recipe that counts epochs.
        cwd: Where it is started, by default in the checkout.
        gpu: Whether torch sees a GPU; `launch = "run"` runs CUDA-only code on the CPU without.
        cores: By default those that this process may use.
        versions: What the numbers come from.
    """
    cores = cores or usable_cores()
    options = with_defaults(options, launch, upstream, cores)
    epochs, steps = whole_epochs(options, images, upstream)
    style, preset, jobs = options.style, options.preset, options.jobs
    assert style is not None
    assert preset is not None
    assert jobs is not None
    log_every, eval_every = max(1, steps // 90), max(1, steps // 9)
    grad_every = 5 * log_every  # a ratio is logged on the lines that are logged anyway
    affinity_steps = sorted({1, max(1, steps // 2), steps})
    fields = {
        "data": str(data),
        "steps": str(steps),
        "style": style,
        "preset": preset,
        "log_every": str(log_every),
        "eval_every": str(eval_every),
        "grad_every": str(grad_every),
        "affinity_steps": ",".join(map(str, affinity_steps)),
        "batch": str(options.batch),
        "epochs": str(epochs),
    }
    fields["checkout"] = str(checkout)
    more = {"middle": steps, "save": epochs, "total": options.batch, "warmup": (epochs or 0) // 10}
    fields |= {name: str(value) for name, value in more.items()} | {"workers": "0"}
    recipe = launch.recipe
    measures = launch.measures if recipe.styles[style].maps else launch.measures[:-2]
    runs = []
    for seed in range(options.seeds):
        for arm in ARMS:
            here = {**fields, "seed": str(seed), "out": str(out / "runs" / f"{arm}-{seed}")}
            chosen = launch.baseline if arm == "baseline" else launch.mto
            arguments = recipe.words(recipe.arguments, **here)
            arguments += [word.format(**here) for word in (*chosen, *measures)]
            start = Start(
                name=upstream,
                recipe=recipe,
                script=(checkout / recipe.pretrain).absolute(),
                arguments=[*arguments, *options.extra],
                cpu=not gpu,
                seed=seed,
            )
            runs.append(Run(arm=arm, seed=seed, command=start.argv()))
    return Plan(
        upstream=upstream,
        style=style,
        preset=preset,
        steps=steps,
        seeds=list(range(options.seeds)),
        log_every=log_every,
        eval_every=eval_every,
        grad_every=grad_every,
        affinity_steps=affinity_steps,
        jobs=jobs,
        threads=max(1, cores // jobs),
        cwd=str(cwd or checkout),
        data=str(data),
        scores=launch.scores,
        moving_target=launch.moving_target,
        logs=launch.logs,
        runs=runs,
        disk_mb_per_run=launch.disk_mb_per_run,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=versions or {},
        batch=options.batch,
        epochs=epochs,
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(cores: int, runs: int) -> int:
    """As many runs at once as there are cores, whole pairs only: a seed's arms share a fate."""
    return max(1, min(cores, runs) // 2 * 2)
