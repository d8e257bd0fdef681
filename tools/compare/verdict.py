"""Did MTO help, by how much, and how sure is that? Decided by rules fixed before the runs.

1. The first score of compare.toml (for mini the linear probe; L_ss where there is none) at the end
   of pre-training decides. The paired differences over seeds give a 95 % t-interval; helped or
   harmed is said only where it excludes zero.
2. Where it does not, the same score averaged over the run (the numerator of RAUC, eq. 8) may still
   show that training was faster or slower.
3. Everything else (k-NN, L_ss, RAUC, steps saved) is reported, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import numpy as np

from mto_tools.compare.collect import Curve, Record
from mto_tools.compare.plan import Data
from mto_tools.compare.spec import Score

CONFIDENCE = 0.95
LOSS = Score(key="loss", label="L_ss", percent=False, higher_is_better=False)
RAUC_FROM = (0.25, 0.5)  # the paper's (100, 400) and (200, 400) of 400 epochs
RAUC_LEAST = 0.01  # of the baseline's whole rise that the range must hold on average


class Finding(str, Enum):
    """What can be said."""

    HELPED = "helped"
    HARMED = "harmed"
    FASTER = "faster"  # no difference at the end, but better on the way
    SLOWER = "slower"
    LEANS_BETTER = "leans better"
    LEANS_WORSE = "leans worse"
    NO_DIFFERENCE = "no difference"
    ONE_SEED = "one seed"
    UNDEFINED = "undefined"


class Quantity(Data):
    """One number per run and arm, with its paired differences (MTO - baseline) over seeds."""

    key: str
    label: str
    percent: bool
    higher_is_better: bool
    baseline: list[float]
    mto: list[float]
    differences: list[float]
    mean: float
    low: float | None  # of the 95 % interval; None for one seed or no spread
    high: float | None
    better: int
    worse: int


class Reach(Data):
    """Where MTO reaches the baseline's final value of a curve, as a share of the baseline's steps.

    The baseline's steps are counted to its own first passage of that value, not to the end of the
    run, so that a baseline which is done early is not held against it. Per seed; None: undefined
    (the baseline's value does not improve), inf: never reached.
    """

    key: str
    label: str
    shares: list[float | None]


class Rauc(Data):
    """RAUC (eq. 8) per seed from `start` to `stop`; None: undefined, the baseline hardly rises."""

    key: str
    label: str
    start: float
    stop: float
    values: list[float | None]


class Verdict(Data):
    """What can be said and the numbers behind it; `words.sentence` says it."""

    finding: Finding
    quantities: list[Quantity]  # the first two are those that decide
    reach: list[Reach]
    rauc: list[Rauc]

    def loss_at_the_end(self) -> Quantity:
        """The final smoothed L_ss."""
        return next(q for q in self.quantities if q.key == f"{LOSS.key}_end")


def smooth(curve: Curve) -> Curve:
    """Mean over the last fifteenth of the run before each point."""
    width = max(1, round(len(curve.values) / 15))
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(curve.values, dtype=np.float64)]))
    ends = np.arange(1, len(curve.values) + 1)
    starts = np.maximum(0, ends - width)
    return Curve(steps=curve.steps, values=((sums[ends] - sums[starts]) / (ends - starts)).tolist())


def paired(
    key: str,
    label: str,
    baseline: Sequence[float],
    mto: Sequence[float],
    *,
    higher_is_better: bool = True,
    percent: bool = False,
) -> Quantity:
    """Differences MTO - baseline over seeds, their mean and its t-interval."""
    differences = [m - b for b, m in zip(baseline, mto, strict=True)]
    mean = float(np.mean(differences)) if differences else math.nan
    low = high = None
    # Equal differences in all seeds mean a coarse score, not a certain one: no interval.
    if len(differences) > 1 and math.isfinite(mean) and np.ptp(differences) > 1e-12:
        from scipy.stats import t  # half a second of import, needed only here

        half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
        half *= float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
        low, high = mean - half, mean + half
    sign = 1 if higher_is_better else -1
    return Quantity(
        key=key,
        label=label,
        percent=percent,
        higher_is_better=higher_is_better,
        baseline=list(baseline),
        mto=list(mto),
        differences=differences,
        mean=mean,
        low=low,
        high=high,
        better=sum(sign * d > 1e-12 for d in differences),
        worse=sum(sign * d < -1e-12 for d in differences),
    )


def average(curve: Curve) -> float:
    """Mean height of a curve over its steps (trapezoids)."""
    if len(curve.steps) < 2:
        return curve.values[0] if curve.values else math.nan
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    area = float((np.diff(steps) * (values[1:] + values[:-1]) / 2).sum())
    return area / (curve.steps[-1] - curve.steps[0])


def first_reach(curve: Curve, target: float, higher_is_better: bool = True) -> float:
    """Step at which the curve first stands at `target` or better, linear in between; inf: never."""
    sign = 1.0 if higher_is_better else -1.0
    before: tuple[int, float] | None = None
    for step, value in zip(curve.steps, curve.values, strict=True):
        if sign * value >= sign * target:
            if before is None or value == before[1]:
                return float(step)
            return before[0] + (step - before[0]) * (target - before[1]) / (value - before[1])
        before = (step, value)
    return math.inf


def share_of_steps(baseline: Curve, mto: Curve, higher_is_better: bool = True) -> float | None:
    """MTO's steps to the baseline's final value over the baseline's own; see `Reach`."""
    if len(baseline.steps) < 2 or not mto.steps:
        return None
    target = baseline.values[-1]
    own = first_reach(baseline, target, higher_is_better)
    if not own > baseline.steps[0]:  # it never got better than where it began
        return None
    return first_reach(mto, target, higher_is_better) / own


def rauc_or_none(baseline: Curve, mto: Curve, start: float, stop: float) -> float | None:
    """RAUC, or None where it says nothing: the baseline hardly rises, or too few points."""
    from mto_core import rauc

    if len(baseline.steps) < 2 or not start < stop:
        return None
    grid = np.linspace(start, stop, 257)
    heights = np.interp(grid, baseline.steps, baseline.values)
    # A ratio to next to nothing, or to a negative area, would mislead.
    if not heights.mean() - heights[0] > RAUC_LEAST * np.ptp(baseline.values):
        return None
    curves = [list(zip(c.steps, c.values, strict=True)) for c in (baseline, mto)]
    try:
        return float(rauc(curves[0], curves[1], start, stop))
    except ValueError:
        return None


def judge(pairs: list[tuple[Record, Record]], scores: list[Score]) -> Verdict:
    """Apply the rules above to (baseline, MTO) records of the same seeds."""
    quantities: list[Quantity] = []
    reach: list[Reach] = []
    raucs: list[Rauc] = []
    for score in (*scores, LOSS):
        curves = [(_curve(b, score), _curve(m, score)) for b, m in pairs]
        curves = [(b, m) for b, m in curves if b.steps and m.steps]
        higher = score.higher_is_better
        for suffix, words, value in (
            ("end", "at the end", lambda c: c.values[-1]),
            ("mean", "mean over the run", average),
        ):
            quantity = paired(
                f"{score.key}_{suffix}",
                f"{score.label}, {words}",
                [value(b) for b, _ in curves],
                [value(m) for _, m in curves],
                higher_is_better=higher,
                percent=score.percent,
            )
            quantities.append(quantity)
        shares = [share_of_steps(b, m, higher) for b, m in curves]
        reach.append(Reach(key=score.key, label=score.label, shares=shares))
        sign = 1.0 if higher else -1.0
        rising = [(_times(b, sign), _times(m, sign)) for b, m in curves]
        raucs += _raucs(score.key, score.label if higher else f"−{score.label}", rising)
    finding = find(quantities[0], quantities[1])
    return Verdict(finding=finding, quantities=quantities, reach=reach, rauc=raucs)


def _curve(record: Record, score: Score) -> Curve:
    return smooth(record.loss) if score is LOSS else record.scores[score.key]


def _times(curve: Curve, sign: float) -> Curve:
    return Curve(steps=curve.steps, values=[sign * value for value in curve.values])


def _raucs(key: str, label: str, curves: list[tuple[Curve, Curve]]) -> list[Rauc]:
    found = []
    for share in RAUC_FROM:
        stop = float(min((c.steps[-1] for pair in curves for c in pair), default=0))
        start = share * stop
        values = [rauc_or_none(b, m, start, stop) for b, m in curves]
        found.append(Rauc(key=key, label=label, start=start, stop=stop, values=values))
    return found


def find(end: Quantity, mean: Quantity) -> Finding:
    """Apply rules 1 and 2 to the deciding score at the end, and averaged over the run."""
    if not end.differences or not math.isfinite(end.mean):
        return Finding.UNDEFINED
    if len(end.differences) == 1:
        return Finding.ONE_SEED
    if sign := _proven(end):
        return Finding.HELPED if sign > 0 else Finding.HARMED
    if sign := _proven(mean):
        return Finding.FASTER if sign > 0 else Finding.SLOWER
    if end.better == len(end.differences):
        return Finding.LEANS_BETTER
    if end.worse == len(end.differences):
        return Finding.LEANS_WORSE
    return Finding.NO_DIFFERENCE


def _proven(quantity: Quantity) -> int:
    """1: better, -1: worse, 0: the interval holds zero, or there is none."""
    if quantity.low is None or quantity.high is None or quantity.low <= 0 <= quantity.high:
        return 0
    return 1 if (quantity.mean > 0) == quantity.higher_is_better else -1
