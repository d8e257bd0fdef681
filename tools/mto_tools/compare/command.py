"""What `mto compare` and `mto report` do, step by step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from mto_tools.compare import checkout, summary
from mto_tools.compare.collect import Record, by_seed, collect, unfinished
from mto_tools.compare.data import check_data, count_images, start_folder
from mto_tools.compare.fairness import fairness
from mto_tools.compare.page import write_report
from mto_tools.compare.plan import (
    Options,
    Plan,
    make_plan,
    usable_cores,
    whole_epochs,
    with_defaults,
)
from mto_tools.compare.report import (
    Report,
    close_folder,
    open_folder,
    read_report,
    saying_disk_full,
    write,
)
from mto_tools.compare.run import FAILED, environment, execute
from mto_tools.compare.spec import Launch, load_launch
from mto_tools.compare.verdict import judge
from mto_tools.compare.versions import versions
from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.home import find_home
from mto_tools.launch.digits import lay_out
from mto_tools.patchset.locks import Say
from mto_tools.upstreams.templates import fill


def compare(
    name: str,
    options: Options,
    *,
    data: Path | None = None,
    report_name: str | None = None,
    reports: Path | None = None,
    keep_going: bool = False,
    allow_edited: bool = False,
) -> int:
    """Run the comparison; return the exit status.

    What can be refused is refused before the first run starts, and before anything is written.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    say = partial(console.print, markup=False)
    home = find_home()
    launch = load_launch(home, name)
    gpu = _has_gpu()
    if options.jobs is None and gpu:
        options = options.model_copy(update={"jobs": 2})  # a seed's two arms share the GPU
    options = with_defaults(options, launch, name, usable_cores())
    report_name = report_name or name
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", report_name):
        raise MtoError(
            f"--name {report_name!r} must be a plain folder name of letters, digits, dots, dashes",
            hint=f"mto compare {name} --name {name}",
        )
    if data is not None:
        data = data.expanduser().absolute()
        check_data(data, launch.data.images, name)
    where, commits = checkout.ready(home, name, say, allow_edited=allow_edited)
    if data is None:
        data = default_data(home, where, launch, name, say)
    cwd = start_folder(launch.data, data, where)
    images = 0 if options.batch is None else count_images(launch.data, data, cwd, name)
    whole_epochs(options, images, name)  # refuses a data set that is too small
    need_mb = 2 * options.seeds * launch.disk_mb_per_run + 50
    work, final = open_folder(reports or home / "reports", report_name, need_mb)
    facts = {**versions(), **commits}
    plan = make_plan(
        launch,
        options,
        upstream=name,
        checkout=where,
        out=work,
        data=data,
        images=images,
        cwd=cwd,
        gpu=gpu,
        versions=facts,
    )
    epochs = f" ({summary.number(plan.epochs, 'epoch')})" if plan.epochs else ""
    console.print(
        f"{name}, style {plan.style}: {summary.number(len(plan.seeds), 'seed')} x 2 arms x "
        f"{plan.steps} steps{epochs}; {plan.jobs} at once, "
        f"{summary.number(plan.threads, 'thread')} each",
    )
    report = train(plan, work, final, report_name, console, keep_going=keep_going)
    page = close_folder(work, final) / "report.html"
    _say(report, page, console)
    return 0 if report.fair and not report.failed else 1


def train(
    plan: Plan, work: Path, final: Path, name: str, console: Console, *, keep_going: bool = False
) -> Report:
    """Run the plan in `work` and write the report there, under the name it will have, `final`."""
    with saying_disk_full(work):
        write(work / "plan.json", plan.model_dump_json(indent=1))
        try:
            outcomes = execute(plan, work, console, keep_going=keep_going)
        except KeyboardInterrupt:
            console.print(f"stopped; what is done stays in {work}", markup=False)
            console.print(f"a report on the seeds that are whole: mto report {work}", markup=False)
            raise
        seconds = {outcome.run.name: round(outcome.seconds, 2) for outcome in outcomes}
        write(work / "seconds.json", json.dumps(seconds))
    failed = [outcome.run.name for outcome in outcomes if outcome.exit_code != 0]
    report = build(plan, work, final, name, seconds, failed)
    write_report(report, work)
    return report


def redraw(folder: Path) -> int:
    """Draw the page again; an unfinished report is made from the seeds whose runs are whole."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if (folder / "report.json").is_file() or not (folder / "plan.json").is_file():
        report = read_report(folder)
    else:
        try:
            plan = Plan.model_validate_json((folder / "plan.json").read_bytes())
        except ValidationError as error:
            raise CorruptError(f"{folder / 'plan.json'}: {error.errors()[0]['msg']}") from None
        path = folder / "seconds.json"
        seconds = json.loads(path.read_text()) if path.is_file() else {}
        failed = unfinished(plan, folder)
        report = build(plan, folder, folder, folder.absolute().parent.name, seconds, failed)
    _say(report, write_report(report, folder), console)
    return 0 if report.fair and not report.failed else 1


def build(
    plan: Plan, work: Path, final: Path, name: str, seconds: dict[str, float], failed: list[str]
) -> Report:
    """Collect the runs of every seed whose arms both ended well, and judge them.

    Raises:
        MissingError: There is no such seed.
    """
    records: list[Record] = []
    for seed in plan.seeds:
        runs = [run for run in plan.runs if run.seed == seed]
        if not {run.name for run in runs} & set(failed):
            records += [
                collect(run, work / "runs" / run.name, plan, seconds.get(run.name, 0.0))
                for run in runs
            ]
    if not records:
        raise MissingError(
            f"no seed has both arms complete, so there is nothing to compare in {work}",
            hint=f"read {work / 'runs' / plan.runs[0].name / 'output.txt'}",
        )
    for record in records[2:]:
        record.affinity = []  # of one seed is drawn; all stay in runs/, and ViT-B's are large
    pairs = by_seed(records)
    checks = fairness(pairs, plan)
    verdict = judge(
        pairs,
        plan.scores,
        moving_target=plan.moving_target,
        lost=sum(_lost(seed, work, failed) for seed in plan.seeds),
        planned=len(plan.seeds),
    )
    # The folder gets its final name when all is written; the commands shown name that one.
    renamed = [[part.replace(str(work), str(final)) for part in run.command] for run in plan.runs]
    runs = [
        run.model_copy(update={"command": c}) for run, c in zip(plan.runs, renamed, strict=True)
    ]
    plan = plan.model_copy(update={"runs": runs})
    return Report(
        name=name,
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


def _lost(seed: int, work: Path, left_out: list[str]) -> bool:
    """Whether the seed is left out because of its MTO arm alone, not because it was interrupted."""
    mto, baseline = (work / "runs" / f"{arm}-{seed}" / FAILED for arm in ("mto", "baseline"))
    return f"mto-{seed}" in left_out and mto.is_file() and not baseline.is_file()


def default_data(home: Path, where: Path, launch: Launch, name: str, say: Say) -> Path:
    """Make the built-in data set once, in `home/data`, and return its folder."""
    data = home / "data" / launch.data.name
    done = home / "data" / f".{launch.data.name}.done"
    if not launch.data.make:
        data /= "images"  # lists may be written beside it
    if not done.is_file() or not (data / launch.data.images).is_dir():  # the mark may outlive it
        say(f"making the data set {data}")
        data.parent.mkdir(parents=True, exist_ok=True)
        if not launch.data.make:
            lay_out(launch.data, data, launch.data.per_class)
            done.touch()
            return data
        script, *arguments = fill(launch.data.make, {"data": data})
        made = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=where,
            env=environment(1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise MissingError(
                f"the data set {data} could not be made: {(made.stderr or made.stdout).strip()}",
                hint=f"move {data} away, or name a data set with --data DIR",
            )
        done.touch()
    check_data(data, launch.data.images, name)
    return data


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _say(report: Report, page: Path, console: Console) -> None:
    for check in report.checks:
        if not check.passed:
            console.print(f"not fair: {check.name}: {check.detail}", style="bold red", markup=False)
    for name in report.failed:
        console.print(f"failed, its seed is left out: {name}", style="bold red", markup=False)
    console.print(report.sentence, style="bold", markup=False)
    print(page.absolute())
