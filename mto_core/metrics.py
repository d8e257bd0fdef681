"""How much faster a pre-training run gets good: RAUC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

Curve: TypeAlias = Sequence[tuple[float, float]]


def rauc(baseline: Curve, target: Curve, start: float, stop: float) -> float:
    """Relative area under the curve (eq 8 of arXiv 2404.08330).

    How much more the target gained than the baseline: both areas lie above the baseline's score at
    `start`. 1 means no difference, 1.3 that the target's area is 30 % larger. Curves are linear
    between their points.

    Args:
        baseline: (epoch, score) pairs with rising epochs, at least two; it must cover the range.
        target: As `baseline`; its epochs may be others.
        start: First epoch of the range (E1).
        stop: Last epoch of the range (E2), after `start`.

    Returns:
        Area of the target over area of the baseline.

    Raises:
        ValueError: A curve is too short, unsorted, not finite or does not cover the range; or the
            baseline's area is 0, so that there is nothing to relate to.

    Example:
        >>> rauc([(0, 10), (100, 20)], [(0, 10), (50, 20), (100, 20)], start=0, stop=100)
        1.5
    """
    if not (math.isfinite(start) and math.isfinite(stop) and start < stop):
        raise ValueError(f"the range must have start < stop, got start={start}, stop={stop}")
    for name, curve in (("baseline", baseline), ("target", target)):
        _check(curve, name, start, stop)
    floor = _at(baseline, start)

    def area(curve: Curve) -> float:
        epochs = [start, *(x for x, _ in curve if start < x < stop), stop]
        points = [(x, _at(curve, x) - floor) for x in epochs]
        return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))

    own = area(baseline)
    if own == 0:
        raise ValueError(
            f"the baseline's area above its score {floor} at epoch {start} is 0: RAUC is undefined"
        )
    return area(target) / own


def _at(curve: Curve, epoch: float) -> float:
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(curve) if a[0] <= epoch <= b[0])
    return y1 if epoch == x1 else y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)


def _check(curve: Curve, name: str, start: float, stop: float) -> None:
    if len(curve) < 2:
        raise ValueError(f"{name} needs at least two (epoch, score) points, got {len(curve)}")
    for x, y in curve:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{name} has a point that is not finite: ({x}, {y})")
    for (x0, _), (x1, _) in pairwise(curve):
        if x1 <= x0:
            raise ValueError(f"{name}: epochs must rise, but {x1} follows {x0}")
    first, last = curve[0][0], curve[-1][0]
    if start < first or stop > last:
        raise ValueError(
            f"{name} covers epochs {first} to {last}, which does not contain {start} to {stop}"
        )
