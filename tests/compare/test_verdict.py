"""The rules and the sentence, on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mto_tools.compare import summary
from mto_tools.compare.collect import Curve, Record, Rows
from mto_tools.compare.curves import (
    average,
    first_reach,
    rauc_or_none,
    share_of_steps,
    smooth,
)
from mto_tools.compare.plan import ArmName
from mto_tools.compare.verdict import Finding, Verdict, find, judge, paired
from mto_tools.upstreams.recipe import Score

STEPS = list(range(100, 1000, 100))
RISING = [0.30, 0.45, 0.55, 0.62, 0.66, 0.69, 0.71, 0.72, 0.72]
SCORES = [Score(key="probe", label="Linear probe accuracy")]


def record(arm: ArmName, seed: int, probe: list[float], loss: list[float] | None = None) -> Record:
    none = Curve()
    loss = loss or [1 - value for value in probe]
    return Record(
        arm=arm,
        seed=seed,
        seconds=1,
        bytes=1,
        loss=Curve(steps=STEPS[: len(loss)], values=loss),
        step_ms=none,
        data={},
        rng={},
        scores={"probe": Curve(steps=STEPS[: len(probe)], values=probe)},
        terms={},
        weights={},
        grad_ratio={},
        diagonal_mass=none,
        masked_mass=none,
        heterogeneity=Rows(),
        token_norm=Rows(),
        affinity=None,
    )


def verdict_of(*gains: list[float] | float, lost: int = 0) -> Verdict:
    """Judge one seed per argument: what MTO's probe adds to the baseline's, at each step."""
    pairs = []
    for seed, gain in enumerate(gains):
        base = np.asarray(RISING) + 0.004 * seed
        mto = (base + np.asarray(gain)).tolist()
        pairs.append((record("baseline", seed, base.tolist()), record("mto", seed, mto)))
    return judge(pairs, SCORES, lost=lost, planned=len(gains) + lost)


def said(*gains: list[float] | float) -> tuple[Finding, str]:
    verdict = verdict_of(*gains)
    return verdict.finding, summary.sentence(verdict)


WAY = [0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01, 0.0, 0.0]  # better on the way, equal at the end


@pytest.mark.parametrize(
    ("gains", "finding", "start"),
    [
        ((0.05, 0.06, 0.055), Finding.HELPED, "MTO helped: over 3 seeds"),
        ((-0.05, -0.06, -0.055), Finding.HARMED, "MTO did not help, it harmed: "),
        ((0.01, 0.09, 0.02), Finding.LEANS_BETTER, "MTO may have helped, but 3 seeds do not prove"),
        ((-0.01, -0.09, -0.02), Finding.LEANS_WORSE, "MTO did not help and may have harmed, but 3"),
        ((0.01, -0.02, 0.015), Finding.NO_DIFFERENCE, "MTO made no difference that 3 seeds can"),
        ((0.0, 0.0, 0.0), Finding.NO_DIFFERENCE, "MTO made no difference that 3 seeds can show"),
        ((0.05,), Finding.ONE_SEED, "MTO did better in the one seed that was run: "),
        ((-0.05,), Finding.ONE_SEED, "MTO did worse in the one seed that was run: "),
        ((0.0,), Finding.ONE_SEED, "MTO did neither better nor worse in the one seed"),
        (
            (0.05, 0.1, math.nan),
            Finding.UNDEFINED,
            "Whether MTO helped cannot be said: linear probe accuracy is no finite number at the "
            "end of 1 of 3 seeds",
        ),
        ((), Finding.UNDEFINED, "Whether MTO helped cannot be said: no seed has a linear probe"),
    ],
)
def test_every_branch_says_what_was_found(
    gains: tuple[float, ...], finding: Finding, start: str
) -> None:
    found, text = said(*gains)
    assert found is finding
    assert text.startswith(start), text
    assert text.endswith(".")
    assert ("proves nothing" in text) == (finding is Finding.ONE_SEED)
    assert ". " not in text.replace("e. g. ", ""), "one sentence"


def test_faster_and_slower_are_said_where_only_the_way_differs() -> None:
    way = np.asarray(WAY)
    jitter = [[0] * 8 + [end] for end in (0.001, -0.001, 0.0004)]
    seeds = list(zip((1, 1.1, 0.95), jitter, strict=True))
    gains = [(scale * way + j).tolist() for scale, j in seeds]
    found, text = said(*gains)
    assert found is Finding.FASTER
    assert text.startswith("MTO helped on the way, with no proven difference at the end")
    found, text = said(*[(-scale * way + j).tolist() for scale, j in seeds])
    assert found is Finding.SLOWER
    assert text.startswith("MTO harmed on the way")
    assert verdict_of(*gains, lost=1).finding is Finding.NO_DIFFERENCE


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_mto_that_does_nothing_is_rarely_said_to_help_or_harm(seeds: int) -> None:
    """Two decisions, the worst case being that they are independent: together wrong in 5 %."""
    draws = np.random.default_rng(seeds).normal(size=(3000, 2, seeds)).tolist()
    found = [
        find(*(paired([(0.0, d) for d in draw]) for draw in both), SCORES[0]) for both in draws
    ]
    said = {Finding.HELPED, Finding.HARMED, Finding.FASTER, Finding.SLOWER}
    wrong = sum(finding in said for finding in found) / len(found)
    assert 0.035 < wrong < 0.06


def test_an_interval_that_is_shown_but_proves_nothing_is_explained() -> None:
    gains = (0.05, 0.06, 0.03)
    quantity = verdict_of(*gains).results[0].end
    narrow, wide = (stats.ttest_1samp(gains, 0).confidence_interval(c) for c in (0.95, 0.975))
    assert quantity.interval_95 == pytest.approx(narrow)
    assert quantity.interval_975 == pytest.approx(wide)
    assert narrow[0] > 0 > wide[0]
    found, text = said(*gains)
    assert found is Finding.LEANS_BETTER
    shown = [f"{summary.show_difference(v, True)}" for v in (*narrow, *wide)]
    assert "95 % interval {} to {} but 97.5 % interval {} to {},".format(*shown) in text
    assert "97.5" not in said(0.05, 0.06, 0.055)[1], "only where the two differ"


def test_seeds_that_mto_failed_in_are_no_gain() -> None:
    verdict = verdict_of(0.05, 0.06, 0.055, lost=2)
    assert verdict.finding is Finding.LEANS_BETTER
    text = summary.sentence(verdict)
    assert text.startswith("MTO may have helped, but 3 seeds do not prove it: over 3 seeds ")
    left_out = "; 2 of 5 seeds are left out because the MTO arm failed"
    assert text.endswith(f"{left_out}, so nothing is proven.")
    verdict = verdict_of(-0.05, -0.06, -0.055, lost=1)
    assert verdict.finding is Finding.HARMED
    assert summary.sentence(verdict).endswith(
        "; 1 of 4 seeds is left out because the MTO arm failed."
    )
    assert "in the one seed that is left:" in summary.sentence(verdict_of(0.05, lost=1))


def test_sentence_carries_the_numbers() -> None:
    _, text = said(0.05, 0.06, 0.055)
    low, high = stats.ttest_1samp([0.05, 0.06, 0.055], 0).confidence_interval(0.95)
    assert "77.9 % with MTO and 72.4 % without" in text
    assert f"+5.5 points, 95 % interval +{100 * low:.1f} to +{100 * high:.1f}" in text
    assert "3 of 3 seeds better" in text
    assert "and MTO reached the baseline's final score in " in text


def test_reach_is_said_only_where_it_is_defined() -> None:
    assert "MTO never reached the baseline's final score" in said(-0.05, -0.06, -0.055)[1]
    assert "reached the baseline's final score in only 2 of 3 seeds" in said(0.01, 0.02, -0.01)[1]
    flat = [0.5] * 9
    pairs = [(record("baseline", 0, flat), record("mto", 0, flat))]
    verdict = judge(pairs, SCORES)
    assert verdict.results[0].shares == [None]
    assert "final score" not in summary.sentence(verdict)
    assert [r.values for result in verdict.results for r in result.rauc] == [[None]] * 4


def test_equal_differences_are_no_proof() -> None:
    """A coarse score can move by the same amount twice; a zero spread must not become certainty."""
    found, text = said(0.0625, 0.0625)
    assert found is Finding.LEANS_BETTER
    assert "no interval" in text


def test_loss_counts_as_better_when_lower() -> None:
    base, mto = [1 - v for v in RISING], [0.9 - v for v in RISING]
    pairs = [(record("baseline", 0, RISING, base), record("mto", 0, RISING, mto))]
    loss = judge(pairs, SCORES).results[-1].end
    assert (loss.better, loss.worse) == (1, 0)
    assert loss.mean == pytest.approx(-0.1)


def test_without_scores_the_loss_decides() -> None:
    pairs = []
    for seed, gain in enumerate((0.05, 0.06, 0.055)):
        loss = [1 - v + 0.01 * seed for v in RISING]
        mto = [v - gain for v in loss]
        pairs.append((record("baseline", seed, RISING, loss), record("mto", seed, RISING, mto)))
    verdict = judge(pairs, [])
    assert verdict.finding is Finding.HELPED
    assert summary.sentence(verdict).startswith("MTO helped: over 3 seeds L_ss ended at 0.235 with")
    # Nor does it where each arm is measured against its own teacher.
    verdict = judge(pairs, [], moving_target=True)
    assert verdict.finding is Finding.NOT_COMPARABLE
    text = summary.sentence(verdict)
    assert text.startswith("Whether MTO helped cannot be decided by L_ss: its target comes, in ")
    assert text.endswith("(it ended at 0.235 with MTO and 0.29 without).")
    assert summary.secondary(verdict).endswith("fine-tuning both arms would.")
    assert "decides" not in summary.secondary(verdict)
    # A score decides as ever, and the loss beside it is not compared.
    verdict = judge(pairs, SCORES, moving_target=True)
    assert verdict.finding is Finding.NO_DIFFERENCE
    assert summary.secondary(verdict).startswith(
        "L_ss says nothing about that: its target comes, in "
    )
    assert "−L_ss" not in summary.secondary(verdict)


def test_missing_score_is_undefined_not_a_crash() -> None:
    pairs = [(record("baseline", 0, [], [1.0, 0.9]), record("mto", 0, [], [1.0, 0.8]))]
    verdict = judge(pairs, SCORES)
    assert verdict.finding is Finding.UNDEFINED
    assert summary.secondary(verdict)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_interval_is_students(differences: list[float]) -> None:
    quantity = paired([(0.0, difference) for difference in differences])
    if np.ptp(differences) <= 1e-12:
        assert quantity.interval_95 is None
        return
    truth = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert quantity.interval_95 == pytest.approx(tuple(truth), rel=1e-9, abs=1e-12)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(0, 20), st.booleans())
def test_first_reach_is_where_the_drawn_line_crosses(
    values: list[int], target: int, higher: bool
) -> None:
    sign = 1 if higher else -1
    curve = Curve(steps=[840 * i for i in range(len(values))], values=values)
    every = np.arange(curve.steps[-1] + 1)  # lines between integers cross a target near these
    there = sign * np.interp(every, curve.steps, values) >= sign * target - 1e-9
    found = first_reach(curve, target, higher)
    assert found == (pytest.approx(every[there.argmax()], abs=1) if there.any() else math.inf)


def test_share_counts_to_the_baselines_own_first_passage() -> None:
    """A baseline that was done at half of its run does not lend MTO the other half."""
    base = Curve(steps=[0, 100, 200, 300, 400], values=[0.0, 0.5, 1.0, 1.0, 1.0])
    mto = Curve(steps=[0, 100, 200, 300, 400], values=[0.0, 1.0, 1.0, 1.0, 1.0])
    assert share_of_steps(base, mto) == pytest.approx(0.5)
    assert share_of_steps(base, base) == pytest.approx(1.0)
    worse = Curve(steps=base.steps, values=[0.0, 0.2, 0.4, 0.6, 0.8])
    assert share_of_steps(base, worse) == math.inf
    falling = Curve(steps=base.steps, values=[1.0, 0.9, 0.8, 0.7, 0.6])
    assert share_of_steps(falling, mto) is None


def test_rauc_is_undefined_where_the_baseline_does_not_rise() -> None:
    rising = Curve(steps=[0, 100], values=[0.0, 1.0])
    steeper = Curve(steps=[0, 50, 100], values=[0.0, 1.0, 1.0])
    assert rauc_or_none(rising, steeper, 0, 100) == pytest.approx(1.5)
    falling = Curve(steps=[0, 100], values=[1.0, 0.0])
    assert rauc_or_none(falling, steeper, 0, 100) is None
    assert rauc_or_none(Curve(), steeper, 0, 100) is None
    settled = Curve(steps=[0, 50, 100], values=[0.0, 0.9, 0.901])
    assert rauc_or_none(settled, steeper, 0, 100) is not None
    assert rauc_or_none(settled, steeper, 50, 100) is None  # would be a ratio of 200


def test_smooth_looks_back_only() -> None:
    curve = smooth(Curve(steps=list(range(30)), values=[0.0] * 29 + [1.0]))
    assert curve.values[:29] == [0.0] * 29
    assert curve.values[29] == pytest.approx(0.5)  # two of thirty points
    assert average(Curve(steps=[0, 10, 20], values=[0.0, 1.0, 1.0])) == pytest.approx(0.75)
