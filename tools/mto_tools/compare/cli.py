"""`mto compare` and `mto report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    app.command()(compare)
    app.command()(report)


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
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")] = 3,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of every run.")] = None,
    preset: Annotated[str | None, typer.Option(help="MTO preset in place of the default.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set; default: the built-in one.")] = None,
    reports: Annotated[Path | None, typer.Option(help="Folder of the reports.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images of a step, for a recipe that counts epochs.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at the same time.")] = None,
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
    from mto_tools.compare.command import compare as run
    from mto_tools.compare.options import Options

    options = Options(
        style=style,
        preset=preset,
        seeds=seeds,
        steps=steps,
        jobs=jobs,
        batch=batch,
        extra=extra or [],
        data=data,
        reports=reports,
        keep_going=keep_going,
        allow_edited=allow_edited,
    )
    raise typer.Exit(run(name, options))


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a report, or of an unfinished one.")],
) -> None:
    """Draw report.html again from report.json, or from the runs that an unfinished report has."""
    from mto_tools.compare.command import redraw

    raise typer.Exit(redraw(folder))
