"""`study.toml`: everything that decides the numbers of a study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from mto_tools.errors import CorruptError, MissingError, RefusedError
from mto_tools.study.folder import LOCK, write
from mto_tools.upstreams.upstream import Table, read_toml, some

FILE = "study.toml"
_HINT = "docs/study.md lists the keys"
_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.]*")  # no dash: folders are named ARM-SEED
Value = str | int | float


class Arm(Table):
    """One arm: options of MTO by name, and further arguments of the script."""

    mto: dict[str, Value]
    arguments: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, table: Any) -> Any:
        """`{ preset = "mae", ranking = 0.1, arguments = ["--lr", "1e-3"] }`."""
        if not isinstance(table, Mapping) or "mto" in table:
            return table
        options = {name: value for name, value in table.items() if name != "arguments"}
        return {"mto": options, "arguments": table.get("arguments", ())}

    @model_validator(mode="after")
    def _known_options(self) -> Arm:
        from mto_tools.recipe.settings import Settings  # imports torch

        known = {field.name for field in fields(Settings)} - {"on", "recipe"}
        if unknown := self.mto.keys() - known:
            raise ValueError(
                f"MTO has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
            )
        Settings(on=True, **{"recipe": "observe", **self.mto}).check()  # type: ignore[arg-type]
        return self


class FineTuning(Table):
    """Changes to the recipe's own fine-tuning."""

    epochs: PositiveInt | None = None
    batch: PositiveInt | None = None  # images of a step, all processes together
    images_per_gpu: PositiveInt | None = None  # of a micro batch
    arguments: tuple[str, ...] = ()  # more of them; later ones win


def _names(arms: dict[str, Arm]) -> dict[str, Arm]:
    if wrong := [name for name in arms if not _ARM.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no name of an arm: letters, digits and _ + . only")
    return arms


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds are distinct and not negative, got {list(seeds)}")
    return seeds


class Study(Table):
    """Arms x seeds, and what is done with each."""

    upstream: str
    style: str = ""  # "": the recipe's first
    size: Literal["small", "full"] = "small"  # a run of a few images, or `[plan]`'s schedule
    model: str = ""  # of the full size; "": the recipe's first
    arms: Annotated[dict[str, Arm], AfterValidator(some), AfterValidator(_names)]
    seeds: Annotated[tuple[int, ...], AfterValidator(some), AfterValidator(_distinct)]
    steps: Annotated[int, Field(ge=2)] | None = None  # rounded up to epochs where these count
    epochs: PositiveInt | None = None
    batch: PositiveInt | None = None  # images of a step, all processes together
    images_per_gpu: PositiveInt | None = None  # of a micro batch, in the full size
    save: PositiveInt | None = None  # steps or epochs, as the recipe counts, between checkpoints
    nproc: PositiveInt = 1  # processes of a task, one per GPU
    data: str = ""  # folder; "": the built-in images
    arguments: tuple[str, ...] = ()  # of the script, in every arm; later ones win
    evaluate_at: tuple[PositiveInt, ...] = ()  # steps or epochs, as the recipe counts
    finetune_at: tuple[PositiveInt, ...] = ()
    finetune: FineTuning = FineTuning()

    @model_validator(mode="after")
    def _one_length(self) -> Study:
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        return self

    def save_as(self, file: Path) -> None:
        """Write the study as TOML, in one step, without what is at its default."""
        table = self.model_dump(mode="json", exclude_defaults=True)
        arms = tomlkit.table()
        for name, arm in self.arms.items():
            inline = tomlkit.inline_table()
            inline.update(arm.mto)
            if arm.arguments:
                inline["arguments"] = list(arm.arguments)
            arms[name] = inline
        del table["arms"]
        finetune = table.pop("finetune", None)
        document = tomlkit.document()
        document.update(table)
        document["arms"] = arms
        if finetune:
            document["finetune"] = finetune
        write(file, tomlkit.dumps(document))


def load_study(file: Path) -> Study:
    """Read a study.

    Raises:
        MissingError: There is no such file, or keys are missing.
        CorruptError: Not TOML, or a key or a value is unknown.
    """
    if not file.is_file():
        raise MissingError(
            f"there is no study file {file}", hint="mto study compare NAME --out DIR"
        )
    try:
        return read_toml(file, Study, missing=MissingError)
    except (CorruptError, MissingError) as error:
        raise type(error)(error.message, hint=_HINT) from None


def check_folder(study: Study, folder: Path) -> None:
    """Refuse a folder that `study` cannot go on in; its arms and seeds may have changed.

    Raises:
        RefusedError: The folder has another study, or foreign files.
    """
    file = folder / FILE
    if file.is_file():
        before = load_study(file)
        for key in sorted(set(Study.model_fields) - {"arms", "seeds"}):
            _same(file, key, getattr(before, key), getattr(study, key))
        for name in before.arms.keys() & study.arms.keys():
            _same(file, f"arms.{name}", before.arms[name], study.arms[name])
    elif folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {LOCK}):
        raise RefusedError(
            f"{folder} holds files, but no {FILE}", hint="--out names an empty or a new folder"
        )


def _same(file: Path, key: str, before: object, now: object) -> None:
    if before != now:
        raise RefusedError(
            f"{file} is of another study: its {key} is {_shown(before)}, not {_shown(now)}",
            hint=f"mto study {file}   goes on with it; --out names another folder",
        )


def _shown(value: object) -> str:
    if isinstance(value, Table):
        return str(value.model_dump(exclude_defaults=True))
    return repr(list(value) if isinstance(value, tuple) else value)
