"""The report as data, which holds every number that is shown, and as one page of HTML."""

from __future__ import annotations

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
from mto_tools.study.folder import JsonModel, write
from mto_tools.study.record import Record, arms_of, by_seed, common_points, in_one_unit
from mto_tools.study.runs import FINETUNED, Source, collect, scores_of
from mto_tools.study.verdict import Verdict, judge
from mto_tools.upstreams.recipe import Recipe, Score


class Report(JsonModel):
    """`report.json`: all that `report.html` shows."""

    schema_version: Literal[4] = 4
    made: str  # ISO time with zone
    made_by: str  # the command line
    upstream: str
    title: str
    style: str
    sentence: str
    secondary: str
    fair: bool
    checks: list[Check]
    failed: list[str]  # runs that did not end well, or are missing where their arm has others
    notes: list[str]  # what was left out while reading
    moving_target: bool
    scores: list[Score]  # those that a run has; the first one decides, if every run has it
    verdicts: list[Verdict]  # of each arm but the first, which is the baseline
    versions: dict[str, str]
    facts: dict[str, str]
    commands: dict[str, list[str]]
    records: list[Record]

    @property
    def arms(self) -> list[str]:
        """In order; the first is the baseline."""
        return arms_of(self.records)


def build_report(
    sources: Sequence[Source],
    *,
    recipe: Recipe,
    upstream: str,
    made_by: str,
    baseline: str = "",
    missing: Sequence[tuple[str, int]] = (),
    title: str = "",
    style: str = "",
    versions: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    commands: Mapping[str, Sequence[str]] | None = None,
    last_step: float | None = None,
) -> Report:
    """Read the runs and judge every other arm against the first one, the baseline.

    Args:
        sources: The runs; those of one seed are paired.
        recipe, upstream: How the runs are read, and its name.
        made_by: The command line that made the report.
        baseline: The arm that the others are judged against; default: the first run's.
        missing: Arm and seed of planned runs that have not ended, and are no sources.
        title: Of the page; default: the upstream and its arms.
        style: Of the recipe.
        versions: Of the libraries, for the page.
        facts: Further rows of its table, such as data or machine.
        commands: The command of each run, by `Source.name`.
        last_step: The last step that a whole run logs; None: not known.

    Raises:
        MissingError: No seed has the baseline and another arm.
    """
    named = [*filter(None, [baseline]), *(s.arm for s in sources), *(arm for arm, _ in missing)]
    arms = list(dict.fromkeys(named))
    seeds = sorted({source.seed for source in sources} | {seed for _, seed in missing})
    ended = {(source.arm, source.seed): source.ended for source in sources}
    good = {key for key, end in ended.items() if end is not False}
    paired = {s for s in seeds if (arms[0], s) in good and any((a, s) in good for a in arms[1:])}
    if not paired:
        raise MissingError(
            f"no seed has both {arms[0] if arms else 'a baseline'} and another arm that ended well",
            hint="mto report --arm baseline=DIR --arm mto=DIR",
        )
    chosen = sorted(sources, key=lambda source: arms.index(source.arm))
    chosen = [s for s in chosen if s.seed in paired and (s.arm, s.seed) in good]
    first = min(paired)
    # Pictures of one seed; all stay in the folders.
    records = [collect(source, recipe, pictures=source.seed == first) for source in chosen]
    notes = [*(n for record in records for n in record.notes), *in_one_unit(records)]
    notes += common_points(records, FINETUNED.key)
    pairs = {arm: by_seed(records, arm) for arm in arms[1:]}
    tested = [arm for arm in arms[1:] if pairs[arm]]
    every = [pair for arm in tested for pair in pairs[arm]]
    read = [record for pair in every for record in pair]
    known = [s for s in scores_of(recipe) if any(record.score(s).at for record in read)]
    whole = [score for score in known if all(record.score(score).at for record in read)]
    partly = [score for score in known if score not in whole]
    moving = bool(recipe.compare and recipe.compare.moving_target)
    verdicts = [
        judge(
            arm,
            pairs[arm],
            whole,
            partly,
            arms=len(tested),
            moving_target=moving,
            # A run that was stopped, or whose baseline failed as well, says nothing about the arm.
            lost=sum(
                ended.get((arm, s)) is False and ended.get((arms[0], s)) is not False for s in seeds
            ),
            planned=len(seeds),
        )
        for arm in tested
    ]
    checks = fairness(every, whole, last_step)
    return Report(
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        made_by=made_by,
        upstream=upstream,
        title=title or f"{upstream}: {', '.join(map(summary.name_of, [arms[0], *tested]))}",
        style=style,
        sentence=summary.overall(verdicts, arms[0]),
        secondary=summary.secondary(verdicts[0], arms[0]) if len(verdicts) == 1 else "",
        fair=all(check.passed is not False for check in checks),
        checks=checks,
        failed=[f"{a}-{s}" for s in seeds for a in arms if (a, s) not in good],
        notes=notes,
        moving_target=moving,
        scores=[*whole, *partly],
        verdicts=verdicts,
        versions=dict(versions or {}),
        facts=dict(facts or {}),
        commands={name: [*words] for name, words in (commands or {}).items()},
        records=records,
    )


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    report.save(folder / "report.json")
    write(folder / "report.html", render(report, draw(report.records, report.scores)))


def render(report: Report, drawn: dict[str, Panels]) -> str:
    """Return the whole page with the panels of its figures."""
    loader = PackageLoader("mto_tools.study", ".")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page.filters.update(passage=summary.passage, ratio=summary.ratio)
    page.globals.update(summary=summary, name_of=summary.name_of, median=np.median, join=shlex.join)
    return page.get_template("template.html").render(
        report=report,
        baseline=report.arms[0],
        figures=drawn,
    )
