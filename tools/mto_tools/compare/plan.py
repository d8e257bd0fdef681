"""The plan of a comparison: the command of every run, and what decides its numbers."""

from __future__ import annotations

import os
import shlex
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mto_tools.compare.folder import VERSION, JsonModel
from mto_tools.errors import MissingError, MtoError
from mto_tools.launch.command import Launch
from mto_tools.upstreams.recipe import Compare, Logs, Recipe, Score

ArmName = Literal["baseline", "mto"]
ARMS: tuple[ArmName, ...] = ("baseline", "mto")
MEASURES = ("log_every", "grad_every", "affinity_steps")  # options of MTO that only measure


class Choices(JsonModel):
    """What the user asks for, with every default filled in."""

    style: str
    preset: str
    mto_options: list[str]  # what the MTO arm alone gets, besides the preset
    shared_options: list[str]  # further arguments of all arms
    seeds: list[int]
    steps: int
    jobs: int  # runs at the same time
    threads: int  # of each run
    batch: int | None  # None: the recipe counts steps
    epochs: int | None = None


class Run(JsonModel):
    """One training run: an arm and a seed."""

    arm: ArmName
    seed: int
    command: list[str]

    @property
    def name(self) -> str:
        """Folder of the run inside `runs/`."""
        return f"{self.arm}-{self.seed}"


class Plan(Choices):
    """Everything that decides the numbers, written down before the first run starts."""

    schema_version: Literal[3] = VERSION
    upstream: str
    log_every: int
    cwd: str
    data: str
    scores: tuple[Score, ...]
    moving_target: bool = False
    logs: Logs
    runs: list[Run]
    made_by: str  # the command line that made this plan
    versions: dict[str, str]

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


def comparison(recipe: Recipe, upstream: str) -> Compare:
    """Table `[compare]` of a recipe.

    Raises:
        MissingError: It has none.
    """
    if recipe.compare is None:
        raise MissingError(
            f"{upstream} cannot be compared: its recipe.toml has no table [compare]",
            hint=f"write it into patches/{upstream}/recipe.toml, as in patches/mini/recipe.toml",
        )
    return recipe.compare


def resolve(
    recipe: Recipe,
    upstream: str,
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
) -> Choices:
    """Fill in the defaults of the options of `mto compare`; None is the recipe's own.

    Args:
        recipe: How the upstream is run.
        upstream: Name of the recipe, for hints.
        style, preset, seeds, steps, jobs, batch, extra: The options; `extra` is after `--`.
        cores: Those that the runs may use.
        gpu: Whether torch sees a GPU, which the two arms of a seed then share.

    Raises:
        MtoError: An option that cannot be run.
        MissingError: The recipe has no table `[compare]`.
    """
    from mto_core.config import Preset  # imports torch

    compare = comparison(recipe, upstream)
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
    jobs = jobs or (2 if gpu else default_jobs(cores, 2 * seeds))
    return Choices(
        style=style,
        preset=preset,
        mto_options=mto,
        shared_options=shared,
        seeds=list(range(seeds)),
        steps=steps or compare.steps,
        jobs=jobs,
        threads=max(1, cores // jobs),
        batch=batch or compare.batch,
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
    rest = deque(extra)
    while rest:
        words = [rest.popleft()]
        option, equals, _ = words[0].partition("=")
        if not option.startswith(prefix):
            shared += words
            continue
        if not equals and rest:
            words.append(rest.popleft())
        name = option.removeprefix(prefix).lower()  # argparse takes the beginning of a name, too
        if any(own.startswith(name) for own in ("on", "preset")):
            raise MtoError(
                f"{option} is set by mto compare, in each arm as it needs",
                hint=f"mto compare {upstream} --preset PRESET, or weights after --",
            )
        (shared if any(m.startswith(name) for m in MEASURES) else mto).extend(words)
    return shared, mto


def in_whole_epochs(choices: Choices, images: int, upstream: str) -> Choices:
    """The choices with the least number of whole epochs that holds their steps.

    Every recipe that counts epochs drops the images left over from its last batch; one that counts
    steps has no batch here, and nothing changes. `images` is the number of an epoch.

    Raises:
        MissingError: The images do not make one batch.
    """
    if choices.batch is None:
        return choices
    per_epoch = images // choices.batch
    if not per_epoch:
        raise MissingError(
            f"the data set holds {images} images, which do not make one batch of {choices.batch}",
            hint=f"mto compare {upstream} --batch {images}" if images else "",
        )
    epochs = -(-choices.steps // per_epoch)
    return choices.model_copy(update={"epochs": epochs, "steps": epochs * per_epoch})


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(cores: int, runs: int) -> int:
    """As many runs at once as there are cores, whole pairs only: a seed's arms share a fate."""
    return max(1, min(cores, runs) // 2 * 2)


def make_plan(
    recipe: Recipe,
    choices: Choices,
    *,
    upstream: str,
    checkout: Path,
    out: Path,
    data: Path,
    cwd: Path | None = None,
    gpu: bool = False,
    versions: dict[str, str] | None = None,
) -> Plan:
    """Turn choices in whole epochs into commands; every run writes into `out/runs/ARM-SEED`.

    Both arms of a seed stand next to each other, so that they run at the same time and meet the
    same machine; every run gets the same number of threads.

    Args:
        recipe: How the upstream is run.
        choices: What `resolve` returns.
        upstream: Name of the recipe.
        checkout: Where its scripts are.
        out: Folder of the comparison.
        data: The data set.
        cwd: Where the scripts are started, by default in the checkout.
        gpu: Whether torch sees a GPU; without one, CUDA-only scripts run on the CPU.
        versions: What the numbers come from.
    """
    compare = comparison(recipe, upstream)
    steps, epochs = choices.steps, choices.epochs
    log_every = max(1, steps // 90)
    measures = {"log_every": log_every, "grad_every": 5 * log_every}  # on lines logged anyway
    if recipe.styles[choices.style].maps:
        measures["affinity_steps"] = steps
    values = {
        "checkout": checkout,
        "data": data,
        "steps": steps,
        "middle": steps,
        "epochs": epochs,
        "save": epochs,
        "warmup": (epochs or 0) // 10,
        "batch": choices.batch,
        "total": choices.batch,
        "log_every": log_every,
        "eval_every": max(1, steps // 9),
        "workers": 0,
    }
    script = (checkout / recipe.pretrain).absolute()
    runs = [Run(arm=arm, seed=seed, command=[]) for seed in choices.seeds for arm in ARMS]
    for run in runs:
        own = {**values, "seed": run.seed, "out": out / "runs" / run.name}
        # The baseline measures the same things and adds nothing: all its weights are 0.
        preset = "observe" if run.arm == "baseline" else choices.preset
        arguments = [
            *recipe.words(recipe.arguments, choices.style, **own),
            *recipe.options.mto({"preset": preset, **measures}),
            *choices.shared_options,
            *(choices.mto_options if run.arm == "mto" else []),
        ]
        launch = Launch(upstream, recipe, script, arguments, cpu=not gpu, seed=run.seed)
        run.command = launch.argv()
    return Plan(
        **choices.model_dump(),
        upstream=upstream,
        log_every=log_every,
        cwd=str(cwd or checkout),
        data=str(data),
        scores=compare.scores,
        moving_target=compare.moving_target,
        logs=recipe.logs,
        runs=runs,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=versions or {},
    )
