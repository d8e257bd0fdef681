"""What one run left behind: curves over optimizer steps, or over epochs where a log counts epochs.

A value is NaN where a line holds null: it was not measured, or it was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mto_tools.study.folder import JsonModel
from mto_tools.upstreams.recipe import Score

TERMS = ("sparsity", "singularity", "ranking")
Unit = Literal["step", "epoch"]


class Curve(JsonModel):
    """Values over steps or epochs done, in ascending order of these."""

    at: list[float]
    values: list[float]
    unit: Unit = "step"

    def points(self) -> list[tuple[float, float]]:
        """(step or epoch, value) pairs."""
        return list(zip(self.at, self.values, strict=True))

    def map(self, function: Callable[[float], float]) -> Curve:
        """The curve with another value at each step."""
        return self.model_copy(update={"values": [function(value) for value in self.values]})

    def smooth(self) -> Curve:
        """Mean over the last fifteenth of the run before each point."""
        if not self.values:
            return self
        width = max(1, round(len(self.values) / 15))
        sums = np.convolve(self.values, np.ones(width))[: len(self.values)]
        counts = np.minimum(np.arange(len(sums)) + 1, width)
        return self.model_copy(update={"values": (sums / counts).tolist()})

    def average(self) -> float:
        """Mean height over the steps (trapezoids)."""
        from scipy.integrate import trapezoid  # type: ignore[import-untyped]

        if len(self.at) < 2:
            return self.values[0] if self.values else math.nan
        return float(trapezoid(self.values, self.at)) / (self.at[-1] - self.at[0])

    def first_reach(self, target: float) -> float:
        """Step of the first point at `target` or above, linear in between; inf: never."""
        there = np.asarray(self.values) >= target
        if not there.any():
            return math.inf
        first = int(there.argmax())
        if first == 0:
            return float(self.at[0])
        (x0, y0), (x1, y1) = self.points()[first - 1 : first + 1]
        return x0 + (x1 - x0) * (target - y0) / (y1 - y0)

    def by_epoch(self, epochs: Curve) -> Curve:
        """Mean of each whole epoch, from a curve over steps; `epochs` has the place of a step."""
        place, found = dict(epochs.points()), dict[int, list[float]]()
        for step, value in self.points() if self.unit == "step" else ():
            if step in place:
                found.setdefault(math.ceil(place[step] - 1e-9), []).append(value)
        whole = math.floor(max(place.values(), default=0) + 1e-9)
        done = {epoch: values for epoch, values in sorted(found.items()) if epoch <= whole}
        values = [float(np.mean(values)) for values in done.values()]
        return Curve(at=[*map(float, done)], values=values, unit="epoch")


EMPTY = Curve(at=[], values=[])


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
    """All that is known of one run. Every part is optional, but one is there."""

    arm: str
    seed: int
    seconds: float | None = None
    bytes: int = 0
    # Numbers of mto.jsonl: "loss", "sparsity", "weights.sparsity" …; and its lists.
    curves: dict[str, Curve] = Field(default_factory=dict)
    rows: dict[str, Rows] = Field(default_factory=dict)  # "heterogeneity", "token_norm"
    rng: dict[int, str] = Field(default_factory=dict)  # digests by step
    data: dict[int, str] = Field(default_factory=dict)
    scores: dict[str, Curve] = Field(default_factory=dict)  # those that were found
    # The recipe's own, of a checkpoint, nested names with dots; and MTO's, of mto-config.jsonl.
    settings: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)  # {} for an unpatched run
    evaluated: str = ""  # data and model that `mto evaluate` used
    # How often each fine-tuning evaluated, by epoch of pre-training.
    tuned: dict[float, int] = Field(default_factory=dict)
    affinity: AffinityMap | None = None  # of the last step that has one
    images: str = ""  # PNG in base64: masked input, reconstruction and target of some images
    notes: list[str] = Field(default_factory=list)

    @property
    def name(self) -> str:
        """`ARM-SEED`."""
        return f"{self.arm}-{self.seed}"

    def curve(self, name: str) -> Curve:
        """Numbers of mto.jsonl; an empty curve where there are none."""
        return self.curves.get(name, EMPTY)

    def score(self, score: Score) -> Curve:
        """A score; an empty curve where there is none."""
        return self.scores.get(score.key, EMPTY)

    @property
    def last(self) -> tuple[float, Unit]:
        """The last step or epoch that a log has."""
        curves = [curve for curve in (self.curve("loss"), *self.scores.values()) if curve.at]
        return max(((curve.at[-1], curve.unit) for curve in curves), default=(0.0, "step"))


Pair = tuple[Record, Record]  # baseline and another arm, of one seed


def combine(curves: Sequence[Curve], function: Callable[[list[float]], Any]) -> Curve:
    """One curve from the values of all `curves`, at the steps that all of them have."""
    tables = [dict(curve.points()) for curve in curves]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    values = [function([t[step] for t in tables]) for step in steps]
    return Curve(at=steps, values=values, unit=curves[0].unit if curves else "step")


def arms_of(records: Iterable[Record]) -> list[str]:
    """The arms in order; the first is the baseline."""
    return list(dict.fromkeys(record.arm for record in records))


def of_arm(records: Iterable[Record], arm: str) -> list[Record]:
    """The records of one arm, by seed."""
    return [record for record in records if record.arm == arm]


def by_seed(records: Sequence[Record], arm: str) -> list[Pair]:
    """(baseline, `arm`) of every seed that has both."""
    own = {record.seed: record for record in of_arm(records, arm)}
    first = of_arm(records, arms_of(records)[0]) if records else []
    return [(baseline, own[baseline.seed]) for baseline in first if baseline.seed in own]


def in_one_unit(records: list[Record]) -> list[str]:
    """Bring all L_ss to epochs if one run's log counts those; return notes on what has none."""
    if {record.curve("loss").unit for record in records if record.curve("loss").at} <= {"step"}:
        return []
    notes = []
    for record in records:
        loss = record.curve("loss")
        if loss.at and loss.unit == "step":
            record.curves["loss"] = loss.by_epoch(record.curve("epoch"))
            if not record.curve("loss").at:
                notes.append(f"{record.name}: its L_ss has no whole epoch to compare")
    return notes


def common_points(records: list[Record], key: str) -> list[str]:
    """Cut a score to the points that all runs which have it share; return notes on the others."""
    having = [record for record in records if key in record.scores]
    shared = set.intersection(*(set(record.scores[key].at) for record in having)) if having else ()
    notes = []
    for record in having:
        curve = record.scores[key]
        if alone := [at for at in curve.at if at not in shared]:
            told = ", ".join(f"{at:g}" for at in alone)
            notes.append(f"{record.name}: not every run has {key} at {curve.unit} {told}; left out")
            points = [(at, value) for at, value in curve.points() if at in shared]
            record.scores[key] = curve.model_copy(
                update={"at": [at for at, _ in points], "values": [value for _, value in points]}
            )
    return notes
