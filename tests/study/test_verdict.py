"""The rules and the sentence, on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mto_tools.study import summary
from mto_tools.study.record import Curve, Record
from mto_tools.study.verdict import (
    Finding,
    Verdict,
    find,
    judge,
    paired,
    rauc_or_none,
    share_of_steps,
)
from mto_tools.upstreams.recipe import Score

STEPS = list(range(100, 1000, 100))
RISING = [0.30, 0.45, 0.55, 0.62, 0.66, 0.69, 0.71, 0.72, 0.72]
SCORES = [Score(key="probe", label="Linear probe accuracy")]


def record(arm: str, seed: int, probe: list[float], loss: list[float] | None = None) -> Record:
    loss = loss or [1 - value for value in probe]
    return Record(
        arm=arm,
        seed=seed,
        seconds=1,
        curves={"loss": Curve(at=STEPS[: len(loss)], values=loss)},
        scores={"probe": Curve(at=STEPS[: len(probe)], values=probe)},
    )


def verdict_of(*gains: list[float] | float, lost: int = 0) -> Verdict:
    """Judge one seed per argument: what MTO's probe adds to the baseline's, at each step."""
    pairs = []
    for seed, gain in enumerate(gains):
        base = np.asarray(RISING) + 0.004 * seed
        mto = (base + np.asarray(gain)).tolist()
        pairs.append((record("baseline", seed, base.tolist()), record("mto", seed, mto)))
    return judge("mto", pairs, SCORES, lost=lost, planned=len(gains) + lost)


WAY = np.array([0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01, 0.0, 0.0])  # better, but not at the end
JITTER = np.zeros((3, 9))
JITTER[:, -1] = 0.001, -0.001, 0.0004
FASTER = (np.outer([1, 1.1, 0.95], WAY) + JITTER).tolist()
SLOWER = (np.outer([-1, -1.1, -0.95], WAY) + JITTER).tolist()


@pytest.mark.parametrize(
    ("gains", "lost", "finding", "word"),
    [
        ((0.05, 0.06, 0.055), 0, Finding.HELPED, "helped"),
        ((-0.05, -0.06, -0.055), 0, Finding.HARMED, "harmed"),
        ((0.01, 0.09, 0.02), 0, Finding.LEANS_BETTER, "may have helped"),
        ((-0.01, -0.09, -0.02), 0, Finding.LEANS_WORSE, "may have harmed"),
        ((0.01, -0.02, 0.015), 0, Finding.NO_DIFFERENCE, "no difference"),
        ((0.0, 0.0, 0.0), 0, Finding.NO_DIFFERENCE, "no difference"),
        ((0.0625, 0.0625), 0, Finding.LEANS_BETTER, "no interval"),  # coarse, which is no proof
        ((0.05,), 0, Finding.ONE_SEED, "proves nothing"),
        ((-0.05,), 0, Finding.ONE_SEED, "proves nothing"),
        ((0.05, 0.1, math.nan), 0, Finding.UNDEFINED, "cannot be said"),
        ((), 0, Finding.UNDEFINED, "cannot be said"),
        (FASTER, 0, Finding.FASTER, "on the way"),
        (SLOWER, 0, Finding.SLOWER, "on the way"),
        # Seeds that MTO failed in are no gain, nor does their loss take harm back.
        (FASTER, 1, Finding.NO_DIFFERENCE, "1 of 4 seeds"),
        ((0.05, 0.06, 0.055), 2, Finding.LEANS_BETTER, "2 of 5 seeds"),
        ((-0.05, -0.06, -0.055), 1, Finding.HARMED, "1 of 4 seeds"),
        ((0.05,), 1, Finding.ONE_SEED, "1 of 2 seeds"),
    ],
)
def test_every_branch_says_what_was_found(
    gains: tuple[float, ...], lost: int, finding: Finding, word: str
) -> None:
    verdict = verdict_of(*gains, lost=lost)
    assert verdict.finding is finding
    text = summary.sentence(verdict)
    assert word in text
    assert text.endswith(".")
    assert ". " not in text, "one sentence"
    assert summary.secondary(verdict)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_mto_that_does_nothing_is_rarely_said_to_help_or_harm(seeds: int) -> None:
    """Two decisions, the worst case being that they are independent: together wrong in 5 %."""
    draws = np.random.default_rng(seeds).normal(size=(1500, 2, seeds)).tolist()
    found = [
        find(*(paired([(0.0, d) for d in draw]) for draw in both), SCORES[0]) for both in draws
    ]
    said = {Finding.HELPED, Finding.HARMED, Finding.FASTER, Finding.SLOWER}
    wrong = sum(finding in said for finding in found) / len(found)
    assert 0.035 < wrong < 0.06


def test_an_interval_that_is_shown_but_proves_nothing_is_explained() -> None:
    gains = (0.05, 0.06, 0.03)
    verdict = verdict_of(*gains)
    quantity = verdict.results[0].end
    narrow, wide = (stats.ttest_1samp(gains, 0).confidence_interval(c) for c in (0.95, 0.975))
    assert quantity.interval_95 == pytest.approx(narrow)
    assert quantity.interval_975 == pytest.approx(wide)
    assert narrow[0] > 0 > wide[0]
    assert verdict.finding is Finding.LEANS_BETTER
    text = summary.sentence(verdict)
    assert all(summary.show_difference(value, True) in text for value in (*narrow, *wide))
    assert "97.5" not in summary.sentence(verdict_of(0.05, 0.06, 0.055)), "where the two differ"


def test_sentence_carries_the_numbers() -> None:
    text = summary.sentence(verdict_of(0.05, 0.06, 0.055))
    low, high = stats.ttest_1samp([0.05, 0.06, 0.055], 0).confidence_interval(0.95)
    for words in ("77.9 %", "72.4 %", "+5.5", f"+{100 * low:.1f} to +{100 * high:.1f}", "3 of 3"):
        assert words in text


def test_reach_is_said_only_where_it_is_defined() -> None:
    assert "not reached" in summary.sentence(verdict_of(-0.05, -0.06, -0.055))
    assert "in 2 of 3 seeds" in summary.sentence(verdict_of(0.01, 0.02, -0.01))
    flat = [0.5] * 9
    verdict = judge("mto", [(record("baseline", 0, flat), record("mto", 0, flat))], SCORES)
    assert verdict.results[0].shares == [None]
    assert "steps to" not in summary.sentence(verdict)
    assert [r.values for result in verdict.results for r in result.rauc] == [[None]] * 4


def test_loss_counts_as_better_when_lower() -> None:
    base, mto = [1 - v for v in RISING], [0.9 - v for v in RISING]
    pairs = [(record("baseline", 0, RISING, base), record("mto", 0, RISING, mto))]
    loss = judge("mto", pairs, SCORES).results[-1].end
    assert (loss.better, loss.worse) == (1, 0)
    assert loss.mean == pytest.approx(-0.1)


def test_without_scores_the_loss_decides() -> None:
    pairs = []
    for seed, gain in enumerate((0.05, 0.06, 0.055)):
        loss = [1 - v + 0.01 * seed for v in RISING]
        mto = [v - gain for v in loss]
        pairs.append((record("baseline", seed, RISING, loss), record("mto", seed, RISING, mto)))
    verdict = judge("mto", pairs, [])
    assert verdict.finding is Finding.HELPED
    assert "L_ss" in summary.sentence(verdict)
    # Nor does it where each arm is measured against its own teacher.
    verdict = judge("mto", pairs, [], moving_target=True)
    assert verdict.finding is Finding.NOT_COMPARABLE
    assert summary.NOT_COMPARABLE in summary.sentence(verdict)
    assert "decides" not in summary.secondary(verdict)
    # A score decides as ever, and the loss beside it is not compared.
    verdict = judge("mto", pairs, SCORES, moving_target=True)
    assert verdict.finding is Finding.NO_DIFFERENCE
    assert summary.NOT_COMPARABLE in summary.secondary(verdict)


def test_missing_score_is_undefined_not_a_crash() -> None:
    pairs = [(record("baseline", 0, [], [1.0, 0.9]), record("mto", 0, [], [1.0, 0.8]))]
    verdict = judge("mto", pairs, SCORES)
    assert verdict.finding is Finding.UNDEFINED
    assert summary.secondary(verdict)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(0, 20))
def test_first_reach_is_where_the_drawn_line_crosses(values: list[int], target: int) -> None:
    curve = Curve(at=[840 * i for i in range(len(values))], values=values)
    every = np.arange(curve.at[-1] + 1)  # lines between integers cross a target near these
    there = np.interp(every, curve.steps, values) >= target - 1e-9
    found = curve.first_reach(target)
    assert found == (pytest.approx(every[there.argmax()], abs=1) if there.any() else math.inf)


def test_share_counts_to_the_baselines_own_first_passage() -> None:
    """A baseline that was done at half of its run does not lend MTO the other half."""
    base = Curve(at=[0, 100, 200, 300, 400], values=[0.0, 0.5, 1.0, 1.0, 1.0])
    mto = Curve(at=[0, 100, 200, 300, 400], values=[0.0, 1.0, 1.0, 1.0, 1.0])
    assert passage_share(base, mto) == pytest.approx(0.5)
    assert passage_share(base, base) == pytest.approx(1.0)
    worse = Curve(at=base.at, values=[0.0, 0.2, 0.4, 0.6, 0.8])
    assert passage_share(base, worse) == math.inf
    falling = Curve(at=base.at, values=[1.0, 0.9, 0.8, 0.7, 0.6])
    assert passage_share(falling, mto) is None


def test_rauc_is_undefined_where_the_baseline_does_not_rise() -> None:
    rising = Curve(at=[0, 100], values=[0.0, 1.0])
    steeper = Curve(at=[0, 50, 100], values=[0.0, 1.0, 1.0])
    assert rauc_or_none(rising, steeper, 0, 100) == pytest.approx(1.5)
    falling = Curve(at=[0, 100], values=[1.0, 0.0])
    assert rauc_or_none(falling, steeper, 0, 100) is None
    assert rauc_or_none(rising, Curve(at=[0, 90], values=[0.0, 1.0]), 0, 100) is None
    settled = Curve(at=[0, 50, 100], values=[0.0, 0.9, 0.901])
    assert rauc_or_none(settled, steeper, 0, 100) is not None
    assert rauc_or_none(settled, steeper, 50, 100) is None  # would be a ratio of 200


def test_smooth_looks_back_only() -> None:
    curve = Curve(at=list(range(30)), values=[0.0] * 29 + [1.0]).smooth()
    assert curve.values[:29] == [0.0] * 29
    assert curve.values[29] == pytest.approx(0.5)  # two of thirty points
    assert Curve(at=[0, 10, 20], values=[0.0, 1.0, 1.0]).average() == pytest.approx(0.75)
