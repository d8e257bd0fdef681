"""`report.html`: one file from a Jinja2 template, without network or scripts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mto_tools.compare import figures, summary
from mto_tools.compare.collect import by_seed
from mto_tools.compare.folder import saying_disk_full, write
from mto_tools.compare.report import Report
from mto_tools.compare.svg import NAMES, Figure
from mto_tools.compare.verdict import Pairs, Rauc, Result


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`; return the page's path."""
    with saying_disk_full(folder):
        write(folder / "report.json", report.model_dump_json())
        return write(folder / "report.html", render(report, figures.draw(report)))


def render(report: Report, drawn: list[Figure]) -> str:
    """Return the whole page with the figures in it."""
    plan, results = report.plan, report.verdict.results
    loader = PackageLoader("mto_tools.compare", ".")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return page.get_template("template.html").render(
        report=report,
        plan=plan,
        number=summary.number,
        wrong=[f"{check.name}: {check.detail}" for check in report.checks if not check.passed],
        tiles=list(_tiles(report)),
        figures=drawn,
        decides=summary.lower(results[0].score.label)
        if report.verdict.comparable(results[0])
        else "",
        not_comparable=summary.NOT_COMPARABLE,
        rows=[row for result in results for row in _rows(report, result)],
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
        commands=[
            f"# {run.name}\n{shlex.join([Path(run.command[0]).name, *run.command[1:]])}"
            for run in plan.runs
        ],
    )


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    """Value and label of each large number: the deciding score, and a loss that is comparable."""
    results = report.verdict.results
    shown = [r for r in (results[0], *results[1:][-1:]) if report.verdict.comparable(r)]
    for result in shown:
        label = f"{result.score.label}, at the end, MTO − baseline"
        yield summary.gap(result.end, result.score.percent), label
    for result in shown:
        yield _steps_tile(result)
    for result in shown[:1]:
        known = [v for v in result.rauc[0].values if v is not None]
        yield f"{np.mean(known):.2f}" if known else "undefined", _rauc(result, result.rauc[0])
    if all(record.step_ms.values for record in report.records):
        medians = [[float(np.median(r.step_ms.values)) for r in p] for p in by_seed(report.records)]
        ratio = np.mean([mto / baseline for baseline, mto in medians])
        yield f"{ratio:.2f} ×", "step time, MTO / baseline, roughly: runs share the machine"


def _steps_tile(result: Result) -> tuple[str, str]:
    final = f"final {summary.lower(result.score.label)}"
    known = [share for share in result.shares if share is not None]
    finite = [share for share in known if math.isfinite(share)]
    if finite and len(finite) < len(known):
        return f"{len(finite)} of {len(known)} seeds", f"reached the baseline's {final}"
    text = f"{100 * float(np.mean(finite)):.0f} %" if finite else "not reached"
    return text if known else "undefined", f"of the baseline's steps to its {final}"


def _rauc(result: Result, rauc: Rauc) -> str:
    label = summary.lower(result.score.label)
    sign = "" if result.score.higher_is_better else "−"
    return f"RAUC of {sign}{label}, steps {rauc.start:.0f} to {rauc.stop:.0f}"


def _rows(report: Report, result: Result) -> Iterator[list[str]]:
    """Cells of two rows; those of the first result decide. Without comparison, levels alone."""
    percent = result.score.percent
    decides = result is report.verdict.results[0]
    moments: dict[str, Pairs] = {"at the end": result.end, "mean over the run": result.mean}
    for when, pairs in moments.items():
        intervals = (pairs.interval_95, pairs.interval_975 if decides else None)
        compared = [
            summary.gap(pairs, percent),
            *(summary.span(ends, percent) if ends else "–" for ends in intervals),
            f"{pairs.better} of {len(pairs.differences)}",
        ]
        yield [
            f"{result.score.label}, {when}",
            summary.show(pairs.baseline, percent),
            summary.show(pairs.mto, percent),
            *(compared if report.verdict.comparable(result) else ["–"] * len(compared)),
        ]


def _by_seed(report: Report) -> Iterator[tuple[str, list[str]]]:
    results = [r for r in report.verdict.results if report.verdict.comparable(r)]
    for result in results:
        label = f"Share of the baseline's steps to its final {summary.lower(result.score.label)}"
        shares = [math.nan if share is None else 100 * share for share in result.shares]
        yield label, [_known(f"{share:.0f} %") for share in shares]
    for result in results:
        for rauc in result.rauc:
            values = [math.nan if value is None else value for value in rauc.values]
            yield _rauc(result, rauc), [_known(f"{value:.2f}") for value in values]


def _known(text: str) -> str:
    return {"nan": "undefined", "inf": "never"}.get(text.split()[0], text)


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
