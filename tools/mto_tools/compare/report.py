"""The report as data, which holds every number that is shown, and as one page of HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mto_tools.compare import summary
from mto_tools.compare.fairness import Check, fairness
from mto_tools.compare.figures import draw
from mto_tools.compare.folder import VERSION, JsonModel, write
from mto_tools.compare.plan import Plan
from mto_tools.compare.record import Record, by_seed, collect
from mto_tools.compare.run import read_end
from mto_tools.compare.svg import NAMES, Figure
from mto_tools.compare.verdict import Rauc, Result, Verdict, judge
from mto_tools.errors import MissingError


class Report(JsonModel):
    """`report.json`: all that `report.html` shows."""

    schema_version: Literal[3] = VERSION
    made: str  # ISO time with zone
    sentence: str
    secondary: str
    fair: bool
    checks: list[Check]
    failed: list[str]  # runs that did not end well
    verdict: Verdict
    plan: Plan
    records: list[Record]


def build(plan: Plan, folder: Path) -> Report:
    """Collect the runs of every seed whose arms both ended well, and judge them.

    Raises:
        MissingError: There is no such seed.
    """
    ends = {run.name: read_end(run, folder) for run in plan.runs}
    failed = [name for name, end in ends.items() if end is None or end.exit_code != 0]
    records: list[Record] = []
    for seed in plan.seeds:
        runs = [run for run in plan.runs if run.seed == seed]
        if {run.name for run in runs} & set(failed):
            continue
        first = not records  # of one seed pictures are drawn; all stay in runs/
        records += [
            collect(run, folder / "runs" / run.name, plan, seconds=end.seconds, pictures=first)
            for run in runs
            if (end := ends[run.name])
        ]
    if not records:
        raise MissingError(
            f"no seed has both arms complete, so there is nothing to compare in {folder}",
            hint=f"read {folder / 'runs' / plan.runs[0].name / 'output.txt'}",
        )
    pairs = by_seed(records)
    checks = fairness(pairs, plan)
    # A seed is lost to MTO if its MTO arm failed alone: an interrupted one, or one whose baseline
    # failed as well, says nothing about MTO.
    broken = {name for name, end in ends.items() if end and end.exit_code != 0}
    lost = [s for s in plan.seeds if f"mto-{s}" in broken and f"baseline-{s}" not in broken]
    verdict = judge(
        pairs,
        plan.scores,
        moving_target=plan.moving_target,
        lost=len(lost),
        planned=len(plan.seeds),
    )
    return Report(
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        sentence=summary.sentence(verdict),
        secondary=summary.secondary(verdict),
        fair=all(check.passed for check in checks),
        checks=checks,
        failed=failed,
        verdict=verdict,
        plan=plan,
        records=records,
    )


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    report.save(folder / "report.json")
    write(folder / "report.html", render(report, draw(report.records, report.plan)))


def render(report: Report, drawn: list[Figure]) -> str:
    """Return the whole page with the figures in it."""
    plan, verdict = report.plan, report.verdict
    loader = PackageLoader("mto_tools.compare", ".")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return page.get_template("template.html").render(
        report=report,
        plan=plan,
        verdict=verdict,
        names=NAMES,
        summary=summary,
        median=np.median,
        infinity=math.inf,
        rauc_label=_rauc_label,
        tiles=list(_tiles(report)),
        figures=drawn,
        comparable=[result for result in verdict.results if verdict.comparable(result)],
        join=shlex.join,
    )


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    """Value and label of each large number: the deciding score, and a loss that is comparable."""
    results = report.verdict.results
    shown = [r for r in (results[0], *results[1:][-1:]) if report.verdict.comparable(r)]
    for result in shown:
        label = f"{result.score.label}, at the end, MTO − baseline"
        yield summary.gap(result.end, result.score.percent), label
    for result in shown:
        label = f"steps to the baseline's final {summary.lower(result.score.label)}, MTO / baseline"
        yield summary.reach(result) or "undefined", label
    for result in shown[:1]:
        known = [v for v in result.rauc[0].values if v is not None]
        value = f"{np.mean(known):.2f}" if known else "undefined"
        yield value, _rauc_label(result, result.rauc[0])
    times = [[r.curve("step_ms").values for r in pair] for pair in by_seed(report.records)]
    if all(baseline and mto for baseline, mto in times):
        ratio = np.mean([np.median(mto) / np.median(baseline) for baseline, mto in times])
        yield f"{ratio:.2f} ×", "step time, MTO / baseline, roughly: runs share the machine"


def _rauc_label(result: Result, rauc: Rauc) -> str:
    sign = "" if result.score.higher_is_better else "−"
    label = summary.lower(result.score.label)
    return f"RAUC of {sign}{label}, steps {rauc.start:.0f} to {rauc.stop:.0f}"
