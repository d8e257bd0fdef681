"""`mto plan`: configuration and command for a recipe under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add this area's command to `app`."""
    app.command()(plan)


def plan(
    name: Annotated[str, typer.Argument(help="the recipe, such as mae", metavar="NAME")] = "",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node")] = 8,
    gpu_mem: Annotated[float, typer.Option(min=1.0, help="GB of each GPU, of 2^30 bytes")] = 24.0,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    model: Annotated[str | None, typer.Option(help="one of the recipe's models")] = None,
    zero: Annotated[
        int | None, typer.Option(min=1, max=2, help="ZeRO stage; default: as memory asks")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images per step on all GPUs; default: the recipe's")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="length of the schedule; default: the recipe's")
    ] = None,
    mto: Annotated[bool, typer.Option("--mto", help="switch MTO on in the command")] = False,
    launcher: Annotated[
        str, typer.Option(help="the launcher in the command: torchrun or deepspeed")
    ] = "torchrun",
    data: Annotated[str, typer.Option(help="folder of the images")] = "$IMAGENET",
    output: Annotated[str, typer.Option(help="the run's output folder; default: MODEL")] = "",
    out: Annotated[
        Path | None, typer.Option(help="the configuration; default: named by recipe and content")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write over another file")] = False,
    write_all: Annotated[
        bool, typer.Option("--write-all", help="write patches/*/deepspeed/ anew, and no plan")
    ] = False,
) -> None:
    """Plan NAME for DeepSpeed: write its configuration, print the command, estimate the memory.

    The recipe's total batch and learning rate are kept. stdout gets the command, stderr the rest.
    Exit status 3: recipe.toml lacks a fact. 4: the model does not fit, the total cannot be shared
    out evenly, --epochs is too few, or another configuration would be overwritten.

    Example: mto plan mae --gpus 8 --gpu-mem 24 --model mae_vit_large_patch16 --mto
    """
    from mto_tools.home import find_home
    from mto_tools.plan import config, report
    from mto_tools.plan.committed import write_all as write_committed
    from mto_tools.plan.planner import Request, make_plan
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    home = find_home()
    if write_all:
        for file in write_committed(home):
            console.print(f"wrote {file.relative_to(home)}")
        return
    if not name:
        raise typer.BadParameter("name a recipe; mto status lists them", param_hint="NAME")
    if launcher not in config.LAUNCHERS:
        raise typer.BadParameter(f"{launcher!r} is neither torchrun nor deepspeed")
    upstream = load_upstream(home, name)
    request = Request(gpus, gpu_mem, nodes, model, zero, batch, epochs)
    made = make_plan(upstream, request)
    file = out or Path(f"{name}-{config.file_name(made)}")
    checkout = upstream.checkout
    if checkout.is_relative_to(Path.cwd()):
        checkout = checkout.relative_to(Path.cwd())
    script = load_recipe(upstream).pretrain
    start = config.Start(str(checkout), script, str(file), mto, launcher, data, output)
    config.write(made, file, force=force)
    console.print(f"configuration: {file}\n")
    report.show(made, start, console)
    print(config.command(made, start))
