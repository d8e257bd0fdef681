"""How a recipe is launched: the local rank, and a script that is started without a launcher."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def dashed_flag() -> None:
    """Read `--local-rank`, as `torch.distributed.launch` passes it since 2.0, as `--local_rank`."""
    for place, argument in enumerate(sys.argv[1:], start=1):
        if argument.split("=")[0] == "--local-rank":
            sys.argv[place] = argument.replace("--local-rank", "--local_rank", 1)


def required_flag() -> None:
    """Give `--local_rank` from torchrun's `LOCAL_RANK` to a recipe that demands the flag."""
    given = any(a.split("=")[0] in ("--local_rank", "--local-rank") for a in sys.argv[1:])
    if not given and "LOCAL_RANK" in os.environ:
        sys.argv[1:1] = ["--local_rank", os.environ["LOCAL_RANK"]]


def group_of_one() -> None:
    """Give the variables torchrun would, for a script started without torchrun, Slurm or Open MPI.

    BootMAE and ConMIM read `model.module`, so their loops need DistributedDataParallel.
    """
    if {"RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"} & os.environ.keys():
        return
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")  # any free one


def lone_slurm_process() -> None:
    """Hide `SLURM_PROCID` from the only process of a job step, as an interactive shell has it.

    Three recipes take the variable for a group of processes, which then lacks `MASTER_ADDR`. A step
    of several tasks, an address, `--dist_url` and submitit's workers are left alone.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    meant = {"MASTER_ADDR", "RANK", "SUBMITIT_EXECUTOR"} & os.environ.keys()
    addressed = any(argument.startswith("--dist_url") for argument in sys.argv)
    if tasks == "1" and not meant and not addressed:
        os.environ.pop("SLURM_PROCID", None)


def always_distributed() -> None:
    """Keep `args.distributed` True, as the patch of BootMAE does, whose loop needs a group."""

    def keep_true(self: argparse.Namespace, name: str, value: Any) -> None:
        object.__setattr__(self, name, True if name == "distributed" else value)

    argparse.Namespace.__setattr__ = keep_true  # type: ignore[method-assign]
