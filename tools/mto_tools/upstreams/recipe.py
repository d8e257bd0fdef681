"""`patches/NAME/recipe.toml`: how an upstream is run. Each tool reads it here, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from mto_tools.errors import MissingError, MtoError
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.upstream import Table, Upstream, check, fill, of, read_toml, some

SMALL_RUN = (
    *("batch", "checkout", "data", "epochs", "eval_every", "log_every", "middle", "out", "save"),
    *("seed", "steps", "style", "total", "warmup", "workers"),
)
OTHER_RUN = ("checkout", "checkpoint", "classes", "data", "out")
SAVED = ("epoch", "folder", "step")
EVALUATION = ("checkout", "checkpoint", "classes", "data", "out")
FINE_TUNING = (
    *("accumulation", "checkout", "checkpoint", "classes", "data", "epochs", "micro", "out"),
    *("seed", "total", "warmup"),
)


def groups(*names: str) -> AfterValidator:
    """Annotate a field: a regular expression with these named groups, or ""."""

    def check_groups(pattern: str) -> str:
        if pattern and set(re.compile(pattern).groupindex) != set(names):
            raise ValueError(f"{pattern!r} needs the named groups {', '.join(names)}, no others")
        return pattern

    return AfterValidator(check_groups)


class Options(Table):
    """How the scripts take their settings."""

    form: Literal["flags", "nodes"] = "flags"  # `--mto_sparsity 0.1`, or yacs' `MTO.SPARSITY 0.1`
    batch: str = "--batch_size"  # option for the images of a process, or all where it says so
    accumulation: str = ""  # option for the micro batches of a step; "" where upstream has none
    rate: str = "--lr"  # option for the learning rate
    seed: str = "--seed"  # option for the seed
    # Arguments for a full-size run of another length, where the arguments of `[plan]` give none.
    epochs: Annotated[str, of("epochs", "warmup")] = ""
    save: str = ""  # option for the epochs, or steps, between checkpoints; "": upstream fixes them
    keep: str = ""  # option for a list of steps whose checkpoints are kept

    def mto(self, values: Mapping[str, object]) -> list[str]:
        """Arguments that switch MTO on, with options such as `{"sparsity": 0.1}`."""
        if self.form == "nodes":
            named = {"MTO.ON": True} | {f"MTO.{k.upper()}": v for k, v in values.items()}
            return [str(word) for pair in named.items() for word in pair]
        named = {f"--mto_{name}": value for name, value in values.items()}
        return ["--mto", *(str(word) for pair in named.items() for word in pair)]


class Style(Table):
    """One model that the upstream offers for a small run."""

    preset: str  # preset of MTO that is meant for it
    values: dict[str, str] = Field(default_factory=dict)  # names in braces of its own
    maps: bool = True  # its depths hold the same tokens, so that affinity maps can be saved


class Data(Table):
    """How the scripts read images, and the small data set that is used when none is named."""

    name: str  # of the small data set
    make: Annotated[str, of("data")] = ""  # script and arguments that make it; "": 64 digits
    images: str = "train"  # folder in the data set that must hold an image
    # File with a line per image, where the scripts read no more than it names. `{phase}` is train
    # or val; relative to `{data}`, or else to the folder a script is started in.
    listing: Annotated[str, of("data", "phase")] = ""
    line: Annotated[str, of("file", "label")] = "{file}"  # file: relative to the phase's folder
    class_index: str = ""  # JSON file of 1000 labels with their folders, found as `listing` is

    @property
    def started_beside_data(self) -> bool:
        """The scripts look for their list in the folder they are started in."""
        return bool(self.listing) and "{data}" not in self.listing


class Logs(Table):
    """Files in the output folder. An empty name: the recipe does not write it.

    Patterns are regular expressions, searched for in each line of a log in plain text.
    """

    measures: str = "mto.jsonl"  # MTO's log: loss, terms and times by step
    affinity: str = "mto-affinity-{step:06d}.npz"  # affinity maps of a step
    own: str = ""  # the recipe's own log: JSON lines with `step`, or with `epoch`, from 0
    own_pattern: Annotated[str, groups("epoch", "value")] = ""  # plain text; value: L_ss
    own_loss: tuple[str, ...] = ()  # its fields with L_ss; the first one found counts
    data: str = ""  # its field with a checksum of the images of a step
    images: str = ""  # PNG, a row per image: masked input, reconstruction, target
    evaluated: Annotated[str, of(*SAVED)] = ""  # checkpoint that is evaluated; "": `checkpoint`
    finetune: str = ""  # log of a fine-tuning, in the output folder of that
    finetune_pattern: Annotated[str, groups("value")] = ""  # plain text; value: as below
    finetune_score: str = ""  # its field with the top-1 accuracy in per cent
    free: tuple[str, ...] = ()  # settings that say where, not what: folders, devices


class Score(Table):
    """A score in the recipe's own log: its field, and how to read it."""

    key: str
    label: str
    percent: bool = True  # logged in 0..1, shown as a percentage
    higher_is_better: bool = True


class Compare(Table):
    """A small comparison."""

    batch: PositiveInt | None = None  # images of a step; none where the recipe counts steps
    steps: int = Field(ge=2)  # optimizer steps of a run
    disk_mb_per_run: PositiveInt  # room that a run takes
    # The target of L_ss comes, also in part, from a copy that follows the trained model: each arm
    # has a target of its own, so L_ss decides nothing.
    moving_target: bool = False
    scores: tuple[Score, ...] = ()  # the first one decides; without any, L_ss does


class FineTuned(Table):
    """A model of the fine-tuning script."""

    when: dict[str, str | int | float] = Field(default_factory=dict)  # settings, dotted names
    values: dict[str, str] = Field(default_factory=dict)  # names in braces of its own

    def fits(self, settings: object) -> bool:
        """Whether a checkpoint of these nested settings is of this model."""
        return all(str(look_up(settings, key)) == str(x) for key, x in self.when.items())


def look_up(settings: object, key: str) -> object:
    """A value in nested settings by its dotted name; None where it is not there."""
    for word in key.split("."):
        settings = settings.get(word) if isinstance(settings, dict) else None
    return settings


class Evaluate(Table):
    """How frozen features are made: by the fine-tuning script, which is stopped before a step."""

    script: str  # relative to the checkout; it builds the model and loads the checkpoint
    arguments: str  # on a few staged images, with batches of 2
    head: str = "head"  # classifier in the model; its input [B, D] is taken
    fresh: tuple[str, ...] = ()  # modules besides the head that no checkpoint holds
    resized: tuple[str, ...] = ()  # endings of parameters that the script may interpolate


class Inspect(Table):
    """The pre-training script on one batch of images, with the weights of a checkpoint."""

    # Later than the settings in the checkpoint. `{settings}` is a YAML file of these, for yacs.
    arguments: Annotated[str, of("data", "images", "out", "seed", "settings")]
    # Settings in a checkpoint that say where it was trained, not how: devices, ranks, resume.
    foreign: tuple[str, ...] = ()
    vit_mae: dict[str, str] = Field(default_factory=dict)  # `--model` by width of HF's ViTMAE


class FineTune(Table):
    """Fine-tuning at its real size, as the upstream documents it."""

    script: str  # relative to the checkout
    arguments: str  # names of `FINE_TUNING` in braces are filled in
    epochs: PositiveInt
    warmup_epochs: int = 0
    total_batch: PositiveInt  # images of a step on all GPUs
    images_per_gpu: PositiveInt
    models: Annotated[tuple[str, ...], AfterValidator(some)]  # that it is meant for; first: default
    checkpoint: Annotated[str, of(*SAVED)] = ""  # as `Recipe.checkpoint`; "": none is saved
    resume: Annotated[str, of(*SAVED)] = ""  # arguments that go on from it; "": it cannot


class Recipe(Table):
    """How an upstream is run.

    Names in braces are filled in: those of `SMALL_RUN`, and a style's own.
    """

    pretrain: str  # script that pre-trains, relative to the checkout
    arguments: str  # its arguments in a small run
    smoke: str = ""  # more of them for `mto smoke`; later ones win
    others: dict[str, str] = Field(default_factory=dict)  # small runs of the other scripts
    checkpoint: Annotated[str, of(*SAVED)]  # file in the output folder; epochs count from 0
    resume: Annotated[str, of(*SAVED)] = ""  # arguments that go on from it, in an earlier {folder}
    resume_from: str = ""  # copy of it in a new output folder, from which a run goes on by itself
    compat: tuple[str, ...] = ()  # shims of `mto_tools.compat` for unpatched scripts
    needs: tuple[str, ...] = ()  # distributions that the scripts import, besides torch
    provided: tuple[str, ...] = ()  # modules that shims stand in for, or that no run reaches
    always_distributed: bool = False  # one process needs torchrun, too
    cuda_only: bool = True  # scripts call CUDA whether it is there or not
    traced: str = ""  # blocks that MTO watches, for people
    options: Options = Options()
    styles: Annotated[dict[str, Style], AfterValidator(some)]  # the first is the default
    data: Data
    logs: Logs = Logs()
    compare: Compare | None = None  # none: `mto compare` does not know the recipe
    # Models of the fine-tuning script, by that of `[plan]`; the first that fits a checkpoint.
    finetuned: dict[str, FineTuned] = Field(default_factory=dict)
    evaluate: Evaluate | None = None  # none: `mto evaluate` does not know the recipe
    inspect: Inspect | None = None  # none: `mto inspect` does not know the recipe
    finetune: FineTune | None = None  # none: `mto study` cannot fine-tune
    plan: Facts | None = None  # none: `mto plan` does not know the recipe

    @model_validator(mode="after")
    def _known_names(self) -> Recipe:
        if not self.resume and not self.resume_from:
            raise ValueError("needs resume or resume_from")
        for style in self.styles.values():
            check(f"{self.arguments} {self.smoke}", *SMALL_RUN, *style.values)
            check(" ".join(self.others.values()), *OTHER_RUN, *style.values)
        tuned = self.finetune.models if self.finetune else ()
        if not self.finetuned and (self.evaluate or tuned):
            raise ValueError("[evaluate] and [finetune] need a table [finetuned.NAME]")
        if unknown := set(tuned) - self.finetuned.keys():
            raise ValueError(f"finetune.models: there is no table [finetuned.{min(unknown)}]")
        for name, model in self.finetuned.items():
            if self.evaluate:
                check(self.evaluate.arguments, *EVALUATION, *model.values)
            if self.finetune and name in tuned:
                check(self.finetune.arguments, *FINE_TUNING, *model.values)
        return self

    @property
    def scripts(self) -> tuple[str, ...]:
        """All scripts; the one that pre-trains is first."""
        return (self.pretrain, *self.others)

    def style(self, name: str | None, upstream: str) -> str:
        """Name of a style, by default the first.

        Raises:
            MtoError: There is none of that name.
        """
        first = next(iter(self.styles))
        if name is not None and name not in self.styles:
            raise MtoError(
                f"{upstream} has no style {name!r}; it has {', '.join(self.styles)}",
                hint=f"--style {first}",
            )
        return name or first

    def words(self, template: str, style: str, **values: object) -> list[str]:
        """Arguments from a template of this recipe, for a style."""
        own = self.styles[style].values
        return fill(template, {**own, "style": style, **values})


def load_recipe(upstream: Upstream) -> Recipe:
    """Read `patches/NAME/recipe.toml`.

    Raises:
        MissingError: No such file, or keys are missing; all of them are named.
        CorruptError: Not TOML, or a key is unknown or of another type.
    """
    file = upstream.folder / "recipe.toml"
    if not file.is_file():
        raise MissingError(
            f"it is not known how to run {upstream.name}: no {file}",
            hint="docs/recipes.md, A recipe.toml of your own, names the keys",
        )
    return read_toml(file, Recipe, missing=MissingError)


def plan_facts(upstream: Upstream) -> Facts:
    """Table `[plan]` of an upstream's `recipe.toml`.

    Raises:
        MissingError, CorruptError: As `load_recipe`, or there is no such table.
    """
    facts = load_recipe(upstream).plan
    if facts is None:
        file = upstream.folder / "recipe.toml"
        raise MissingError(
            f"{upstream.name} cannot be planned: {file} has no table [plan]",
            hint="docs/deepspeed.md, A fifth upstream, names the facts it needs",
        )
    return facts
