"""What the ranks of test_engine.py do; each returns runs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from worker import STEPS, config, train

Runs = dict[str, dict[str, Any]]


def plain(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None),
        "stage 1": train(config(folder, world)),
        "stage 2": train(config(folder, world, stage=2)),
    }


def accumulated(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None, micro=2),
        "stage 1": train(config(folder, world, micro=2), micro=2),
        "stage 2": train(config(folder, world, micro=2, stage=2), micro=2),
    }


def leftovers(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None, micro=2, leftover=True),
        "stage 1": train(config(folder, world, micro=2), micro=2, leftover=True),
        "stage 2": train(config(folder, world, micro=2, stage=2), micro=2, leftover=True),
    }


def own_accumulation(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None, micro=3, own_accumulation=True),
        "stage 1": train(config(folder, world, micro=3), micro=3, own_accumulation=True),
        "stage 2": train(config(folder, world, micro=3, stage=2), micro=3, own_accumulation=True),
    }


def clipped(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None, clip=0.1),
        "stage 1": train(config(folder, world, clip=0.1), clip=0.1),
        "stage 2": train(config(folder, world, clip=0.1, stage=2), clip=0.1),
    }


def bfloat16(folder: Path, world: int) -> Runs:
    return {
        "ddp": train(None, autocast=True),
        "stage 1": train(config(folder, world), autocast=True),
        "float32": train(None),
    }


def scaled(folder: Path, world: int) -> Runs:
    more: dict[str, Any] = {"scaling": True, "spoil": 2, "clip": 0.1}
    return {
        "ddp": train(None, **more),
        "stage 1": train(config(folder, world, clip=0.1), **more),
        "stage 2": train(config(folder, world, clip=0.1, stage=2), **more),
    }


def styles(folder: Path, world: int) -> Runs:
    found = {}
    for style in ("torch", "apex"):
        found[f"{style} ddp"] = train(None, clip=0.1, style=style)
        found[style] = train(config(folder, world, clip=0.1), clip=0.1, style=style)
    return found


def resumed(folder: Path, world: int) -> Runs:
    first, rest = range(3), range(3, STEPS)
    ddp = train(None, steps=first)
    zero = train(config(folder, world), steps=first)
    for name, run in (("ddp", ddp), ("zero", zero)):  # only rank 0 saves, as in the recipes
        if torch.distributed.get_rank() == 0:
            torch.save(run, folder / f"{name}.ckpt")
    torch.distributed.barrier()
    ddp, zero = (
        torch.load(folder / f"{name}.ckpt", weights_only=False) for name in ("ddp", "zero")
    )
    return {
        "whole": train(None),
        "ddp to zero": train(config(folder, world), steps=rest, state=ddp),
        "ddp to zero 2": train(config(folder, world, stage=2), steps=rest, state=ddp),
        "zero to ddp": train(None, steps=rest, state=zero),
        "zero to zero": train(config(folder, world), steps=rest, state=zero),
        "loaded before": train(config(folder, world), steps=rest, state=ddp, load_late=False),
    }


def on_other_ranks(folder: Path, world: int) -> Runs:
    """Go on with what two ranks have left, on one."""
    rest = range(3, STEPS)
    zero = torch.load(folder / "zero.ckpt", weights_only=False)
    return {
        "ddp": train(None, steps=rest, state=zero),
        "zero": train(config(folder, world), steps=rest, state=zero),
    }
