"""Training that the ranks of test_engine.py do; each case returns runs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from worker import STEPS, train

Runs = dict[str, dict[str, Any]]
# Each under DDP, under ZeRO 1 and under ZeRO 2, with these options of worker.train.
ALIKE: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro": 2},
    "leftovers": {"micro": 2, "leftover": True},
    "own_accumulation": {"micro": 3, "own_accumulation": True},
    "clipped": {"clip": 0.1},
    "bfloat16": {"autocast": True},
    "scaled": {"scaling": True, "spoil": 2, "clip": 0.1},
}


def run(case: str, folder: Path) -> Runs:
    """The runs of a case of `ALIKE`, or of the function of that name."""
    if case in ALIKE:
        names = ("ddp", "stage 1", "stage 2")
        return {n: train(folder, stage, **ALIKE[case]) for stage, n in enumerate(names)}
    runs: Runs = globals()[case](folder)
    return runs


def styles(folder: Path) -> Runs:
    return {
        f"{style} {stage}": train(folder, stage, clip=0.1, style=style)
        for style in ("torch", "apex")
        for stage in (0, 1)
    }


def resumed(folder: Path) -> Runs:
    first, rest = range(3), range(3, STEPS)
    saved = {name: train(folder, stage, steps=first) for stage, name in enumerate(("ddp", "zero"))}
    for name in saved:  # only rank 0 saves, as in the recipes
        if torch.distributed.get_rank() == 0:
            torch.save(saved[name], folder / f"{name}.ckpt")
    torch.distributed.barrier()
    ddp, zero = (torch.load(folder / f"{name}.ckpt", weights_only=False) for name in saved)
    return {
        "whole": train(folder, 0),
        "ddp to zero": train(folder, 1, steps=rest, state=ddp),
        "ddp to zero 2": train(folder, 2, steps=rest, state=ddp),
        "zero to ddp": train(folder, 0, steps=rest, state=zero),
        "zero to zero": train(folder, 1, steps=rest, state=zero),
        "loaded before": train(folder, 1, steps=rest, state=ddp, load_late=False),
    }


def on_other_ranks(folder: Path) -> Runs:
    """Go on from a checkpoint of two ranks, on one."""
    zero = torch.load(folder / "zero.ckpt", weights_only=False)
    return {
        name: train(folder, stage, steps=range(3, STEPS), state=zero)
        for stage, name in enumerate(("ddp", "zero"))
    }
