"""`mto run`: an upstream's own script; `mto smoke`: does a recipe do what is promised?"""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    app.command("run")(run)
    app.command("smoke")(smoke)


def run(
    name: Annotated[str, typer.Argument(help="the upstream", metavar="NAME")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="after --: what the script gets", metavar="-- ARGS")
    ] = None,
    script: Annotated[
        str, typer.Option(help="one of its scripts; by default the one that pre-trains")
    ] = "",
    nproc: Annotated[int, typer.Option(help="processes on this machine, one per GPU")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="run CUDA-only code on the CPU")] = False,
    precision: Annotated[str, typer.Option(help="with --cpu: float32 or bfloat16")] = "float32",
    compat: Annotated[
        bool, typer.Option("--compat", help="activate the shims for an unpatched checkout")
    ] = False,
    repo: Annotated[Path | None, typer.Option(help="the checkout, if not upstream/NAME")] = None,
) -> None:
    """Run a script of NAME, patched or not, with its own arguments.

    The working directory stays yours, so that outputs do not land in the checkout.

    Example: mto run mae --nproc 8 -- --model mae_vit_base_patch16 --data_path /imagenet --mto
    """
    from mto_tools.home import find_home
    from mto_tools.launch.command import Launch
    from mto_tools.upstreams.upstream import load_upstream

    upstream = load_upstream(find_home(), name)
    folder = repo or upstream.checkout
    launch = Launch(
        name=name,
        script=(folder / (script or next(iter(upstream.entry), "main.py"))).resolve(),
        arguments=arguments or [],
        processes=nproc,
        cpu=cpu,
        precision=precision,
        compat=compat,
    )
    argv = launch.argv()
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[dim]{shlex.join(argv)}[/]")
    os.execv(argv[0], argv)


def smoke(
    name: Annotated[
        str, typer.Argument(help="the recipe: an upstream, or simmim_swin", metavar="NAME")
    ],
    cpu: Annotated[bool, typer.Option("--cpu", help="run CUDA-only code on the CPU")] = False,
    nproc: Annotated[int, typer.Option(help="processes on this machine, one per GPU")] = 1,
    steps: Annotated[int, typer.Option(help="steps of each run")] = 4,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="new folder for data, logs and outputs, which then stay", file_okay=False
        ),
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="the checkout, if not upstream/NAME")] = None,
) -> None:
    """Run NAME on a few digits: baseline, MTO off, MTO on, resume; say whether they agree.

    The model has its real size: some minutes on a CPU, and 6 GB of disk for the checkpoints.
    """
    from mto_tools.errors import MtoError, RefusedError
    from mto_tools.home import find_home
    from mto_tools.launch import smoke as smoking
    from mto_tools.launch.recipes import find_recipe
    from mto_tools.upstreams.upstream import load_upstream

    recipe = find_recipe(name)
    upstream = load_upstream(find_home(), recipe.upstream)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    checkout = (repo or upstream.checkout).resolve()
    if keep and keep.exists() and any(keep.iterdir()):
        raise RefusedError(
            f"{keep} is not empty: a recipe that resumes by itself would go on with a run in it",
            hint=f"--keep a new folder, or remove {keep}",
        )
    with tempfile.TemporaryDirectory(prefix=f"mto-smoke-{name}-") as temporary:
        work = (keep or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        problems = smoking.smoke(
            recipe,
            checkout,
            upstream.pin,
            work,
            console.print,
            cpu=cpu,
            processes=nproc,
            steps=steps,
        )
    if problems:
        raise MtoError(
            f"{name}: not as promised: {'; '.join(problems)}",
            hint=f"mto smoke {name} --keep FOLDER keeps the logs; mto verify {recipe.upstream}",
        )
