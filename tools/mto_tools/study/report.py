"""The report as data, which holds every number that is shown, and as one page of HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mto_tools.errors import MissingError
from mto_tools.study import summary
from mto_tools.study.fairness import Check, fairness
from mto_tools.study.figures import Panels, draw
from mto_tools.study.folder import VERSION, JsonModel, write
from mto_tools.study.plan import Plan
from mto_tools.study.record import Record, by_seed, collect
from mto_tools.study.run import read_end
from mto_tools.study.runs import Source
from mto_tools.study.svg import NAMES
from mto_tools.study.verdict import Verdict, judge
from mto_tools.upstreams.recipe import Recipe


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
    good = {name: end.seconds for name, end in ends.items() if end and end.exit_code == 0}
    records: list[Record] = []
    for seed in plan.seeds:
        runs = [run for run in plan.runs if run.seed == seed]
        if all(run.name in good for run in runs):
            pictures = not records  # of one seed; all stay in runs/
            records += [
                collect(
                    run, folder / "runs" / run.name, plan, seconds=good[run.name], pictures=pictures
                )
                for run in runs
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
    lost = sum(f"mto-{s}" in broken and f"baseline-{s}" not in broken for s in plan.seeds)
    planned, moving = len(plan.seeds), plan.moving_target
    verdict = judge(pairs, plan.scores, moving_target=moving, lost=lost, planned=planned)
    return Report(
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        sentence=summary.sentence(verdict),
        secondary=summary.secondary(verdict),
        fair=all(check.passed for check in checks),
        checks=checks,
        failed=[name for name in ends if name not in good],
        verdict=verdict,
        plan=plan,
        records=records,
    )


def build_report(
    sources: Sequence[Source],
    *,
    recipe: Recipe,
    upstream: str,
    made_by: str,
    title: str = "",
    style: str = "",
    versions: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    commands: Mapping[str, Sequence[str]] | None = None,
    last_step: int | None = None,
) -> Report:
    """Read the runs and judge every other arm against the first one, the baseline.

    Args:
        sources: The runs. The arm of the first one is the baseline; runs with one seed are paired.
        recipe, upstream: How the runs are read, and its name.
        made_by: The command line that made the report.
        title: Of the page; default: the upstream and its arms.
        style: Of the recipe.
        versions: Of the libraries, for the page.
        facts: Further rows of its table, such as data or machine.
        commands: The command of each run, by `Source.name`.
        last_step: The last step that a whole run logs; None: that of the longest run.

    Raises:
        MissingError: No seed has the baseline and another arm.
    """
    raise NotImplementedError


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    report.save(folder / "report.json")
    write(folder / "report.html", render(report, draw(report.records, report.plan)))


def render(report: Report, drawn: dict[str, Panels]) -> str:
    """Return the whole page with the panels of its figures."""
    loader = PackageLoader("mto_tools.study", ".")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page.globals.update(summary=summary, names=NAMES, median=np.median, join=shlex.join)
    verdict = report.verdict
    return page.get_template("template.html").render(
        report=report,
        plan=report.plan,
        verdict=verdict,
        comparable=[result for result in verdict.results if verdict.comparable(result)],
        figures=drawn,
        infinity=math.inf,
    )
