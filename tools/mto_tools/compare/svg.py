"""SVG panels for a page that is read in light, in dark, on paper and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mto_tools.compare.plan import ARMS, ArmName
from mto_tools.compare.record import Curve, Record, combine, of_arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib draws in these colours; CSS variables replace them, so one SVG serves all media.
INK, _GRID = "#010203", "#040506"
COLOURS: dict[ArmName, str] = {"baseline": "#070809", "mto": "#0a0b0c"}
_CSS = {
    INK: "currentColor",
    _GRID: "var(--grid)",
    COLOURS["baseline"]: "var(--baseline)",
    COLOURS["mto"]: "var(--mto)",
}
# Dashes tell the arms apart in print, or to a colour-blind reader.
DASHES: dict[ArmName, Any] = {"baseline": (0, (5, 2)), "mto": "solid"}
NAMES: dict[ArmName, str] = {"baseline": "baseline", "mto": "MTO"}

_STYLE: dict[Any, Any] = {
    **{f"{part}color": INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.6),
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": "none",
    "axes.xmargin": 0.02,
    "grid.color": _GRID,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}


@dataclass
class Figure:
    """One figure: anchor on the page, title, caption, and panels that a narrow page stacks."""

    key: str
    title: str
    caption: str = ""
    panels: list[str] = field(default_factory=list)
    small: bool = False  # many small panels, two of them side by side on a phone

    @contextmanager
    def panel(
        self, title: str, size: tuple[float, float] = (4.3, 3.0), rows: int = 1
    ) -> Iterator[list[Axes]]:
        """Draw one panel of `size` inches, its axes in `rows`; the block's end adds the SVG."""
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas

        key = f"{self.key}-{len(self.panels)}"
        with mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
            canvas = Canvas(figsize=size)
            axes = list(np.ravel(canvas.subplots(rows)))
            axes[0].set_title(title)
            yield axes
            buffer = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            canvas.savefig(buffer, format="svg", metadata=nothing)
        self.panels.append(_inline(buffer.getvalue(), title))


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
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


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
        axes.plot(
            mean.steps,
            mean.values,
            color=COLOURS[arm],
            lw=2,
            ls=DASHES[arm],
            zorder=3 if arm == "baseline" else 2.5,  # dashes on top: equal curves are seen as two
            marker="o" if markers else None,
            ms=3.5,
            label=NAMES[arm],
        )
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return means
