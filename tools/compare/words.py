"""The verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mto_tools.compare.verdict import LOSS, RAUC_FROM, Finding, Quantity, Rauc, Reach, Verdict


def sentence(verdict: Verdict) -> str:
    """Say in one sentence whether MTO helped, by how much, and how sure that is."""
    finding, (end, mean), reach = verdict.finding, verdict.quantities[:2], verdict.reach[0]
    label = lower(reach.label)
    if finding is Finding.UNDEFINED:
        return f"Whether MTO helped cannot be said: no seed has a finite {label} in both arms."
    n = len(end.differences)
    levels = f"ended at {show(end.mto, end.percent)} with MTO and {show(end.baseline, end.percent)}"
    levels += " without"
    sure = f"{gap(end)}, {interval(end)}, {count(end)}"
    if finding is Finding.ONE_SEED:
        word = "better" if end.better else "worse" if end.worse else "neither better nor worse"
        return (
            f"MTO did {word} in the one seed that was run: {label} {levels} ({gap(end)})"
            f"{speed(reach)}; one seed says nothing about the spread between seeds, so this proves "
            "nothing."
        )
    if finding in (Finding.FASTER, Finding.SLOWER):
        word = "helped" if finding is Finding.FASTER else "harmed"
        way = f"{show(mean.mto, mean.percent)} with MTO and {show(mean.baseline, mean.percent)}"
        return (
            f"MTO {word} on the way, with no proven difference at the end: averaged over the run, "
            f"{label} of {n} seeds was {way} without ({gap(mean)}, {interval(mean)}, "
            f"{count(mean)}), while it {levels} ({sure}){speed(reach)}."
        )
    start = {
        Finding.HELPED: "MTO helped",
        Finding.HARMED: "MTO did not help, it harmed",
        Finding.LEANS_BETTER: f"MTO may have helped, but {n} seeds do not prove it",
        Finding.LEANS_WORSE: f"MTO did not help and may have harmed, but {n} seeds do not prove it",
        Finding.NO_DIFFERENCE: f"MTO made no difference that {n} seeds can show",
    }[finding]
    return f"{start}: over {n} seeds {label} {levels} ({sure}){speed(reach)}."


def also(verdict: Verdict) -> str:
    """The secondary quantities, which decide nothing, in one line."""
    loss = verdict.loss_at_the_end()
    raucs = f"RAUC: {show_raucs(verdict.rauc)}."
    if loss is verdict.quantities[0]:
        return (
            "L_ss decides, as the recipe logs no score while it pre-trains; it does not say how "
            f"good what was learnt is, which fine-tuning both arms would. {raucs}"
        )
    sure = f", {interval(loss)}, {count(loss)}" if len(loss.differences) > 1 else ""
    return (
        f"L_ss ended at {show(loss.mto)} with MTO and {show(loss.baseline)} without ({gap(loss)}"
        f"{sure}){speed(verdict.reach[-1])}. {raucs}"
    )


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
    low, high = (show_difference(v, quantity.percent) for v in (quantity.low, quantity.high))
    return f"95 % interval {low} to {high}"


def count(quantity: Quantity) -> str:
    """How many seeds agree with the majority."""
    word, agree = (
        ("worse", quantity.worse)
        if quantity.worse > quantity.better
        else ("better", quantity.better)
    )
    return f"{agree} of {len(quantity.differences)} seeds {word}"


def speed(reach: Reach) -> str:
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
