"""Check that the comparison was fair: that in every seed all arms met the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from mto_tools.study.folder import JsonModel
from mto_tools.study.record import EMPTY, TERMS, Pair, Record
from mto_tools.upstreams.recipe import Score


class Check(JsonModel):
    """One condition of a fair comparison, over all arms and seeds."""

    name: str
    passed: bool | None  # None: the files do not say
    detail: str


class Unknown(str):
    """Why a pair of runs cannot be checked."""


Test = Callable[[Record, Record], str]  # says what differs in a pair, "" for nothing


def fairness(
    pairs: Sequence[Pair], scores: Sequence[Score], last_step: float | None = None
) -> list[Check]:
    """Check that each (baseline, arm) met the same weights, data, masks and random numbers.

    Args:
        pairs: Records of one seed each.
        scores: Those that the runs have.
        last_step: The last step or epoch that a whole run logs; None: not known.
    """
    complete = _complete(scores, last_step)
    end = "as long" if last_step is None else f"to {pairs[0][0].last[1]} {last_step:g}"
    digests = "digests agree at every logged step"
    tests: list[tuple[str, Test, str]] = [
        ("Same first loss, bit for bit", _same_start("loss"), "at step 1, before any update"),
        ("Same initial weights", _same_start("token_norm", "heterogeneity"), "norms and H agree"),
        ("Same data in the same order", _same_digests("data"), digests),
        ("Same random numbers", _same_digests("rng"), digests),
        ("Same settings of the recipe", _same_settings, "those in the checkpoints agree"),
        ("Baseline without MTO", _no_weight, "all weights are 0 at every logged step"),
        ("Both arms ran to the end", complete, end),
        ("Every loss is finite", _finite, "in both arms"),
    ]
    records = [record for pair in pairs for record in pair]
    if any(record.evaluated for record in records):
        tests.append(("Evaluated alike", _evaluated_alike, "same data and model"))
    if any(record.tuned for record in records):
        tests.append(("Fine-tuned alike", _tuned_alike, "as many evaluations"))
    return [_check(name, test, detail, pairs) for name, test, detail in tests]


def _check(name: str, test: Test, detail: str, pairs: Sequence[Pair]) -> Check:
    several = len({arm.arm for _, arm in pairs}) > 1
    wrong: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for baseline, arm in pairs:
        if text := test(baseline, arm):
            found = unknown if isinstance(text, Unknown) else wrong
            seed = f"seed {baseline.seed}"
            found.setdefault(text, []).append(f"{arm.arm}, {seed}" if several else seed)
    told = {text: ", ".join(where) for text, where in (wrong or unknown).items()}
    if wrong:
        detail = "; ".join(f"{where}: {text}" for text, where in told.items())
    elif unknown:
        all_of_them = len(told) == 1 and len(pairs) == sum(map(len, unknown.values()))
        detail = "; ".join(
            f"not known: {text}" if all_of_them else f"not known for {where}: {text}"
            for text, where in told.items()
        )
    else:
        detail = f"{detail}, in every seed"
    return Check(name=name, passed=False if wrong else None if unknown else True, detail=detail)


def _same_start(*names: str) -> Test:
    """Equal weights act equally: what is logged at step 1 agrees bit for bit, at all depths."""

    def test(baseline: Record, arm: Record) -> str:
        if without := [record.arm for record in (baseline, arm) if not record.rows]:
            return Unknown(f"{without[0]} has no log of MTO's")
        for name in names:
            found: list[Any] = []
            for record in (baseline, arm):
                curve, rows = record.curves.get(name, EMPTY), record.rows.get(name)
                steps = rows.steps if rows else curve.at
                if steps[:1] != [1]:
                    return f"{name} was not logged at step 1, before the weights have moved"
                found.append(rows.values[0] if rows else curve.values[0])
            first, second = found
            if not np.array_equal(first, second, equal_nan=True):
                return f"{name} differs at step 1: {first} and {second}"
        return ""

    return test


def _same_digests(field: str) -> Test:
    def test(baseline: Record, arm: Record) -> str:
        a, b = map(attrgetter(field), (baseline, arm))
        if not a or not b:
            return Unknown(f"{'neither' if a == b else 'only one'} logged checksums of its {field}")
        if a.keys() != b.keys():
            return f"logged at {len(a)} and {len(b)} steps"
        bad = next((step for step in a if a[step] != b[step]), None)
        return "" if bad is None else f"differ from step {bad} on: {a[bad]} and {b[bad]}"

    return test


def _same_settings(baseline: Record, arm: Record) -> str:
    a, b = baseline.settings, arm.settings
    if not a or not b:
        return Unknown("no checkpoint with settings in it can be read")
    # An option that one side does not know is as one that is not given.
    names = [name for name in {**a, **b} if (a.get(name) or None) != (b.get(name) or None)]
    told = [f"{name} is {a.get(name) or '–'} and {b.get(name) or '–'}" for name in names]
    return "; ".join(told)


def _no_weight(baseline: Record, arm: Record) -> str:
    """The baseline logs the weights that it trained with, wherever they were set."""
    if not baseline.rows:
        return Unknown("the baseline has no log of MTO's, as an unpatched run has none")
    for term in TERMS:
        weights = baseline.curve(f"weights.{term}").values
        if not weights:
            return f"the baseline logged no weight of {term}"
        if any(weights):
            return f"its {term} has weights up to {max(weights):g}"
    return ""


def _complete(scores: Sequence[Score], last_step: float | None) -> Test:
    """Scores are logged after the loss: a run can lack the last one and yet look complete."""

    def test(baseline: Record, arm: Record) -> str:
        logged = {"L_ss": (baseline.curve("loss"), arm.curve("loss"))}
        logged |= {score.label: (baseline.score(score), arm.score(score)) for score in scores}
        for label, (a, b) in logged.items():
            if not a.at or not b.at:
                continue
            # Logs of two kinds end within one of their intervals of each other.
            every = max(np.diff(c.at[-2:])[0] if len(c.at) > 1 else 0 for c in (a, b))
            if a.at[-1] != b.at[-1] and not abs(a.at[-1] - b.at[-1]) < every:
                return f"{label} ends at {a.unit} {a.at[-1]:g} and {b.at[-1]:g}"
            if len(a.at) != len(b.at) and label != "L_ss":
                return f"{label} was logged at {len(a.at)} and {len(b.at)} {a.unit}s"
        last = max(baseline.last[0], arm.last[0])
        if last_step is not None and last < last_step:
            return f"both ended at step {last:g}: the images make fewer steps than counted"
        return ""

    return test


def _finite(baseline: Record, arm: Record) -> str:
    for record in (baseline, arm):
        loss = record.curve("loss")
        for step, value in loss.points():
            if not np.isfinite(value):
                return f"{record.arm} has L_ss = {value} at {loss.unit} {step:g}"
    return ""


def _evaluated_alike(baseline: Record, arm: Record) -> str:
    a, b = baseline.evaluated, arm.evaluated
    if not a and not b:
        return Unknown("neither run was evaluated")
    if not a or not b:
        return f"{'the baseline' if not a else arm.arm} was not evaluated"
    return "" if a == b else f"{a} and {b}"


def _tuned_alike(baseline: Record, arm: Record) -> str:
    a, b = baseline.tuned, arm.tuned
    return "; ".join(
        f"after {at:g}: {a[at]} and {b[at]} evaluations"
        for at in sorted(a.keys() & b.keys())
        if a[at] != b[at]
    )
