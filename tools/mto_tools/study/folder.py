"""The folder of a comparison: made once; its files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mto_tools.errors import CorruptError, MissingError, RefusedError

VERSION: Literal[3] = 3  # of plan.json and report.json
LOCK = ".lock"
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


def check_room(folder: Path, need_mb: int) -> None:
    """Look for room before the first run; `folder` need not be there yet.

    Raises:
        MissingError: The disk has not that much space.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(there).free // 10**6
    if free_mb < need_mb:
        raise MissingError(
            f"the runs need about {need_mb} MB, but {there} has only {free_mb} MB free",
            hint="free some space, or name a folder on another disk: --out DIR, --reports DIR",
        )


def make_folder(folder: Path, need_mb: int) -> None:
    """Make the folder of a new report, which takes `need_mb` MB.

    Raises:
        MissingError: It cannot be made, or the disk has not that much space.
    """
    check_room(folder, need_mb)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise MissingError(
            f"{folder} cannot be made: {error.strerror}",
            hint="--out DIR, or --reports DIR, names another folder",
        ) from None


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[int]:
    """Hold the lock of a study's folder; gives its file descriptor.

    A process that inherits the descriptor holds the lock as well: a study that was killed stays
    locked until the guards of its tasks have ended them.

    Args:
        folder: Of the study; made if missing.
        patience: Seconds to wait for another process to let go.

    Raises:
        RefusedError: Another process holds it still.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / LOCK).open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise RefusedError(
                        f"{folder} is in the hands of another mto study: {file.read().strip()}",
                        hint=f"mto study status {folder}   shows how far it is",
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield file.fileno()
