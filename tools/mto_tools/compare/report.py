"""The report as data: every number that is shown, checked and written whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from mto_tools.compare.collect import Record
from mto_tools.compare.fairness import Check
from mto_tools.compare.plan import JsonModel, Plan
from mto_tools.compare.verdict import Verdict
from mto_tools.errors import CorruptError, MissingError, RefusedError

UNFINISHED = ".unfinished"


class Report(JsonModel):
    """`report.json`: all that `report.html` shows."""

    schema_version: int = 1
    name: str
    made: str  # ISO time with zone
    sentence: str
    secondary: str
    fair: bool
    checks: list[Check]
    failed: list[str]  # runs that did not end well, under --keep-going
    verdict: Verdict
    plan: Plan
    records: list[Record]


def read_report(folder: Path) -> Report:
    """Read `folder/report.json`.

    Raises:
        MissingError: There is no such file.
        CorruptError: It is not a report of this version.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise MissingError(f"there is no {path}", hint="ls -d reports/*/*    shows what there is")
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptError(f"{path} is not a report: {where}: {first['msg']}") from None


def write(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)
    return path


def open_folder(root: Path, name: str, need_mb: int) -> tuple[Path, Path]:
    """Make the folder in which a comparison works, and name the one it becomes at the end.

    Args:
        root: The reports folder; made where it is missing.
        name: Name of the report.
        need_mb: Space that the runs will take, in MB.

    Returns:
        (working folder, final folder), the final one not yet there.

    Raises:
        MissingError: The folder cannot be made or written, or the disk has not that much space.
    """
    parent = root / name
    final = parent / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(parent).free // 10**6
        if free_mb < need_mb:
            raise MissingError(
                f"the runs need about {need_mb} MB, but {parent} has only {free_mb} MB free",
                hint="free some space, or name another disk with --reports DIR",
            )
        for number in range(2, 1000):
            work = final.with_name(final.name + UNFINISHED)
            if not final.exists() and not work.exists():
                break
            final = final.with_name(f"{final.name[:17]}-{number}")
        work.mkdir()
        write(work / "plan.json", "{}")
    except OSError as error:
        raise MissingError(
            f"the reports folder {parent} cannot be written: {error.strerror}",
            hint="mto compare NAME --reports DIR    with a folder of yours",
        ) from None
    return work, final


def close_folder(work: Path, final: Path) -> Path:
    """Give the finished report its name.

    Raises:
        RefusedError: Something took the name in the meantime; the report stays where it is.
    """
    if final.exists():
        raise RefusedError(f"{final} has appeared meanwhile; the finished report is in {work}")
    return work.rename(final)


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
