"""Logs of the recipes, as they stand in output folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MtoError
from mto_tools.study.record import Curve, Rows, Unit

Points = dict[float, Any]  # by step, or by epochs done


@dataclass
class Log:
    """The fields of a log; those of an inner object as "weights.sparsity"."""

    unit: Unit = "step"
    fields: dict[str, Points] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def curves(self) -> dict[str, Curve]:
        """Fields of numbers."""
        return {
            name: Curve(at=list(points), values=[*map(_number, points.values())], unit=self.unit)
            for name, points in self.fields.items()
            if all(value is None or isinstance(value, (int, float)) for value in points.values())
        }

    def rows(self) -> dict[str, Rows]:
        """Fields of lists."""
        return {
            name: Rows(
                steps=[*map(int, points)],
                values=[[*map(_number, row)] for row in points.values()],
            )
            for name, points in self.fields.items()
            if all(isinstance(row, list) for row in points.values())
        }

    def texts(self, name: str) -> dict[int, str]:
        """A field of checksums."""
        return {int(step): str(text) for step, text in self.fields.get(name, {}).items()}


def find_file(folder: Path, name: str) -> Path | None:
    """A run's file, looked for where the recipe's small run has it, then at the top, then below.

    Raises:
        MtoError: Several are below, so the folder holds several runs.
    """
    base = Path(name).name
    for path in (folder / name, folder / base) if name else ():
        if path.exists():
            return path
    below = sorted({*folder.glob(f"*/{base}"), *folder.glob(f"*/*/{base}")}) if name else []
    if len(below) > 1:
        raise MtoError(
            f"{folder} holds several runs: {below[0]}, {below[1]}",
            hint=f"name the folder of one run, such as {below[0].parent}",
        )
    return below[0] if below else None


def read_json_lines(path: Path) -> Log:
    """Read JSON lines that have `step`, or else `epoch`, counted from 0.

    A later line of the same step wins, as a resumed run writes it. Where the count begins anew,
    another run began in the same file, and only the last one is read. A last line that a kill has
    cut short is left out, with a note.

    Raises:
        CorruptError: Another line is not such an object.
    """
    log = Log()
    for number, line in _json_lines(path, log.notes):
        log.unit = "step" if "step" in line else "epoch"
        at = float(line["step"] if "step" in line else line["epoch"] + 1)
        if _restarts(at, log.fields.get(log.unit, {})):
            log.notes.append(f"{path}:{number}: another run begins here; what is above is left out")
            log.fields.clear()
        for name, value in line.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            for key, one in inner:
                log.fields.setdefault(f"{name}.{key}".rstrip("."), {})[at] = one
        log.fields.setdefault(log.unit, {})[at] = at
    log.fields = {name: dict(sorted(points.items())) for name, points in log.fields.items()}
    return log


def last_json_line(path: Path) -> dict[str, Any]:
    """The last whole object of JSON lines; {} where there is none."""
    return next((line for _, line in reversed([*_json_lines(path, [])])), {})


def read_text(path: Path, pattern: str) -> Log:
    """Read a log in plain text: groups `epoch`, from 0, and `value`, L_ss; the last one counts."""
    log = Log(unit="epoch")
    loss: Points = {}
    for line in path.read_text("utf-8", "replace").splitlines():
        if not (found := re.search(pattern, line)):
            continue
        at = float(found["epoch"]) + 1
        if _restarts(at, loss):
            log.notes.append(f"{path}: another run begins in it; what is above is left out")
            loss.clear()
        loss[at] = float(found["value"])
    log.fields = {"loss": dict(sorted(loss.items()))} if loss else {}
    return log


def read_finetuning(path: Path, score: str, pattern: str) -> tuple[float, int]:
    """The last top-1 accuracy of a fine-tuning, in 0..1, and the number of its evaluations.

    The last one, since the best of many evaluations is chosen by the images that it is scored on.

    Raises:
        CorruptError: A line cannot be read, or there is no accuracy.
    """
    if pattern:
        lines = path.read_text("utf-8", "replace").splitlines()
        found = [float(match["value"]) for match in map(re.compile(pattern).search, lines) if match]
    else:
        found = [*map(_number, read_json_lines(path).fields.get(score, {}).values())]
    if not found:
        raise CorruptError(
            f"{path} holds no accuracy ({pattern or score}): the fine-tuning has not evaluated yet",
            hint="leave this fine-tuning out, or wait until it has ended",
        )
    return found[-1] / 100, len(found)


def _json_lines(path: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    texts = path.read_text("utf-8", "replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            float(line["step"] if "step" in line else line["epoch"])
        except (ValueError, KeyError, TypeError):
            if number == len(texts):
                notes.append(f"{path}:{number}: the last line is cut and left out")
                return
            raise CorruptError(
                f"{path}:{number}: expected a JSON object with 'step' or 'epoch', found {text:.60}",
                hint="mend or remove that line, in a copy of the folder",
            ) from None
        yield number, line


def _restarts(at: float, before: Points) -> bool:
    """Whether the count begins anew: a resumed run goes back, but not to where it began."""
    return bool(before) and at < max(before) and at <= min(before)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
