"""What is read off one curve, or off the two of a seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mto_tools.compare.collect import Curve

RAUC_LEAST = 0.01  # of the baseline's whole rise that the range must hold on average


def smooth(curve: Curve) -> Curve:
    """Mean over the last fifteenth of the run before each point."""
    width = max(1, round(len(curve.values) / 15))
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(curve.values, dtype=np.float64)]))
    ends = np.arange(1, len(curve.values) + 1)
    starts = np.maximum(0, ends - width)
    return Curve(steps=curve.steps, values=((sums[ends] - sums[starts]) / (ends - starts)).tolist())


def negative(curve: Curve) -> Curve:
    """The curve upside down."""
    return Curve(steps=curve.steps, values=[-value for value in curve.values])


def combined(a: Curve, b: Curve, operation: Callable[[float, float], float]) -> Curve:
    """The values of two curves put together, at the steps that both have."""
    known = dict(zip(b.steps, b.values, strict=True))
    points = [(s, v) for s, v in zip(a.steps, a.values, strict=True) if s in known]
    return Curve(steps=[s for s, _ in points], values=[operation(v, known[s]) for s, v in points])


def average(curve: Curve) -> float:
    """Mean height of a curve over its steps (trapezoids)."""
    if len(curve.steps) < 2:
        return curve.values[0] if curve.values else math.nan
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    area = float((np.diff(steps) * (values[1:] + values[:-1]) / 2).sum())
    return area / (curve.steps[-1] - curve.steps[0])


def first_reach(curve: Curve, target: float, higher_is_better: bool = True) -> float:
    """Step at which the curve first stands at `target` or better, linear in between; inf: never."""
    sign = 1.0 if higher_is_better else -1.0
    before: tuple[int, float] | None = None
    for step, value in zip(curve.steps, curve.values, strict=True):
        if sign * value >= sign * target:
            if before is None or value == before[1]:
                return float(step)
            return before[0] + (step - before[0]) * (target - before[1]) / (value - before[1])
        before = (step, value)
    return math.inf


def share_of_steps(baseline: Curve, mto: Curve, higher_is_better: bool = True) -> float | None:
    """MTO's steps to the baseline's final value over the baseline's own; see `Result`."""
    if len(baseline.steps) < 2 or not mto.steps:
        return None
    target = baseline.values[-1]
    own = first_reach(baseline, target, higher_is_better)
    if not own > baseline.steps[0]:  # it never got better than where it began
        return None
    return first_reach(mto, target, higher_is_better) / own


def rauc_or_none(baseline: Curve, mto: Curve, start: float, stop: float) -> float | None:
    """RAUC, or None where it says nothing: the baseline hardly rises, or too few points."""
    from mto_core import rauc

    if len(baseline.steps) < 2 or not start < stop:
        return None
    grid = np.linspace(start, stop, 257)
    heights = np.interp(grid, baseline.steps, baseline.values)
    # A ratio to next to nothing, or to a negative area, would mislead.
    if not heights.mean() - heights[0] > RAUC_LEAST * np.ptp(baseline.values):
        return None
    curves = [list(zip(c.steps, c.values, strict=True)) for c in (baseline, mto)]
    try:
        return float(rauc(curves[0], curves[1], start, stop))
    except ValueError:
        return None
