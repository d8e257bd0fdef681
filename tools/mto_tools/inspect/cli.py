"""`mto inspect`."""

from __future__ import annotations

import shutil
import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

_EXTRA = "mto.inspect.extra"


class _Inspect(TyperCommand):
    """Checkpoints before `--`, the script's own arguments after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_EXTRA] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])


def register(app: typer.Typer) -> None:
    """Add this area's command to `app`."""
    app.command("inspect", cls=_Inspect)(inspect)


def inspect(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Upstream, such as mae.", metavar="NAME")],
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints of its pre-training; for mae also folders of Hugging Face's ViTMAE.",
            metavar="CHECKPOINT...",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with val/CLASS/* (or train/, or CLASS/*); default: built-in."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images to look at.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make for the pages.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of images, of crops and masks.")] = 0,
    allow_edited: Annotated[
        bool, typer.Option("--allow-edited", help="Go on although the checkout was edited.")
    ] = False,
) -> None:
    """Show what checkpoints of NAME do with mask tokens: H, similarity, affinity maps by depth.

    All are shown the same images with the same masks; nothing is trained. Arguments after -- go to
    the recipe's script: a checkpoint without settings needs its model there.

    Example: mto inspect mae base/checkpoint-799.pth mto/checkpoint-799.pth --data /imagenet
    """
    import torch

    from mto_tools.checkpoint import digest
    from mto_tools.errors import MissingError, RefusedError
    from mto_tools.home import find_home
    from mto_tools.inspect.images import choose, find_images
    from mto_tools.inspect.page import write_all
    from mto_tools.inspect.report import Inspection, inspected, labels
    from mto_tools.inspect.run import Prober
    from mto_tools.launch.inputs import default_data, ready, versions
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    say = partial(
        Console(stderr=True, soft_wrap=True, highlight=False).print, markup=False, style="dim"
    )
    home = find_home()
    upstream = load_upstream(home, name)
    recipe = load_recipe(upstream)
    if recipe.inspect is None:
        raise MissingError(
            f"{name} cannot be inspected: {upstream.folder / 'recipe.toml'} has no table [inspect]",
            hint="docs/inspect.md names what it needs",
        )
    now = datetime.now().astimezone()
    folder = out or home / "reports" / name / f"inspect-{now:%Y-%m-%d-%H%M%S}"
    folder = folder.expanduser().absolute()
    paths = [path.expanduser() for path in checkpoints]
    found = find_images(data.expanduser().absolute()) if data else []
    checkout, commits = ready(home, name, say, allow_edited=allow_edited)
    found = found or find_images(default_data(home, checkout, recipe.data, say))
    files = choose(found, images or min(64, len(found)), seed)
    prober = Prober(
        name,
        recipe,
        recipe.inspect,
        checkout,
        files,
        seed,
        extra=context.meta[_EXTRA],
        cpu=not torch.cuda.is_available(),
    )
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RefusedError(f"{folder} is there already", hint="--out with another folder") from None
    try:
        seen = prober.look(paths, say)
        inspection = Inspection(
            made=now.isoformat(timespec="seconds"),
            upstream=name,
            command=["mto", *sys.argv[1:]],
            data=str(files[0].parents[1]),
            images=len(files),
            seed=seed,
            scale=str(seen[0].arrays["scale"]),
            checksums={key: str(seen[0].arrays[key]) for key in ("images", "mask")},
            versions={**versions(("torch", "mto-core", *recipe.needs)), **commits},
            checkpoints=[
                inspected(one, label, digest(one.path) if one.path.is_file() else None)
                for one, label in zip(seen, labels(paths), strict=True)
            ],
        )
        write_all(inspection, seen, folder)
    except BaseException:
        shutil.rmtree(folder)  # made above
        raise
    print(folder / "inspect.html")
