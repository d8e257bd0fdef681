"""Did MTO help, by how much, and how sure is that? Decided by rules fixed before the runs.

1. The first score of recipe.toml (for mini the linear probe; L_ss where there is none) at the end
   of pre-training decides. The paired differences over seeds give a t-interval; helped or harmed is
   said only where it excludes zero.
2. Where it does not, the same score averaged over the run (the numerator of RAUC, eq. 8) may still
   show that training was faster or slower.
3. Two tests are made, so each uses a 97.5 % interval (Bonferroni): at most 5 % false verdicts where
   MTO does nothing. The 95 % intervals are for reading.
4. L_ss decides nothing where its target moves with the arm's own model, for then the arms are
   measured against different things. And nothing is proven in favour of an arm that failed in
   seeds which its baseline could finish: those that are left are not a fair choice.
5. Everything else (k-NN, L_ss, RAUC, steps saved) is reported, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from operator import neg

import numpy as np

from mto_tools.study.folder import JsonModel
from mto_tools.study.record import Curve, Record
from mto_tools.upstreams.recipe import Score

LOSS = Score(key="loss", label="L_ss", percent=False, higher_is_better=False)
Interval = tuple[float, float]
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
    NOT_COMPARABLE = "not comparable"  # only L_ss could decide, and its target moves
    UNDEFINED = "undefined"


class Pairs(JsonModel):
    """One number per seed and arm, with the paired differences MTO - baseline."""

    baseline: list[float]
    mto: list[float]
    differences: list[float]
    mean: float  # of the differences
    interval_95: Interval | None  # of their mean; None for one seed or no spread
    interval_975: Interval | None  # the one that decides
    better: int  # seeds in which MTO is better
    worse: int


class Rauc(JsonModel):
    """RAUC (eq. 8) per seed from `start` to `stop`; None: undefined, the baseline hardly rises."""

    start: float
    stop: float
    values: list[float | None]


class Result(JsonModel):
    """What one score says of the arms.

    `shares` holds, by seed, the share of the baseline's steps at which MTO reaches the baseline's
    final value. The baseline's steps are counted to its own first passage of that value, so that a
    baseline which is done early is not held against it. None: undefined, as the baseline's value
    does not improve; inf: never reached.
    """

    score: Score
    end: Pairs  # at the end of pre-training
    mean: Pairs  # averaged over the run
    shares: list[float | None]
    rauc: list[Rauc]  # of the score, or of its negative where lower is better


class Verdict(JsonModel):
    """What can be said and the numbers behind it; `summary.sentence` says it."""

    finding: Finding
    results: list[Result]  # the first one decides, the last one is L_ss
    moving_target: bool = False  # of L_ss, which then cannot be compared between the arms
    lost: int = 0  # seeds left out because the MTO arm failed, and the baseline did not
    planned: int = 0  # seeds of the plan

    def comparable(self, result: Result) -> bool:
        """False for an L_ss whose target moves with each arm's own model."""
        return not (self.moving_target and result.score.key == LOSS.key)


def judge(
    pairs: list[tuple[Record, Record]],
    scores: Sequence[Score],
    *,
    moving_target: bool = False,
    lost: int = 0,
    planned: int = 0,
) -> Verdict:
    """Apply the rules above to (baseline, MTO) records of the same seeds; see `Verdict`."""
    results = [
        *(_result(s, [(b.scores[s.key], m.scores[s.key]) for b, m in pairs]) for s in scores),
        _result(LOSS, [(b.curve("loss").smooth(), m.curve("loss").smooth()) for b, m in pairs]),
    ]
    finding = find(results[0].end, results[0].mean, results[0].score, failures=lost > 0)
    if moving_target and not scores:
        finding = Finding.NOT_COMPARABLE
    return Verdict(
        finding=finding, results=results, moving_target=moving_target, lost=lost, planned=planned
    )


def _result(score: Score, curves: list[tuple[Curve, Curve]]) -> Result:
    curves = [(b, m) for b, m in curves if b.steps and m.steps]
    higher = score.higher_is_better
    stop = float(min((c.steps[-1] for pair in curves for c in pair), default=0))
    rising = curves if higher else [(b.map(neg), m.map(neg)) for b, m in curves]
    return Result(
        score=score,
        end=paired([(b.values[-1], m.values[-1]) for b, m in curves], higher),
        mean=paired([(b.average(), m.average()) for b, m in curves], higher),
        shares=[share_of_steps(b, m) for b, m in rising],
        rauc=[
            Rauc(start=s, stop=stop, values=[rauc_or_none(b, m, s, stop) for b, m in rising])
            for s in (share * stop for share in RAUC_FROM)
        ],
    )


def share_of_steps(baseline: Curve, mto: Curve) -> float | None:
    """MTO's steps to the baseline's final value over the baseline's own; see `Result`."""
    target = baseline.values[-1]
    own = baseline.first_reach(target)
    if not own > baseline.steps[0]:  # it never got better than where it began
        return None
    return mto.first_reach(target) / own


def rauc_or_none(baseline: Curve, mto: Curve, start: float, stop: float) -> float | None:
    """RAUC, or None where it says nothing: the baseline hardly rises, or too few points."""
    from mto_core import rauc

    # A ratio to next to nothing, or to a negative area, would mislead.
    heights = np.interp(np.linspace(start, stop, 257), baseline.steps, baseline.values)
    if not heights.mean() - heights[0] > RAUC_LEAST * np.ptp(baseline.values):
        return None
    try:
        return rauc(baseline.points(), mto.points(), start, stop)
    except ValueError:
        return None


def paired(values: Sequence[tuple[float, float]], higher_is_better: bool = True) -> Pairs:
    """Differences MTO - baseline of (baseline, MTO) over seeds, their mean and its intervals."""
    differences = [m - b for b, m in values]
    sign = 1 if higher_is_better else -1
    return Pairs(
        baseline=[b for b, _ in values],
        mto=[m for _, m in values],
        differences=differences,
        mean=float(np.mean(differences)) if differences else math.nan,
        interval_95=t_interval(differences, 0.95),
        interval_975=t_interval(differences, 0.975),
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


def holds_zero(interval: Interval | None) -> bool:
    """Whether an interval does; one that is not there says nothing against zero."""
    return interval is None or interval[0] <= 0 <= interval[1]


def find(end: Pairs, mean: Pairs, score: Score, *, failures: bool = False) -> Finding:
    """Apply rules 1 to 3 to the deciding score, at the `end` and as `mean` over the run.

    With `failures` of the MTO arm in other seeds, no gain in these proves anything.
    """
    if not math.isfinite(end.mean):
        return Finding.UNDEFINED
    if len(end.differences) == 1:
        return Finding.ONE_SEED
    if sign := _proven(end, score):
        better = Finding.LEANS_BETTER if failures else Finding.HELPED
        return better if sign > 0 else Finding.HARMED
    sign = _proven(mean, score)
    if sign < 0 or (sign > 0 and not failures):
        return Finding.FASTER if sign > 0 else Finding.SLOWER
    if end.better == len(end.differences):
        return Finding.LEANS_BETTER
    if end.worse == len(end.differences):
        return Finding.LEANS_WORSE
    return Finding.NO_DIFFERENCE


def _proven(pairs: Pairs, score: Score) -> int:
    """1: better, -1: worse, 0: the 97.5 % interval holds zero, or there is none."""
    if holds_zero(pairs.interval_975):
        return 0
    return 1 if (pairs.mean > 0) == score.higher_is_better else -1
