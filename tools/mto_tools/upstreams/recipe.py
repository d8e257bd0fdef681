"""`patches/NAME/recipe.toml`: how an upstream is run. Each tool reads it here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from mto_tools.errors import MissingError, MtoError
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.templates import check, fill, of, some
from mto_tools.upstreams.upstream import Table, Upstream, read_toml

SMALL_RUN = (
    *("batch", "checkout", "data", "epochs", "eval_every", "log_every", "middle", "out", "save"),
    *("seed", "steps", "style", "total", "warmup", "workers"),
)
OTHER_RUN = ("checkout", "checkpoint", "classes", "data", "out")
SAVED = ("epoch", "folder", "step")


class Options(Table):
    """How the scripts take their settings.

    Attributes:
        form: "flags" (`--mto_sparsity 0.1`, argparse) or "nodes" (`MTO.SPARSITY 0.1`, yacs).
        batch: Option for the micro batch of a process, or the total where it says so.
        accumulation: Option for the micro batches of a step; "" where upstream has none.
        rate: Option for the learning rate.
    """

    form: Literal["flags", "nodes"] = "flags"
    batch: str = "--batch_size"
    accumulation: str = ""
    rate: str = "--lr"

    def mto(self, values: Mapping[str, object]) -> list[str]:
        """Arguments that switch MTO on, with options such as `{"sparsity": 0.1}`."""
        if self.form == "nodes":
            named = {"MTO.ON": True} | {f"MTO.{k.upper()}": v for k, v in values.items()}
            return [str(word) for pair in named.items() for word in pair]
        named = {f"--mto_{name}": value for name, value in values.items()}
        return ["--mto", *(str(word) for pair in named.items() for word in pair)]


class Style(Table):
    """One model that the upstream offers for a small run.

    Attributes:
        preset: Preset of MTO that is meant for it.
        values: Names in braces of its own, for `Recipe.arguments`, `smoke` and `others`.
        maps: Its depths hold the same tokens, so that affinity maps can be saved.
    """

    preset: str
    values: dict[str, str] = Field(default_factory=dict)
    maps: bool = True


class Data(Table):
    """How the scripts read images, and the small data set that is used when none is named.

    Attributes:
        name: Of the small data set.
        make: Script of the checkout and its arguments, which makes it; "": digits, laid out below.
        images: Folder in the data set that must hold an image.
        listing: File with a line per image, where the scripts read no more than it names. `{phase}`
            is train or val; relative to `{data}`, or else to the folder a script is started in.
        line: A line of it, of `{file}` (relative to the phase's folder) and `{label}`.
        class_index: JSON file of 1000 labels with their folders, found as `listing` is.
        per_class: Training images of each of the 8 classes of digits.
    """

    name: str
    make: Annotated[str, of("data")] = ""
    images: str = "train"
    listing: Annotated[str, of("data", "phase")] = ""
    line: Annotated[str, of("file", "label")] = "{file}"
    class_index: str = ""
    per_class: PositiveInt = 8

    @property
    def started_beside_data(self) -> bool:
        """The scripts look for their list in the folder they are started in."""
        return bool(self.listing) and "{data}" not in self.listing


class Logs(Table):
    """Files in the output folder. An empty name: the recipe does not write it.

    Attributes:
        measures: MTO's log: loss, terms and times by step.
        affinity: Affinity maps of a step.
        train: The recipe's own JSON lines, with the field `step`: scores, checksums of the data.
        data: Their field with a checksum of the images of a step.
        images: PNG with masked input, reconstruction and target of a few images, a row for each.
    """

    measures: str = "mto.jsonl"
    affinity: str = "mto-affinity-{step:06d}.npz"
    train: str = ""
    data: str = ""
    images: str = ""


class Score(Table):
    """A score in the recipe's own log: its field, and how to read it.

    Attributes:
        key: Field of the log.
        label: Name for people.
        percent: Logged in 0..1, shown as a percentage.
        higher_is_better: Direction.
    """

    key: str
    label: str
    percent: bool = True
    higher_is_better: bool = True


class Compare(Table):
    """A small comparison.

    Attributes:
        batch: Images of an optimizer step; none where the recipe counts steps.
        steps: Optimizer steps of a run.
        disk_mb_per_run: Room that a run takes.
        moving_target: The target of L_ss comes, in whole or in part, from a copy of the model that
            follows the trained one. Each arm has a target of its own, so L_ss decides nothing.
        scores: The first one decides; without any, L_ss does.
    """

    batch: PositiveInt | None = None
    steps: int = Field(ge=2)
    disk_mb_per_run: PositiveInt
    moving_target: bool = False
    scores: tuple[Score, ...] = ()


class Recipe(Table):
    """How an upstream is run.

    Names in braces are filled in: those of `SMALL_RUN`, and a style's own.

    Attributes:
        pretrain: Script that pre-trains, relative to the checkout.
        arguments: Its arguments in a small run.
        smoke: More of them for `mto smoke`; later ones win.
        others: Small runs of the other scripts, by script; names of `OTHER_RUN`.
        checkpoint: File of an epoch, counted from 0, or of a `{step}`, in the output folder.
        resume: Arguments that go on from it; `{folder}` is the output folder of the earlier run.
        resume_from: Name of the file to which the checkpoint is copied, in the output folder of
            the new run, where it goes on with what it finds there.
        compat: Shims of `mto_tools.compat` for scripts that no patch has touched.
        needs: Distributions that the scripts import, besides torch.
        provided: Modules that are imported and not needed: shims stand in, or no run reaches them.
        always_distributed: One process needs torchrun, too.
        cuda_only: Scripts call CUDA whether it is there or not.
        traced: Blocks that MTO watches, for people.
        options: How settings are given.
        styles: Models for small runs; the first is the default.
        data: How images are read.
        logs: Files that a run leaves.
        compare: A small comparison; none: `mto compare` does not know the recipe.
        plan: Facts for `mto plan`; none: it does not know the recipe.
    """

    pretrain: str
    arguments: str
    smoke: str = ""
    others: dict[str, str] = Field(default_factory=dict)
    checkpoint: Annotated[str, of(*SAVED)]
    resume: Annotated[str, of(*SAVED)] = ""
    resume_from: str = ""
    compat: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    provided: tuple[str, ...] = ()
    always_distributed: bool = False
    cuda_only: bool = True
    traced: str = ""
    options: Options = Options()
    styles: Annotated[dict[str, Style], AfterValidator(some)]
    data: Data
    logs: Logs = Logs()
    compare: Compare | None = None
    plan: Facts | None = None

    @model_validator(mode="after")
    def _known_names(self) -> Recipe:
        if not self.resume and not self.resume_from:
            raise ValueError("needs resume or resume_from")
        for style in self.styles.values():
            for template in (self.arguments, self.smoke):
                check(template, {*SMALL_RUN, *style.values})
            for template in self.others.values():
                check(template, {*OTHER_RUN, *style.values})
        return self

    @property
    def scripts(self) -> tuple[str, ...]:
        """All scripts; the one that pre-trains is first."""
        return (self.pretrain, *self.others)

    @property
    def counts_epochs(self) -> bool:
        """The length of a run is given in epochs, else in steps."""
        return "{epochs}" in self.arguments

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
