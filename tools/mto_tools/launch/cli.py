"""`mto run`: an upstream's own script; `mto smoke`: does a recipe do what is promised?"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from mto_tools.errors import MtoError
from mto_tools.home import find_home
from mto_tools.launch import smoke as smoking
from mto_tools.launch.command import Launch
from mto_tools.launch.small import Runner
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

Name = Annotated[str, typer.Argument(help="the upstream", metavar="NAME")]
Nproc = Annotated[int, typer.Option(min=1, help="processes on this machine, one per GPU")]
Cpu = Annotated[bool, typer.Option("--cpu", help="run CUDA-only code on the CPU")]
Repo = Annotated[
    Path | None, typer.Option(help="the checkout, if not upstream/NAME", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add this area's commands to `app`."""
    app.command("run", cls=_Run)(run)
    app.command("smoke")(smoke)


class _Run(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # of click, which newer typers bring along
            if type(error).__name__ == "NoSuchOption":
                option = getattr(error, "option_name", "")
                error.message = (  # type: ignore[attr-defined]
                    f"{option} is no option of mto run; put it after --, where the script's own "
                    f"are: mto run NAME -- {option}"
                )
            raise


def _torchrun(name: str) -> Any:
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help="as torchrun's")


def run(
    name: Name,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="after --: what the script gets", metavar="-- ARGS")
    ] = None,
    script: Annotated[
        str, typer.Option(help="one of its scripts; by default the one that pre-trains")
    ] = "",
    nproc: Nproc = 1,
    nnodes: Annotated[str | None, typer.Option("--nnodes", help="machines, or MIN:MAX")] = None,
    node_rank: Annotated[int | None, _torchrun("node_rank")] = None,
    rdzv_id: Annotated[str | None, _torchrun("rdzv_id")] = None,
    rdzv_backend: Annotated[str | None, _torchrun("rdzv_backend")] = None,
    rdzv_endpoint: Annotated[str | None, _torchrun("rdzv_endpoint")] = None,
    master_addr: Annotated[str | None, _torchrun("master_addr")] = None,
    master_port: Annotated[int | None, _torchrun("master_port")] = None,
    cpu: Cpu = False,
    repo: Repo = None,
) -> None:
    """Run a script of NAME with its own arguments.

    The working directory stays yours, so that outputs do not land in the checkout. Options for
    several machines are those of torchrun.

    Example: mto run mae --nproc 8 -- --model mae_vit_base_patch16 --data_path /imagenet --mto
    """
    upstream = load_upstream(find_home(), name)
    recipe = load_recipe(upstream)
    meet = {
        **{"nnodes": nnodes, "node_rank": node_rank, "rdzv_id": rdzv_id},
        **{"rdzv_backend": rdzv_backend, "rdzv_endpoint": rdzv_endpoint},
        **{"master_addr": master_addr, "master_port": master_port},
    }
    launch = Launch(
        name=name,
        recipe=recipe,
        script=((repo or upstream.checkout) / (script or recipe.pretrain)).resolve(),
        arguments=arguments or [],
        processes=nproc,
        torchrun=[f"--{key}={value}" for key, value in meet.items() if value is not None],
        cpu=cpu,
    )
    launch.check()
    argv = launch.argv()
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[dim]{shlex.join(argv)}[/]")
    os.execve(argv[0], argv, launch.environment(inherit=True))


def smoke(
    name: Name,
    style: Annotated[
        str | None, typer.Option(help="model of the recipe; by default its first")
    ] = None,
    cpu: Cpu = False,
    nproc: Nproc = 1,
    workers: Annotated[int, typer.Option(min=0, help="processes that load images")] = 0,
    repo: Repo = None,
) -> None:
    """Run NAME on a few digits: baseline, MTO off, MTO on, resume; say whether they agree.

    The model has its real size: some minutes on a CPU, and 6 GB in TMPDIR for the checkpoints.
    """
    upstream = load_upstream(find_home(), name)
    recipe = load_recipe(upstream)
    style = recipe.style(style, name)
    checkout = (repo or upstream.checkout).resolve()
    launch = Launch(name, recipe, checkout / recipe.pretrain, processes=nproc, cpu=cpu)
    launch.check()
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    with _temporary_folder(name) as work:
        runner = Runner(launch, style, work, workers=workers)
        problems = smoking.smoke(runner, checkout, upstream.pin, console.print)
        if problems:
            raise MtoError(
                f"{name}: not as promised: {'; '.join(problems)}",
                hint=f"mto verify {name}; what the runs printed: {work}/*.log",
            )


@contextmanager
def _temporary_folder(name: str) -> Iterator[Path]:
    """A folder for the runs of an upstream, of which the logs stay after an error."""
    work = Path(tempfile.mkdtemp(prefix=f"mto-smoke-{name}-")).resolve()
    logs: set[Path] = set()
    try:
        yield work
    except MtoError:
        logs = set(work.glob("*.log"))
        raise
    finally:
        for path in set(work.iterdir()) - logs:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not logs:
            work.rmdir()
