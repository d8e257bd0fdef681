"""Did MTO help, by how much, and how sure is that? Decided by rules fixed before the runs.

1. The first score of compare.toml (for mini the linear probe; L_ss where there is none) at the end
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

import numpy as np

from mto_tools.compare.collect import Curve, Record
from mto_tools.compare.curves import average, rauc_or_none, share_of_steps, smooth
from mto_tools.compare.plan import JsonModel
from mto_tools.compare.spec import Score

CONFIDENCE = 0.95  # of the intervals shown, and of both decisions together
DECISION_CONFIDENCE = 1 - (1 - CONFIDENCE) / 2  # of each of the two decisions
LOSS = Score(key="loss", label="L_ss", percent=False, higher_is_better=False)
RAUC_FROM = (0.25, 0.5)  # the paper's (100, 400) and (200, 400) of 400 epochs


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


class Quantity(JsonModel):
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
    interval_975: tuple[float, float] | None = None  # the 97.5 % interval, which a decision takes
    better: int
    worse: int


class StepsToBaseline(JsonModel):
    """Where MTO reaches the baseline's final value of a curve, as a share of the baseline's steps.

    The baseline's steps are counted to its own first passage of that value, not to the end of the
    run, so that a baseline which is done early is not held against it. Per seed; None: undefined
    (the baseline's value does not improve), inf: never reached.
    """

    key: str
    label: str
    shares: list[float | None]


class Rauc(JsonModel):
    """RAUC (eq. 8) per seed from `start` to `stop`; None: undefined, the baseline hardly rises."""

    key: str
    label: str
    start: float
    stop: float
    values: list[float | None]


class Verdict(JsonModel):
    """What can be said and the numbers behind it; `summary.sentence` says it."""

    finding: Finding
    quantities: list[Quantity]  # the first two are those that decide
    reach: list[StepsToBaseline]
    rauc: list[Rauc]
    moving_target: bool = False  # of L_ss, which then cannot be compared between the arms
    lost: int = 0  # seeds left out because the MTO arm failed, and the baseline did not
    planned: int = 0  # seeds of the plan

    def loss_at_the_end(self) -> Quantity:
        """The final smoothed L_ss."""
        return next(q for q in self.quantities if q.key == f"{LOSS.key}_end")


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
    low, high = t_interval(differences, CONFIDENCE) or (None, None)
    sign = 1 if higher_is_better else -1
    return Quantity(
        key=key,
        label=label,
        percent=percent,
        higher_is_better=higher_is_better,
        baseline=list(baseline),
        mto=list(mto),
        differences=differences,
        mean=float(np.mean(differences)) if differences else math.nan,
        low=low,
        high=high,
        interval_975=t_interval(differences, DECISION_CONFIDENCE),
        better=sum(sign * d > 1e-12 for d in differences),
        worse=sum(sign * d < -1e-12 for d in differences),
    )


def t_interval(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Student's interval of the mean; None for one value, or where some are not finite."""
    # Equal differences in all seeds mean a coarse score, not a certain one: no interval.
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) <= 1e-12:
        return None
    from scipy.stats import t  # type: ignore[import-untyped]  # a slow import, needed only here

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    half *= float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def holds_zero(low: float | None, high: float | None) -> bool:
    """Whether an interval does; one that is not there says nothing against zero."""
    return low is None or high is None or low <= 0 <= high


def judge(
    pairs: list[tuple[Record, Record]],
    scores: list[Score],
    *,
    moving_target: bool = False,
    lost: int = 0,
    planned: int = 0,
) -> Verdict:
    """Apply the rules above to (baseline, MTO) records of the same seeds; see `Verdict`."""
    quantities: list[Quantity] = []
    reach: list[StepsToBaseline] = []
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
        reach.append(StepsToBaseline(key=score.key, label=score.label, shares=shares))
        sign = 1.0 if higher else -1.0
        rising = [(_times(b, sign), _times(m, sign)) for b, m in curves]
        raucs += _raucs(score.key, score.label if higher else f"−{score.label}", rising)
    finding = find(quantities[0], quantities[1], failures=lost > 0)
    if moving_target and not scores:
        finding = Finding.NOT_COMPARABLE
    return Verdict(
        finding=finding,
        quantities=quantities,
        reach=reach,
        rauc=raucs,
        moving_target=moving_target,
        lost=lost,
        planned=planned,
    )


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


def find(end: Quantity, mean: Quantity, *, failures: bool = False) -> Finding:
    """Apply rules 1 to 3 to the deciding score at the end, and averaged over the run.

    Args:
        end: At the end.
        mean: Averaged over the run.
        failures: The MTO arm failed in other seeds, so that no gain in these proves anything.
    """
    if not end.differences or not math.isfinite(end.mean):
        return Finding.UNDEFINED
    if len(end.differences) == 1:
        return Finding.ONE_SEED
    if sign := _proven(end):
        better = Finding.LEANS_BETTER if failures else Finding.HELPED
        return better if sign > 0 else Finding.HARMED
    sign = _proven(mean)
    if sign < 0 or (sign > 0 and not failures):
        return Finding.FASTER if sign > 0 else Finding.SLOWER
    if end.better == len(end.differences):
        return Finding.LEANS_BETTER
    if end.worse == len(end.differences):
        return Finding.LEANS_WORSE
    return Finding.NO_DIFFERENCE


def _proven(quantity: Quantity) -> int:
    """1: better, -1: worse, 0: the 97.5 % interval holds zero, or there is none."""
    if quantity.interval_975 is None or holds_zero(*quantity.interval_975):
        return 0
    return 1 if (quantity.mean > 0) == quantity.higher_is_better else -1
