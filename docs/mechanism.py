"""Draw docs/mechanism-light.svg and -dark.svg, the picture at the top of the README.

Needs matplotlib. The curve is a sketch, no measurement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

WIDTH, HEIGHT = 900, 452
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#9aa4af", "mask": "#d4d9df"},
    "dark": {"ink": "#e6edf3", "soft": "#9ba7b4", "line": "#6b7683", "mask": "#3a424c"},
}
SPARSITY, SINGULARITY, RANKING = "#1f9e89", "#d9662b", "#7a6ff0"
MASKED = {0, 2, 3, 5, 6, 9, 10, 12, 15}
DEPTHS = {240: "0", 420: "1", 515: "2", 665: "L"}  # by place


def landscape(size: int = 160) -> np.ndarray:
    """A sun over two hills, [size, size, 3] in 0..1."""
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([0.45 + 0.3 * y, 0.68 + 0.15 * y, 0.95 - 0.1 * y], -1)
    image[(x - 0.68) ** 2 + (y - 0.27) ** 2 < 0.022] = (1.0, 0.83, 0.35)
    image[y > 0.58 + 0.12 * np.sin(5 * x + 2.4)] = (0.36, 0.62, 0.42)
    image[y > 0.78 + 0.1 * np.sin(4 * x)] = (0.22, 0.45, 0.34)
    return image


def box(axes: Axes, x: float, y: float, w: float, h: float, **how: object) -> None:
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=5", **how))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = "-|>,head_width=2.5,head_length=4.5"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color=color, lw=1.3))


def grid(axes: Axes, x: float, y: float, image: np.ndarray, theme: dict[str, str]) -> None:
    """The image in 4 x 4 patches, masked ones covered."""
    axes.imshow(image, extent=(x, x + 120, y + 120, y), interpolation="bilinear")
    for patch in range(16):
        place = (x + 30 * (patch % 4), y + 30 * (patch // 4))
        face = theme["mask"] if patch in MASKED else "none"
        axes.add_patch(Rectangle(place, 30, 30, facecolor=face, edgecolor=theme["line"], lw=0.8))


def tokens(axes: Axes, x: float, y: float, image: np.ndarray, theme: dict[str, str]) -> None:
    side = image.shape[0] // 4
    for patch in range(16):
        row, column = divmod(patch, 4)
        color = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        masked = patch in MASKED
        face = theme["mask"] if masked else color.mean((0, 1))
        px, py = x + 31 * column, y + 31 * row
        box(axes, px, py, 25, 25, facecolor=face, edgecolor=theme["line"], lw=0.8)
        if masked:
            axes.text(px + 12.5, py + 13, "m", ha="center", va="center", fontsize=11)


def affinity(axes: Axes, x: float, heights: list[float], title: str, note: str) -> None:
    """Bars: how one masked token's affinity is spread over the seven visible tokens."""
    for number, height in enumerate(heights):
        axes.add_patch(
            Rectangle((x + 17 * number, 338 - 62 * height), 13, 62 * height, color=SINGULARITY)
        )
    axes.plot([x - 3, x + 118], [338, 338], lw=1, color=mpl.rcParams["axes.edgecolor"])
    axes.text(x + 57, 355, title, ha="center", va="center", fontsize=12)
    axes.text(x + 57, 371, note, ha="center", va="center", fontsize=12, weight="bold")


def draw(theme: dict[str, str]) -> Figure:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    image, ink, soft = landscape(), theme["ink"], theme["soft"]

    def say(x: float, y: float, text: str, size: float = 13, **how: object) -> None:
        axes.text(x, y, text, ha="center", va="center", **{"fontsize": size, **how})

    # the recipe
    for x, text in ((70, "image in patches"), (240, "tokens, depth 0"), (830, "reconstruction")):
        say(x, 14, text, weight="bold")
    say(495, 14, "blocks that hold the mask tokens", weight="bold")
    grid(axes, 10, 28, image, theme)
    tokens(axes, 181, 29, image, theme)
    axes.imshow(image, extent=(770, 890, 148, 28), interpolation="bilinear", alpha=0.8)
    for x, label in ((350, "1"), (440, "2"), (590, "L")):
        box(axes, x, 44, 50, 88, facecolor="none", edgecolor=ink, lw=1.3)
        say(x + 25, 80, "block", color=soft, size=11)
        say(x + 25, 97, f"${label}$", size=13)
    for start, end in ((138, 172), (312, 344), (404, 434), (494, 516), (562, 584), (646, 760)):
        arrow(axes, (start, 88), (end, 88), theme["line"])
    say(539, 87, "$\\cdots$", size=16)
    say(70, 162, "most are masked", color=soft)
    say(240, 162, "m: one learned vector", color=soft)
    say(830, 162, "own loss $L_{ss}$", color=soft)

    # heterogeneity by depth
    low = 372

    def curve(x: Any) -> Any:
        return low - 140 * (np.exp(-(x - 240) / 175) * 1.02 - 0.02)

    axes.plot([205, 700], [low + 8, low + 8], color=theme["line"], lw=1)
    for x, y in ((x, curve(x)) for x in DEPTHS):
        axes.plot([x, x], [y, low + 8], color=theme["line"], lw=0.8, ls=(0, (2, 3)))
    smooth = np.linspace(240, 665, 100)
    axes.plot(smooth, curve(smooth), color=ink, lw=1.8)
    for x, label in DEPTHS.items():
        axes.plot(x, curve(x), "o", color=ink, ms=7)
        say(x, low + 24, f"depth ${label}$", color=soft)
    say(505, 208, "heterogeneity $H$ of masked tokens", weight="bold")
    say(505, 227, "entropy of their affinity to visible tokens", color=soft)

    # where the terms act
    arrow(axes, (222, 276), (222, 236), SINGULARITY)
    say(222, 208, "singularity $L_e=1/H^0$", color=SINGULARITY, weight="bold")
    arrow(axes, (352, 262), (452, 312), RANKING)
    say(560, 278, "ranking $L_r$: lower at each depth", color=RANKING, weight="bold")
    affinity(
        axes, 22, [0.42, 0.36, 0.4, 0.38, 0.43, 0.37, 0.4], "masked token, depth 0", "looks at all"
    )
    affinity(
        axes,
        772,
        [0.05, 0.03, 0.9, 0.22, 0.04, 0.1, 0.03],
        "masked token, depth $L$",
        "looks at few",
    )
    for x in (79, 829):
        say(x, 256, "affinity to the", size=12, color=soft)
        say(x, 271, "visible tokens", size=12, color=soft)
    text = "sparsity $L_{spa}$: visible tokens, too, look at few (depth 0)"
    say(452, 432, text, color=SPARSITY, weight="bold")
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    return figure


def main() -> None:
    """Write both pictures beside this file."""
    for name, theme in THEMES.items():
        colors = {"text.color": theme["ink"], "axes.edgecolor": theme["line"]}
        plain = {
            "svg.hashsalt": "mto",
            "font.family": "DejaVu Sans",
            "mathtext.fontset": "dejavusans",
        }
        with mpl.rc_context(colors | plain):
            file = Path(__file__).with_name(f"mechanism-{name}.svg")
            draw(theme).savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
