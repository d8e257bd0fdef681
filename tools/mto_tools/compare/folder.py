"""The folder of a comparison: made once, written whole or not at all, read by its version."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mto_tools.compare.plan import VERSION
from mto_tools.errors import CorruptError, MissingError, MtoError

Model = TypeVar("Model", bound=BaseModel)


def open_folder(root: Path, name: str, need_mb: int) -> Path:
    """Make `root/name/TIME`, the folder of a new comparison.

    Args:
        root: The reports folder; made where it is missing.
        name: Name of the report.
        need_mb: Space that the runs will take, in MB.

    Raises:
        MissingError: The folder cannot be made or written, or the disk has not that much space.
    """
    parent = root / name
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(parent).free // 10**6
        if free_mb < need_mb:
            raise MissingError(
                f"the runs need about {need_mb} MB, but {parent} has only {free_mb} MB free",
                hint="free some space, or name another disk with --reports DIR",
            )
        for number in count(1):
            folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
            if not folder.exists():
                break
        folder.mkdir()
    except OSError as error:
        raise MissingError(
            f"the reports folder {parent} cannot be written: {error.strerror}",
            hint="mto compare NAME --reports DIR    with a folder of yours",
        ) from None
    return folder


def write(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)
    return path


def read(path: Path, model: type[Model]) -> Model:
    """Read a JSON file of this version.

    Raises:
        MissingError: There is no such file.
        MtoError: It was written by another version of mto.
        CorruptError: It holds something else.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path}", hint="ls -d reports/*/*    shows what there is")
    text = path.read_bytes()
    try:
        found = json.loads(text)
        version = found["schema_version"]
    except (ValueError, TypeError, KeyError):
        raise CorruptError(f"{path} is not a {model.__name__.lower()} of mto compare") from None
    if version != VERSION:
        commit = found.get("plan", found).get("versions", {}).get("mto commit", "COMMIT")
        raise MtoError(
            f"{path} has schema_version {version}; this mto reads {VERSION}",
            hint=f"git worktree add ../mto-before {commit.partition(' ')[0]}    "
            "holds the mto that wrote it; its mto report draws the page",
        )
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptError(f"{path}: {where}: {first['msg']}") from None


@contextmanager
def saying_disk_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingError(
            f"the disk of {folder} is full: the report could not be written, the runs are kept",
            hint=f"free some space, then: mto report {folder}",
        ) from None
