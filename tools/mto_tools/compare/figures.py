"""The report's figures; captions say what is seen and no more."""

from __future__ import annotations

from functools import partial

import numpy as np

from mto_tools.compare import words
from mto_tools.compare.canvas import (
    COLOURS,
    DASHES,
    INK,
    NAMES,
    WIDTH,
    Figure,
    finish,
    lines,
    mean_curve,
    panels,
    profile,
    style,
)
from mto_tools.compare.collect import TERMS, Curve, Record, Rows, by_seed, of_arm
from mto_tools.compare.curves import smooth
from mto_tools.compare.plan import ARMS, ArmName
from mto_tools.compare.spec import Score

SYMBOLS = {"sparsity": "L_spa", "singularity": "L_e", "ranking": "L_r"}


def draw(
    records: list[Record], scores: list[Score], *, moving_target: bool = False
) -> list[Figure]:
    """Draw all figures of a report in the order of the page; those without numbers are left out."""
    with style():
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
    return [figure for figure in drawn if figure is not None]


def _scores(records: list[Record], scores: list[Score]) -> Figure | None:
    if not scores:
        return None
    canvas, axes = panels(max(2, len(scores)))
    seen = []
    for panel, score in zip(axes, scores, strict=False):
        lines(panel, records, partial(_score, score=score), markers=True)
        panel.set_title(score.label + (" (%)" if score.percent else ""))
        ends = {
            arm: [v for r in of_arm(records, arm) for v in r.scores[score.key].values[-1:]]
            for arm in ARMS
        }
        text = ", ".join(f"{NAMES[a]} {words.show(ends[a], score.percent)}" for a in ARMS)
        seen.append(f"{score.label}: {text}.")
    for panel in axes[len(scores) :]:
        panel.set_axis_off()
    axes[0].legend(loc="best")
    caption = f"Scores of the frozen encoder while it is pre-trained. At the end: {' '.join(seen)}"
    return finish("scores", "Scores against steps", caption + _thin(records), canvas)


def _score(record: Record, score: Score) -> Curve:
    curve, factor = record.scores[score.key], 100 if score.percent else 1
    return Curve(steps=curve.steps, values=[factor * value for value in curve.values])


def _thin(records: list[Record]) -> str:
    seeds = len(of_arm(records, "mto"))
    return f" Thick: mean of {seeds} seeds; thin: each seed." if seeds > 1 else ""


def _loss(records: list[Record], moving_target: bool) -> Figure:
    canvas, (left, right) = panels(2)
    for record in records:
        colour = COLOURS[record.arm]
        left.plot(record.loss.steps, record.loss.values, color=colour, lw=0.6, alpha=0.4)
    means = lines(left, records, lambda record: smooth(record.loss))
    left.set_title("L_ss: raw (faint) and smoothed")
    # The first drop would flatten all that matters: the scale begins after a quarter of the run.
    shown = [v for m in means.values() for v in m.values[len(m.values) // 4 :] if np.isfinite(v)]
    if shown and max(shown) > min(shown):
        room = max(shown) - min(shown)
        left.set_ylim(min(shown) - 0.1 * room, max(shown) + 0.1 * room)
    left.legend(loc="upper right")
    gaps = [_difference(smooth(b.loss), smooth(m.loss)) for b, m in by_seed(records)]
    for gap in gaps if len(gaps) > 1 else []:
        right.plot(gap.steps, gap.values, color=COLOURS["mto"], lw=0.7, alpha=0.4)
    mean = mean_curve(gaps)
    right.axhline(0, color=COLOURS["baseline"], lw=1.5, ls=DASHES["baseline"])
    right.plot(mean.steps, mean.values, color=COLOURS["mto"], lw=2)
    right.set_title("Difference: MTO − baseline")
    right.set_xlabel("step")
    below = sum(value < 0 for value in mean.values)
    seen = (
        f"MTO is lower at {below} of {len(mean.values)} logged steps (right: below the dashed "
        f"line) and ends {words.show_difference(mean.values[-1] if mean.values else np.nan)} from "
        "the baseline"
    )
    caption = (
        "The recipe's own loss, without the MTO terms, on the same batches with the same masks; "
        f"{words.NOT_COMPARABLE if moving_target else seen}. "
        "Smoothed: mean of the last fifteenth of the run before each point."
    )
    return finish("loss", "The recipe's own loss against steps", caption + _thin(records), canvas)


def _difference(baseline: Curve, mto: Curve) -> Curve:
    known = dict(zip(baseline.steps, baseline.values, strict=True))
    pairs = zip(mto.steps, mto.values, strict=True)
    shared = [(step, value - known[step]) for step, value in pairs if step in known]
    return Curve(steps=[step for step, _ in shared], values=[value for _, value in shared])


def _heterogeneity(records: list[Record]) -> Figure | None:
    if not all(record.heterogeneity.steps for record in records):
        return None
    canvas, axes = panels(3)
    steps = records[0].heterogeneity.steps
    means: dict[ArmName, list[float]] = {}
    for panel, name, index in zip(
        axes, ("start", "middle", "end"), (0, len(steps) // 2, -1), strict=True
    ):
        means = profile(panel, records, partial(_row, index=index))
        panel.set_title(f"{name} (step {steps[index]})")
    top = max(panel.get_ylim()[1] for panel in axes)
    for panel in axes:
        panel.set_ylim(-0.04 * top, top)
    axes[0].set_ylabel("H (nat)")
    axes[0].legend(loc="upper right")
    falls = "; ".join(
        f"{NAMES[arm]} from {means[arm][0]:.3g} at depth 0 to {means[arm][-1]:.3g} at depth "
        f"{len(means[arm]) - 1}"
        for arm in ARMS
    )
    caption = (
        "Heterogeneity H (eq. 2) of the masked tokens; depth 0 is what enters the first block. "
        f"At the end: {falls}." + _thin(records)
    )
    return finish("heterogeneity", "Heterogeneity by depth", caption, canvas)


def _row(record: Record, index: int, of: str = "heterogeneity") -> list[float]:
    rows: Rows = getattr(record, of)
    return rows.values[index]


def _affinity(records: list[Record]) -> Figure | None:
    found = {a: [r.affinity[-1] for r in of_arm(records, a) if r.affinity][:1] for a in ARMS}
    if not all(found.values()):
        return None
    depths = len(found["mto"][0].maps)
    canvas, axes = panels(depths, min(2 * WIDTH / depths + 0.3, 6.2), rows=2)
    for row, arm in enumerate(ARMS):
        first = found[arm][0]
        for depth, values in enumerate(first.maps):
            panel, image = axes[row * depths + depth], np.asarray(values)
            image = (image - image.min()) / (np.ptp(image) or 1.0)
            panel.imshow(image, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            panel.axhline(first.num_masked - 0.5, color="white", lw=0.8)
            panel.axvline(first.num_masked - 0.5, color="white", lw=0.8)
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            if row == 0:
                panel.set_title(f"depth {depth}")
            if depth == 0:
                panel.set_ylabel(NAMES[arm])
    first = found["mto"][0]
    caption = (
        f"softmax(X Xᵀ) of one image (seed {of_arm(records, 'mto')[0].seed}, step {first.step}), "
        "each map min-max normalised: dark 0, bright 1. Rows and columns hold the "
        f"{first.num_masked} masked tokens, then the {len(first.maps[0]) - first.num_masked} "
        "visible ones, parted by white lines; H is taken from the upper right part."
    )
    return finish("affinity", "Affinity maps by depth", caption, canvas)


def _terms(records: list[Record]) -> Figure:
    canvas, axes = panels(3)
    seen = []
    for panel, term in zip(axes, TERMS, strict=True):
        means = lines(panel, records, partial(_term, term=term))
        panel.set_title(SYMBOLS[term])
        ends = [f"{NAMES[a]} {means[a].values[-1]:.3g}" for a in ARMS if means[a].values]
        weights = [w for r in of_arm(records, "mto") for w in r.weights[term].values[-1:]]
        weight = f" (weight {np.mean(weights):g})" if weights else ""
        seen.append(f"{SYMBOLS[term]}{weight} {', '.join(ends)}")
    axes[0].legend(loc="best")
    caption = (
        "The three terms before weighting: only measured in the baseline, optimised with MTO. "
        f"At the end: {'; '.join(seen)}. A low L_spa or a falling H is no success in itself; "
        "see the guards."
    )
    return finish("terms", "MTO terms against steps", caption, canvas)


def _term(record: Record, term: str, of: str = "terms") -> Curve:
    curves: dict[str, Curve] = getattr(record, of)
    return curves[term]


def _gradients(records: list[Record]) -> Figure | None:
    if not any(record.grad_ratio[term].steps for record in records for term in TERMS):
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    canvas, axes = panels(3)
    for panel, term in zip(axes, TERMS, strict=True):
        means = lines(panel, records, partial(_term, term=term, of="grad_ratio"), markers=True)
        if all(value > 0 for mean in means.values() for value in mean.values):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
        panel.axhline(1, color=INK, lw=0.8)
        panel.set_title(SYMBOLS[term])
    axes[0].set_ylabel("gradient norm / that of L_ss")
    axes[0].legend(loc="best")
    caption = (
        "Gradient norm of each term before weighting, relative to that of L_ss, at the first "
        "block's input (line at 1: as large). A term pulls with this times its weight."
    )
    return finish("gradients", "Gradients relative to L_ss", caption, canvas)


def _guards(records: list[Record]) -> Figure:
    canvas, axes = panels(3)
    for panel, name in zip(axes, ("diagonal_mass", "masked_mass"), strict=False):
        lines(panel, records, partial(_mass, name=name))
        panel.set_title(name.replace("_", " ").capitalize())
        low, high = panel.get_ylim()
        if high - low < 0.02:  # shares in 0..1: less than this is nothing
            panel.set_ylim(low - 0.002, low + 0.018)
    if all(record.token_norm.steps for record in records):
        profile(axes[2], records, partial(_row, index=-1, of="token_norm"))
        axes[2].set_title("Token norm at the end")
    axes[0].legend(loc="best")
    caption = (
        "What the paper leaves out, of softmax(X Xᵀ) at depth 0. Diagonal mass: what visible "
        "tokens give to themselves. Masked mass: what they give to masked ones. Token norm: with "
        "raw dot products, longer tokens alone sharpen every row."
    )
    return finish("guards", "Guards", caption, canvas)


def _mass(record: Record, name: str) -> Curve:
    curve: Curve = getattr(record, name)
    return curve


def _time(records: list[Record]) -> Figure | None:
    if not all(record.step_ms.values for record in records):
        return None
    canvas, (left, right) = panels(2, height=1.8)
    for place, arm in enumerate(ARMS):
        times = [float(np.median(r.step_ms.values)) for r in of_arm(records, arm)]
        left.plot(times, [place] * len(times), "o", color=COLOURS[arm], ms=8)
        text = f"{np.mean(times):.1f} ms"
        left.annotate(
            text, (float(np.mean(times)), place), (0, 9), textcoords="offset points", ha="center"
        )
    left.set(yticks=[0, 1], yticklabels=[NAMES[arm] for arm in ARMS], ylim=(-0.5, 1.8))
    left.set_xlim(0, 1.2 * left.get_xlim()[1])
    left.set_title("Median step time of each run (ms)")
    ratios = step_time_ratios(records)
    right.axvline(1, color=COLOURS["baseline"], lw=1.5, ls=DASHES["baseline"])
    right.plot(ratios, [0] * len(ratios), "D", color=COLOURS["mto"], ms=7)
    right.set(yticks=[], ylim=(-1, 1))
    right.spines["left"].set_visible(False)
    right.set_title("MTO / baseline, by seed")
    right.set_xlim(min(0.9, min(ratios) - 0.05), max(1.1, max(ratios) + 0.05))
    caption = (
        f"A step with MTO takes {words.show_shares(ratios)} of the baseline's time (median of each "
        "run, mean over seeds). Both arms measure the same diagnostics, and runs side by side "
        "share the machine: a rough figure. benchmarks/ measures the cost of the loss itself."
    )
    return finish("time", "Step time", caption, canvas)


def step_time_ratios(records: list[Record]) -> list[float]:
    """MTO's median step time over the baseline's, by seed."""
    medians = [
        (np.median(b.step_ms.values), np.median(m.step_ms.values)) for b, m in by_seed(records)
    ]
    return [float(mto / baseline) for baseline, mto in medians]
