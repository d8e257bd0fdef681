"""The folder of a comparison: made once; its files are written whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mto_tools.errors import CorruptError, MissingError

VERSION: Literal[3] = 3  # of plan.json and report.json
Model = TypeVar("Model", bound="JsonModel")


class JsonModel(BaseModel):
    """What is written to JSON and read back: NaN and infinity survive, as strings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    def save(self, path: Path) -> None:
        """Replace `path` in one step."""
        write(path, self.model_dump_json())

    @classmethod
    def load(cls: type[Model], path: Path) -> Model:
        """Read `path`.

        Raises:
            MissingError: There is no such file.
            CorruptError: It holds something else, or was written by another version of mto.
        """
        if not path.is_file():
            raise MissingError(f"there is no {path}", hint="ls -d reports/*/*  shows what there is")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise CorruptError(
                f"{path}: {where}: {first['msg']}",
                hint="git switch --detach COMMIT in a clone of mto, where COMMIT is the "
                f"'mto commit' in {path}, if another version of mto wrote it",
            ) from None


def write(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def make_folder(folder: Path, need_mb: int) -> None:
    """Make the folder of a new comparison, whose runs take `need_mb` MB.

    Raises:
        MissingError: It cannot be made, or the disk has not that much space.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise MissingError(
            f"{folder} cannot be made: {error.strerror}", hint="--reports DIR names another folder"
        ) from None
    free_mb = shutil.disk_usage(folder).free // 10**6
    if free_mb < need_mb:
        folder.rmdir()
        raise MissingError(
            f"the runs need about {need_mb} MB, but {folder.parent} has only {free_mb} MB free",
            hint="free some space, or name another disk with --reports DIR",
        )
