"""What the user asks for, and the choices that follow from it; every default is filled in here."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict

from mto_tools.errors import MissingError, MtoError
from mto_tools.upstreams.recipe import Compare, Recipe

MEASURES = ("log_every", "grad_every", "affinity_steps")  # options of MTO that only measure


class JsonModel(BaseModel):
    """What is written to JSON and read back: NaN and infinity survive, as strings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Options(BaseModel):
    """What the user asks for; None is the recipe's own default."""

    model_config = ConfigDict(frozen=True)
    style: str | None = None
    preset: str | None = None
    seeds: int = 3
    steps: int | None = None
    jobs: int | None = None
    batch: int | None = None
    extra: list[str] = []  # arguments after `--`
    data: Path | None = None
    reports: Path | None = None
    keep_going: bool = False
    allow_edited: bool = False


class Choices(JsonModel):
    """Options that decide the numbers, with every default filled in."""

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
    options: Options, recipe: Recipe, upstream: str, *, cores: int, gpu: bool = False
) -> Choices:
    """Fill in the defaults.

    Args:
        options: What the user asks for.
        recipe: How the upstream is run.
        upstream: Name of the recipe, for hints.
        cores: Those that the runs may use.
        gpu: Whether torch sees a GPU, which the two arms of a seed then share.

    Raises:
        MtoError: An option that cannot be run.
        MissingError: The recipe has no table `[compare]`.
    """
    compare = comparison(recipe, upstream)
    style = recipe.style(options.style, upstream)
    if options.batch is not None and compare.batch is None:
        raise MtoError(
            f"{upstream} counts steps and takes its batch among its own arguments, not by --batch",
            hint=f"mto compare {upstream} -- {recipe.options.batch} {options.batch}",
        )
    steps = compare.steps if options.steps is None else options.steps
    jobs = options.jobs
    if jobs is None:
        jobs = 2 if gpu else default_jobs(cores, 2 * options.seeds)
    for name, value, least in (
        ("seeds", options.seeds, 1),
        ("steps", steps, 2),
        ("jobs", jobs, 1),
        ("batch", options.batch, 1),
    ):
        if value is not None and value < least:
            raise MtoError(
                f"--{name} must be at least {least}, not {value}",
                hint=f"mto compare {upstream} --{name} {max(least, 2)}",
            )
    usual = recipe.styles[style].preset
    shared, mto = split_options(options.extra, recipe.options.form, upstream)
    return Choices(
        style=style,
        preset=_known_preset(options.preset or usual, usual),
        mto_options=mto,
        shared_options=shared,
        seeds=list(range(options.seeds)),
        steps=steps,
        jobs=jobs,
        threads=max(1, cores // jobs),
        batch=options.batch or compare.batch,
    )


def _known_preset(name: str, usual: str) -> str:
    from mto_core.config import Preset  # imports torch

    known = get_args(Preset)
    if name not in known:
        raise MtoError(
            f"there is no MTO preset {name!r}; known: {', '.join(known)}",
            hint=f"--preset {usual}",
        )
    return name


def split_options(extra: list[str], form: str, upstream: str) -> tuple[list[str], list[str]]:
    """Arguments after `--`: of both arms, and of the MTO arm alone.

    Options of MTO (`--mto_NAME VALUE`, `--mto_NAME=VALUE`, `MTO.NAME VALUE`) belong to the MTO arm,
    but for those that only measure, which both arms need alike.

    Args:
        extra: The arguments.
        form: "flags" or "nodes", as in `upstreams.recipe.Options`.
        upstream: Name of the recipe, for hints.

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
        if option == "--mto":  # a switch, which the arm has anyway
            continue
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

    Every recipe that counts epochs drops the images left over from its last batch.

    Args:
        choices: With a batch; without one the recipe counts steps, and nothing changes.
        images: Images of one epoch.
        upstream: Name of the recipe, for hints.

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
