"""Curves of both arms, in their colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mto_tools.draw import INK, colour, panel
from mto_tools.study.plan import ARMS, ArmName
from mto_tools.study.record import Curve, Record, combine, of_arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "INK", "NAMES", "lines", "panel"]

COLOURS: dict[ArmName, str] = {"baseline": colour("var(--baseline)"), "mto": colour("var(--mto)")}
# Dashes tell the arms apart in print; they are on top, so that equal curves are seen as two.
_LINES: dict[ArmName, dict[str, Any]] = {
    "baseline": {"linestyle": (0, (5, 2)), "zorder": 3},
    "mto": {"zorder": 2.5},
}
NAMES: dict[ArmName, str] = {"baseline": "baseline", "mto": "MTO"}


def lines(
    axes: Axes,
    records: list[Record],
    pick: Callable[[Record], Curve],
    *,
    label: str = "step",
    markers: bool = False,
) -> dict[ArmName, Curve]:
    """Draw a thin line per seed and a thick one for their mean; return the means by arm."""
    from matplotlib.ticker import MaxNLocator

    means = {}
    for arm in ARMS:
        curves = [curve for curve in map(pick, of_arm(records, arm)) if curve.steps]
        means[arm] = mean = combine(curves, np.mean)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(curve.steps, curve.values, color=COLOURS[arm], lw=0.7, alpha=0.35)
        marker = {"marker": "o", "ms": 3.5} if markers else {}
        style = {"color": COLOURS[arm], "lw": 2, "label": NAMES[arm], **marker, **_LINES[arm]}
        axes.plot(mean.steps, mean.values, **style)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return means
