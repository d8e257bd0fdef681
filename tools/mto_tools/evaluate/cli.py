"""`mto evaluate`: k-NN and linear probes on frozen features."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from typer.core import TyperCommand

if TYPE_CHECKING:
    from mto_tools.evaluate.result import Evaluation

_SCRIPT = "mto.evaluate.script"  # arguments of the script, in click's context


def register(app: typer.Typer) -> None:
    """Add this area's command to `app`."""
    app.command(cls=_Evaluate)(evaluate)


class _Evaluate(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what stands after --, which is the script's, apart from the checkpoints."""
        own = args.index("--") if "--" in args else len(args)
        ctx.meta[_SCRIPT] = args[own + 1 :]
        return super().parse_args(ctx, args[:own])


def evaluate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the upstream", metavar="NAME")],
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="its checkpoints; -- ARGS: for the script", metavar="CHECKPOINT"),
    ],
    data: Annotated[Path, typer.Option(help="folder with train/CLASS/* and val/CLASS/*")],
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the results; default: evaluations/ beside a checkpoint"),
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="processes, one per GPU")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="images at a time, per process")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="processes that load images, each")] = 4,
    k: Annotated[int, typer.Option(min=1, help="neighbours of k-NN")] = 20,
    cpu: Annotated[bool, typer.Option("--cpu", help="stay on the CPU")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="folder of features; default: ~/.cache/mto/features")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="keep no features")] = False,
    repo: Annotated[
        Path | None, typer.Option(help="the checkout, if not upstream/NAME", show_default=False)
    ] = None,
) -> None:
    """Score the frozen encoder of checkpoints of NAME: k-NN, linear probes.

    The recipe's own fine-tuning script builds the encoder, loads the checkpoint and names the
    transform; it is stopped before its first step. What stands after -- goes to that script.

    Example: mto evaluate mae out/checkpoint-799.pth --data /imagenet --nproc 8
    """
    import torch

    from mto_tools.errors import MissingError
    from mto_tools.evaluate.features import Maker
    from mto_tools.evaluate.images import scan
    from mto_tools.evaluate.run import Evaluator
    from mto_tools.home import find_home
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    upstream = load_upstream(find_home(), name)
    gpus = 0 if cpu else torch.cuda.device_count()
    if 0 < gpus < nproc:
        raise MissingError(
            f"--nproc {nproc}: this machine has {gpus} GPUs", hint=f"--nproc {gpus}, or --cpu"
        )
    maker = Maker(
        name=name,
        recipe=load_recipe(upstream),
        checkout=(repo or upstream.checkout).resolve(),
        extra=context.meta[_SCRIPT],
        processes=nproc,
        cpu=not gpus,
        batch=batch,
        workers=workers,
    )
    maker.check()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    stored = None if no_cache else (cache or home / "mto" / "features").absolute()
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    evaluator = Evaluator(maker, scan(data.absolute(), k), k, stored, out, console)
    found = [evaluator.evaluate(file) for file in checkpoints]
    if stored and stored.is_dir():
        size = decimal(sum(file.stat().st_size for file in stored.rglob("*.npy")))
        console.print(f"{size} of features are in {stored}; rm -r {quote(str(stored))} frees them")
    Console(highlight=False).print(_table(found))


def _table(found: list[Evaluation]) -> Table:
    """A row for each checkpoint."""
    from mto_tools.evaluate.result import SCORES

    table = Table(title=f"{found[0].recipe}: accuracy on {found[0].images_val} images, in %")
    table.add_column("checkpoint", overflow="fold")
    for heading in ("saved at", *SCORES.values()):
        table.add_column(heading, justify="right")
    for one in found:
        saved = "" if one.progress is None else f"{one.progress:g}"
        numbers = [f"{100 * one.scores[key]:.2f}" for key in SCORES]
        table.add_row(one.checkpoint, saved, *numbers)
    return table
