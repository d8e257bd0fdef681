"""The report's figures; each caption states only what its figure shows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mto_tools.compare import summary
from mto_tools.compare.collect import TERMS, AffinityMap, Curve, Record, Rows, by_seed, of_arm
from mto_tools.compare.curves import smooth
from mto_tools.compare.plan import ARMS
from mto_tools.compare.spec import Score
from mto_tools.compare.svg import COLOURS, DASHES, INK, NAMES, Figure, lines, mean_curve, profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}
WIDE = (5.2, 3.1)  # inches, for two panels side by side


def draw(
    records: list[Record], scores: list[Score], *, moving_target: bool = False
) -> list[Figure]:
    """Draw all figures in the order of the page, without panels that show one constant."""
    drawn = [
        _scores(records, scores),
        _loss(records, moving_target),
        _heterogeneity(records),
        _affinity(records),
        _terms(records),
        _gradients(records),
        _guards(records),
        _time(records),
    ]
    return [figure for figure in drawn if figure.panels]


def varies(curves: list[Curve]) -> bool:
    """Whether the values of some curves are more than one constant."""
    values = np.concatenate([np.asarray(c.values, float) for c in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    return values.size > 0 and bool(np.ptp(values) > 1e-9 * np.abs(values).max())


def _scores(records: list[Record], scores: list[Score]) -> Figure:
    figure, seen = Figure("scores", "Scores against steps"), []
    for score in scores:
        last = {
            arm: [v for r in of_arm(records, arm) for v in r.scores[score.key].values[-1:]]
            for arm in ARMS
        }
        ends = [f"{NAMES[arm]} {summary.show(last[arm], score.percent)}" for arm in ARMS]
        seen.append(f"{score.label}: {', '.join(ends)}.")
        if varies([record.scores[score.key] for record in records]):
            unit = " (%)" if score.percent else ""
            with figure.panel(score.label + unit, WIDE) as (axes,):
                lines(axes, records, partial(_score, score=score), markers=True)
                axes.legend(loc="best")
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
    gaps = [_difference(smooth(b.loss), smooth(m.loss)) for b, m in by_seed(records)]
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


def _difference(baseline: Curve, mto: Curve) -> Curve:
    known = dict(zip(baseline.steps, baseline.values, strict=True))
    pairs = zip(mto.steps, mto.values, strict=True)
    shared = [(step, value - known[step]) for step, value in pairs if step in known]
    return Curve(steps=[step for step, _ in shared], values=[value for _, value in shared])


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
    first = next((record.affinity[0] for record in records if record.affinity), None)
    return None if first is None else float(np.log(len(first.maps[0]) - first.num_masked))


def _row(record: Record, index: int, of: str = "heterogeneity") -> list[float]:
    rows: Rows = getattr(record, of)
    return rows.values[index]


def _affinity(records: list[Record]) -> Figure:
    figure = Figure("affinity", "Affinity maps by depth", small=True)
    found = {a: [r.affinity[-1] for r in of_arm(records, a) if r.affinity][:1] for a in ARMS}
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
        "each map's least to its largest value, and the numbers of the scale are probabilities. "
        "Blank below: the saved float16 affinity is 0 there."
    )
    return figure


def _maps(axes: list[Axes], image: AffinityMap, depth: int) -> None:
    """Draw the affinity of one depth, and below it its quadrant from masked to visible tokens."""
    masked, full = image.num_masked, np.asarray(image.maps[depth])
    quadrant = full[:masked, masked:]
    total = quadrant.sum(1, keepdims=True)
    # float16 underflows where masked tokens attend to masked ones alone: such rows stay blank.
    conditional = np.divide(quadrant, total, out=np.full_like(quadrant, np.nan), where=total > 0)
    for place, values, name in zip(axes, (full, conditional), ("X Xᵀ", "X_M X_Vᵀ"), strict=True):
        place.set(xticks=[], yticks=[], ylabel=f"softmax({name})")
        place.grid(False)
        known = values[np.isfinite(values)]
        if not known.size:
            place.text(0.5, 0.5, "all underflow", ha="center", transform=place.transAxes)
            continue
        shown = place.imshow(values, cmap="cividis", interpolation="nearest", aspect="auto")
        scale = place.figure.colorbar(shown, ax=place, orientation="horizontal", format="{x:.2g}")
        scale.set_ticks(sorted({float(known.min()), float(known.max())}))
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
        if varies([pick(record) for record in records]):
            with figure.panel(f"{SYMBOLS[term]}, before weighting") as (axes,):
                lines(axes, records, pick)
                axes.legend(loc="best")
    mto = of_arm(records, "mto")
    added = {term: mean_curve([_weighted(r, term, "terms") for r in mto]) for term in TERMS}
    if varies(list(added.values())):
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


def _weighted(record: Record, term: str, of: str) -> Curve:
    """`of`, times the weight that the run used at the same step."""
    curve, weight = _term(record, term, of), _term(record, term, "weights")
    known = dict(zip(weight.steps, weight.values, strict=True))
    points = [
        (s, v * known[s]) for s, v in zip(curve.steps, curve.values, strict=True) if s in known
    ]
    return Curve(steps=[step for step, _ in points], values=[value for _, value in points])


def _gradients(records: list[Record]) -> Figure:
    figure = Figure("gradients", "Gradients relative to L_ss")
    for term in TERMS:
        pick = partial(_term, term=term, of="grad_ratio")
        if not varies([pick(record) for record in records]):
            continue
        with figure.panel(f"{SYMBOLS[term]}: gradient norm / L_ss") as (axes,):
            means = lines(axes, records, pick, markers=True)
            pull = mean_curve([_weighted(r, term, "grad_ratio") for r in of_arm(records, "mto")])
            axes.plot(
                pull.steps, pull.values, color=COLOURS["mto"], ls=":", lw=2, label="MTO × weight"
            )
            axes.axhline(1, color=INK, lw=0.8)
            if all(value > 0 for mean in (*means.values(), pull) for value in mean.values):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            axes.legend(loc="best")
    figure.caption = (
        "Gradient norm of each term relative to that of L_ss, at the first block's input (line at "
        "1: as large). Dotted: times the term's weight, as the MTO arm adds it."
    )
    return figure


def _guards(records: list[Record]) -> Figure:
    figure = Figure("guards", "Guards")
    for name in ("diagonal_mass", "masked_mass"):
        if not varies([getattr(record, name) for record in records]):
            continue
        with figure.panel(f"{name.replace('_', ' ').capitalize()} at depth 0") as (axes,):
            lines(axes, records, partial(_mass, name=name))
            low, high = axes.get_ylim()
            if high - low < 0.02:  # shares in 0..1: such a change is nothing
                axes.set_ylim(low - 0.002, low + 0.018)
            axes.legend(loc="best")
    if all(record.token_norm.steps for record in records):
        with figure.panel("Token norm at the end") as (axes,):
            profile(axes, records, partial(_row, index=-1, of="token_norm"))
    figure.caption = (
        "Quantities that the paper leaves out, of softmax(X Xᵀ). Diagonal mass: the attention of "
        "visible tokens to themselves. Masked mass: their attention to masked ones. Token norm: "
        "with raw dot products, longer tokens alone sharpen every row."
    )
    return figure


def _mass(record: Record, name: str) -> Curve:
    curve: Curve = getattr(record, name)
    return curve


def _time(records: list[Record]) -> Figure:
    figure = Figure("time", "Step time")
    if not all(record.step_ms.values for record in records):
        return figure
    with figure.panel("Median step time of each run (ms)", (WIDE[0], 1.9)) as (axes,):
        for place, arm in enumerate(ARMS):
            times = [float(np.median(r.step_ms.values)) for r in of_arm(records, arm)]
            axes.plot(times, [place] * len(times), "o", color=COLOURS[arm], ms=8)
            at = (float(np.mean(times)), place)
            text = f"{np.mean(times):.1f} ms"
            axes.annotate(text, at, (0, 9), textcoords="offset points", ha="center")
        axes.set(yticks=[0, 1], yticklabels=[NAMES[arm] for arm in ARMS], ylim=(-0.5, 1.8))
        axes.set_xlim(0, 1.2 * axes.get_xlim()[1])
    ratios = step_time_ratios(records)
    with figure.panel("MTO / baseline, by seed", (WIDE[0], 1.9)) as (axes,):
        axes.axvline(1, color=COLOURS["baseline"], lw=1.5, ls=DASHES["baseline"])
        axes.plot(ratios, [0] * len(ratios), "D", color=COLOURS["mto"], ms=7)
        axes.set(yticks=[], ylim=(-1, 1))
        axes.spines["left"].set_visible(False)
        axes.set_xlim(min(0.9, min(ratios) - 0.05), max(1.1, max(ratios) + 0.05))
    figure.caption = (
        f"A step with MTO takes {summary.show_shares(ratios)} of the baseline's time (median of "
        "each run, mean over seeds). Both arms measure the same diagnostics, and runs side by side "
        "share the machine: a rough figure. benchmarks/ measures the cost of the loss itself."
    )
    return figure


def step_time_ratios(records: list[Record]) -> list[float]:
    """MTO's median step time over the baseline's, by seed."""
    medians = [
        (np.median(b.step_ms.values), np.median(m.step_ms.values)) for b, m in by_seed(records)
    ]
    return [float(mto / baseline) for baseline, mto in medians]
