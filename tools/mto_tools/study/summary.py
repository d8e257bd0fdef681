"""The verdict in plain words, and its numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mto_tools.study.measures import Interval, Pairs, Passage, holds
from mto_tools.study.record import TERMS, Record, of_arm
from mto_tools.study.verdict import LOSS, Finding, Result, Verdict
from mto_tools.upstreams.recipe import Score

NOT_COMPARABLE = (
    "its target comes, in whole or in part, from a moving copy of each arm's own model, so the two "
    "arms are not measured against the same thing"
)


def sentence(verdict: Verdict, baseline: str = "baseline") -> str:
    """Say in one sentence whether an arm helped, by how much, and how sure that is."""
    text = _finding(verdict, baseline)
    if verdict.lost:  # seeds that the arm itself took out of the comparison
        text += f"; {verdict.lost} of {number(verdict.planned, 'seed')} left out, as it failed"
        text += " there: nothing is proven" * (verdict.finding is Finding.LEANS_BETTER)
    return f"{text}."


def overall(verdicts: Sequence[Verdict], baseline: str) -> str:
    """One sentence on all arms: the only one's own, or who was faster and who was not."""
    if len(verdicts) == 1:
        return sentence(verdicts[0], baseline)
    parts = []
    for finding, words in _ARMS.items():
        arms = [name_of(verdict.arm) for verdict in verdicts if verdict.finding is finding]
        parts += [f"{words}: {', '.join(arms)}"] if arms else []
    return f"{len(verdicts)} arms against {name_of(baseline)}; {'; '.join(parts)}."


def name_of(arm: str) -> str:
    """An arm on the page."""
    return "MTO" if arm == "mto" else arm


_ARMS = {
    Finding.FASTER: "faster",
    Finding.BETTER: "better at the end",
    Finding.LEANS_BETTER: "perhaps better, not proven",
    Finding.NO_DIFFERENCE: "no difference that was shown",
    Finding.ONE_SEED: "one seed, which proves nothing",
    Finding.LEANS_WORSE: "perhaps worse, not proven",
    Finding.WORSE: "worse at the end",
    Finding.SLOWER: "slower",
    Finding.NOT_COMPARABLE: "not comparable",
    Finding.UNDEFINED: "cannot be said",
}


def _finding(verdict: Verdict, baseline: str) -> str:
    finding, result, arm = verdict.finding, verdict.results[0], name_of(verdict.arm)
    end, percent, label = result.end, result.score.percent, lower(result.score.label)
    seeds = number(len(end.differences), "seed")
    ended = f"{label} ended at {_levels(end, percent, arm, baseline)}"
    if finding is Finding.UNDEFINED:
        return f"Whether {arm} helped cannot be said: at the end {label} is missing or not finite"
    if finding is Finding.NOT_COMPARABLE:
        return f"Whether {arm} helped cannot be decided by L_ss: {NOT_COMPARABLE} ({ended})"
    word = "better" if end.better else "worse" if end.worse else "neither better nor worse"
    start = {
        Finding.FASTER: f"{arm} helped, it was faster",
        Finding.BETTER: f"{arm} helped at the end, with no proven difference in speed",
        Finding.SLOWER: f"{arm} did not help, it harmed: it was slower",
        Finding.WORSE: f"{arm} harmed, it ended worse",
        Finding.LEANS_BETTER: f"{arm} may have helped, but {seeds} do not prove it",
        Finding.LEANS_WORSE: f"{arm} did not help, may have harmed, but {seeds} do not prove it",
        Finding.NO_DIFFERENCE: f"{arm} made no difference that {seeds} can show",
        Finding.ONE_SEED: f"{arm} did {word} in one seed, which proves nothing",
    }[finding]
    speed = _speed(result, verdict.confidence)
    evidence = _evidence(end, percent, verdict.confidence)
    said = result.speed is not None and reach(result) == share(result.speed.mean)
    return f"{start}: over {seeds} {speed}{ended} ({evidence}){'' if said else _reached(result)}"


def _speed(result: Result, confidence: float) -> str:
    """What the first test says."""
    speed = result.speed
    if speed is None:
        return ""
    if not math.isfinite(speed.mean):
        return "it never got better than where it began, and "
    text = f"it took {share(speed.mean)} of the baseline's {result.unit}s to the same score"
    if speed.interval_95:
        text += f" (95 % interval {shares(speed.interval_95)}"
        if holds(speed.interval, 1) and not holds(speed.interval_95, 1):
            text += f" but {100 * confidence:.4g} % interval {shares(speed.interval)}"
        text += ")"
    return f"{text}, and "


def share(value: float) -> str:
    """A share of steps."""
    return "never" if value == math.inf else f"{100 * value:.0f} %"


def shares(ends: Interval | None) -> str:
    """An interval of shares."""
    return f"{100 * ends[0]:.0f} to {100 * ends[1]:.0f} %" if ends else "–"


def _levels(pairs: Pairs, percent: bool, arm: str, baseline: str) -> str:
    without = f"{show(pairs.baseline, percent)} for {name_of(baseline)}"
    return f"{show(pairs.arm, percent)} for {arm} and {without}"


def _evidence(pairs: Pairs, percent: bool, confidence: float | None) -> str:
    """Difference, interval and count; also the interval that decides where it alone holds zero.

    Without a `confidence` the pairs decide nothing.
    """
    if len(pairs.differences) < 2:
        return gap(pairs, percent)
    interval = "no interval, as all seeds differ equally"
    if pairs.interval_95:
        interval = f"95 % interval {span(pairs.interval_95, percent)}"
    if confidence and holds(pairs.interval) and not holds(pairs.interval_95):
        interval += f" but {100 * confidence:.4g} % interval {span(pairs.interval, percent)}"
    agree = max(pairs.better, pairs.worse)
    word = "worse" if pairs.worse > pairs.better else "better"
    count = f"{agree} of {len(pairs.differences)} seeds {word}"
    return f"{gap(pairs, percent)}, {interval}, {count}"


def secondary(verdict: Verdict, baseline: str = "baseline") -> str:
    """What L_ss says besides, in one line; it decides only where there is no score."""
    loss, arm = verdict.loss, name_of(verdict.arm)
    tune = "good the representation is: mto evaluate, or fine-tuning both arms, would"
    if verdict.finding is Finding.NOT_COMPARABLE:
        return f"There is no score of the runs. Nothing here says how {tune}."
    if loss is None:
        return "The logs hold no L_ss of both arms."
    if loss is verdict.results[0]:
        return f"L_ss decides, as there is no score that every run has. It does not say how {tune}."
    if verdict.moving_target:
        return f"L_ss says nothing about that: {NOT_COMPARABLE}."
    evidence = _evidence(loss.end, False, None)
    return f"L_ss ended at {_levels(loss.end, False, arm, baseline)} ({evidence}){_reached(loss)}."


def _reached(result: Result) -> str:
    final = "loss" if result.score.key == LOSS.key else "score"
    found = reach(result)
    return f"; {result.unit}s to the baseline's final {final}, of its own: {found}" if found else ""


def reach(result: Result) -> str:
    """The arm's steps to the baseline's final value over the baseline's own; "" if undefined."""
    known = [passage.share for passage in result.passages if passage is not None]
    finite = [100 * value for value in known if math.isfinite(value)]
    if not known or len(known) < len(result.passages):
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


def passage(found: Passage | None) -> str:
    """Steps to the baseline's final value of one seed: baseline, arm, reduction."""
    if found is None:
        return "undefined"
    if found.arm == math.inf:
        return f"{found.baseline:.4g} → never"
    return f"{found.baseline:.4g} → {found.arm:.4g} ({show_difference(-found.reduction, True)} %)"


def ratio(value: float | None) -> str:
    """A RAUC of one seed."""
    return "undefined" if value is None else f"{value:.2f}"


def finals(records: Sequence[Record], arm: str, score: Score) -> list[float]:
    """The last values of an arm's runs."""
    curves = [
        record.curve("loss").smooth() if score.key == LOSS.key else record.score(score)
        for record in of_arm(records, arm)
    ]
    return [curve.values[-1] for curve in curves if curve.values]


def options(found: Mapping[str, Any]) -> str:
    """MTO's settings of an arm in a few words; "" for an unpatched run."""
    if not found:
        return ""
    weights = [f"{name} {found[name]:g}" for name in TERMS if found.get(name)]
    preset = found.get("preset") or found.get("recipe")
    balance = found.get("balance")
    return ", ".join(
        [f"preset {preset}", *weights, *([f"balance {balance:g}"] if balance is not None else [])]
    )


def terms(found: Mapping[str, Any]) -> list[bool]:
    """Which terms have a weight, in the order of `TERMS`."""
    return [bool(found.get(name)) for name in TERMS]
