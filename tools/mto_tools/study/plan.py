"""The plan of a comparison: the command of every run, and what decides its numbers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mto_tools.errors import MissingError, MtoError
from mto_tools.launch.command import Launch
from mto_tools.study.folder import VERSION, JsonModel
from mto_tools.upstreams.recipe import Logs, Recipe, Score

if TYPE_CHECKING:
    from mto_tools.launch.inputs import Inputs

ArmName = Literal["baseline", "mto"]
ARMS: tuple[ArmName, ...] = ("baseline", "mto")
MEASURES = ("log_every", "grad_every", "affinity_steps")  # options of MTO that only measure


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

    schema_version: Literal[3] = VERSION
    upstream: str
    style: str
    preset: str
    mto_options: list[str]  # what the MTO arm alone gets, besides the preset
    shared_options: list[str]  # further arguments of all arms
    seeds: list[int]
    steps: int
    epochs: int | None  # None: the recipe counts steps
    batch: int | None
    log_every: int
    jobs: int  # runs at the same time
    threads: int  # of each run
    cwd: str
    data: str
    scores: tuple[Score, ...]
    moving_target: bool = False
    logs: Logs
    runs: list[Run]
    made_by: str  # the command line that made this plan
    versions: dict[str, str]
    disk_mb: int = 0  # that all runs take

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


def make_plan(
    recipe: Recipe,
    upstream: str,
    prepare: Callable[[], Inputs],
    out: Path,
    *,
    style: str | None = None,
    preset: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    jobs: int | None = None,
    batch: int | None = None,
    extra: Sequence[str] = (),
    cores: int,
    gpu: bool = False,
) -> Plan:
    """Turn the options of `mto compare` into commands; every run writes into `out/runs/ARM-SEED`.

    Both arms of a seed stand next to each other, so that they run at the same time and meet the
    same machine; every run gets the same number of threads.

    Args:
        recipe: How the upstream is run.
        upstream: Its name.
        prepare: Gives checkout and data; called when the options are found to be right.
        out: Folder of the comparison.
        style, preset, seeds, steps, jobs, batch, extra: The options, where None is the recipe's
            own; `extra` is after `--`.
        cores: Those that the runs may use.
        gpu: Whether torch sees a GPU; without one, CUDA-only scripts run on the CPU.

    Raises:
        MtoError: An option that cannot be run.
        MissingError: The recipe has no table `[compare]`, or the images do not make one batch.
    """
    from mto_core.config import Preset  # imports torch

    compare = recipe.compare
    if compare is None:
        raise MissingError(
            f"{upstream} cannot be compared: its recipe.toml has no table [compare]",
            hint=f"write it into patches/{upstream}/recipe.toml, as in patches/mini/recipe.toml",
        )
    style = recipe.style(style, upstream)
    if batch is not None and compare.batch is None:
        raise MtoError(
            f"{upstream} counts steps and takes its batch among its own arguments, not by --batch",
            hint=f"mto compare {upstream} -- {recipe.options.batch} {batch}",
        )
    preset = preset or recipe.styles[style].preset
    if preset not in get_args(Preset):
        raise MtoError(
            f"there is no MTO preset {preset!r}; known: {', '.join(get_args(Preset))}",
            hint=f"--preset {recipe.styles[style].preset}",
        )
    shared, mto = split_options(extra, recipe.options.form, upstream)
    inputs = prepare()
    # By default as many runs as cores, in whole pairs; the arms of a seed share a GPU.
    jobs = jobs or (2 if gpu else max(1, min(cores, 2 * seeds) // 2 * 2))
    batch = batch or compare.batch
    steps = steps or compare.steps
    epochs = whole_epochs(steps, batch, inputs.images, upstream) if batch else None
    if epochs and batch:
        steps = epochs * (inputs.images // batch)
    log_every = max(1, steps // 90)
    measures = {"log_every": log_every, "grad_every": 5 * log_every}  # on lines logged anyway
    if recipe.styles[style].maps:
        measures["affinity_steps"] = steps
    values = {
        "checkout": inputs.checkout,
        "data": inputs.data,
        "steps": steps,
        "middle": steps,
        "epochs": epochs,
        "save": epochs,
        "warmup": (epochs or 0) // 10,
        "batch": batch,
        "total": batch,
        "log_every": log_every,
        "eval_every": max(1, steps // 9),
        "workers": 0,
    }
    runs = [Run(arm=arm, seed=seed, command=[]) for seed in range(seeds) for arm in ARMS]
    for run in runs:
        own = {**values, "seed": run.seed, "out": out / "runs" / run.name}
        # The baseline measures the same things and adds nothing: all its weights are 0.
        weights = "observe" if run.arm == "baseline" else preset
        arguments = [
            *recipe.words(recipe.arguments, style, **own),
            *recipe.options.mto({"preset": weights, **measures}),
            *shared,
            *(mto if run.arm == "mto" else []),
        ]
        script = (inputs.checkout / recipe.pretrain).absolute()
        launch = Launch(upstream, recipe, script, arguments, cpu=not gpu, seed=run.seed)
        run.command = launch.argv()
    return Plan(
        upstream=upstream,
        style=style,
        preset=preset,
        mto_options=mto,
        shared_options=shared,
        seeds=list(range(seeds)),
        steps=steps,
        epochs=epochs,
        batch=batch,
        log_every=log_every,
        jobs=jobs,
        threads=max(1, cores // jobs),
        cwd=str(inputs.cwd),
        data=str(inputs.data),
        scores=compare.scores,
        moving_target=compare.moving_target,
        logs=recipe.logs,
        runs=runs,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=inputs.versions,
        disk_mb=len(runs) * compare.disk_mb_per_run + 50,
    )


def split_options(extra: Sequence[str], form: str, upstream: str) -> tuple[list[str], list[str]]:
    """Arguments after `--`: of both arms, and of the MTO arm alone.

    Options of MTO (`--mto_NAME VALUE`, `--mto_NAME=VALUE`, `MTO.NAME VALUE`) belong to the MTO arm,
    but for those that only measure, which both arms need alike.

    Raises:
        MtoError: An option that `mto compare` itself gives to the arms.
    """
    prefix = "MTO." if form == "nodes" else "--mto_"
    shared: list[str] = []
    mto: list[str] = []
    rest = iter(extra)
    for word in rest:
        option, equals, _ = word.partition("=")
        if not option.startswith(prefix):
            shared.append(word)
            continue
        name = option.removeprefix(prefix).lower()  # argparse takes the beginning of a name, too
        if any(own.startswith(name) for own in ("on", "preset")):
            raise MtoError(
                f"{option} is set by mto compare, in each arm as it needs",
                hint=f"mto compare {upstream} --preset PRESET, or weights after --",
            )
        arms = shared if any(measure.startswith(name) for measure in MEASURES) else mto
        arms += [word] if equals else [word, *islice(rest, 1)]
    return shared, mto


def whole_epochs(steps: int, batch: int, images: int, upstream: str) -> int:
    """The least number of whole epochs of so many images that holds the steps.

    Every recipe that counts epochs drops the images left over from its last batch.

    Raises:
        MissingError: The images do not make one batch.
    """
    if images < batch:
        raise MissingError(
            f"the data set holds {images} images, which do not make one batch of {batch}",
            hint=f"mto compare {upstream} --batch {images}",
        )
    return -(-steps // (images // batch))


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
