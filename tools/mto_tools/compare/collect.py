"""Read what one run left behind into a record.

Loss, terms and times stand in `mto.jsonl`, scores and data digests in the recipe's own log. A value
is NaN where a line holds null: it was not measured, or it was not finite.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mto_tools.compare.options import JsonModel
from mto_tools.compare.plan import ArmName, Plan, Run
from mto_tools.errors import CorruptError, MissingError

TERMS = ("sparsity", "singularity", "ranking")


class Curve(JsonModel):
    """Values over optimizer steps, in ascending order of the steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)


class Rows(JsonModel):
    """Lists of one number per depth, over optimizer steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[list[float]] = Field(default_factory=list)


class AffinityMap(JsonModel):
    """Affinity maps of one image, masked tokens before visible ones."""

    step: int
    num_masked: int
    maps: list[list[list[float]]]  # softmax(X Xᵀ), [L+1][N][N]
    masked_to_visible: list[list[list[float]]]  # softmax(X_M X_Vᵀ), [L+1][M][V]


class Record(JsonModel):
    """All that was logged by one run."""

    arm: ArmName
    seed: int
    seconds: float
    bytes: int
    loss: Curve  # L_ss of the very step
    step_ms: Curve  # mean since the line before
    data: dict[int, str]  # digests
    rng: dict[int, str]  # digests
    scores: dict[str, Curve]
    terms: dict[str, Curve]
    weights: dict[str, Curve]
    grad_ratio: dict[str, Curve]
    diagonal_mass: Curve
    masked_mass: Curve
    heterogeneity: Rows
    token_norm: Rows
    affinity: AffinityMap | None = None  # of the last step


def of_arm(records: list[Record], arm: ArmName) -> list[Record]:
    """The records of one arm, by seed."""
    return [record for record in records if record.arm == arm]


def by_seed(records: list[Record]) -> list[tuple[Record, Record]]:
    """(baseline, MTO) of every seed."""
    return list(zip(of_arm(records, "baseline"), of_arm(records, "mto"), strict=True))


def collect(run: Run, folder: Path, plan: Plan, *, seconds: float, affinity: bool) -> Record:
    """Read one run's folder; the affinity maps, megabytes for a ViT, where they are asked for.

    Raises:
        MissingError: `mto.jsonl` is missing or holds no step.
        CorruptError: A line is not the JSON that the recipe promises.
    """
    logs = plan.logs
    measured = _read_lines(folder / logs.measures)
    if not measured:
        raise MissingError(
            f"{folder / logs.measures} is missing or empty: the run measured nothing",
            hint=f"mto apply {plan.upstream}, then compare again",
        )
    lines = _read_lines(folder / logs.train) if logs.train else []
    return Record(
        arm=run.arm,
        seed=run.seed,
        seconds=seconds,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        loss=_curve(measured, "loss"),
        step_ms=_curve(measured, "step_ms"),
        data={line["step"]: str(line[logs.data]) for line in lines if logs.data in line},
        rng={line["step"]: str(line["rng"]) for line in measured if "rng" in line},
        scores={score.key: _curve(lines, score.key) for score in plan.scores},
        terms={term: _curve(measured, term) for term in TERMS},
        weights={term: _curve(measured, "weights", term) for term in TERMS},
        grad_ratio={term: _curve(measured, "grad_ratio", term) for term in TERMS},
        diagonal_mass=_curve(measured, "diagonal_mass"),
        masked_mass=_curve(measured, "masked_mass"),
        heterogeneity=_rows(measured, "heterogeneity"),
        token_norm=_rows(measured, "token_norm"),
        affinity=_affinity(folder, plan) if affinity else None,
    )


def _curve(lines: list[dict[str, Any]], *path: str) -> Curve:
    """The values at `path` inside the lines that have one: some are logged on some steps."""
    points: dict[int, float] = {}
    for line in lines:
        value: Any = line
        for key in path:
            value = value.get(key, "") if isinstance(value, dict) else ""
        if value is None or isinstance(value, (int, float)):
            points[int(line["step"])] = _number(value)
    return Curve(steps=sorted(points), values=[points[step] for step in sorted(points)])


def _rows(lines: list[dict[str, Any]], key: str) -> Rows:
    points = {int(line["step"]): [*map(_number, line[key])] for line in lines if key in line}
    return Rows(steps=sorted(points), values=[points[step] for step in sorted(points)])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise CorruptError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(line, dict) or "step" not in line:
            raise CorruptError(f"{path}:{number}: expected an object with 'step', found {text:.60}")
        lines.append(line)
    return lines


def _affinity(folder: Path, plan: Plan) -> AffinityMap | None:
    path = folder / plan.logs.affinity.format(step=plan.steps)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return AffinityMap(
            step=plan.steps,
            num_masked=int(arrays["num_masked"]),
            maps=_rounded(arrays["affinity"]),
            masked_to_visible=_rounded(arrays["masked_to_visible"]),
        )


def _rounded(maps: np.ndarray[Any, Any]) -> list[list[list[float]]]:
    """Three digits: more than a picture shows, and the report stays small."""
    return [[[float(f"{v:.3g}") for v in row] for row in depth] for depth in maps.tolist()]
