"""What is measured of an arm over seeds: speed, paired differences, RAUC; and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mto_tools.study.folder import JsonModel
from mto_tools.study.record import Curve

Interval = tuple[float, float]
RAUC_LEAST = 0.01  # of the baseline's whole rise that the range must hold on average


class Pairs(JsonModel):
    """One number per seed and arm, with the paired differences arm - baseline."""

    baseline: list[float]
    arm: list[float]
    differences: list[float]
    mean: float  # of the differences
    interval_95: Interval | None  # of their mean; None for one seed or no spread
    interval: Interval | None  # the one that decides
    better: int  # seeds in which the arm is better
    worse: int


class Speed(JsonModel):
    """Shares of the baseline's steps to the same score, by seed; see rule 2 of `verdict`.

    inf: the arm never gets better than where it began. The mean is geometric.
    """

    shares: list[float]
    mean: float
    interval_95: Interval | None
    interval: Interval | None  # the one that decides
    faster: int  # seeds with a share below 1
    slower: int


class Rauc(JsonModel):
    """RAUC (eq. 8) per seed from `start` to `stop`; None: undefined, the baseline hardly rises."""

    start: float
    stop: float
    values: list[float | None]


class Passage(JsonModel):
    """Steps or epochs to the baseline's final value, as in Figure 4.

    The baseline's are counted to its own first passage of that value, so that a baseline which is
    done early is not held against it.
    """

    baseline: float
    arm: float  # inf: never reached

    @property
    def share(self) -> float:
        """The arm's steps over the baseline's."""
        return self.arm / self.baseline

    @property
    def reduction(self) -> float:
        """Share of the baseline's steps that the arm saves; -inf: never reached."""
        return 1 - self.share


def share_of_steps(baseline: Curve, arm: Curve) -> float | None:
    """Rule 2 of `verdict`, of rising curves; None: the baseline never rises above its start."""
    ends = baseline.values[-1], arm.values[-1]
    if not baseline.first_reach(ends[0]) > baseline.at[0]:
        return None
    if ends[1] <= ends[0] and not arm.first_reach(ends[1]) > arm.at[0]:
        return math.inf
    own, others = baseline.first_reach(min(ends)), arm.first_reach(min(ends))
    if own <= 0 or math.isnan(others):
        return None if math.isnan(others) else math.inf
    return others / own if others > 0 else None


def passage(baseline: Curve, arm: Curve) -> Passage | None:
    """Steps to the baseline's final value, of rising curves."""
    target = baseline.values[-1]
    own = baseline.first_reach(target)
    if not own > baseline.at[0]:
        return None
    return Passage(baseline=own, arm=arm.first_reach(target))


def speed_of(shares: Sequence[float | None], confidence: float) -> Speed | None:
    """Geometric mean and intervals; None where a share is undefined."""
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return None
    logs = [math.log(share) for share in known]
    intervals = [t_interval(logs, c) for c in (0.95, confidence)]
    narrow, wide = ((math.exp(i[0]), math.exp(i[1])) if i else None for i in intervals)
    return Speed(
        shares=known,
        mean=math.exp(float(np.mean(logs))),
        interval_95=narrow,
        interval=wide,
        faster=sum(value < -1e-12 for value in logs),
        slower=sum(value > 1e-12 for value in logs),
    )


def rauc_or_none(baseline: Curve, arm: Curve, start: float, stop: float) -> float | None:
    """RAUC, or None where it says nothing: the baseline hardly rises, or too few points."""
    from mto_core import rauc

    # A ratio to next to nothing, or to a negative area, would mislead.
    heights = np.interp(np.linspace(start, stop, 257), baseline.at, baseline.values)
    if not heights.mean() - heights[0] > RAUC_LEAST * np.ptp(baseline.values):
        return None
    try:
        return rauc(baseline.points(), arm.points(), start, stop)
    except ValueError:
        return None


def paired(
    values: Sequence[tuple[float, float]],
    higher_is_better: bool = True,
    confidence: float = 0.975,
) -> Pairs:
    """Differences arm - baseline of (baseline, arm) over seeds, their mean and its intervals."""
    differences = [a - b for b, a in values]
    sign = 1 if higher_is_better else -1
    return Pairs(
        baseline=[b for b, _ in values],
        arm=[a for _, a in values],
        differences=differences,
        mean=float(np.mean(differences)) if differences else math.nan,
        interval_95=t_interval(differences, 0.95),
        interval=t_interval(differences, confidence),
        better=sum(sign * d > 1e-12 for d in differences),
        worse=sum(sign * d < -1e-12 for d in differences),
    )


def t_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Student's interval of the mean; None for one value, or where some are not finite."""
    # Equal differences in all seeds mean a coarse score, not a certain one: no interval.
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) <= 1e-12:
        return None
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]  # a slow import

    low, high = ttest_1samp(values, 0).confidence_interval(confidence)
    return float(low), float(high)


def holds(interval: Interval | None, value: float = 0) -> bool:
    """Whether an interval does; one that is not there says nothing against the value."""
    return interval is None or interval[0] <= value <= interval[1]
