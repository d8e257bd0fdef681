"""`mto report`."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mto_tools.errors import MissingError, MtoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mto_tools.study.report import Report
    from mto_tools.study.runs import Source
    from mto_tools.upstreams.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(report)


def report(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a report, or of an unfinished one.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A run: its arm and its output folder. An arm named again has a further seed. The "
            "baseline is the arm of that name, else the first one.",
        ),
    ] = None,
    finetuned: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:EPOCH=DIR",
            help="Output folder of a fine-tuning after so many epochs of pre-training; named "
            "again, it is of the arm's next run.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Upstream of the runs, where their files do not tell.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default: reports/RECIPE/TIME.")
    ] = None,
) -> None:
    """Draw the report of any runs: `--arm baseline=DIR --arm mto=DIR`, or of a FOLDER again.

    Prints the path of the report as the last line of stdout. Exit status 1: a run failed or is
    missing, or the arms did not meet the same conditions.
    """
    from mto_tools.study.folder import make_folder
    from mto_tools.study.report import write_report

    if (folder is None) == (not arm):
        raise MtoError(
            "give either the FOLDER of a report, or the runs of two arms",
            hint="mto report --arm baseline=DIR --arm mto=DIR",
        )
    if folder is not None:
        if finetuned or recipe or out:
            raise MtoError(
                "--finetuned, --recipe and --out go with --arm; a FOLDER holds all of that",
                hint=f"mto report {shlex.quote(str(folder))}",
            )
        found, to = draw_again(folder), folder
    else:
        found, to = read_runs(arm or [], finetuned or [], recipe, out)
        make_folder(to, 20)
    write_report(found, to)
    finish(found, to)


def draw_again(folder: Path) -> Report:
    """The report in a folder, or that of the runs which an unfinished study has."""
    from mto_tools.study.report import Report
    from mto_tools.study.session import open_session
    from mto_tools.study.spec import FILE

    if (folder / "report.json").is_file() or not (folder / FILE).is_file():
        return Report.load(folder / "report.json")
    return open_session(folder.absolute()).report()


def read_runs(
    arms: Sequence[str], finetuned: Sequence[str], name: str | None, out: Path | None
) -> tuple[Report, Path]:
    """The report of runs that are named on the command line, and its folder."""
    from mto_tools.home import find_home
    from mto_tools.study.report import build_report
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    home = find_home()
    runs = parse(arms, finetuned)
    name = name or recognise(home, [source.folder for source in runs])
    recipe = load_recipe(load_upstream(home, name))
    names = [source.arm for source in runs]
    found = build_report(
        numbered(runs, recipe),
        recipe=recipe,
        upstream=name,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        baseline="baseline" if "baseline" in names else names[0],
        facts={source.name: str(source.folder.absolute()) for source in runs},
    )
    time = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return found, (out or home / "reports" / name / time).expanduser().absolute()


def parse(arms: Sequence[str], finetuned: Sequence[str]) -> list[Source]:
    """Runs from `NAME=DIR` and `NAME:EPOCH=DIR`; seeds by order.

    Raises:
        MtoError: A word is of another form, a folder stands twice, or a fine-tuning has no run.
        MissingError: There is no such folder.
    """
    from mto_tools.study.runs import Source

    found: dict[str, list[tuple[Path, dict[float, Path]]]] = {}
    seen: set[Path] = set()
    for word in arms:
        name, folder = _split(word, "--arm baseline=DIR")
        if folder.resolve() in seen:
            raise MtoError(f"{folder} is named twice", hint="give each run once, by one arm")
        seen.add(folder.resolve())
        found.setdefault(name, []).append((folder, {}))
    for word in finetuned:
        key, folder = _split(word, "--finetuned mto:100=DIR")
        name, _, epoch = key.rpartition(":")
        try:
            at = float(epoch)
        except ValueError:
            raise MtoError(
                f"--finetuned {word}: no epoch", hint="--finetuned mto:100=DIR"
            ) from None
        free = [tuned for _, tuned in found.get(name, []) if at not in tuned]
        if not free:
            raise MtoError(
                f"--finetuned {word}: arm {name!r} has no (further) run for it; the arms are "
                f"{', '.join(found)}",
                hint=f"--arm {name or 'mto'}=DIR names a run",
            )
        free[0][at] = folder
    if len(found) < 2:
        raise MtoError(
            f"there is one arm, {next(iter(found))}: a report needs another one to judge",
            hint="mto report --arm baseline=DIR --arm mto=DIR",
        )
    return [
        Source(arm=name, seed=seed, folder=folder, finetuned=tuned)
        for name, runs in found.items()
        for seed, (folder, tuned) in enumerate(runs)
    ]


def _split(word: str, form: str) -> tuple[str, Path]:
    name, equals, text = word.partition("=")
    if not (name and equals and text):
        raise MtoError(f"{word!r} is not NAME=DIR", hint=f"such as {form}")
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}", hint=f"such as {form}")
    return name, folder


def numbered(runs: Sequence[Source], recipe: Recipe) -> list[Source]:
    """The runs with their own seeds, where the settings of all tell them; else as they are."""
    from mto_tools.study.runs import read_settings

    seeds = []
    for source in runs:
        settings, _ = read_settings(source.folder, recipe)
        own = [value for key, value in settings.items() if key.lower() == "seed"]
        seeds.append(own[0] if own else None)
    keys = {(source.arm, seed) for source, seed in zip(runs, seeds, strict=True)}
    if len(keys) < len(runs) or not all(isinstance(seed, int) for seed in seeds):
        return list(runs)
    return [
        source.model_copy(update={"seed": seed}) for source, seed in zip(runs, seeds, strict=True)
    ]


def recognise(home: Path, folders: Sequence[Path]) -> str:
    """Name of the recipe that wrote the folders.

    Raises:
        MissingError: The files do not tell.
        MtoError: The folders are of different recipes.
    """
    possible = {folder: _recipes(home, folder) for folder in folders}
    told = {folder: names for folder, names in possible.items() if names}
    common = set.intersection(*map(set, told.values())) if told else set()
    if told and not common:
        words = "; ".join(f"{folder} is of {' or '.join(names)}" for folder, names in told.items())
        raise MtoError(f"the runs are of different recipes: {words}", hint="compare runs of one")
    if len(common) != 1:
        names = ", ".join(sorted(common)) or "no recipe that is known"
        raise MissingError(
            f"the files do not tell which recipe wrote {folders[0]}; they fit {names}",
            hint="--recipe NAME says it",
        )
    return common.pop()


def _recipes(home: Path, folder: Path) -> list[str]:
    """Recipes that may have written a folder: by their log, and by what MTO noted."""
    from mto_tools.study.logs import find_file, last_json_line
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    names = sorted(file.parent.name for file in home.glob("patches/*/recipe.toml"))
    logs = {name: load_recipe(load_upstream(home, name)).logs for name in names}
    own = [name for name in names if find_file(folder, logs[name].own)]
    config = find_file(folder, "mto-config.jsonl")
    noted = last_json_line(config).get("recipe") if config else None
    return [noted] if noted in names and (noted in own or not own) else own


def finish(report: Report, folder: Path) -> None:
    """Print the finding, and the page's path to stdout; exit with its status."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for check in report.checks:
        if check.passed is False:
            console.print(f"not fair: {check.name}: {check.detail}", style="bold red", markup=False)
        elif check.passed is None:
            console.print(f"not checked: {check.name}: {check.detail}", markup=False)
    for name in report.failed:
        console.print(f"failed or missing, left out: {name}", style="bold red", markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print(report.sentence, style="bold", markup=False)
    print((folder / "report.html").absolute())
    raise typer.Exit(0 if report.fair and not report.failed else 1)
