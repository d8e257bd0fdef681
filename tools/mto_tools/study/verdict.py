"""Did an arm help, by how much, and how sure is that? Decided by rules fixed before the runs.

1. One score decides: the first one, in the order of `runs.scores_of`, that every run has. That is
   a score of the recipe's own log (for mini the held-out L_ss), then k-NN of `mto evaluate`, its
   other scores, fine-tuned accuracy, and L_ss where there is no score.
2. MTO promises speed. So the first test is on the share of steps: the steps that the arm takes to a
   value of the score, over the baseline's steps to the same value. The value is the lower one of
   the two final values, for which both have an answer. Where the arm ends above the baseline, this
   is its share of steps to the baseline's final value, as in the paper's Figure 4; where it never
   reaches that, the share is above 1. Had the arm no effect, the logarithm of the share would be
   symmetric around 0; a t-interval of its mean over seeds must exclude 0.
3. The second test is on the paired differences of the score at the end, by a t-interval.
4. Two tests for each of k arms: each uses an interval of 1 - 0.05 / 2k (Bonferroni, 97.5 % for one
   arm), so at most 5 % false verdicts where no arm does anything. 95 % intervals are for reading.
5. A gain is said only where neither test shows harm. An arm that failed in seeds which its baseline
   could finish has no proven gain: the seeds that are left are not a fair choice.
6. L_ss decides nothing where its target moves with each run's own model.
7. Everything else (other scores, L_ss, RAUC, mean over the run) is reported and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from operator import neg

from mto_tools.study.folder import JsonModel
from mto_tools.study.measures import (
    Pairs,
    Passage,
    Rauc,
    Speed,
    holds,
    paired,
    passage,
    rauc_or_none,
    share_of_steps,
    speed_of,
)
from mto_tools.study.record import Curve, Pair
from mto_tools.upstreams.recipe import Score

LOSS = Score(key="loss", label="L_ss", percent=False, higher_is_better=False)
PAPER_RANGES = ((100.0, 400.0), (200.0, 400.0))  # epochs of the paper's Table 2
RAUC_FROM = (0.25, 0.5)  # the same shares of a run that has other epochs


class Finding(str, Enum):
    """What can be said of an arm."""

    FASTER = "faster"
    BETTER = "better"  # at the end, with no proven difference in speed
    SLOWER = "slower"
    WORSE = "worse"  # at the end
    LEANS_BETTER = "leans better"
    LEANS_WORSE = "leans worse"
    NO_DIFFERENCE = "no difference"
    ONE_SEED = "one seed"
    NOT_COMPARABLE = "not comparable"  # only L_ss could decide, and its target moves
    UNDEFINED = "undefined"


class Result(JsonModel):
    """What one score says of an arm."""

    score: Score
    unit: str  # of the curves: step or epoch
    seeds: list[int]
    end: Pairs  # at the end of pre-training
    mean: Pairs  # averaged over the run
    speed: Speed | None  # None: undefined, as a baseline does not improve
    passages: list[Passage | None]  # None: as above
    rauc: list[Rauc]  # of the score, or of its negative where lower is better


class Verdict(JsonModel):
    """What can be said of an arm and the numbers behind it; `summary.sentence` says it."""

    arm: str
    finding: Finding
    results: list[Result]  # the first one decides
    confidence: float  # of the intervals that decide
    moving_target: bool = False  # of L_ss, which then cannot be compared between the arms
    lost: int = 0  # seeds left out because the arm failed, and the baseline did not
    planned: int = 0  # seeds that it should have

    @property
    def loss(self) -> Result | None:
        """L_ss, where both arms have it."""
        return next((result for result in self.results if result.score.key == LOSS.key), None)

    def comparable(self, result: Result) -> bool:
        """False for an L_ss whose target moves with each run's own model."""
        return not (self.moving_target and result.score.key == LOSS.key)


def judge(
    arm: str,
    pairs: Sequence[Pair],
    scores: Sequence[Score],
    others: Sequence[Score] = (),
    *,
    arms: int = 1,
    moving_target: bool = False,
    lost: int = 0,
    planned: int = 0,
) -> Verdict:
    """Apply the rules above to (baseline, arm) records of the same seeds.

    Args:
        arm: Its name.
        pairs: The records.
        scores: Those that every run has, in the order in which they decide.
        others: Those that some runs have, which decide nothing.
        arms: Number of arms that are tested against the baseline.
        moving_target, lost, planned: As in `Verdict`.
    """
    confidence = 1 - 0.05 / (2 * arms)
    seeds = [baseline.seed for baseline, _ in pairs]
    table = {s: [(b.score(s), a.score(s)) for b, a in pairs] for s in (*scores, *others)}
    losses = [(b.curve("loss").smooth(), a.curve("loss").smooth()) for b, a in pairs]
    first, *rest = [
        compare(s, seeds, table.get(s, losses), confidence) for s in (*scores, LOSS, *others)
    ]
    results = [first, *(result for result in rest if result.end.differences)]
    finding = find(first.end, first.speed, first.score, failures=lost > 0)
    if moving_target and not scores:
        finding = Finding.NOT_COMPARABLE
    return Verdict(
        arm=arm,
        finding=finding,
        results=results,
        confidence=confidence,
        moving_target=moving_target,
        lost=lost,
        planned=planned,
    )


def compare(
    score: Score, seeds: Sequence[int], curves: Sequence[tuple[Curve, Curve]], confidence: float
) -> Result:
    """What a score says, from (baseline, arm) curves of each seed."""
    there = [
        (seed, pair) for seed, pair in zip(seeds, curves, strict=True) if pair[0].at and pair[1].at
    ]
    both = [pair for _, pair in there]
    higher = score.higher_is_better
    rising = both if higher else [(b.map(neg), a.map(neg)) for b, a in both]
    start = max((c.at[0] for pair in both for c in pair), default=0.0)
    stop = min((c.at[-1] for pair in both for c in pair), default=0.0)
    unit = both[0][0].unit if both else "step"
    ranges: Sequence[tuple[float, float]] = [(share * stop, stop) for share in RAUC_FROM]
    if unit == "epoch" and start <= PAPER_RANGES[0][0] and stop >= PAPER_RANGES[0][1]:
        ranges = PAPER_RANGES
    return Result(
        score=score,
        unit=unit,
        seeds=[seed for seed, _ in there],
        end=paired([(b.values[-1], a.values[-1]) for b, a in both], higher, confidence),
        mean=paired([(b.average(), a.average()) for b, a in both], higher, confidence),
        speed=speed_of([share_of_steps(b, a) for b, a in rising], confidence),
        passages=[passage(b, a) for b, a in rising],
        rauc=[
            Rauc(start=s, stop=e, values=[rauc_or_none(b, a, s, e) for b, a in rising])
            for s, e in ranges
        ],
    )


def find(end: Pairs, speed: Speed | None, score: Score, *, failures: bool = False) -> Finding:
    """Apply rules 2, 3 and 5 to the deciding score; `failures`: the arm failed in other seeds."""
    if not math.isfinite(end.mean):
        return Finding.UNDEFINED
    seeds = len(end.differences)
    if seeds == 1:
        return Finding.ONE_SEED
    faster = slower = better = worse = False
    if speed and not holds(speed.interval, 1):
        faster, slower = speed.mean < 1, speed.mean > 1
    if not holds(end.interval):
        better = (end.mean > 0) == score.higher_is_better
        worse = not better
    if slower or worse:
        return Finding.SLOWER if slower else Finding.WORSE
    if (faster or better) and not failures:
        return Finding.FASTER if faster else Finding.BETTER
    up, down = (speed.faster, speed.slower) if speed else (end.better, end.worse)
    if up == seeds:
        return Finding.LEANS_BETTER
    return Finding.LEANS_WORSE if down == seeds else Finding.NO_DIFFERENCE
