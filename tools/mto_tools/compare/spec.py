"""`patches/NAME/compare.toml`: how one upstream is run, as data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tomlkit.exceptions import TOMLKitError

from mto_tools.errors import CorruptError, MissingError

PLACEHOLDERS = {"data", "out", "seed", "steps", "style", "preset"} | {
    "log_every", "eval_every", "grad_every", "affinity_steps", "batch", "epochs", "warmup"
}  # fmt: skip


class DataSpec(BaseModel):
    """The data set that is used when none is named, and how to tell that one is there.

    The built-in one is made by a script of the checkout, or laid out by `mto_tools.launch.digits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    make: list[str] = []  # script of the checkout and its arguments
    layout: Literal["", "image_folder", "map_files", "wnid_lists"] = ""
    per_class: int = 8  # training images of each of the 8 classes, with `layout`
    images: str = "train"  # folder inside the data set that must hold an image
    # File with a line per image, where the recipe reads no more than it names: "{data}/..." in the
    # data set, or relative to the folder that the recipe is started in.
    listing: str = ""

    @model_validator(mode="after")
    def _made_in_one_way(self) -> DataSpec:
        if bool(self.make) == bool(self.layout):
            raise ValueError("needs either make or layout")
        return self


class Score(BaseModel):
    """A score the recipe logs on the way: its field in the log and how to read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    label: str
    percent: bool = True  # logged in 0..1, shown as a percentage
    higher_is_better: bool = True


class LogSpec(BaseModel):
    """Where the recipe writes its JSON lines, relative to its output folder.

    A recipe that logs less leaves names empty: without `train` there are no scores; without `data`,
    the order of the data is vouched for by the random numbers alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    train: str = ""  # the recipe's own log: scores, digests of the data
    data: str = ""  # field of that log with the digest
    measures: str = "mto.jsonl"
    affinity: str = "mto-affinity-{step:06d}.npz"
    initial: str = ""  # checkpoint of the weights before the first step, where one is asked for


class Launch(BaseModel):
    """All of it.

    Arguments are templates; the names in braces are `PLACEHOLDERS`, of which `{affinity_steps}`
    becomes numbers joined by commas, and the style's own `values`. With `batch`, the recipe counts
    epochs: `{epochs}` is the least number of whole ones that holds `{steps}`, and `{warmup}` a
    tenth of that, rounded down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    entry: str
    launch: Literal["python", "run"] = "python"  # "run": as `mto run` starts it
    batch: int | None = Field(default=None, ge=1)  # images of an optimizer step
    arguments: list[str]
    baseline: list[str]
    mto: list[str]
    measures: list[str]
    styles: dict[str, str]  # style: preset of MTO that is meant for it; the first is the default
    values: dict[str, dict[str, str]] = {}  # placeholders of a style's own; may hold others
    steps: int
    disk_mb_per_run: int
    data: DataSpec
    logs: LogSpec = LogSpec()
    scores: list[Score] = []  # the first one decides; without any, L_ss does
    # The target of L_ss comes, in whole or in part, from a copy of the model that follows the one
    # that is trained: each arm has a target of its own, and L_ss can decide nothing between them.
    moving_target: bool = False

    @field_validator("styles")
    @classmethod
    def _not_empty(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("must name at least one")
        return value

    @model_validator(mode="after")
    def _known_placeholders(self) -> Launch:
        templates = [*self.arguments, *self.baseline, *self.mto, *self.measures, *self.data.make]
        for style in self.styles:
            own = self.values.get(style, {})
            for template, known in [
                *((template, PLACEHOLDERS | set(own)) for template in templates),
                *((template, PLACEHOLDERS) for template in own.values()),
            ]:
                if unknown := set(re.findall(r"\{(.*?)\}", template)) - known:
                    raise ValueError(f"unknown placeholder {{{unknown.pop()}}} in {template!r}")
        return self


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
