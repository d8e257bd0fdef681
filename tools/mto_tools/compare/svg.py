"""SVG panels for a page that is read in light, in dark, on paper and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mto_tools.compare.collect import Curve, Record, of_arm
from mto_tools.compare.plan import ARMS, ArmName

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
    "svg.fonttype": "none",
    "svg.hashsalt": "mto",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
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

        with mpl.rc_context(_STYLE):
            canvas = Canvas(figsize=size)
            axes = list(np.ravel(canvas.subplots(rows)))
            axes[0].set_title(title)
            yield axes
            buffer = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            canvas.savefig(buffer, format="svg", metadata=nothing)
        self.panels.append(_inline(buffer.getvalue(), f"{self.key}-{len(self.panels)}", title))


def _inline(svg: str, key: str, title: str) -> str:
    """Make matplotlib's SVG part of an HTML page: unique ids, no namespaces, CSS colours."""
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="image[^"]*"', "", svg)  # equal for equal pixels, and nothing refers to it
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    inner = svg[svg.index(">") + 1 :].rstrip()
    head = f'<svg {box[0]} role="img" aria-labelledby="{key}-title">'
    return f'{head}<title id="{key}-title">{title}</title>{inner}'


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at the steps that all of them logged."""
    curves = [curve for curve in curves if curve.steps]
    if not curves:
        return Curve()
    steps = sorted(set(curves[0].steps).intersection(*(curve.steps for curve in curves[1:])))
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    return Curve(steps=steps, values=[float(np.mean([t[s] for t in tables])) for s in steps])


def lines(
    axes: Axes, records: list[Record], pick: Callable[[Record], Curve], *, markers: bool = False
) -> dict[ArmName, Curve]:
    """Draw a thin line per seed and a thick one for their mean; return the means by arm."""
    means = {}
    for arm in ARMS:
        curves = [pick(record) for record in of_arm(records, arm)]
        means[arm] = mean = mean_curve(curves)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(curve.steps, curve.values, color=COLOURS[arm], lw=0.7, alpha=0.35)
        _thick(axes, arm, mean.steps, mean.values, markers)
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    return means


def profile(
    axes: Axes, records: list[Record], pick: Callable[[Record], list[float]]
) -> dict[ArmName, list[float]]:
    """As `lines`, by depth."""
    means = {}
    for arm in ARMS:
        rows = [pick(record) for record in of_arm(records, arm)]
        means[arm] = np.mean(rows, axis=0).tolist()
        for row in rows if len(rows) > 1 else []:
            axes.plot(row, color=COLOURS[arm], lw=0.7, alpha=0.35)
        _thick(axes, arm, range(len(means[arm])), means[arm], True)
    axes.set_xlabel("depth l")
    depths = len(means["mto"])
    axes.set_xticks(range(0, depths, max(1, depths // 7)))
    return means


def _thick(axes: Axes, arm: ArmName, xs: Sequence[int], ys: Sequence[float], markers: bool) -> None:
    axes.plot(
        xs,
        ys,
        color=COLOURS[arm],
        lw=2,
        ls=DASHES[arm],
        zorder=3 if arm == "baseline" else 2.5,  # dashes on top: equal curves are seen to be two
        marker="o" if markers else None,
        ms=3.5,
        label=NAMES[arm],
    )
