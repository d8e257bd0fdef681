"""`report.html`: one file from a Jinja2 template, without network or scripts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mto_tools.compare import figures, summary
from mto_tools.compare.plan import Run
from mto_tools.compare.report import Report, saying_disk_full, write
from mto_tools.compare.svg import NAMES
from mto_tools.compare.verdict import LOSS, Quantity, StepsToBaseline


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`; return the page's path."""
    with saying_disk_full(folder):
        write(folder / "report.json", report.model_dump_json())
        return write(folder / "report.html", render(report))


def render(report: Report) -> str:
    """Return the whole page."""
    plan, verdict = report.plan, report.verdict
    loader = PackageLoader("mto_tools.compare", ".")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return page.get_template("template.html").render(
        report=report,
        plan=plan,
        number=summary.number,
        wrong=[f"{check.name}: {check.detail}" for check in report.checks if not check.passed],
        tiles=list(_tiles(report)) if report.records else [],
        figures=figures.draw(report.records, plan.scores, moving_target=verdict.moving_target)
        if report.records
        else [],
        decides=_comparable(report, verdict.quantities[0].key),
        rows=[_quantity(report, index) for index in range(len(verdict.quantities))],
        rule=_rule(report),
        seeds=[record.seed for record in report.records if record.arm == "mto"],
        by_seed=list(_by_seed(report)),
        runs=list(_runs(report)),
        facts={
            "made by": plan.made_by,
            "when": report.made,
            "data": plan.data,
            "at once": f"{plan.jobs} runs, {summary.number(plan.threads, 'thread')} each",
            **plan.versions,
        },
        commands=[_command(run) for run in plan.runs],
    )


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    """Value and label of each large number: the deciding score, and a loss that is comparable."""
    verdict = report.verdict
    end, loss = verdict.quantities[0], verdict.loss_at_the_end()
    shown = [q for q in ([end] if end is loss else [end, loss]) if _comparable(report, q.key)]
    for quantity in shown:
        yield summary.gap(quantity), f"{quantity.label}, MTO − baseline"
    for reach in verdict.reach:
        if f"{reach.key}_end" in [quantity.key for quantity in shown]:
            yield _reach_tile(reach)
    for rauc in verdict.rauc[: len(shown[:1])]:
        known = [v for v in rauc.values if v is not None]
        text = f"{np.mean(known):.2f}" if known else "undefined"
        yield text, f"RAUC of {summary.lower(rauc.label)}, {_range(rauc.start, rauc.stop)}"
    if all(record.step_ms.values for record in report.records):
        ratio = np.mean(figures.step_time_ratios(report.records))
        yield f"{ratio:.2f} ×", "step time, MTO / baseline"


def _comparable(report: Report, key: str) -> bool:
    """False for all that is made of an L_ss whose target moves with each arm's own model."""
    return not (report.verdict.moving_target and key.startswith(LOSS.key))


def _reach_tile(reach: StepsToBaseline) -> tuple[str, str]:
    final = f"final {summary.lower(reach.label)}"
    known = [share for share in reach.shares if share is not None]
    finite = [share for share in known if math.isfinite(share)]
    if finite and len(finite) < len(known):
        return f"{len(finite)} of {len(known)} seeds", f"reached the baseline's {final}"
    text = f"{100 * float(np.mean(finite)):.0f} %" if finite else "not reached"
    return text if known else "undefined", f"of the baseline's steps to its {final}"


def _quantity(report: Report, index: int) -> list[str]:
    """Cells of a row; only the first two quantities decide. Without comparison, levels alone."""
    quantity: Quantity = report.verdict.quantities[index]
    percent = quantity.percent
    decision = quantity.interval_975 if index < 2 else None
    shown = None if quantity.low is None or quantity.high is None else (quantity.low, quantity.high)
    compared = [
        summary.gap(quantity),
        summary.span(shown, percent) if shown else "–",
        summary.span(decision, percent) if decision else "–",
        f"{quantity.better} of {len(quantity.differences)}",
    ]
    return [
        quantity.label,
        summary.show(quantity.baseline, percent),
        summary.show(quantity.mto, percent),
        *(compared if _comparable(report, quantity.key) else ["–"] * len(compared)),
    ]


def _rule(report: Report) -> str:
    """The deciding quantity, and how often a decision is false."""
    if not _comparable(report, report.verdict.quantities[0].key):
        return f"Nothing decides: L_ss could, but {summary.NOT_COMPARABLE}."
    label = summary.lower(report.verdict.reach[0].label)
    return (
        f"The rule was fixed beforehand: {label} at the end decides (bold); if its 97.5 % interval "
        "holds zero, its mean over the run does. Two tests are made, so each uses a 97.5 % "
        "interval (Bonferroni): at most 5 % false verdicts where MTO does nothing. The 95 % "
        "intervals are for reading."
    )


def _by_seed(report: Report) -> Iterator[tuple[str, list[str]]]:
    for reach in report.verdict.reach:
        if _comparable(report, reach.key):
            label = f"Share of the baseline's steps to its final {summary.lower(reach.label)}"
            yield label, [_share(share) for share in reach.shares]
    for rauc in report.verdict.rauc:
        if _comparable(report, rauc.key):
            label = f"RAUC of {summary.lower(rauc.label)}, {_range(rauc.start, rauc.stop)}"
            yield label, ["undefined" if v is None else f"{v:.2f}" for v in rauc.values]


def _share(share: float | None) -> str:
    if share is None:
        return "undefined"
    return f"{100 * share:.0f} %" if math.isfinite(share) else "never"


def _range(start: float, stop: float) -> str:
    return f"steps {start:.0f} to {stop:.0f}"


def _runs(report: Report) -> Iterator[list[str]]:
    for record in report.records:
        times = record.step_ms.values
        yield [
            NAMES[record.arm],
            str(record.seed),
            summary.show(record.loss.values[-1:]),
            *(
                summary.show(record.scores[score.key].values[-1:], score.percent)
                for score in report.plan.scores
            ),
            f"{np.median(times):.1f}" if times else "–",
            f"{record.seconds:.0f} s",
            f"{record.bytes / 1e6:.1f} MB",
        ]


def _command(run: Run) -> str:
    return f"# {run.name}\n{shlex.join([Path(run.command[0]).name, *run.command[1:]])}"
