"""The panels of the report's figures; the template has their captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np

from mto_tools.study.plan import ARMS, Plan
from mto_tools.study.record import AffinityMap, Curve, Record, by_seed, combine, of_arm
from mto_tools.study.svg import COLOURS, INK, NAMES, lines, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panels = list[str]  # HTML
SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}


def draw(records: list[Record], plan: Plan) -> dict[str, Panels]:
    """Draw all figures in the order of the page, without panels that show one constant."""
    drawn = {
        "scores": _scores(records, plan),
        "loss": _loss(records),
        "images": _images(records),
        "heterogeneity": _heterogeneity(records),
        "affinity": _affinity(records),
        "terms": _terms(records),
        "gradients": _gradients(records),
        "guards": _guards(records),
    }
    return {name: panels for name, panels in drawn.items() if panels}


def varies(curves: Iterable[Curve]) -> bool:
    """Whether the values of some curves are more than one constant; tiny changes do not count."""
    values = np.asarray([value for curve in curves for value in curve.values])
    values = values[np.isfinite(values)]
    return values.size > 0 and bool(np.ptp(values) > max(1e-6, 1e-3 * np.abs(values).max()))


def _add(
    panels: Panels,
    title: str,
    records: list[Record],
    pick: Callable[[Record], Curve],
    *,
    label: str = "step",
    markers: bool = False,
    more: Callable[[Axes], object] = lambda axes: None,
) -> None:
    """Add a panel with a curve of every run, unless they show one constant."""
    if varies(map(pick, records)):
        with panel(panels, title) as (axes,):
            lines(axes, records, pick, label=label, markers=markers)
            more(axes)
            axes.legend(loc="best")


def _scores(records: list[Record], plan: Plan) -> Panels:
    panels: Panels = []
    for score in plan.scores:
        title = score.label + (" (%)" if score.percent else "")
        pick = partial(_score, key=score.key, factor=100 if score.percent else 1)
        _add(panels, title, records, pick, markers=True)
    return panels


def _score(record: Record, key: str, factor: float) -> Curve:
    return record.scores[key].map(lambda value: factor * value)


def _loss(records: list[Record]) -> Panels:
    panels: Panels = []
    with panel(panels, "L_ss: raw (faint) and smoothed") as (axes,):
        for record in records:
            raw = record.curve("loss")
            axes.plot(raw.steps, raw.values, color=COLOURS[record.arm], lw=0.6, alpha=0.4)
        means = lines(axes, records, _smooth_loss)
        # The first drop would flatten the rest: the scale begins after a quarter of the run.
        late = [v for m in means.values() for v in m.values[len(m.values) // 4 :] if np.isfinite(v)]
        if room := 0.1 * float(np.ptp(late or [0])):
            axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(loc="upper right")
    gaps = [
        combine([*map(_smooth_loss, pair)], lambda values: values[1] - values[0])
        for pair in by_seed(records)
    ]
    with panel(panels, "Difference: MTO − baseline") as (axes,):
        for gap in gaps:
            axes.plot(gap.steps, gap.values, color=COLOURS["mto"], lw=0.7, alpha=0.4)
        mean = combine(gaps, np.mean)
        axes.plot(mean.steps, mean.values, color=COLOURS["mto"], lw=2)
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_xlabel("step")
    return panels


def _smooth_loss(record: Record) -> Curve:
    return record.curve("loss").smooth()


def _images(records: list[Record]) -> Panels:
    return [
        f'<div>{NAMES[record.arm]}<img alt="Reconstructions, {NAMES[record.arm]}" '
        f'src="data:image/png;base64,{record.images}"></div>'
        for record in records
        if record.images
    ]


def _heterogeneity(records: list[Record]) -> Panels:
    panels: Panels = []
    image = next((record.affinity for record in records if record.affinity), None)

    def scale(axes: Axes) -> None:
        if image:
            axes.axhline(math.log(image.num_visible), color=INK, lw=0.8, ls=":", label="ln |V|")
        axes.set_ylim(bottom=0)

    if any("heterogeneity" not in record.rows for record in records):
        return panels
    steps = records[0].rows["heterogeneity"].steps
    for name, index in {"start": 0, "middle": len(steps) // 2, "end": -1}.items():
        pick = partial(by_depth, name="heterogeneity", index=index)
        title = f"H (nat), {name}: step {steps[index]}"
        _add(panels, title, records, pick, label="depth l", markers=True, more=scale)
    return panels


def by_depth(record: Record, name: str, index: int) -> Curve:
    """One line of `record.rows`, over depths in place of steps."""
    row = record.rows[name].values[index]
    return Curve(steps=list(range(len(row))), values=row)


def _affinity(records: list[Record]) -> Panels:
    panels: Panels = []
    images = {record.arm: record.affinity for record in records if record.affinity}
    for arm, image in images.items() if len(images) == len(ARMS) else ():
        for depth in range(len(image.maps)):
            with panel(panels, f"{NAMES[arm]}, depth {depth}", size=(2.5, 4.6), rows=2) as axes:
                _maps(axes, image, depth)
    return panels


def _maps(axes: list[Axes], image: AffinityMap, depth: int) -> None:
    """Draw the affinity of one depth, and below it its quadrant from masked to visible tokens."""
    maps = {"X Xᵀ": image.maps[depth], "X_M X_Vᵀ": image.masked_to_visible[depth]}
    for place, (name, values) in zip(axes, maps.items(), strict=True):
        place.set(xticks=[], yticks=[], ylabel=f"softmax({name})")
        place.grid(False)
        shown = place.imshow(values, cmap="cividis", interpolation="nearest", aspect="auto")
        scale = place.figure.colorbar(shown, ax=place, orientation="horizontal", format="{x:.2g}")
        scale.set_ticks(sorted({float(np.min(values)), float(np.max(values))}))
    for line in (axes[0].axhline, axes[0].axvline):
        line(image.num_masked - 0.5, color="white", lw=0.8)


def _terms(records: list[Record]) -> Panels:
    panels: Panels = []
    for term, symbol in SYMBOLS.items():
        _add(panels, f"{symbol}, before weighting", records, methodcaller("curve", term))
    added = {symbol: weighted(records, term) for term, symbol in SYMBOLS.items()}
    if varies(added.values()):
        with panel(panels, "Weighted terms, MTO") as (axes,):
            for (symbol, curve), dash in zip(added.items(), ("-", "--", ":"), strict=True):
                axes.plot(curve.steps, curve.values, color=INK, ls=dash, label=symbol)
            axes.set_xlabel("step")
            axes.legend(loc="best")
    return panels


def weighted(records: list[Record], term: str, of: str = "") -> Curve:
    """Mean over MTO's seeds of a term, or of a field `of` it, times its weight at that step."""
    runs = [
        combine([record.curve(f"{of}{term}"), record.curve(f"weights.{term}")], math.prod)
        for record in of_arm(records, "mto")
    ]
    return combine(runs, np.mean)


def _gradients(records: list[Record]) -> Panels:
    panels: Panels = []
    for term, symbol in SYMBOLS.items():
        pick = methodcaller("curve", f"grad_ratio.{term}")
        more = partial(_pull, pull=weighted(records, term, of="grad_ratio."))
        title = f"{symbol}: gradient norm / L_ss"
        _add(panels, title, records, pick, markers=True, more=more)
    return panels


def _pull(axes: Axes, pull: Curve) -> None:
    """Draw the weighted ratio, on a logarithmic scale that leaves out zeros."""
    axes.plot(pull.steps, pull.values, color=COLOURS["mto"], ls=":", lw=2, label="MTO × weight")
    axes.axhline(1, color=INK, lw=0.8)
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _guards(records: list[Record]) -> Panels:
    panels: Panels = []
    for name in ("diagonal_mass", "masked_mass"):
        title = f"{name.replace('_', ' ').capitalize()} where L_spa acts"
        _add(panels, title, records, methodcaller("curve", name))
    if all("token_norm" in record.rows for record in records):
        pick = partial(by_depth, name="token_norm", index=-1)
        _add(panels, "Token norm at the end", records, pick, label="depth l", markers=True)
    return panels
