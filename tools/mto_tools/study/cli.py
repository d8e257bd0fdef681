"""`mto compare`."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from mto_tools.study.plan import Plan
    from mto_tools.study.report import Report


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    app.command()(compare)


def compare(
    name: Annotated[str, typer.Argument(help="Upstream to compare, such as mini.")],
    extra: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: more arguments for the recipe, in both arms; options of MTO "
            "(--mto_NAME, MTO.NAME) in the MTO arm only."
        ),
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="Style of the recipe, if it has several.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 3,
    steps: Annotated[int | None, typer.Option(min=2, help="Optimizer steps of every run.")] = None,
    preset: Annotated[str | None, typer.Option(help="MTO preset in place of the default.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set; default: the built-in one.")] = None,
    reports: Annotated[Path | None, typer.Option(help="Folder of the reports.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of a step, for a recipe that counts epochs.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on with other seeds when a run fails.")
    ] = False,
    allow_edited: Annotated[
        bool, typer.Option("--allow-edited", help="Compare although the checkout was edited.")
    ] = False,
) -> None:
    """Train NAME with and without MTO from the same seeds, and report what it did.

    Prints the path of the report as the last line of stdout. Exit status 1: a run failed, or the
    two arms did not meet the same conditions.
    """
    import torch

    from mto_tools.home import find_home
    from mto_tools.launch.inputs import prepare
    from mto_tools.study.folder import make_folder
    from mto_tools.study.plan import make_plan, usable_cores
    from mto_tools.study.report_cli import finish
    from mto_tools.study.summary import number
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    # Refusals come before the first run, those of options before anything is written.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    say = partial(console.print, markup=False)
    home = find_home()
    recipe = load_recipe(load_upstream(home, name))
    root = (reports or home / "reports").expanduser().absolute()
    folder = root / name / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    plan = make_plan(
        recipe,
        name,
        partial(prepare, home, name, recipe, data, say, allow_edited=allow_edited),
        folder,
        style=style,
        preset=preset,
        seeds=seeds,
        steps=steps,
        jobs=jobs,
        batch=batch,
        extra=extra or (),
        cores=usable_cores(),
        gpu=torch.cuda.is_available(),
    )
    make_folder(folder, plan.disk_mb)
    epochs = f" ({number(plan.epochs, 'epoch')})" if plan.epochs else ""
    say(
        f"{name}, style {plan.style}: {number(seeds, 'seed')} x 2 arms x {plan.steps} steps"
        f"{epochs}; {plan.jobs} at once, {number(plan.threads, 'thread')} each",
    )
    finish(train(plan, folder, console, keep_going=keep_going), folder)


def train(plan: Plan, folder: Path, console: Console, *, keep_going: bool = False) -> Report:
    """Run the plan in `folder` and write the report there."""
    from mto_tools.study.report import build, write_report
    from mto_tools.study.run import execute

    plan.save(folder / "plan.json")
    try:
        execute(plan, folder, console, keep_going=keep_going)
        found = build(plan, folder)
        write_report(found, folder)
    except BaseException:  # such as Ctrl-C, or a full disk
        console.print(
            f"What is done stays in {folder}\n"
            f"A report on the seeds that are whole: mto report {folder}",
            markup=False,
        )
        raise
    return found
