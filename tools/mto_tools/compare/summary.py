"""The verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mto_tools.compare.verdict import (
    LOSS,
    RAUC_FROM,
    Finding,
    Quantity,
    Rauc,
    StepsToBaseline,
    Verdict,
    holds_zero,
)

NOT_COMPARABLE = (
    "its target comes, in whole or in part, from a moving copy of each arm's own model, so the two "
    "arms are not measured against the same thing"
)


def sentence(verdict: Verdict) -> str:
    """Say in one sentence whether MTO helped, by how much, and how sure that is."""
    finding = verdict.finding
    if finding is Finding.UNDEFINED:
        text = _undefined(verdict)
    elif finding is Finding.NOT_COMPARABLE:
        end = verdict.quantities[0]
        text = f"Whether MTO helped cannot be decided by L_ss: {NOT_COMPARABLE} (it {_levels(end)})"
    elif finding is Finding.ONE_SEED:
        text = _one_seed(verdict)
    elif finding in (Finding.FASTER, Finding.SLOWER):
        text = _on_the_way(verdict)
    else:
        text = _at_the_end(verdict)
    return f"{text}{_left_out(verdict)}."


def _undefined(verdict: Verdict) -> str:
    differences, label = verdict.quantities[0].differences, lower(verdict.reach[0].label)
    start = "Whether MTO helped cannot be said"
    if not differences:
        return f"{start}: no seed has a {label} in both arms"
    bad = sum(not math.isfinite(difference) for difference in differences)
    return f"{start}: {label} is no finite number at the end of {bad} of {_seeds(differences)}"


def _one_seed(verdict: Verdict) -> str:
    end, reach = verdict.quantities[0], verdict.reach[0]
    word = "better" if end.better else "worse" if end.worse else "neither better nor worse"
    which = "that is left" if verdict.planned > 1 else "that was run"
    return (
        f"MTO did {word} in the one seed {which}: {lower(reach.label)} {_levels(end)} ({gap(end)})"
        f"{speed(reach)}; one seed says nothing about the spread between seeds, so this proves "
        "nothing"
    )


def _on_the_way(verdict: Verdict) -> str:
    (end, mean), reach = verdict.quantities[:2], verdict.reach[0]
    word = "helped" if verdict.finding is Finding.FASTER else "harmed"
    way = f"{show(mean.mto, mean.percent)} with MTO and {show(mean.baseline, mean.percent)}"
    return (
        f"MTO {word} on the way, with no proven difference at the end: averaged over the run, "
        f"{lower(reach.label)} of {_seeds(end.differences)} was {way} without ({_evidence(mean)}), "
        f"while it {_levels(end)} ({_evidence(end)}){speed(reach)}"
    )


def _at_the_end(verdict: Verdict) -> str:
    end, reach = verdict.quantities[0], verdict.reach[0]
    seeds = _seeds(end.differences)
    start = {
        Finding.HELPED: "MTO helped",
        Finding.HARMED: "MTO did not help, it harmed",
        Finding.LEANS_BETTER: f"MTO may have helped, but {seeds} do not prove it",
        Finding.LEANS_WORSE: f"MTO did not help and may have harmed, but {seeds} do not prove it",
        Finding.NO_DIFFERENCE: f"MTO made no difference that {seeds} can show",
    }[verdict.finding]
    label = lower(reach.label)
    return f"{start}: over {seeds} {label} {_levels(end)} ({_evidence(end)}){speed(reach)}"


def _left_out(verdict: Verdict) -> str:
    """Clause on the seeds that MTO itself took out of the comparison."""
    if not verdict.lost:
        return ""
    verb = "is" if verdict.lost == 1 else "are"
    lost = f"; {verdict.lost} of {number(verdict.planned, 'seed')} {verb} left out because the MTO"
    proof = ", so nothing is proven" if verdict.finding is Finding.LEANS_BETTER else ""
    return f"{lost} arm failed{proof}"


def _levels(end: Quantity) -> str:
    with_mto, without = (show(values, end.percent) for values in (end.mto, end.baseline))
    return f"ended at {with_mto} with MTO and {without} without"


def _evidence(quantity: Quantity) -> str:
    """Difference, interval and count; also the 97.5 % interval where that alone holds zero."""
    text = f"{gap(quantity)}, {interval(quantity)}"
    wide = quantity.interval_975
    if wide and not holds_zero(quantity.low, quantity.high) and holds_zero(*wide):
        text += f" but 97.5 % interval {span(wide, quantity.percent)}"
    return f"{text}, {count(quantity)}"


def _seeds(differences: Sequence[float]) -> str:
    return number(len(differences), "seed")


def secondary(verdict: Verdict) -> str:
    """The secondary quantities, which decide nothing, in one line."""
    loss = verdict.loss_at_the_end()
    comparable = [r for r in verdict.rauc if not (verdict.moving_target and r.key == LOSS.key)]
    raucs = f"RAUC: {show_raucs(comparable)}."
    tune = "good what was learnt is, which fine-tuning both arms would"
    if verdict.finding is Finding.NOT_COMPARABLE:
        return f"The recipe logs no score while it pre-trains; nothing here says how {tune}."
    if loss is verdict.quantities[0]:
        return (
            "L_ss decides, as the recipe logs no score while it pre-trains; it does not say how "
            f"{tune}. {raucs}"
        )
    if verdict.moving_target:
        return f"L_ss says nothing about that: {NOT_COMPARABLE}. {raucs}"
    sure = f", {interval(loss)}, {count(loss)}" if len(loss.differences) > 1 else ""
    return f"L_ss {_levels(loss)} ({gap(loss)}{sure}){speed(verdict.reach[-1])}. {raucs}"


def show(values: Sequence[float], percent: bool = False) -> str:
    """Mean over seeds as text."""
    value = float(np.mean(values)) if len(values) else math.nan
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def show_difference(value: float, percent: bool = False) -> str:
    """A difference with its sign; percentages differ in points."""
    text = f"{100 * value:+.1f}" if percent else f"{value:+.2g}"
    return text.replace("-", "−")


def show_raucs(raucs: Sequence[Rauc]) -> str:
    """RAUC of each curve over the wider range, mean over the seeds in which it is defined."""
    wide = raucs[:: len(RAUC_FROM)]
    known = {rauc.label: [v for v in rauc.values if v is not None] for rauc in wide}
    count = max((len(rauc.values) for rauc in wide), default=0)
    parts = [
        f"{lower(label)} {np.mean(values):.2f}"
        + (f" in {len(values)} of {count} seeds" if len(values) < count else "")
        for label, values in known.items()
        if values
    ]
    without = [lower(label) for label, values in known.items() if not values]
    if without:
        parts.append(f"undefined for {', '.join(without)}, where the baseline hardly improves")
    return "; ".join(parts)


def gap(quantity: Quantity) -> str:
    """Mean paired difference."""
    unit = " points" if quantity.percent else ""
    return show_difference(quantity.mean, quantity.percent) + unit


def interval(quantity: Quantity) -> str:
    """The t-interval of the mean difference."""
    if quantity.low is None or quantity.high is None:
        return "no interval, as all seeds differ equally"
    return f"95 % interval {span((quantity.low, quantity.high), quantity.percent)}"


def span(ends: tuple[float, float], percent: bool) -> str:
    """An interval as text."""
    low, high = (show_difference(value, percent) for value in ends)
    return f"{low} to {high}"


def count(quantity: Quantity) -> str:
    """How many seeds agree with the majority."""
    word, agree = (
        ("worse", quantity.worse)
        if quantity.worse > quantity.better
        else ("better", quantity.better)
    )
    return f"{agree} of {len(quantity.differences)} seeds {word}"


def speed(reach: StepsToBaseline) -> str:
    """Clause on the steps to the baseline's final value; empty where that is undefined."""
    what = "loss" if reach.key == LOSS.key else "score"
    known = [share for share in reach.shares if share is not None]
    if not known or len(known) < len(reach.shares):
        return ""
    finite = [share for share in known if math.isfinite(share)]
    if not finite:
        return f", and MTO never reached the baseline's final {what}"
    if len(finite) < len(known):
        some = f"{len(finite)} of {len(known)} seeds"
        return f", and MTO reached the baseline's final {what} in only {some}"
    return f", and MTO reached the baseline's final {what} in {show_shares(finite)} of its steps"


def show_shares(shares: Sequence[float]) -> str:
    """Mean share of steps and its range over seeds."""
    low, mean, high = (round(100 * f(shares)) for f in (min, np.mean, max))
    return f"{mean} %" + (f" ({low} to {high})" if low < high else "")


def lower(label: str) -> str:
    """A label within a sentence; `L_ss` and `k-NN` keep their case."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def number(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
