"""The report as data: every number that is shown."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mto_tools.compare import summary
from mto_tools.compare.collect import Record, by_seed, collect
from mto_tools.compare.fairness import Check, fairness
from mto_tools.compare.options import JsonModel
from mto_tools.compare.plan import VERSION, Plan
from mto_tools.compare.run import read_end
from mto_tools.compare.verdict import Verdict, judge
from mto_tools.errors import MissingError


class Report(JsonModel):
    """`report.json`: all that `report.html` shows."""

    schema_version: int = VERSION
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
        first = not records  # of one seed affinity is drawn; all stay in runs/
        records += [
            collect(run, folder / "runs" / run.name, plan, seconds=end.seconds, affinity=first)
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
