"""One rank of test_devices.py: `elsewhere.py RANK WORLD FOLDER`, results in FOLDER/RANK.pt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.devices import Elsewhere
from tests.ds.worker import train

if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store"
    )
    found = []
    for stage in (1, 2):
        here = train(folder, stage, scaling=True, clip=1.0)
        with Elsewhere(check=False):
            found.append((here, train(folder, stage, scaling=True, clip=1.0, state=None)))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
