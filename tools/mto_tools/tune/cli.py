"""`mto tune`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mto_tools.errors import MissingError, MtoError

if TYPE_CHECKING:
    from mto_tools.tune.runs import Limit
    from mto_tools.upstreams.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(tune)


def tune(
    name: Annotated[str, typer.Argument(help="Upstream to tune MTO for, such as mini.")],
    extra: Annotated[
        list[str] | None, typer.Argument(help="After --: arguments of the recipe, in every run.")
    ] = None,
    style: Annotated[str | None, typer.Option(help="Style of the recipe.")] = None,
    budget: Annotated[str, typer.Option(help="Time of training here: 90s, 15m, 2h.")] = "",
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Of a run; default: a third of `mto compare`'s.")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Learning rates of the baseline; default: its own x 1/2, 1, 2, and on."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the search.")] = 2,
    fresh: Annotated[int, typer.Option(min=1, help="Further seeds, for the interval.")] = 5,
    data: Annotated[Path | None, typer.Option(help="Data set; default: the built-in one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; default: reports/NAME/tune.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time.")] = None,
) -> None:
    """Find the weights of MTO for NAME, from short runs beside a baseline with the same seeds.

    First the baseline chooses its learning rate. A trial counts by how much better its score ends,
    as a mean over seeds; the best trial then runs with fresh seeds, for an interval. Without
    --budget or --trials, 15 minutes. Stop it anywhere and give the command again; give it twice, or
    on several nodes, and they share the work. Prints the flags to paste as the only line of stdout.
    """
    from mto_tools.home import find_home
    from mto_tools.launch.inputs import prepare
    from mto_tools.study.builtin import BASELINE
    from mto_tools.study.session import usable_cores, visible_gpus
    from mto_tools.study.spec import Arm, Study
    from mto_tools.tune.result import PICTURE
    from mto_tools.tune.runs import Runs
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    try:
        from mto_tools.tune.search import tune as search
    except ModuleNotFoundError as error:
        raise MissingError(
            f"mto tune needs the package {error.name}, which is not installed",
            hint="pip install -e '.[tune]'   in your clone of mto",
        ) from None
    jobs = jobs or min(len(visible_gpus()) or usable_cores(), seeds)
    limit = limit_of(trials, budget, jobs)
    home = find_home()
    recipe = load_recipe(load_upstream(home, name))
    if not recipe.compare or (recipe.compare.moving_target and not recipe.compare.scores):
        raise MissingError(
            f"{name} cannot be tuned: its recipe.toml names no score, and its L_ss cannot be "
            "compared between runs",
            hint=f"table [compare] of patches/{name}/recipe.toml, as in patches/mini/recipe.toml",
        )
    style = recipe.style(style, name)
    data = data.expanduser().absolute() if data else None
    rates = sorted({*rate}) if rate else own_rates(recipe, style, extra or ())
    option = recipe.options.rate
    study = Study(
        upstream=name,
        style=style,
        steps=steps or max(2, recipe.compare.steps // 3),
        data=str(data or ""),
        arguments=(*(extra or ()),),
        seeds=(*range(seeds),),
        arms={
            f"rate{i}": Arm(mto=BASELINE, arguments=(option, f"{value:g}"))
            for i, value in enumerate(rates)
        },
    )
    folder = (out or home / "reports" / name / "tune").expanduser().absolute()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    say = partial(console.print, markup=False)
    inputs = prepare(home, name, recipe, data, say, allow_edited=False)
    runs = Runs(study, fresh, recipe, inputs, folder, console, jobs)
    found = search(runs, limit, widen=not rate)
    found.write(folder)
    console.print(found.sentence, style="bold", markup=False)
    say(f"picture: {folder / PICTURE}")
    if found.best:
        print(shlex.join(found.flags))


def limit_of(trials: int | None, budget: str, jobs: int) -> Limit:
    """Trials, seconds or both; a second in which `jobs` runs train counts once."""
    from mto_tools.tune.runs import Limit

    timed = budget or not trials
    return Limit(trials, jobs * seconds(budget or "15m") if timed else None)


def seconds(text: str) -> float:
    """`90s`, `15m` or `2h`.

    Raises:
        MtoError: Of another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise MtoError(f"{text!r} is no length of time", hint="--budget 15m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def own_rates(recipe: Recipe, style: str, extra: Sequence[str]) -> tuple[float, ...]:
    """The recipe's own learning rate x 1/2, 1, 2: of the last argument that names it, or `[plan]`.

    Raises:
        MissingError: Neither says it.
    """
    words = [*recipe.arguments.split(), *extra]
    given = [b for a, b in pairwise(words) if a == recipe.options.rate]
    if not given and recipe.plan:
        model = style if style in recipe.plan.memory else None
        given = [recipe.plan.schedule(model, None).rate]
    if not given:
        raise MissingError(
            "the recipe's learning rate is not known", hint="--rate 1e-3 --rate 2e-3"
        )
    rate = float(given[-1])
    return rate / 2, rate, 2 * rate
