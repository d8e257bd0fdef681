"""What will be run: `patches/NAME/compare.toml` and the options, turned into commands."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from tomlkit.exceptions import TOMLKitError

from mto_tools.errors import CorruptError, MissingError, MtoError

ArmName = Literal["baseline", "mto"]
ARMS: tuple[ArmName, ...] = ("baseline", "mto")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
PLACEHOLDERS = {"data", "out", "seed", "steps", "style", "preset"} | {
    "log_every", "eval_every", "grad_every", "affinity_steps"
}  # fmt: skip


class Data(BaseModel):
    """What is written to JSON and read back: NaN and infinity survive, as strings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Score(BaseModel):
    """A score the recipe logs on the way: its field in the log and how to read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    label: str
    percent: bool = True  # logged in 0..1, shown as a percentage
    higher_is_better: bool = True


class DataSpec(BaseModel):
    """The data set that is used when none is named, and how to tell that one is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    make: list[str]  # script of the checkout and its arguments
    images: str = "train"  # folder inside the data set that must hold an image


class LogSpec(BaseModel):
    """Where the recipe writes its JSON lines, and what it calls the fields.

    A recipe that logs less leaves names empty: without `train`, L_ss is taken from `measures`;
    without `data`, the order of the data is vouched for by the random numbers alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    train: str = "log.jsonl"
    step: str = "step"
    loss: str = "loss"
    step_ms: str = "step_ms"
    data: str = "data"
    measures: str = "mto.jsonl"
    affinity: str = "mto-affinity-{step:06d}.npz"
    initial: str = ""  # checkpoint of the weights before the first step, where one is asked for


class Launch(BaseModel):
    """`patches/NAME/compare.toml`: how one upstream is run, as data.

    Arguments are templates; the names in braces are `PLACEHOLDERS`, of which `{affinity_steps}`
    becomes numbers joined by commas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    entry: str
    arguments: list[str]
    baseline: list[str]
    mto: list[str]
    measures: list[str]
    styles: dict[str, str]  # style: preset of MTO that is meant for it; the first is the default
    steps: int
    disk_mb_per_run: int
    data: DataSpec
    logs: LogSpec = LogSpec()
    scores: list[Score] = []  # the first one decides; without any, L_ss does

    @field_validator("styles")
    @classmethod
    def _not_empty(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("must name at least one")
        return value

    @model_validator(mode="after")
    def _known_placeholders(self) -> Launch:
        templates = [*self.arguments, *self.baseline, *self.mto, *self.measures]
        for template in [*templates, *self.data.make]:
            unknown = set(re.findall(r"\{(.*?)\}", template)) - PLACEHOLDERS
            if unknown:
                raise ValueError(f"unknown placeholder {{{unknown.pop()}}} in {template!r}")
        return self


class Run(Data):
    """One training run: an arm and a seed."""

    arm: ArmName
    seed: int
    command: list[str]

    @property
    def name(self) -> str:
        """Folder of the run inside `runs/`."""
        return f"{self.arm}-{self.seed}"


class Plan(Data):
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
    logs: LogSpec
    runs: list[Run]
    disk_mb_per_run: int
    made_by: str  # the command line that made this plan
    versions: dict[str, str]


def load_launch(home: Path, upstream: str) -> Launch:
    """Read `patches/UPSTREAM/compare.toml`.

    Raises:
        MissingError: No such upstream, or it has no compare.toml.
        CorruptError: The file is not TOML, or a field is missing, unknown or of another type.
    """
    folder = home / "patches" / upstream
    if not folder.is_dir() or upstream != Path(upstream).name:
        known = sorted(path.parent.name for path in (home / "patches").glob("*/compare.toml"))
        raise MissingError(
            f"there is no upstream {upstream!r} in {home / 'patches'}",
            hint=f"mto compare {known[0]}    (of {', '.join(known)})" if known else "mto status",
        )
    path = folder / "compare.toml"
    if not path.is_file():
        raise MissingError(
            f"upstream {upstream} cannot be compared yet: {path} is missing",
            hint=f"write it after the model of {home / 'patches/mini/compare.toml'}",
        )
    try:
        return Launch.model_validate(tomlkit.parse(path.read_text("utf-8")).unwrap())
    except TOMLKitError as error:
        raise CorruptError(f"{path} is not TOML: {error}", hint=f"git diff -- {path}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptError(f"{path}: {where}: {first['msg']}", hint=f"git diff -- {path}") from None


class Options(BaseModel):
    """What the user chose; None is the recipe's own default."""

    model_config = ConfigDict(frozen=True)
    style: str | None = None
    preset: str | None = None
    seeds: int = 3
    steps: int | None = None
    jobs: int | None = None
    extra: list[str] = []


def fill(options: Options, launch: Launch, upstream: str, cores: int) -> Options:
    """Put defaults in.

    Raises:
        MtoError: Style, seeds, steps or jobs that cannot be run.
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
    for name, value, least in (("seeds", options.seeds, 1), ("steps", steps, 2), ("jobs", jobs, 1)):
        if value < least:
            raise MtoError(
                f"--{name} must be at least {least}, not {value}",
                hint=f"mto compare {upstream} --{name} {max(least, 2)}",
            )
    preset = options.preset or launch.styles[style]
    known = {"style": style, "preset": preset, "steps": steps, "jobs": jobs}
    return options.model_copy(update=known)


def make_plan(
    launch: Launch,
    options: Options,
    *,
    upstream: str,
    checkout: Path,
    out: Path,
    data: Path,
    cores: int | None = None,
    versions: dict[str, str] | None = None,
) -> Plan:
    """Turn options into the full list of commands; every run writes into `out/runs/ARM-SEED`.

    Both arms of a seed stand next to each other, so that they run at the same time and meet the
    same machine; every run gets the same number of threads.
    """
    cores = cores or usable_cores()
    options = fill(options, launch, upstream, cores)
    style, preset, steps, jobs = options.style, options.preset, options.steps, options.jobs
    assert style is not None
    assert preset is not None
    assert steps is not None
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
    }
    runs = []
    for seed in range(options.seeds):
        for arm in ARMS:
            here = {**fields, "seed": str(seed), "out": str(out / "runs" / f"{arm}-{seed}")}
            chosen = launch.baseline if arm == "baseline" else launch.mto
            templates = [*launch.arguments, *chosen, *launch.measures]
            arguments = [template.format(**here) for template in templates]
            command = [sys.executable, launch.entry, *arguments, *options.extra]
            runs.append(Run(arm=arm, seed=seed, command=command))
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
        cwd=str(checkout),
        data=str(data),
        scores=launch.scores,
        logs=launch.logs,
        runs=runs,
        disk_mb_per_run=launch.disk_mb_per_run,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=versions or {},
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(cores: int, runs: int) -> int:
    """As many runs at once as there are cores, whole pairs only: a seed's arms share a fate."""
    return max(1, min(cores, runs) // 2 * 2)


def check_data(data: Path, images: str, upstream: str) -> None:
    """Raise `MissingError` unless `data/images` holds an image somewhere below it."""
    folder = data / images
    mend = f"mto compare {upstream}    (uses the built-in data), or --data DIR of an ImageFolder"
    if not data.is_dir():
        raise MissingError(f"data folder {data} does not exist", hint=mend)
    if not folder.is_dir():
        raise MissingError(f"data folder {data} has no subfolder {images}/", hint=mend)
    if next(_images(folder), None) is None:
        raise MissingError(f"data folder {folder} holds no image", hint=mend)


def _images(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield f"{root}/{file}"
