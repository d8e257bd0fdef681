"""`mto study`, and `mto compare`, which is a study of two arms."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mto_tools.errors import MissingError, MtoError

if TYPE_CHECKING:
    from mto_tools.study.session import How, Session
    from mto_tools.study.tasks import Task
    from mto_tools.upstreams.recipe import Recipe

Extra = Annotated[
    list[str] | None,
    typer.Argument(
        help="After --: more arguments for the recipe, in all arms; options of MTO (--mto_NAME, "
        "MTO.NAME) in the arms with MTO only."
    ),
]
Style = Annotated[str | None, typer.Option(help="Style of the recipe, if it has several.")]
Steps = Annotated[int | None, typer.Option(min=2, help="Optimizer steps of every run.")]
Preset = Annotated[str | None, typer.Option(help="MTO preset in place of the default.")]
Data = Annotated[Path | None, typer.Option(help="Data set; default: the built-in one.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Tasks at the same time.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Go on with other tasks when one fails.")
]
AllowEdited = Annotated[
    bool, typer.Option("--allow-edited", help="Run although the checkout was edited.")
]


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    app.command()(compare)
    app.command()(study)


def compare(
    name: Annotated[str, typer.Argument(help="Upstream to compare, such as mini.")],
    extra: Extra = None,
    style: Style = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 3,
    steps: Steps = None,
    preset: Preset = None,
    data: Data = None,
    reports: Annotated[Path | None, typer.Option(help="Folder of the reports.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of a step, for a recipe that counts epochs.")
    ] = None,
    jobs: Jobs = None,
    keep_going: KeepGoing = False,
    allow_edited: AllowEdited = False,
) -> None:
    """Train NAME with and without MTO from the same seeds, and report what it did.

    Prints the path of the report as the last line of stdout. Exit status 1: a run failed, or the
    two arms did not meet the same conditions. It is `mto study compare NAME` in a new folder.
    """
    from mto_tools.home import find_home
    from mto_tools.study.builtin import Asked, compare
    from mto_tools.study.session import How, Session

    recipe = _recipe(name)
    asked = Asked(
        style=style,
        preset=preset,
        seeds=seeds,
        steps=steps,
        batch=batch,
        data=_absolute(data),
        extra=extra or (),
    )
    root = (reports or find_home() / "reports").expanduser().absolute()
    folder = root / name / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    session = Session(compare(name, recipe, asked), folder, recipe)
    _run(session, How(jobs=jobs, keep_going=keep_going), allow_edited=allow_edited)


def study(
    what: Annotated[
        str,
        typer.Argument(help="A study.toml or its folder; compare, ablation or paper; or status."),
    ],
    name: Annotated[
        str | None, typer.Argument(help="Upstream of a built-in study; folder, for status.")
    ] = None,
    extra: Extra = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; default: reports/NAME/WHAT.")
    ] = None,
    style: Style = None,
    preset: Preset = None,
    model: Annotated[str | None, typer.Option(help="Model of the full size, for paper.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 1,
    steps: Steps = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of every run.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a step.")] = None,
    images_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, for paper.")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes of a task, one per GPU.")] = 1,
    finetune_epochs: Annotated[int | None, typer.Option(min=1, help="For paper.")] = None,
    finetune_batch: Annotated[int | None, typer.Option(min=1, help="For paper.")] = None,
    data: Data = None,
    launcher: Annotated[
        str, typer.Option(help="local, slurm, or submitit-local: its executor without SLURM.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for submitit, such as partition=gpu or timeout_min=600."),
    ] = None,
    jobs: Jobs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and their GPU hours, run nothing.")
    ] = False,
    keep_going: KeepGoing = False,
    allow_edited: AllowEdited = False,
) -> None:
    """Run arms x seeds, evaluate and fine-tune their checkpoints, and report.

    Stop it anywhere and give the command again: what is done stays done, and a run goes on from its
    own last checkpoint. Options of the numbers belong to built-in studies and are written into
    OUT/study.toml; a study file has them as keys. Prints the path of the report as the last line
    of stdout.

    Examples: mto study compare mini --seeds 3; mto study reports/mini/compare/study.toml;
    mto study status reports/mini/compare
    """
    from mto_tools.home import find_home
    from mto_tools.study.builtin import BUILT_IN, Asked
    from mto_tools.study.launchers import LAUNCHERS
    from mto_tools.study.session import How, Session
    from mto_tools.study.spec import FILE, FineTuning, load_study

    if launcher not in LAUNCHERS:
        raise MtoError(f"there is no launcher {launcher!r}", hint=f"one of {', '.join(LAUNCHERS)}")
    if what == "status":
        _status(Path(name or "."))
        return
    pairs = [tuple(item.partition("=")[::2]) for item in slurm or ()]
    if wrong := [key for key, value in pairs if not value]:
        raise MtoError(f"--slurm {wrong[0]} has no value", hint="--slurm KEY=VALUE")
    how = How(launcher, jobs, tuple((key, value) for key, value in pairs), keep_going)
    if what in BUILT_IN:
        if name is None:
            raise typer.BadParameter("name an upstream; mto status lists them", param_hint="NAME")
        recipe = _recipe(name)
        tuning = FineTuning(epochs=finetune_epochs, batch=finetune_batch)
        asked = Asked(
            style=style,
            preset=preset,
            model=model,
            seeds=seeds,
            steps=steps,
            epochs=epochs,
            batch=batch,
            images_per_gpu=images_per_gpu,
            nproc=nproc,
            data=_absolute(data),
            extra=extra or (),
            finetune=tuning,
        )
        folder = out or find_home() / "reports" / name / what
        session = Session(BUILT_IN[what](name, recipe, asked), _folder(folder), recipe)
    else:
        file = Path(what)
        file = file / FILE if file.is_dir() else file
        if not file.is_file():
            raise MissingError(
                f"there is no study {what!r}: neither a file nor one of {', '.join(BUILT_IN)}",
                hint="mto study compare NAME",
            )
        given = load_study(file)
        folder = out or (file.parent if file.name == FILE else file.with_suffix(""))
        session = Session(given, _folder(folder), _recipe(given.upstream))
    _run(session, how, allow_edited=allow_edited, dry_run=dry_run)


def _run(session: Session, how: How, *, allow_edited: bool = False, dry_run: bool = False) -> None:
    from mto_tools.home import find_home
    from mto_tools.launch.inputs import prepare
    from mto_tools.study.report_cli import finish
    from mto_tools.study.schedule import check_size
    from mto_tools.study.session import visible_gpus
    from mto_tools.study.summary import number

    # Refusals come before the first run, those of options before anything is written.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    say = partial(console.print, markup=False)
    given = session.study
    data = Path(given.data) if given.data else None
    name, recipe = given.upstream, session.recipe
    check_size(given, recipe)
    inputs = prepare(find_home(), name, recipe, data, say, allow_edited=allow_edited)
    gpu = bool(visible_gpus()) or how.launcher == "slurm"
    maker = session.maker(inputs, gpu=gpu)
    schedule, tasks = maker.schedule, maker.tasks()
    epochs = f" ({number(schedule.epochs, 'epoch')})" if schedule.epochs else ""
    say(
        f"{name}, style {maker.style}: {number(len(given.seeds), 'seed')} x "
        f"{number(len(given.arms), 'arm')} x {schedule.steps} steps{epochs}, "
        f"{number(len(tasks), 'task')} in {session.folder}"
    )
    if dry_run:
        _show(session, tasks)
        return
    finish(session.run(inputs, how, console), session.folder)


def _show(session: Session, tasks: list[Task]) -> None:
    """Print every command, and the GPU hours that are known."""
    import shlex

    from mto_tools.study.status import hours
    from mto_tools.study.summary import number
    from mto_tools.study.tasks import read_states

    states, nproc = read_states(session.folder), session.study.nproc
    left: list[float | None] = []
    for task in tasks:
        cost = hours(task, tasks, states, session.folder, session.recipe, nproc)
        done = task.id in states and states[task.id].status == "done"
        left += [] if done else [cost]
        told = "unknown" if cost is None else f"{cost:.2f}"
        print(f"# {task.id}: {told} GPU hours{', done' if done else ''}")
        print(shlex.join(task.command))
    known = [cost for cost in left if cost is not None]
    unknown = number(len(left) - len(known), "task")
    print(f"# to do: {sum(known):.2f} GPU hours, and {unknown} of unknown length")


def _status(folder: Path) -> None:
    from mto_tools.study.session import PREPARED, Prepared, open_session
    from mto_tools.study.status import table
    from mto_tools.study.tasks import read_states

    session = open_session(folder.absolute())
    prepared = Prepared.load(session.folder / PREPARED)
    tasks = session.maker(prepared.inputs, gpu=prepared.gpu).tasks()
    states, nproc = read_states(session.folder), session.study.nproc
    Console().print(table(tasks, states, session.folder, session.recipe, nproc))


def _recipe(name: str) -> Recipe:
    from mto_tools.home import find_home
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    return load_recipe(load_upstream(find_home(), name))


def _folder(folder: Path) -> Path:
    return folder.expanduser().absolute()


def _absolute(data: Path | None) -> str:
    return str(_folder(data)) if data else ""
