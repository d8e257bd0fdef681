"""The report's figures; each caption states only what its figure shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter, mul, sub
from typing import TYPE_CHECKING

import numpy as np

from mto_tools.compare import summary
from mto_tools.compare.collect import TERMS, AffinityMap, Curve, Record, Rows, by_seed, of_arm
from mto_tools.compare.curves import combined, smooth
from mto_tools.compare.plan import ARMS
from mto_tools.compare.report import Report
from mto_tools.compare.svg import COLOURS, DASHES, INK, NAMES, Figure, lines, mean_curve, profile
from mto_tools.upstreams.recipe import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}
NORMAL = (4.3, 3.0)  # inches, for three panels side by side
WIDE = (5.2, 3.1)  # for two


def draw(report: Report) -> list[Figure]:
    """Draw all figures in the order of the page, without panels that show one constant."""
    records = report.records
    drawn = [
        _scores(records, report.plan.scores),
        _loss(records, report.verdict.moving_target),
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
    size: tuple[float, float] = NORMAL,
    markers: bool = False,
    least: float = 0.0,
    more: Callable[[Axes], None] = lambda axes: None,
) -> None:
    """Add a panel with a curve of every run, unless they vary by no more than `least`."""
    if varies(map(pick, records), least):
        with figure.panel(title, size) as (axes,):
            lines(axes, records, pick, markers=markers)
            more(axes)
            axes.legend(loc="best")


def _scores(records: list[Record], scores: Sequence[Score]) -> Figure:
    figure, seen = Figure("scores", "Scores against steps"), []
    for score in scores:
        last = {
            arm: [v for r in of_arm(records, arm) for v in r.scores[score.key].values[-1:]]
            for arm in ARMS
        }
        ends = [f"{NAMES[arm]} {summary.show(last[arm], score.percent)}" for arm in ARMS]
        seen.append(f"{score.label}: {', '.join(ends)}.")
        title = score.label + (" (%)" if score.percent else "")
        _add(figure, title, records, partial(_score, score=score), size=WIDE, markers=True)
    figure.caption = (
        f"Scores of the frozen encoder while it is pre-trained. At the end: {' '.join(seen)}"
        + _thin(records)
    )
    return figure


def _score(record: Record, score: Score) -> Curve:
    curve, factor = record.scores[score.key], 100 if score.percent else 1
    return Curve(steps=curve.steps, values=[factor * value for value in curve.values])


def _thin(records: list[Record]) -> str:
    seeds = len(of_arm(records, "mto"))
    return f" Thick: mean of {seeds} seeds; thin: each seed." if seeds > 1 else ""


def _loss(records: list[Record], moving_target: bool) -> Figure:
    figure = Figure("loss", "The recipe's own loss against steps")
    with figure.panel("L_ss: raw (faint) and smoothed", WIDE) as (axes,):
        for record in records:
            colour = COLOURS[record.arm]
            axes.plot(record.loss.steps, record.loss.values, color=colour, lw=0.6, alpha=0.4)
        means = lines(axes, records, lambda record: smooth(record.loss))
        # The first drop would flatten the rest: the scale begins after a quarter of the run.
        late = [v for m in means.values() for v in m.values[len(m.values) // 4 :] if np.isfinite(v)]
        if late and max(late) > min(late):
            room = 0.1 * (max(late) - min(late))
            axes.set_ylim(min(late) - room, max(late) + room)
        axes.legend(loc="upper right")
    gaps = [combined(smooth(m.loss), smooth(b.loss), sub) for b, m in by_seed(records)]
    mean = mean_curve(gaps)
    with figure.panel("Difference: MTO − baseline", WIDE) as (axes,):
        for gap in gaps if len(gaps) > 1 else []:
            axes.plot(gap.steps, gap.values, color=COLOURS["mto"], lw=0.7, alpha=0.4)
        axes.axhline(0, color=COLOURS["baseline"], lw=1.5, ls=DASHES["baseline"])
        axes.plot(mean.steps, mean.values, color=COLOURS["mto"], lw=2)
        axes.set_xlabel("step")
    below = sum(value < 0 for value in mean.values)
    seen = (
        f"MTO is lower at {below} of {len(mean.values)} logged steps (second panel: below the "
        f"dashed line). At the end MTO − baseline is "
        f"{summary.show_difference(mean.values[-1] if mean.values else np.nan)}"
    )
    figure.caption = (
        "The recipe's own loss, without the MTO terms, on the same batches with the same masks. "
        f"{summary.NOT_COMPARABLE if moving_target else seen}. "
        "Smoothed: mean of the last fifteenth of the run before each point." + _thin(records)
    )
    return figure


def _heterogeneity(records: list[Record]) -> Figure:
    figure = Figure("heterogeneity", "Heterogeneity by depth")
    if not all(record.heterogeneity.steps for record in records):
        return figure
    steps = records[0].heterogeneity.steps
    bound = _most_heterogeneity(records)
    rows = [row for record in records for row in record.heterogeneity.values]
    top = 1.06 * float(np.nanmax([*np.ravel(rows), bound or 0.0]))
    for name, index in zip(("start", "middle", "end"), (0, len(steps) // 2, -1), strict=True):
        with figure.panel(f"H (nat), {name}: step {steps[index]}") as (axes,):
            means = profile(axes, records, partial(_row, index=index))
            if bound is not None:
                axes.axhline(bound, color=INK, lw=0.8, ls=":", label="ln |V|")
            axes.set_ylim(-0.04 * top, top)
            axes.legend(loc="best")
    falls = "; ".join(
        f"{NAMES[arm]} from {means[arm][0]:.3g} at depth 0 to {means[arm][-1]:.3g} at depth "
        f"{len(means[arm]) - 1}"
        for arm in ARMS
    )
    figure.caption = (
        "Heterogeneity H (eq. 2) of the masked tokens; depth 0 is the input of the first block. "
        "Dotted: ln |V|, the entropy of equal attention to all visible tokens. "
        f"At the end: {falls}." + _thin(records)
    )
    return figure


def _most_heterogeneity(records: list[Record]) -> float | None:
    """ln |V| of the image whose affinity was saved; None where none was."""
    first = next((record.affinity for record in records if record.affinity), None)
    return None if first is None else float(np.log(len(first.maps[0]) - first.num_masked))


def _row(record: Record, index: int, of: str = "heterogeneity") -> list[float]:
    rows: Rows = getattr(record, of)
    return rows.values[index]


def _affinity(records: list[Record]) -> Figure:
    figure = Figure("affinity", "Affinity maps by depth", small=True)
    found = {a: [r.affinity for r in of_arm(records, a) if r.affinity] for a in ARMS}
    if not all(found.values()):
        return figure
    first = found["mto"][0]
    for arm in ARMS:
        for depth in range(len(first.maps)):
            with figure.panel(f"{NAMES[arm]}, depth {depth}", (2.5, 4.6), rows=2) as axes:
                _maps(axes, found[arm][0], depth)
    figure.caption = (
        f"One image (seed {of_arm(records, 'mto')[0].seed}, step {first.step}). Above: softmax(X "
        f"Xᵀ), with the {first.num_masked} masked tokens before the "
        f"{len(first.maps[0]) - first.num_masked} visible ones, parted by white lines. Below: "
        "softmax(X_M X_Vᵀ), the map of which H is the mean row entropy. Colours are scaled from "
        "each map's least to its largest value, and the numbers of the scale are probabilities."
    )
    return figure


def _maps(axes: list[Axes], image: AffinityMap, depth: int) -> None:
    """Draw the affinity of one depth, and below it its quadrant from masked to visible tokens."""
    masked = image.num_masked
    maps = {"X Xᵀ": image.maps[depth], "X_M X_Vᵀ": image.masked_to_visible[depth]}
    for place, (name, values) in zip(axes, maps.items(), strict=True):
        place.set(xticks=[], yticks=[], ylabel=f"softmax({name})")
        place.grid(False)
        shown = place.imshow(values, cmap="cividis", interpolation="nearest", aspect="auto")
        scale = place.figure.colorbar(shown, ax=place, orientation="horizontal", format="{x:.2g}")
        scale.set_ticks(sorted({float(np.min(values)), float(np.max(values))}))
    axes[0].axhline(masked - 0.5, color="white", lw=0.8)
    axes[0].axvline(masked - 0.5, color="white", lw=0.8)


def _terms(records: list[Record]) -> Figure:
    figure, seen = Figure("terms", "MTO terms against steps"), []
    for term in TERMS:
        pick = partial(_term, term=term)
        means = {arm: mean_curve([pick(r) for r in of_arm(records, arm)]) for arm in ARMS}
        ends = [f"{NAMES[a]} {means[a].values[-1]:.3g}" for a in ARMS if means[a].values]
        weights = [w for r in of_arm(records, "mto") for w in r.weights[term].values[-1:]]
        weight = f" (weight {np.mean(weights):g})" if weights else ""
        seen.append(f"{SYMBOLS[term]}{weight} {', '.join(ends)}")
        _add(figure, f"{SYMBOLS[term]}, before weighting", records, pick)
    mto = of_arm(records, "mto")
    added = {term: mean_curve([weighted(r, term, "terms") for r in mto]) for term in TERMS}
    if varies(added.values()):
        with figure.panel("Weighted terms, MTO") as (axes,):
            for (term, curve), dash in zip(
                added.items(), ("solid", "dashed", "dotted"), strict=True
            ):
                axes.plot(curve.steps, curve.values, color=INK, ls=dash, label=SYMBOLS[term])
            axes.set_xlabel("step")
            axes.legend(loc="best")
    figure.caption = (
        "The three terms: only measured in the baseline, optimised with MTO. Weighted terms are "
        f"the addends of the loss beside L_ss. At the end, before weighting: {'; '.join(seen)}. "
        "A low L_spa or a falling H is no success in itself; see the guards."
    )
    return figure


def _term(record: Record, term: str, of: str = "terms") -> Curve:
    curves: dict[str, Curve] = getattr(record, of)
    return curves[term]


def weighted(record: Record, term: str, of: str) -> Curve:
    """`of`, times the weight that the run used at the same step."""
    return combined(_term(record, term, of), _term(record, term, "weights"), mul)


def _gradients(records: list[Record]) -> Figure:
    figure = Figure("gradients", "Gradients relative to L_ss")
    for term in TERMS:
        pull = mean_curve([weighted(r, term, "grad_ratio") for r in of_arm(records, "mto")])
        pick = partial(_term, term=term, of="grad_ratio")
        title = f"{SYMBOLS[term]}: gradient norm / L_ss"
        _add(figure, title, records, pick, markers=True, more=partial(_pull, pull=pull))
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
        _add(figure, title, records, attrgetter(name), least=0.005)
    if all(record.token_norm.steps for record in records):
        with figure.panel("Token norm at the end") as (axes,):
            profile(axes, records, partial(_row, index=-1, of="token_norm"))
    figure.caption = (
        "Quantities that the paper leaves out, of softmax(X Xᵀ). Diagonal mass: the attention of "
        "visible tokens to themselves. Masked mass: their attention to masked ones. Token norm: "
        "with raw dot products, longer tokens alone sharpen every row."
    )
    return figure
