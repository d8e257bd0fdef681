"""SVG panels for a page that is read in light, in dark, on paper and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CSS: dict[str, str] = {}


def colour(css: str) -> str:
    """A colour of matplotlib's for a CSS one, which replaces it: one SVG serves all media."""
    found = {value: key for key, value in _CSS.items()}.get(css, f"#07{len(_CSS):02x}09")
    _CSS[found] = css
    return found


INK, _GRID = colour("currentColor"), colour("var(--grid)")

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
    for drawn, css in _CSS.items():
        svg = svg.replace(drawn, css)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
