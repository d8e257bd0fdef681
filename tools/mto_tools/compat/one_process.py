"""A recipe started as one plain `python script.py`, without a launcher."""

from __future__ import annotations

import os
import socket
import sys

# Variables by which a launcher is known: torchrun, Slurm, Open MPI.
_LAUNCHED = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def environment() -> bool:
    """Give the variables torchrun would, for a group of one.

    BootMAE and ConMIM read `model.module`, so their loops need DistributedDataParallel.
    """
    if any(name in os.environ for name in _LAUNCHED):
        return False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in alone.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))
    return True


def slurm() -> bool:
    """Hide `SLURM_PROCID` from the only process of a job step, as an interactive shell has it.

    Three recipes take the variable for a group of processes, which then lacks `MASTER_ADDR`. A step
    of several tasks, an address, `--dist_url` and submitit's workers are left alone.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    meant = {"MASTER_ADDR", "RANK", "SUBMITIT_EXECUTOR"} & os.environ.keys()
    addressed = any(argument.startswith("--dist_url") for argument in sys.argv)
    if "SLURM_PROCID" not in os.environ or tasks != "1" or meant or addressed:
        return False
    del os.environ["SLURM_PROCID"]
    return True
