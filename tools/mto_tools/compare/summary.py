"""The verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mto_tools.compare.verdict import LOSS, Finding, Interval, Pairs, Result, Verdict, holds_zero

NOT_COMPARABLE = (
    "its target comes, in whole or in part, from a moving copy of each arm's own model, so the two "
    "arms are not measured against the same thing"
)


def sentence(verdict: Verdict) -> str:
    """Say in one sentence whether MTO helped, by how much, and how sure that is."""
    return f"{_finding(verdict)}{_left_out(verdict)}."


def _finding(verdict: Verdict) -> str:
    finding, result = verdict.finding, verdict.results[0]
    end, percent, label = result.end, result.score.percent, lower(result.score.label)
    seeds = number(len(end.differences), "seed")
    if finding is Finding.UNDEFINED:
        start = "Whether MTO helped cannot be said"
        if not end.differences:
            return f"{start}: no seed has a {label} in both arms"
        bad = sum(not math.isfinite(difference) for difference in end.differences)
        return f"{start}: {label} is no finite number at the end of {bad} of {seeds}"
    ended = "ended at " + _levels(end, percent)
    if finding is Finding.NOT_COMPARABLE:
        return f"Whether MTO helped cannot be decided by L_ss: {NOT_COMPARABLE} (it {ended})"
    if finding is Finding.ONE_SEED:
        word = "better" if end.better else "worse" if end.worse else "neither better nor worse"
        which = "that is left" if verdict.planned > 1 else "that was run"
        return (
            f"MTO did {word} in the one seed {which}: {label} {ended} ({gap(end, percent)})"
            f"{speed(result)}; one seed says nothing about the spread between seeds, so this "
            "proves nothing"
        )
    if finding in (Finding.FASTER, Finding.SLOWER):
        word = "helped" if finding is Finding.FASTER else "harmed"
        return (
            f"MTO {word} on the way, with no proven difference at the end: averaged over the run, "
            f"{label} of {seeds} was {_levels(result.mean, percent)} "
            f"({_evidence(result.mean, percent)}), "
            f"while it {ended} ({_evidence(end, percent)}){speed(result)}"
        )
    start = {
        Finding.HELPED: "MTO helped",
        Finding.HARMED: "MTO did not help, it harmed",
        Finding.LEANS_BETTER: f"MTO may have helped, but {seeds} do not prove it",
        Finding.LEANS_WORSE: f"MTO did not help and may have harmed, but {seeds} do not prove it",
        Finding.NO_DIFFERENCE: f"MTO made no difference that {seeds} can show",
    }[finding]
    return f"{start}: over {seeds} {label} {ended} ({_evidence(end, percent)}){speed(result)}"


def _left_out(verdict: Verdict) -> str:
    """Clause on the seeds that MTO itself took out of the comparison."""
    if not verdict.lost:
        return ""
    verb = "is" if verdict.lost == 1 else "are"
    lost = f"; {verdict.lost} of {number(verdict.planned, 'seed')} {verb} left out because the MTO"
    proof = ", so nothing is proven" if verdict.finding is Finding.LEANS_BETTER else ""
    return f"{lost} arm failed{proof}"


def _levels(pairs: Pairs, percent: bool) -> str:
    return f"{show(pairs.mto, percent)} with MTO and {show(pairs.baseline, percent)} without"


def _evidence(pairs: Pairs, percent: bool) -> str:
    """Difference, interval and count; also the 97.5 % interval where that alone holds zero."""
    text = f"{gap(pairs, percent)}, "
    if pairs.interval_95 is None:
        text += "no interval, as all seeds differ equally"
    else:
        text += f"95 % interval {span(pairs.interval_95, percent)}"
    wide = pairs.interval_975
    if wide and holds_zero(wide) and not holds_zero(pairs.interval_95):
        text += f" but 97.5 % interval {span(wide, percent)}"
    agree = max(pairs.better, pairs.worse)
    word = "worse" if pairs.worse > pairs.better else "better"
    return f"{text}, {agree} of {len(pairs.differences)} seeds {word}"


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
    several = len(loss.end.differences) > 1
    evidence = _evidence(loss.end, False) if several else gap(loss.end, False)
    return f"L_ss ended at {_levels(loss.end, False)} ({evidence}){speed(loss)}."


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


def span(ends: Interval, percent: bool) -> str:
    """An interval as text."""
    low, high = (show_difference(value, percent) for value in ends)
    return f"{low} to {high}"


def speed(result: Result) -> str:
    """Clause on the steps to the baseline's final value; empty where that is undefined."""
    final = "the baseline's final " + ("loss" if result.score.key == LOSS.key else "score")
    known = [share for share in result.shares if share is not None]
    if not known or len(known) < len(result.shares):
        return ""
    finite = [share for share in known if math.isfinite(share)]
    if not finite:
        return f", and MTO never reached {final}"
    if len(finite) < len(known):
        return f", and MTO reached {final} in only {len(finite)} of {len(known)} seeds"
    low, mean, high = (round(100 * f(finite)) for f in (min, np.mean, max))
    spread = f" ({low} to {high})" if low < high else ""
    return f", and MTO reached {final} in {mean} %{spread} of its steps"


def lower(label: str) -> str:
    """A label within a sentence; `L_ss` and `k-NN` keep their case."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def number(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
