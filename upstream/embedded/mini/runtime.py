"""Processes, devices, random-number state, and the way this recipe stops."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

MISSING, REFUSED, CORRUPT = 3, 4, 5  # exit codes; 1 is a failure of training, 2 a wrong flag


def stop(message: str, code: int) -> NoReturn:
    """End the process with one sentence on stderr and an exit code a script can act on."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


@dataclass(frozen=True)
class Run:
    """Where this process stands among the others, and what it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0


def locate(device: str) -> Run:
    """Find this process's rank, as torchrun set it, and its device: "cpu", "cuda" or "auto"."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        stop("--device cuda was asked for, but torch finds no GPU; use --device cpu", MISSING)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    rank, world_size = (int(os.environ.get(*x)) for x in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return Run(torch.device(device), rank, world_size)


def join(run: Run) -> None:
    """Join the process group, if there is more than one process."""
    if run.device.type == "cuda":
        torch.cuda.set_device(run.device)
    if run.world_size > 1:
        dist.init_process_group("nccl" if run.device.type == "cuda" else "gloo")


def mean_over_ranks(value: torch.Tensor) -> float:
    """Average a scalar tensor over all processes; every rank gets the same number."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)


def rng_state() -> list[dict[str, Any]]:
    """Read torch's global generators of every rank, from which layers such as drop path draw.

    A collective call: all ranks must make it, and all get the list indexed by rank.
    """
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    mine = {"torch": torch.get_rng_state(), "cuda": cuda}
    if not dist.is_initialized():
        return [mine]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back one rank's generators, as `rng_state` read them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
