"""Check that the comparison was fair: that in every seed both arms met the same."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import numpy as np

from mto_tools.study.folder import JsonModel
from mto_tools.study.plan import Plan
from mto_tools.study.record import EMPTY, TERMS, Record

Test = Callable[[Record, Record, Plan], str]  # says what differs in a seed, "" for nothing


class Check(JsonModel):
    """One condition of a fair comparison, over all seeds."""

    name: str
    passed: bool
    detail: str


def fairness(pairs: list[tuple[Record, Record]], plan: Plan) -> list[Check]:
    """Check that in every seed both arms met the same weights, data, masks and random numbers."""
    tests: list[tuple[str, Test, str]] = [
        ("Same first loss, bit for bit", _same_start("loss"), "at step 1, before any update"),
        ("Same initial weights", _same_start("token_norm", "heterogeneity"), "norms and H agree"),
        ("Same random numbers", _same_digests("rng"), "digests agree at every logged step"),
        ("Baseline without MTO", _no_weight, "all weights are 0 at every logged step"),
        ("Both arms ran to the end", _complete, f"to step {plan.last_logged} of {plan.steps}"),
        ("Every loss is finite", _finite, "in both arms"),
    ]
    if plan.logs.data:
        detail = "digests agree at every logged step"
        tests.insert(2, ("Same data in the same order", _same_digests("data"), detail))
    checks = []
    for name, test, detail in tests:
        found = {baseline.seed: test(baseline, mto, plan) for baseline, mto in pairs}
        wrong = "; ".join(f"seed {seed}: {text}" for seed, text in found.items() if text)
        detail = wrong or f"{detail}, in every seed"
        checks.append(Check(name=name, passed=not wrong, detail=detail))
    return checks


def _same_start(*names: str) -> Test:
    """Equal weights act equally: what is logged at step 1 agrees bit for bit, at all depths."""

    def test(baseline: Record, mto: Record, plan: Plan) -> str:
        for name in names:
            a, b = (r.curves.get(name) or r.rows.get(name) or EMPTY for r in (baseline, mto))
            if a.steps[:1] != [1] or b.steps[:1] != [1]:
                return f"{name} was not logged at step 1, before the weights have moved"
            if not np.array_equal(a.values[0], b.values[0], equal_nan=True):
                return f"{name} differs at step 1: {a.values[0]} and {b.values[0]}"
        return ""

    return test


def _same_digests(field: str) -> Test:
    def test(baseline: Record, mto: Record, plan: Plan) -> str:
        a, b = map(attrgetter(field), (baseline, mto))
        if not a or a.keys() != b.keys():
            return f"logged at {len(a)} and {len(b)} steps"
        bad = next((step for step in a if a[step] != b[step]), None)
        return "" if bad is None else f"differ from step {bad} on: {a[bad]} and {b[bad]}"

    return test


def _no_weight(baseline: Record, mto: Record, plan: Plan) -> str:
    """The baseline logs the weights that it trained with, wherever they were set."""
    for term in TERMS:
        weights = baseline.curve(f"weights.{term}").values
        if not weights:
            return f"the baseline logged no weight of {term}"
        if any(weights):
            return f"its {term} has weights up to {max(weights):g}"
    return ""


def _complete(baseline: Record, mto: Record, plan: Plan) -> str:
    """Scores are logged after the loss: a run can lack the last one and yet look complete."""
    loss = baseline.curve("loss")
    logged = {"L_ss": (loss, mto.curve("loss"))}
    logged |= {s.label: (baseline.scores[s.key], mto.scores[s.key]) for s in plan.scores}
    for label, (a, b) in logged.items():
        if a.steps != b.steps:
            return f"{label} was logged at {len(a.steps)} and {len(b.steps)} steps"
    if loss.steps[-1:] < [plan.last_logged]:
        last = max(loss.steps, default=0)
        return f"both ended at step {last}: the images in {plan.data} make fewer steps than counted"
    return ""


def _finite(baseline: Record, mto: Record, plan: Plan) -> str:
    for record in (baseline, mto):
        for step, value in record.curve("loss").points():
            if not np.isfinite(value):
                return f"{record.arm} has L_ss = {value} at step {step}"
    return ""
