"""SVG panels for a page that is read in light, in dark, on paper and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mto_tools.study.record import Curve, Record, arms_of, combine, of_arm
from mto_tools.study.summary import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib draws in these colours; CSS variables replace them, so one SVG serves all media.
INK, _GRID = "#010203", "#040506"
ARMS = 8  # colours that the page has; more arms take them again, with other dashes
COLOURS = [f"#0708{10 + index:02x}" for index in range(ARMS)]
_CSS = {
    INK: "currentColor",
    _GRID: "var(--grid)",
    **{colour: f"var(--arm-{index})" for index, colour in enumerate(COLOURS)},
}
_DASHES: list[Any] = ["-", (0, (6, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 3))]


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the arm at `index`; dashes tell the arms apart in print.

    The baseline's are on top, so that equal curves are seen as two.
    """
    dashes = {"linestyle": (0, (5, 2)), "zorder": 3}
    if index:
        dashes = {"linestyle": _DASHES[(index - 1) % len(_DASHES)], "zorder": 2.5}
    return {"color": COLOURS[index % ARMS], **dashes}


_STYLE: dict[Any, Any] = {
    **{f"{part}color": INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.6),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "svg.fonttype": "none",
    "font.size": 10,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "grid.color": _GRID,
    "figure.constrained_layout.use": True,
    "legend.handlelength": 2.6,
}


@contextmanager
def panel(
    panels: list[str], title: str, *, size: tuple[float, float] = (4.3, 3.0), rows: int = 1
) -> Iterator[list[Axes]]:
    """Draw a panel of `size` inches, its axes in `rows`; the block's end adds the SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size)
        axes = list(np.ravel(figure.subplots(rows)))
        axes[0].set_title(title)
        yield axes
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    panels.append(_inline(buffer.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Make matplotlib's SVG part of an HTML page: no namespaces, CSS colours, unique ids.

    Ids that are hashes of content and salt are referred to, and unique; the others are not.
    """
    svg = svg[svg.index("<svg") :].replace("xlink:href=", "href=").rstrip()
    svg = re.sub(r' id="(?![mp][\da-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"| xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


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
