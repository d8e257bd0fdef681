"""The verdict in plain words, and its numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mto_tools.study.verdict import LOSS, Finding, Interval, Pairs, Result, Verdict, holds_zero

NOT_COMPARABLE = (
    "its target comes, in whole or in part, from a moving copy of each arm's own model, so the two "
    "arms are not measured against the same thing"
)


def sentence(verdict: Verdict) -> str:
    """Say in one sentence whether MTO helped, by how much, and how sure that is."""
    text = _finding(verdict)
    if verdict.lost:  # seeds that MTO itself took out of the comparison
        text += f"; {verdict.lost} of {number(verdict.planned, 'seed')} left out, as MTO failed"
        text += " there: nothing is proven" * (verdict.finding is Finding.LEANS_BETTER)
    return f"{text}."


def _finding(verdict: Verdict) -> str:
    finding, result = verdict.finding, verdict.results[0]
    end, percent, label = result.end, result.score.percent, lower(result.score.label)
    seeds = number(len(end.differences), "seed")
    ended = f"{label} ended at {_levels(end, percent)}"
    if finding is Finding.UNDEFINED:
        return f"Whether MTO helped cannot be said: at the end {label} is missing or not finite"
    if finding is Finding.NOT_COMPARABLE:
        return f"Whether MTO helped cannot be decided by L_ss: {NOT_COMPARABLE} ({ended})"
    word = "better" if end.better else "worse" if end.worse else "neither better nor worse"
    start = {
        Finding.HELPED: "MTO helped",
        Finding.HARMED: "MTO did not help, it harmed",
        Finding.FASTER: "MTO helped on the way, with no proven difference at the end",
        Finding.SLOWER: "MTO harmed on the way, with no proven difference at the end",
        Finding.LEANS_BETTER: f"MTO may have helped, but {seeds} do not prove it",
        Finding.LEANS_WORSE: f"MTO did not help and may have harmed, but {seeds} do not prove it",
        Finding.NO_DIFFERENCE: f"MTO made no difference that {seeds} can show",
        Finding.ONE_SEED: f"MTO did {word} in one seed, which proves nothing",
    }[finding]
    text = f"{start}: over {seeds} {ended} ({_evidence(end, percent)})"
    if finding in (Finding.FASTER, Finding.SLOWER):
        mean = result.mean
        text += f", and was on average {_levels(mean, percent)} ({_evidence(mean, percent)})"
    return text + _reached(result)


def _levels(pairs: Pairs, percent: bool) -> str:
    return f"{show(pairs.mto, percent)} with MTO and {show(pairs.baseline, percent)} without"


def _evidence(pairs: Pairs, percent: bool) -> str:
    """Difference, interval and count; also the 97.5 % interval where that alone holds zero."""
    if len(pairs.differences) < 2:
        return gap(pairs, percent)
    interval = "no interval, as all seeds differ equally"
    if pairs.interval_95:
        interval = f"95 % interval {span(pairs.interval_95, percent)}"
    if holds_zero(pairs.interval_975) and not holds_zero(pairs.interval_95):
        interval += f" but 97.5 % interval {span(pairs.interval_975, percent)}"
    agree = max(pairs.better, pairs.worse)
    word = "worse" if pairs.worse > pairs.better else "better"
    count = f"{agree} of {len(pairs.differences)} seeds {word}"
    return f"{gap(pairs, percent)}, {interval}, {count}"


def secondary(verdict: Verdict) -> str:
    """What L_ss says besides, in one line; it decides only where the recipe logs no score."""
    loss = verdict.results[-1]
    tune = "good the representation is: fine-tuning both arms would"
    if verdict.finding is Finding.NOT_COMPARABLE:
        return f"The recipe logs no score while it pre-trains. Nothing here says how {tune}."
    if loss is verdict.results[0]:
        return f"L_ss decides, as the recipe logs no score. It does not say how {tune}."
    if verdict.moving_target:
        return f"L_ss says nothing about that: {NOT_COMPARABLE}."
    evidence = _evidence(loss.end, False)
    return f"L_ss ended at {_levels(loss.end, False)} ({evidence}){_reached(loss)}."


def _reached(result: Result) -> str:
    final = "loss" if result.score.key == LOSS.key else "score"
    found = reach(result)
    return f"; steps to the baseline's final {final}, MTO / baseline: {found}" if found else ""


def reach(result: Result) -> str:
    """MTO's steps to the baseline's final value over the baseline's own; "" where undefined."""
    known = [share for share in result.shares if share is not None]
    finite = [100 * share for share in known if math.isfinite(share)]
    if not known or len(known) < len(result.shares):
        return ""
    if not finite:
        return "not reached"
    some = "" if len(finite) == len(known) else f" in {len(finite)} of {len(known)} seeds"
    return f"{np.mean(finite):.0f} %{some}"


def show(values: Sequence[float], percent: bool = False) -> str:
    """Mean over seeds as text."""
    value = float(np.mean(values)) if len(values) else math.nan
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def show_difference(value: float, percent: bool = False) -> str:
    """A difference with its sign; percentages differ in points."""
    text = f"{100 * value:+.1f}" if percent else f"{value:+.2g}"
    return text.replace("-", "−")


def gap(pairs: Pairs, percent: bool) -> str:
    """Mean paired difference."""
    return show_difference(pairs.mean, percent) + (" points" if percent else "")


def span(ends: Interval | None, percent: bool) -> str:
    """An interval as text."""
    return " to ".join(show_difference(end, percent) for end in ends) if ends else "–"


def lower(label: str) -> str:
    """A label within a sentence; `L_ss` and `k-NN` keep their case."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def number(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
