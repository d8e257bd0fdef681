"""A recipe that always wants a process group, started as one plain `python script.py`."""

from __future__ import annotations

import os
import socket

# What tells a launcher of any kind: torchrun, Slurm, Open MPI.
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
