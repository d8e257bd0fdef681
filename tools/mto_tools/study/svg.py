"""Curves of both arms, in their colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mto_tools.draw import INK, colour, panel
from mto_tools.study.record import Curve, Record, arms_of, combine, of_arm
from mto_tools.study.summary import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ARMS", "COLOURS", "INK", "lines", "panel", "style"]

ARMS = 8  # colours that the page has; more arms take them again, with other dashes
COLOURS = [colour(f"var(--arm-{index})") for index in range(ARMS)]
_DASHES: list[Any] = ["-", (0, (6, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 3))]


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the arm at `index`; dashes tell the arms apart in print.

    The baseline's are on top, so that equal curves are seen as two.
    """
    dashes = {"linestyle": (0, (5, 2)), "zorder": 3}
    if index:
        dashes = {"linestyle": _DASHES[(index - 1) % len(_DASHES)], "zorder": 2.5}
    return {"color": COLOURS[index % ARMS], **dashes}


def lines(
    axes: Axes,
    records: list[Record],
    pick: Callable[[Record], Curve],
    *,
    label: str = "",
    markers: bool = False,
) -> dict[str, Curve]:
    """Draw a thin line per seed and a thick one for their mean; return the means by arm.

    Args:
        axes: Where they are drawn.
        records: The runs.
        pick: Gives the curve of one.
        label: Of the x axis; default: what the curves count.
        markers: Mark each point.
    """
    from matplotlib.ticker import MaxNLocator

    means = {}
    for index, arm in enumerate(arms_of(records)):
        curves = [curve for curve in map(pick, of_arm(records, arm)) if curve.at]
        if not curves:
            continue
        means[arm] = mean = combine(curves, np.mean)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(curve.at, curve.values, color=style(index)["color"], lw=0.7, alpha=0.35)
        marker: dict[str, Any] = {"marker": "o", "ms": 3.5} if markers else {}
        axes.plot(mean.at, mean.values, lw=2, label=name_of(arm), **marker, **style(index))
    axes.set_xlabel(label or next((mean.unit for mean in means.values()), "step"))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return means
