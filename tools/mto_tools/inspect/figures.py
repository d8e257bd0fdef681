"""The panels of the page; the template has their captions."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from mto_tools.draw import INK, colour, panel
from mto_tools.inspect.report import Inspection
from mto_tools.inspect.run import Seen

COLOURS = [colour(f"var(--c{number})") for number in range(6)]
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2))]
TITLES = {
    "heterogeneity": "Heterogeneity H, nats",
    "similarity": "Cosine of masked and visible tokens",
    "masked_norm": "Norm of masked tokens",
    "visible_norm": "Norm of visible tokens",
    "diagonal_mass": "Diagonal mass",
    "masked_mass": "Masked mass",
}


@dataclass(frozen=True)
class Map:
    """An affinity map as a PNG, with its least and largest value."""

    png: str  # in base 64
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """What the page shows of one list of blocks."""

    name: str
    heterogeneity: str  # SVG
    others: list[str]  # SVG
    maps: list[list[Map]]  # by checkpoint, then depth; none where depths differ in tokens
    first: int  # masked tokens of the image of the maps


def draw(inspection: Inspection, seen: list[Seen]) -> list[Figures]:
    """Draw all panels, for every list of blocks."""
    found = []
    for n, blocks in enumerate(inspection.checkpoints[0].blocks):
        panels: list[str] = []
        for name in TITLES:
            _curves(panels, inspection, n, name)
        maps = [
            [_map(values, int(one.arrays[f"{n}/first"])) for values in one.arrays[f"{n}/maps"]]
            for one in seen
            if f"{n}/maps" in one.arrays
        ]
        first = int(seen[0].arrays[f"{n}/first"]) if maps else 0
        found.append(Figures(blocks.name, panels[0], panels[1:], maps, first))
    return found


def _curves(panels: list[str], inspection: Inspection, n: int, name: str) -> None:
    """A measure by depth: a line for each checkpoint, in a band of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    large = name == "heterogeneity"
    size = (5.2, 3.3) if large else (3.6, 2.5)
    with panel(panels, f"{TITLES[name]} ({n})" if n else TITLES[name], size=size) as (axes,):
        axes.set_title(TITLES[name])
        for index, one in enumerate(inspection.checkpoints):
            blocks = one.blocks[n]
            mean, std = (
                np.array(values, dtype=float)
                for values in (blocks.measures[name].mean, blocks.measures[name].std)
            )
            depths = np.arange(len(mean))
            style = {"color": COLOURS[index % len(COLOURS)], "ls": _DASHES[index % len(_DASHES)]}
            axes.fill_between(
                depths, mean - std, mean + std, color=style["color"], alpha=0.15, lw=0
            )
            axes.plot(depths, mean, lw=1.8, marker="o", ms=3, label=one.label, **style)
        if large:
            first = inspection.checkpoints[0].blocks[n]
            visible = np.subtract(first.tokens, first.masked).clip(min=1)
            axes.plot(np.log(visible), color=INK, ls=":", lw=1, label="ln |V|")
            axes.legend(loc="best", fontsize=9)
        if name.endswith("_mass"):
            axes.set_ylim(-0.02, 1.02)  # shares; many are as good as 0
        axes.set_xlabel("depth")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def _map(values: np.ndarray[Any, Any], masked: int) -> Map:
    """Scale a map [N, N] to its own extremes; a white line parts masked from visible tokens."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / ((high - low) or 1)
    for axis in (0, 1):
        scaled = np.insert(scaled, masked, np.nan, axis)
    out = io.BytesIO()
    imsave(out, colormaps["cividis"].with_extremes(bad="white")(scaled), format="png")
    return Map(base64.b64encode(out.getvalue()).decode(), low, high)
