"""What one run left behind, as curves over optimizer steps.

Loss, terms and times stand in `mto.jsonl`, scores and data digests in the recipe's own log. A value
is NaN where a line holds null: it was not measured, or it was not finite.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mto_tools.errors import CorruptError, MissingError
from mto_tools.study.folder import JsonModel
from mto_tools.study.plan import ArmName, Plan, Run

TERMS = ("sparsity", "singularity", "ranking")


class Curve(JsonModel):
    """Values over optimizer steps, in ascending order of the steps."""

    steps: list[int]
    values: list[float]

    def points(self) -> list[tuple[int, float]]:
        """(step, value) pairs."""
        return list(zip(self.steps, self.values, strict=True))

    def map(self, function: Callable[[float], float]) -> Curve:
        """The curve with another value at each step."""
        return Curve(steps=self.steps, values=[function(value) for value in self.values])

    def smooth(self) -> Curve:
        """Mean over the last fifteenth of the run before each point."""
        if not self.values:
            return self
        width = max(1, round(len(self.values) / 15))
        sums = np.convolve(self.values, np.ones(width))[: len(self.values)]
        counts = np.minimum(np.arange(len(sums)) + 1, width)
        return Curve(steps=self.steps, values=(sums / counts).tolist())

    def average(self) -> float:
        """Mean height over the steps (trapezoids)."""
        from scipy.integrate import trapezoid  # type: ignore[import-untyped]

        if len(self.steps) < 2:
            return self.values[0] if self.values else math.nan
        return float(trapezoid(self.values, self.steps)) / (self.steps[-1] - self.steps[0])

    def first_reach(self, target: float) -> float:
        """Step of the first point at `target` or above, linear in between; inf: never."""
        there = np.asarray(self.values) >= target
        if not there.any():
            return math.inf
        first = int(there.argmax())
        if first == 0:
            return float(self.steps[0])
        (x0, y0), (x1, y1) = self.points()[first - 1 : first + 1]
        return x0 + (x1 - x0) * (target - y0) / (y1 - y0)


EMPTY = Curve(steps=[], values=[])


class Rows(JsonModel):
    """Lists of one number per depth, over optimizer steps."""

    steps: list[int]
    values: list[list[float]]


class AffinityMap(JsonModel):
    """Affinity maps of one image, masked tokens before visible ones."""

    step: int
    num_masked: int
    maps: list[list[list[float]]]  # softmax(X Xᵀ), [L+1][N][N]
    masked_to_visible: list[list[list[float]]]  # softmax(X_M X_Vᵀ), [L+1][M][V]

    @property
    def num_visible(self) -> int:
        """|V|."""
        return len(self.maps[0]) - self.num_masked


class Record(JsonModel):
    """All that was logged by one run."""

    arm: ArmName
    seed: int
    seconds: float
    bytes: int
    curves: dict[str, Curve]  # numbers of mto.jsonl: "loss", "sparsity", "weights.sparsity" …
    rows: dict[str, Rows]  # its lists: "heterogeneity", "token_norm"
    rng: dict[int, str]  # digests by step
    data: dict[int, str]
    scores: dict[str, Curve]
    affinity: AffinityMap | None = None  # of the last step
    images: str = ""  # PNG in base64: masked input, reconstruction and target of some images

    def curve(self, name: str) -> Curve:
        """Numbers of mto.jsonl; an empty curve where there are none."""
        return self.curves.get(name, EMPTY)


def combine(curves: Sequence[Curve], function: Callable[[list[float]], Any]) -> Curve:
    """One curve from the values of all `curves`, at the steps that all of them have."""
    tables = [dict(curve.points()) for curve in curves]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    return Curve(steps=steps, values=[function([t[step] for t in tables]) for step in steps])


def of_arm(records: list[Record], arm: ArmName) -> list[Record]:
    """The records of one arm, by seed."""
    return [record for record in records if record.arm == arm]


def by_seed(records: list[Record]) -> list[tuple[Record, Record]]:
    """(baseline, MTO) of every seed."""
    return list(zip(of_arm(records, "baseline"), of_arm(records, "mto"), strict=True))


def collect(run: Run, folder: Path, plan: Plan, *, seconds: float, pictures: bool) -> Record:
    """Read one run's folder; affinity maps, megabytes for a ViT, and images with `pictures`.

    Raises:
        MissingError: `mto.jsonl` is missing or holds no step.
        CorruptError: A line is not the JSON that the recipe promises.
    """
    logs = plan.logs
    measured = _by_step(folder / logs.measures)
    if not measured:
        raise MissingError(
            f"{folder / logs.measures} is missing or empty: the run measured nothing",
            hint=f"mto apply {plan.upstream}, then compare again",
        )
    own = _by_step(folder / logs.train) if logs.train else {}
    images = folder / logs.images
    return Record(
        arm=run.arm,
        seed=run.seed,
        seconds=seconds,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        curves=_curves(measured),
        rows={
            name: Rows(steps=list(points), values=[[*map(_number, row)] for row in points.values()])
            for name, points in measured.items()
            if all(isinstance(row, list) for row in points.values())
        },
        rng=measured.get("rng", {}),
        data=own.get(logs.data, {}),
        scores={score.key: _curves(own).get(score.key, EMPTY) for score in plan.scores},
        affinity=_affinity(folder, plan) if pictures else None,
        images=base64.b64encode(images.read_bytes()).decode()
        if pictures and images.is_file()
        else "",
    )


def _by_step(path: Path) -> dict[str, dict[int, Any]]:
    """The values of each field by step, those of an inner object as "weights.sparsity"."""
    found: dict[str, dict[int, Any]] = {}
    texts = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            step = line["step"]
        except (ValueError, KeyError, TypeError):
            raise CorruptError(
                f"{path}:{number}: expected a JSON object with 'step', found {text:.60}"
            ) from None
        for name, value in line.items():
            fields = value.items() if isinstance(value, dict) else [("", value)]
            for field, inner in fields:
                found.setdefault(f"{name}.{field}".rstrip("."), {})[step] = inner
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def _curves(fields: dict[str, dict[int, Any]]) -> dict[str, Curve]:
    return {
        name: Curve(steps=list(points), values=[*map(_number, points.values())])
        for name, points in fields.items()
        if all(value is None or isinstance(value, (int, float)) for value in points.values())
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


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
