"""Check that the comparison was fair: that in every seed both arms met the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mto_tools.compare.folder import JsonModel
from mto_tools.compare.plan import Plan
from mto_tools.compare.record import TERMS, Record


class Check(JsonModel):
    """One condition of a fair comparison, over all seeds."""

    name: str
    passed: bool
    detail: str


_Test = Callable[[Record, Record, Plan], str]  # says what differs, "" for nothing


def fairness(pairs: list[tuple[Record, Record]], plan: Plan) -> list[Check]:
    """Check that in every seed both arms met the same weights, data, masks and random numbers."""
    at_start, steps = "at step 1, before the first update", "at every logged step"
    tests: list[tuple[str, _Test, str]] = [
        ("Same first loss, bit for bit", _first_loss, at_start),
        ("Same initial weights", _first_state, "token norms and H agree at all depths of step 1"),
        ("Same random numbers", lambda b, m, _: _digests(b.rng, m.rng), f"digests agree {steps}"),
        ("Baseline without MTO", _no_weight, f"all weights are 0 {steps}"),
        ("Both arms ran to the end", _complete, f"to step {plan.last_logged} of {plan.steps}"),
        ("Every loss is finite", _finite, "in both arms"),
    ]
    if plan.logs.data:
        name, detail = "Same data in the same order", f"digests agree {steps}"
        tests.insert(2, (name, lambda b, m, _: _digests(b.data, m.data), detail))
    if plan.scores:
        tests.append(("Scored at the same steps", _same_scores, "every score"))
    checks = []
    for name, test, detail in tests:
        found = {baseline.seed: test(baseline, mto, plan) for baseline, mto in pairs}
        wrong = "; ".join(f"seed {seed}: {text}" for seed, text in found.items() if text)
        detail = wrong or f"{detail}, in every seed"
        checks.append(Check(name=name, passed=not wrong, detail=detail))
    return checks


def _first_loss(baseline: Record, mto: Record, plan: Plan) -> str:
    first = [record.curve("loss").points()[:1] for record in (baseline, mto)]
    if first[0] != first[1]:
        return " and ".join(f"{loss!r} at step {step}" for points in first for step, loss in points)
    if not first[0] or first[0][0][0] != 1:
        return "not logged at step 1, before the weights have moved"
    return ""


def _first_state(baseline: Record, mto: Record, plan: Plan) -> str:
    """Equal weights act equally: token norms and H at all depths of step 1."""
    for name in ("token_norm", "heterogeneity"):
        a, b = (record.rows.get(name) for record in (baseline, mto))
        if not a or not b or a.steps[0] != 1 or b.steps[0] != 1:
            return f"{name} was not logged at step 1"
        if not np.array_equal(a.values[0], b.values[0], equal_nan=True):
            return f"{name} differs at step 1"
    return ""


def _digests(baseline: dict[int, str], mto: dict[int, str]) -> str:
    if not baseline or baseline.keys() != mto.keys():
        return f"logged at {len(baseline)} and {len(mto)} steps"
    bad = next((step for step in baseline if baseline[step] != mto[step]), None)
    return "" if bad is None else f"differ from step {bad} on: {baseline[bad]} and {mto[bad]}"


def _no_weight(baseline: Record, mto: Record, plan: Plan) -> str:
    """The baseline logs the weights that it trained with, wherever they were set."""
    for term in TERMS:
        weights = baseline.curve(f"weights.{term}").points()
        if not weights:
            return f"the baseline logged no weight of {term}"
        for step, value in weights:
            if value != 0:
                return f"its {term} has weight {value:g} at step {step}"
    return ""


def _complete(baseline: Record, mto: Record, plan: Plan) -> str:
    last = [max(r.curve("loss").steps, default=0) for r in (baseline, mto)]
    if last[0] != last[1]:
        return f"last logged steps {last[0]} and {last[1]} of {plan.steps}"
    if last[0] < plan.last_logged:
        return (
            f"both arms ended alike at step {last[0]} of {plan.steps}: the images in "
            f"{plan.data} make fewer steps than were counted"
        )
    return ""


def _same_scores(baseline: Record, mto: Record, plan: Plan) -> str:
    """Scores are logged after the loss: a run can lack the last one and yet look complete."""
    for score in plan.scores:
        a, b = (record.scores[score.key].steps for record in (baseline, mto))
        if a != b:
            last = " and ".join(str(steps[-1]) if steps else "none" for steps in (a, b))
            return f"{score.label} at {len(a)} and {len(b)} steps, the last {last}"
    return ""


def _finite(baseline: Record, mto: Record, plan: Plan) -> str:
    for record in (baseline, mto):
        for step, value in record.curve("loss").points():
            if not np.isfinite(value):
                return f"{record.arm} has L_ss = {value} at step {step}"
    return ""
