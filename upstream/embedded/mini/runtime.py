"""Processes, devices, and the way this recipe stops."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

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
    rank: int = 0  # rank 0 writes the files and the log
    world_size: int = 1


def join(device: str) -> Run:
    """Join the ranks that torchrun started; the device is "cpu" or "cuda"."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "RANK" in os.environ:  # also where torchrun started a single one
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return Run(torch.device(device), dist.get_rank(), dist.get_world_size())
    return Run(torch.device(device))
