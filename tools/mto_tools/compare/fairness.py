"""Check that the comparison was fair: that in every seed both arms met the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mto_tools.compare.collect import Record
from mto_tools.compare.plan import JsonModel, Plan
from mto_tools.compare.spec import Score


class Check(JsonModel):
    """One condition of a fair comparison, over all seeds."""

    name: str
    passed: bool
    detail: str


def fairness(pairs: list[tuple[Record, Record]], plan: Plan) -> list[Check]:
    """Check that in every seed both arms met the same weights, data, masks and random numbers."""
    data = _check("Same data in the same order", pairs, lambda b, m: _same(b.data, m.data, "data"))
    same_scores = partial(_same_scores, scores=plan.scores)
    return [
        _check("Same first loss, bit for bit", pairs, _first_loss),
        _check("Same initial weights", pairs, _first_state),
        *([data] if plan.logs.data else []),
        _check("Same random numbers", pairs, lambda b, m: _same(b.rng, m.rng, "RNG state")),
        _check("Both arms ran to the end", pairs, lambda b, m: _complete(b, m, plan)),
        *([_check("Scored at the same steps", pairs, same_scores)] if plan.scores else []),
        _check("Every loss is finite", pairs, _finite),
    ]


_Result = tuple[bool, str]  # passed, detail


def _check(
    name: str, pairs: list[tuple[Record, Record]], test: Callable[[Record, Record], _Result]
) -> Check:
    results = [(baseline.seed, *test(baseline, mto)) for baseline, mto in pairs]
    bad = [f"seed {seed}: {detail}" for seed, passed, detail in results if not passed]
    if bad or not results:
        return Check(name=name, passed=False, detail="; ".join(bad) or "nothing to check")
    return Check(name=name, passed=True, detail=f"{results[0][2]}, in every seed")


def _first_loss(baseline: Record, mto: Record) -> _Result:
    if not baseline.own_loss.steps or not mto.own_loss.steps:
        return False, "no L_ss was logged"
    first = [(r.own_loss.steps[0], r.own_loss.values[0]) for r in (baseline, mto)]
    if first[0] != first[1]:
        return False, " and ".join(f"{value!r} at step {step}" for step, value in first)
    if first[0][0] != 1:
        return False, f"first logged at step {first[0][0]}, after the weights have moved"
    return True, "at step 1, before the first update"


def _first_state(baseline: Record, mto: Record) -> _Result:
    """The saved initial weights, or what they do: token norms and H at all depths of step 1."""
    if baseline.initial_weights or mto.initial_weights:
        if baseline.initial_weights != mto.initial_weights:
            return False, f"{baseline.initial_weights[:12]} and {mto.initial_weights[:12]}"
        return True, "digests of the saved weights agree"
    for name in ("token_norm", "heterogeneity"):
        a, b = getattr(baseline, name), getattr(mto, name)
        if not a.steps or a.steps[0] != 1 or b.steps[:1] != a.steps[:1]:
            return False, f"{name} was not logged at step 1"
        if a.values[0] != b.values[0]:
            return False, f"{name} differs at step 1"
    return True, f"token norms and H agree at all {len(a.values[0])} depths of step 1"


def _same(baseline: dict[int, str], mto: dict[int, str], what: str) -> _Result:
    if not baseline or baseline.keys() != mto.keys():
        return False, f"{what} logged at {len(baseline)} and {len(mto)} steps"
    for step in sorted(baseline):
        if baseline[step] != mto[step]:
            return False, f"{what} differs from step {step} on: {baseline[step]} and {mto[step]}"
    return True, f"digests agree at all {len(baseline)} logged steps"


def _complete(baseline: Record, mto: Record, plan: Plan) -> _Result:
    last = [r.loss.steps[-1] for r in (baseline, mto)]
    if last[0] != last[1] or last[0] < plan.last_logged:
        return False, f"last logged steps {last[0]} and {last[1]} of {plan.steps}"
    return True, f"last logged step {last[0]} of {plan.steps}"


def _same_scores(baseline: Record, mto: Record, scores: list[Score]) -> _Result:
    """Scores are logged after the loss: a run can lack the last one and yet look complete."""
    for score in scores:
        a, b = (record.scores[score.key].steps for record in (baseline, mto))
        if a != b:
            last = " and ".join(str(steps[-1]) if steps else "none" for steps in (a, b))
            return False, f"{score.label} at {len(a)} and {len(b)} steps, the last {last}"
    return True, f"{scores[0].label} at all {len(mto.scores[scores[0].key].steps)} steps"


def _finite(baseline: Record, mto: Record) -> _Result:
    for record in (baseline, mto):
        for step, value in zip(record.loss.steps, record.loss.values, strict=True):
            if not np.isfinite(value):
                return False, f"{record.arm} has L_ss = {value} at step {step}"
    return True, "in both arms"
