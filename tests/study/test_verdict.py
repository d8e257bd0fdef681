"""The rules and the sentence, on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mto_tools.study import summary
from mto_tools.study.measures import paired, passage, rauc_or_none, share_of_steps, speed_of
from mto_tools.study.record import Curve, Record
from mto_tools.study.verdict import Finding, Verdict, find, judge
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


# A gain of equal size at the end, at shares of steps that vary: only the end is proven.
LATE = np.zeros((3, 9))
LATE[:, -1] = 0.010, 0.011, 0.0105
LATE[:, 4:-1] = [[0.05], [0.0], [0.028]]
# Faster on the way, and worse at the end.
HASTY = np.zeros((3, 9))
HASTY[:, 2:6] = 0.06
HASTY[:, -1] = -0.030, -0.031, -0.0305


@pytest.mark.parametrize(
    ("gains", "lost", "finding", "word"),
    [
        ((0.05, 0.06, 0.055), 0, Finding.FASTER, "faster"),
        ((-0.05, -0.06, -0.055), 0, Finding.SLOWER, "harmed"),
        ((0.01, 0.09, 0.02), 0, Finding.LEANS_BETTER, "may have helped"),
        ((-0.01, -0.09, -0.02), 0, Finding.LEANS_WORSE, "may have harmed"),
        ((0.01, -0.02, 0.015), 0, Finding.NO_DIFFERENCE, "no difference"),
        ((0.0, 0.0, 0.0), 0, Finding.NO_DIFFERENCE, "no difference"),
        ((0.0625, 0.0625), 0, Finding.LEANS_BETTER, "no interval"),  # coarse, which is no proof
        ((0.05,), 0, Finding.ONE_SEED, "proves nothing"),
        ((-0.05,), 0, Finding.ONE_SEED, "proves nothing"),
        ((0.05, 0.1, math.nan), 0, Finding.UNDEFINED, "cannot be said"),
        ((), 0, Finding.UNDEFINED, "cannot be said"),
        (LATE, 0, Finding.BETTER, "at the end"),
        ((-LATE).tolist(), 0, Finding.WORSE, "ended worse"),
        (HASTY, 0, Finding.WORSE, "ended worse"),
        # Seeds that MTO failed in are no gain, nor does their loss take harm back.
        (LATE, 1, Finding.NO_DIFFERENCE, "1 of 4 seeds"),
        ((0.05, 0.06, 0.055), 2, Finding.LEANS_BETTER, "2 of 5 seeds"),
        ((-0.05, -0.06, -0.055), 1, Finding.SLOWER, "1 of 4 seeds"),
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


@pytest.mark.parametrize(("seeds", "arms"), [(2, 1), (3, 1), (3, 4)])
def test_arms_that_do_nothing_are_rarely_said_to_do_something(seeds: int, arms: int) -> None:
    """Curves of one kind for all: in at most 5 % of reports is any arm told apart."""
    rng, confidence = np.random.default_rng(seeds + arms), 1 - 0.05 / (2 * arms)

    def curve() -> Curve:
        return Curve(at=STEPS, values=(RISING + 0.01 * rng.normal(size=9)).tolist())

    def told() -> bool:
        base = [curve() for _ in range(seeds)]
        for _ in range(arms):
            pairs = [(b, curve()) for b in base]
            speed = speed_of([share_of_steps(*pair) for pair in pairs], confidence)
            ends = [(b.values[-1], a.values[-1]) for b, a in pairs]
            if find(paired(ends, True, confidence), speed, SCORES[0]) in SAID:
                return True
        return False

    reports = 240 // arms
    wrong = sum(told() for _ in range(reports)) / reports
    assert wrong < 0.05 + 2 * math.sqrt(0.05 * 0.95 / reports)


SAID = {Finding.FASTER, Finding.BETTER, Finding.SLOWER, Finding.WORSE}


def test_speed_of_swapped_arms_is_the_inverse() -> None:
    """The test favours no arm, also where one of them never reaches the other's final value."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        first, second = (
            Curve(at=STEPS, values=(RISING + 0.03 * rng.normal(size=9)).tolist()) for _ in range(2)
        )
        there, back = share_of_steps(first, second), share_of_steps(second, first)
        assert there is not None
        assert back == pytest.approx(1 / there)


def test_speed_by_hand() -> None:
    base = Curve(at=[0, 100, 200, 300, 400], values=[0.0, 0.5, 0.8, 0.9, 1.0])
    better = Curve(at=[0, 200, 400], values=[0.0, 1.0, 1.2])
    assert share_of_steps(base, better) == pytest.approx(200 / 400)
    worse = Curve(at=[0, 400], values=[0.0, 0.5])  # base had 0.5 after a quarter of that
    assert share_of_steps(base, worse) == pytest.approx(4)
    assert share_of_steps(base, Curve(at=[0, 400], values=[0.0, -1.0])) == math.inf
    found = speed_of([0.5, 0.4, 0.45], 0.975)
    assert found is not None
    low, high = stats.ttest_1samp(np.log([0.5, 0.4, 0.45]), 0).confidence_interval(0.975)
    assert found.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert found.mean == pytest.approx((0.5 * 0.4 * 0.45) ** (1 / 3))
    assert (found.faster, found.slower) == (3, 0)
    assert speed_of([0.5, math.inf, 0.4], 0.975).interval is None  # type: ignore[union-attr]
    assert speed_of([0.5, None], 0.975) is None


def test_every_arm_has_its_share_of_the_error() -> None:
    pairs = [(record("baseline", s, RISING), record("mto", s, RISING)) for s in range(3)]
    assert judge("mto", pairs, SCORES).confidence == pytest.approx(0.975)
    assert judge("mto", pairs, SCORES, arms=5).confidence == pytest.approx(0.995)


def test_an_interval_that_is_shown_but_proves_nothing_is_explained() -> None:
    gains = (0.05, 0.06, 0.03)
    verdict = verdict_of(*gains)
    quantity = verdict.results[0].end
    narrow, wide = (stats.ttest_1samp(gains, 0).confidence_interval(c) for c in (0.95, 0.975))
    assert quantity.interval_95 == pytest.approx(narrow)
    assert quantity.interval == pytest.approx(wide)
    assert narrow[0] > 0 > wide[0]
    text = summary.sentence(verdict)
    assert all(summary.show_difference(value, True) in text for value in (*narrow, *wide))
    assert summary.secondary(verdict).count("interval") == 1, "L_ss decides nothing here"
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
    assert verdict.results[0].passages == [None]
    assert verdict.results[0].speed is None
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
    assert verdict.finding is Finding.FASTER
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
    there = np.interp(every, curve.at, values) >= target - 1e-9
    found = curve.first_reach(target)
    assert found == (pytest.approx(every[there.argmax()], abs=1) if there.any() else math.inf)


def reached(baseline: Curve, arm: Curve) -> float | None:
    found = passage(baseline, arm)
    return found.share if found else None


def test_share_counts_to_the_baselines_own_first_passage() -> None:
    """A baseline that was done at half of its run does not lend MTO the other half."""
    base = Curve(at=[0, 100, 200, 300, 400], values=[0.0, 0.5, 1.0, 1.0, 1.0])
    mto = Curve(at=[0, 100, 200, 300, 400], values=[0.0, 1.0, 1.0, 1.0, 1.0])
    assert reached(base, mto) == pytest.approx(0.5)
    assert reached(base, base) == pytest.approx(1.0)
    worse = Curve(at=base.at, values=[0.0, 0.2, 0.4, 0.6, 0.8])
    assert reached(base, worse) == math.inf
    falling = Curve(at=base.at, values=[1.0, 0.9, 0.8, 0.7, 0.6])
    assert reached(falling, mto) is None


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
