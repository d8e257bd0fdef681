"""The report's figures; each caption states only what its figure shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np

from mto_tools.compare import summary
from mto_tools.compare.plan import ARMS, Plan
from mto_tools.compare.record import TERMS, AffinityMap, Curve, Record, by_seed, combine, of_arm
from mto_tools.compare.svg import COLOURS, DASHES, INK, NAMES, Figure, lines
from mto_tools.upstreams.recipe import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}
WIDE = (5.2, 3.1)  # inches, for two panels side by side


def draw(records: list[Record], plan: Plan) -> list[Figure]:
    """Draw all figures in the order of the page, without panels that show one constant."""
    drawn = [
        _scores(records, plan.scores),
        _loss(records, plan.moving_target),
        _images(records),
        _heterogeneity(records),
        _affinity(records),
        _terms(records),
        _gradients(records),
        _guards(records),
    ]
    return [figure for figure in drawn if figure.panels]


def varies(curves: Iterable[Curve], least: float = 0.0) -> bool:
    """Whether the values of some curves are more than one constant, by more than `least`."""
    values = np.asarray([value for curve in curves for value in curve.values])
    values = values[np.isfinite(values)]
    return values.size > 0 and bool(np.ptp(values) > max(least, 1e-9 * np.abs(values).max()))


def _add(
    figure: Figure,
    title: str,
    records: list[Record],
    pick: Callable[[Record], Curve],
    *,
    size: tuple[float, float] = (4.3, 3.0),
    label: str = "step",
    markers: bool = False,
    least: float = 0.0,
    more: Callable[[Axes], object] = lambda axes: None,
) -> None:
    """Add a panel with a curve of every run, unless they vary by no more than `least`."""
    if varies(map(pick, records), least):
        with figure.panel(title, size) as (axes,):
            lines(axes, records, pick, label=label, markers=markers)
            more(axes)
            axes.legend(loc="best")


def _scores(records: list[Record], scores: Sequence[Score]) -> Figure:
    from matplotlib.ticker import PercentFormatter

    figure = Figure("scores", "Scores against steps")
    figure.caption = "Scores of the frozen encoder while it is pre-trained."
    for score in scores:
        title = score.label + (" (%)" if score.percent else "")

        def scale(axes: Axes, percent: bool = score.percent) -> None:
            if percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))

        pick = partial(_score, key=score.key)
        _add(figure, title, records, pick, size=WIDE, markers=True, more=scale)
    return figure


def _score(record: Record, key: str) -> Curve:
    return record.scores[key]


def _loss(records: list[Record], moving_target: bool) -> Figure:
    figure = Figure("loss", "The recipe's own loss against steps")
    with figure.panel("L_ss: raw (faint) and smoothed", WIDE) as (axes,):
        for record in records:
            raw = record.curve("loss")
            axes.plot(raw.steps, raw.values, color=COLOURS[record.arm], lw=0.6, alpha=0.4)
        means = lines(axes, records, lambda record: record.curve("loss").smooth())
        # The first drop would flatten the rest: the scale begins after a quarter of the run.
        late = [v for m in means.values() for v in m.values[len(m.values) // 4 :] if np.isfinite(v)]
        if late and max(late) > min(late):
            room = 0.1 * (max(late) - min(late))
            axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(loc="upper right")
    gaps = [
        combine([record.curve("loss").smooth() for record in pair], lambda v: v[1] - v[0])
        for pair in by_seed(records)
    ]
    with figure.panel("Difference: MTO − baseline", WIDE) as (axes,):
        for gap in gaps if len(gaps) > 1 else []:
            axes.plot(gap.steps, gap.values, color=COLOURS["mto"], lw=0.7, alpha=0.4)
        axes.axhline(0, color=COLOURS["baseline"], lw=1.5, ls=DASHES["baseline"])
        mean = combine(gaps, np.mean)
        axes.plot(mean.steps, mean.values, color=COLOURS["mto"], lw=2)
        axes.set_xlabel("step")
    note = f"They are not comparable: {summary.NOT_COMPARABLE}. " if moving_target else ""
    figure.caption = (
        "The recipe's own loss, without the MTO terms, on the same batches with the same masks. "
        f"{note}Smoothed: mean of the last fifteenth of the run before each point."
    )
    return figure


def _images(records: list[Record]) -> Figure:
    figure = Figure("images", "Reconstructions")
    for record in records:
        if record.images:
            name = NAMES[record.arm]
            source = f'src="data:image/png;base64,{record.images}"'
            figure.panels.append(f'<div>{name}<img alt="Reconstructions, {name}" {source}></div>')
    figure.caption = (
        "Validation images at the end of pre-training, under the same masks in both arms. From "
        "left to right: masked input; reconstruction of the masked patches, among the visible ones "
        "as they are; target."
    )
    return figure


def _heterogeneity(records: list[Record]) -> Figure:
    figure = Figure("heterogeneity", "Heterogeneity by depth")
    figure.caption = (
        "Heterogeneity H (eq. 2) of the masked tokens; depth 0 is the input of the first block. "
        "Dotted: ln |V|, the entropy of equal attention to all visible tokens."
    )
    rows = [record.rows["heterogeneity"] for record in records if "heterogeneity" in record.rows]
    image = next((record.affinity for record in records if record.affinity), None)
    bound = math.log(len(image.maps[0]) - image.num_masked) if image else 0.0
    top = 1.06 * float(np.nanmax([bound, *(v for row in rows for h in row.values for v in h)]))

    def scale(axes: Axes) -> None:
        axes.set_ylim(-0.04 * top, top)
        if image:
            axes.axhline(bound, color=INK, lw=0.8, ls=":", label="ln |V|")

    steps = rows[0].steps if len(rows) == len(records) else []
    places = {"start": 0, "middle": len(steps) // 2, "end": -1}
    for name, index in places.items() if steps else ():
        pick = partial(by_depth, name="heterogeneity", index=index)
        title = f"H (nat), {name}: step {steps[index]}"
        _add(figure, title, records, pick, label="depth l", markers=True, more=scale)
    return figure


def by_depth(record: Record, name: str, index: int) -> Curve:
    """One line of `record.rows`, over depths in place of steps."""
    row = record.rows[name].values[index]
    return Curve(steps=list(range(len(row))), values=row)


def _affinity(records: list[Record]) -> Figure:
    figure = Figure("affinity", "Affinity maps by depth", small=True)
    images = {record.arm: record.affinity for record in records if record.affinity}
    if len(images) < len(ARMS):
        return figure
    first = images["mto"]
    for arm in ARMS:
        for depth in range(len(first.maps)):
            with figure.panel(f"{NAMES[arm]}, depth {depth}", (2.5, 4.6), rows=2) as axes:
                _maps(axes, images[arm], depth)
    figure.caption = (
        f"One image, step {first.step}. Above: softmax(X Xᵀ), with the {first.num_masked} masked "
        f"tokens before the {len(first.maps[0]) - first.num_masked} visible ones, parted by white "
        "lines. Below: softmax(X_M X_Vᵀ), the map of which H is the mean row entropy. Colours are "
        "scaled from each map's least to its largest value; the scale's numbers are probabilities."
    )
    return figure


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


def _terms(records: list[Record]) -> Figure:
    figure = Figure("terms", "MTO terms against steps")
    for term in TERMS:
        title = f"{SYMBOLS[term]}, before weighting"
        _add(figure, title, records, methodcaller("curve", term))
    added = {term: _weighted_mean(records, term) for term in TERMS}
    if varies(added.values()):
        with figure.panel("Weighted terms, MTO") as (axes,):
            for (term, curve), dash in zip(added.items(), ("-", "--", ":"), strict=True):
                axes.plot(curve.steps, curve.values, color=INK, ls=dash, label=SYMBOLS[term])
            axes.set_xlabel("step")
            axes.legend(loc="best")
    figure.caption = (
        "The three terms: only measured in the baseline, optimised with MTO. Weighted terms are "
        "the addends of the loss beside L_ss. A low L_spa or a falling H is no success in itself; "
        "see the guards."
    )
    return figure


def weighted(record: Record, term: str, of: str = "") -> Curve:
    """The term, or a field `of` it, times the weight that the run used at the same step."""
    return combine([record.curve(f"{of}{term}"), record.curve(f"weights.{term}")], math.prod)


def _weighted_mean(records: list[Record], term: str, of: str = "") -> Curve:
    return combine([weighted(record, term, of) for record in of_arm(records, "mto")], np.mean)


def _gradients(records: list[Record]) -> Figure:
    figure = Figure("gradients", "Gradients relative to L_ss")
    for term in TERMS:
        pull = _weighted_mean(records, term, "grad_ratio.")
        title = f"{SYMBOLS[term]}: gradient norm / L_ss"
        _add(
            figure,
            title,
            records,
            methodcaller("curve", f"grad_ratio.{term}"),
            markers=True,
            more=partial(_pull, pull=pull),
        )
    figure.caption = (
        "Gradient norm of each term relative to that of L_ss, at the first block's input (line at "
        "1: as large). Dotted: times the term's weight, as the MTO arm adds it."
    )
    return figure


def _pull(axes: Axes, pull: Curve) -> None:
    """Draw the weighted ratio, and scale logarithmically where all is above 0."""
    axes.plot(pull.steps, pull.values, color=COLOURS["mto"], ls=":", lw=2, label="MTO × weight")
    axes.axhline(1, color=INK, lw=0.8)
    if all(np.min(line.get_ydata(), initial=1) > 0 for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _guards(records: list[Record]) -> Figure:
    figure = Figure("guards", "Guards")
    for name in ("diagonal_mass", "masked_mass"):
        title = f"{name.replace('_', ' ').capitalize()} at depth 0"
        _add(figure, title, records, methodcaller("curve", name), least=0.005)
    if all("token_norm" in record.rows for record in records):
        pick = partial(by_depth, name="token_norm", index=-1)
        _add(figure, "Token norm at the end", records, pick, label="depth l", markers=True)
    figure.caption = (
        "Quantities that the paper leaves out, of softmax(X Xᵀ). Diagonal mass: the attention of "
        "visible tokens to themselves. Masked mass: their attention to masked ones. Token norm: "
        "with raw dot products, longer tokens alone sharpen every row."
    )
    return figure
