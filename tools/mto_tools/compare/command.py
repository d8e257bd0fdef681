"""What `mto compare` and `mto report` do, step by step."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from mto_tools.compare import checkout, summary
from mto_tools.compare.data import check_data, count_images, default_data, start_folder
from mto_tools.compare.folder import open_folder, read, saying_disk_full, write
from mto_tools.compare.options import Options, comparison, in_whole_epochs, resolve, usable_cores
from mto_tools.compare.page import write_report
from mto_tools.compare.plan import Plan, make_plan
from mto_tools.compare.report import Report, build
from mto_tools.compare.run import execute
from mto_tools.compare.versions import versions
from mto_tools.home import find_home
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream


def compare(name: str, options: Options) -> int:
    """Run the comparison; return the exit status.

    What can be refused is refused before the first run starts, and before anything is written.
    """
    console = _console()
    say = partial(console.print, markup=False)
    home = find_home()
    recipe = load_recipe(load_upstream(home, name))
    gpu = _has_gpu()
    choices = resolve(options, recipe, name, cores=usable_cores(), gpu=gpu)
    data = options.data and options.data.expanduser().absolute()
    if data is not None:
        check_data(recipe.data, data, name)
    where, commits = checkout.ready(home, name, say, allow_edited=options.allow_edited)
    if data is None:
        data = default_data(home, where, recipe.data, name, say)
    cwd = start_folder(recipe.data, data, where)
    if choices.batch is not None:
        choices = in_whole_epochs(choices, count_images(recipe.data, data, cwd, name), name)
    need_mb = 2 * options.seeds * comparison(recipe, name).disk_mb_per_run + 50
    folder = open_folder(options.reports or home / "reports", name, need_mb)
    plan = make_plan(
        recipe,
        choices,
        upstream=name,
        checkout=where,
        out=folder,
        data=data,
        cwd=cwd,
        gpu=gpu,
        versions={**versions(), **commits},
    )
    epochs = f" ({summary.number(plan.epochs, 'epoch')})" if plan.epochs else ""
    console.print(
        f"{name}, style {plan.style}: {summary.number(len(plan.seeds), 'seed')} x 2 arms x "
        f"{plan.steps} steps{epochs}; {plan.jobs} at once, "
        f"{summary.number(plan.threads, 'thread')} each",
    )
    return _say(train(plan, folder, console, keep_going=options.keep_going), folder, console)


def train(plan: Plan, folder: Path, console: Console, *, keep_going: bool = False) -> Report:
    """Run the plan in `folder` and write the report there."""
    with saying_disk_full(folder):
        write(folder / "plan.json", plan.model_dump_json(indent=1))
        try:
            execute(plan, folder, console, keep_going=keep_going)
        except KeyboardInterrupt:
            console.print(f"stopped; what is done stays in {folder}", markup=False)
            console.print(
                f"a report on the seeds that are whole: mto report {folder}", markup=False
            )
            raise
    report = build(plan, folder)
    write_report(report, folder)
    return report


def redraw(folder: Path) -> int:
    """Draw the page again; an unfinished report is made from the seeds whose runs are whole."""
    if (folder / "report.json").is_file() or not (folder / "plan.json").is_file():
        report = read(folder / "report.json", Report)
    else:
        report = build(read(folder / "plan.json", Plan), folder)
    write_report(report, folder)
    return _say(report, folder, _console())


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _say(report: Report, folder: Path, console: Console) -> int:
    """Print the finding, and the page's path to stdout; return the exit status."""
    for check in report.checks:
        if not check.passed:
            console.print(f"not fair: {check.name}: {check.detail}", style="bold red", markup=False)
    for name in report.failed:
        console.print(f"failed, its seed is left out: {name}", style="bold red", markup=False)
    console.print(report.sentence, style="bold", markup=False)
    print((folder / "report.html").absolute())
    return 0 if report.fair and not report.failed else 1
