"""The panels of the report's figures; the template has their captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np

from mto_tools.study.measures import passage
from mto_tools.study.record import AffinityMap, Curve, Record, arms_of, by_seed, combine, of_arm
from mto_tools.study.summary import name_of
from mto_tools.study.svg import INK, lines, panel, style
from mto_tools.upstreams.recipe import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panels = list[str]  # HTML
SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}


def draw(records: list[Record], scores: Sequence[Score]) -> dict[str, Panels]:
    """Draw all figures in the order of the page, without panels that show one constant."""
    drawn = {
        "scores": _scores(records, scores),
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
    label: str = "",
    markers: bool = False,
    more: Callable[[Axes, dict[str, Curve]], object] = lambda axes, means: None,
) -> None:
    """Add a panel with a curve of every run, unless they show one constant."""
    if varies(map(pick, records)):
        with panel(panels, title) as (axes,):
            means = lines(axes, records, pick, label=label, markers=markers)
            more(axes, means)
            # That of many arms would hide the curves.
            axes.legend(loc="best", fontsize="medium" if len(means) < 5 else "xx-small")


def _scores(records: list[Record], scores: Sequence[Score]) -> Panels:
    panels: Panels = []
    for score in scores:
        title = score.label + (" (%)" if score.percent else "")
        pick = partial(_score, score=score)
        more = partial(_reductions, arms=arms_of(records), rising=score.higher_is_better)
        _add(panels, title, records, pick, markers=True, more=more)
    return panels


def _score(record: Record, score: Score) -> Curve:
    return record.score(score).map(lambda value: 100 * value if score.percent else value)


def _reductions(axes: Axes, means: dict[str, Curve], arms: list[str], rising: bool) -> None:
    """Arrows from the baseline's first passage of its final value to that of each arm (Figure 4).

    Each stands a little farther from the curves than the one before, so that all can be seen.
    """
    sign = 1 if rising else -1
    up = {name: curve.map(lambda value: sign * value) for name, curve in means.items() if curve.at}
    baseline = up.get(arms[0])
    low, high = axes.get_ylim()
    room = 0.0
    for index, name in enumerate(arms):
        arm = up.get(name) if index else None
        found = passage(baseline, arm) if baseline and arm else None
        if baseline is None or found is None or not found.arm < found.baseline:
            continue
        height = sign * (baseline.values[-1] - room * (high - low))
        colour = style(index)["color"]
        arrow = {"arrowstyle": "->", "color": colour, "lw": 1.2}
        axes.annotate("", (found.arm, height), (found.baseline, height), arrowprops=arrow)
        text = f"\N{MINUS SIGN}{100 * found.reduction:.0f} % "
        va = "bottom" if rising else "top"  # where no curve is
        axes.text(found.arm, height, text, color=colour, ha="right", va=va, fontsize=9)
        room += 0.08


def _loss(records: list[Record]) -> Panels:
    panels: Panels = []
    arms = arms_of(records)
    if not any(record.curve("loss").at for record in records):
        return panels
    with panel(panels, "L_ss: raw (faint) and smoothed") as (axes,):
        for record in records:
            raw, colour = record.curve("loss"), style(arms.index(record.arm))["color"]
            axes.plot(raw.at, raw.values, color=colour, lw=0.6, alpha=0.4)
        means = lines(axes, records, _smooth_loss)
        # The first drop would flatten the rest: the scale begins after a quarter of the run.
        late = [v for m in means.values() for v in m.values[len(m.values) // 4 :] if np.isfinite(v)]
        if room := 0.1 * float(np.ptp(late or [0])):
            axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(loc="upper right")
    other = f"{name_of(arms[1])} \N{MINUS SIGN} " if len(arms) == 2 else "arm \N{MINUS SIGN} "
    with panel(panels, f"Difference: {other}{name_of(arms[0])}") as (axes,):
        unit = "step"
        for index, arm in enumerate(arms[1:], start=1):
            gaps = [
                combine([*map(_smooth_loss, pair)], lambda values: values[1] - values[0])
                for pair in by_seed(records, arm)
            ]
            gaps = [gap for gap in gaps if gap.at]
            for gap in gaps:
                axes.plot(gap.at, gap.values, color=style(index)["color"], lw=0.7, alpha=0.4)
            mean = combine(gaps, np.mean)
            axes.plot(mean.at, mean.values, lw=2, **style(index))
            unit = mean.unit if mean.at else unit
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_xlabel(unit)
    return panels


def _smooth_loss(record: Record) -> Curve:
    return record.curve("loss").smooth()


def _images(records: list[Record]) -> Panels:
    return [
        f"<div>{escape(name_of(record.arm))}"
        f'<img alt="Reconstructions, {escape(name_of(record.arm))}" '
        f'src="data:image/png;base64,{record.images}"></div>'
        for record in records
        if record.images
    ]


def _heterogeneity(records: list[Record]) -> Panels:
    panels: Panels = []
    image = next((record.affinity for record in records if record.affinity), None)

    def scale(axes: Axes, means: dict[str, Curve]) -> None:
        if image:
            axes.axhline(math.log(image.num_visible), color=INK, lw=0.8, ls=":", label="ln |V|")
        axes.set_ylim(bottom=0)

    steps = next((r.rows["heterogeneity"].steps for r in records if "heterogeneity" in r.rows), [])
    places = {"start": 0, "middle": len(steps) // 2, "end": -1} if steps else {}
    for name, index in places.items():
        pick = partial(by_depth, name="heterogeneity", index=index)
        title = f"H (nat), {name}: step {steps[index]}"
        _add(panels, title, records, pick, label="depth l", markers=True, more=scale)
    return panels


def by_depth(record: Record, name: str, index: int) -> Curve:
    """One line of `record.rows`, over depths in place of steps; empty where there is none."""
    values = record.rows[name].values if name in record.rows else []
    row = values[min(index, len(values) - 1)] if values else []
    return Curve(at=[*map(float, range(len(row)))], values=row)


def _affinity(records: list[Record]) -> Panels:
    """Maps of the first two arms that have some: those of all would make a page of megabytes."""
    panels: Panels = []
    images = {record.arm: record.affinity for record in records if record.affinity}
    for arm, image in [*images.items()][:2]:
        for depth in range(len(image.maps)):
            with panel(panels, f"{name_of(arm)}, depth {depth}", size=(2.5, 4.6), rows=2) as axes:
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
    for arm in arms_of(records)[1:]:
        added = {symbol: weighted(of_arm(records, arm), term) for term, symbol in SYMBOLS.items()}
        if varies(added.values()):
            with panel(panels, f"Weighted terms, {name_of(arm)}") as (axes,):
                for (symbol, curve), dash in zip(added.items(), ("-", "--", ":"), strict=True):
                    axes.plot(curve.at, curve.values, color=INK, ls=dash, label=symbol)
                axes.set_xlabel("step")
                axes.legend(loc="best")
    return panels


def weighted(records: list[Record], term: str, of: str = "") -> Curve:
    """Mean over an arm's seeds of a term, or of a field `of` it, times its weight at that step."""
    runs = [
        combine([record.curve(f"{of}{term}"), record.curve(f"weights.{term}")], math.prod)
        for record in records
    ]
    return combine(runs, np.mean)


def _gradients(records: list[Record]) -> Panels:
    panels: Panels = []
    for term, symbol in SYMBOLS.items():
        pick = methodcaller("curve", f"grad_ratio.{term}")
        pulls = {
            arm: weighted(of_arm(records, arm), term, of="grad_ratio.")
            for arm in arms_of(records)[1:]
        }
        title = f"{symbol}: gradient norm / L_ss"
        _add(panels, title, records, pick, markers=True, more=partial(_pull, pulls=pulls))
    return panels


def _pull(axes: Axes, means: dict[str, Curve], pulls: dict[str, Curve]) -> None:
    """Draw the weighted ratios, on a logarithmic scale that leaves out zeros."""
    for index, (arm, pull) in enumerate(pulls.items(), start=1):
        if pull.at:
            label = f"{name_of(arm)} × weight"
            axes.plot(pull.at, pull.values, color=style(index)["color"], ls=":", lw=2, label=label)
    axes.axhline(1, color=INK, lw=0.8)
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _guards(records: list[Record]) -> Panels:
    panels: Panels = []
    for name in ("diagonal_mass", "masked_mass"):
        title = f"{name.replace('_', ' ').capitalize()} where L_spa acts"
        _add(panels, title, records, methodcaller("curve", name))
    pick = partial(by_depth, name="token_norm", index=-1)
    _add(panels, "Token norm at the end", records, pick, label="depth l", markers=True)
    return panels
