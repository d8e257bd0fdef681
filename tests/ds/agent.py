"""torchrun with ranks that are forked: `agent.py RANKS FOLDER SCRIPT ARGUMENTS...`.

It is torchrun's own agent, which starts the ranks, watches them and reports the one that failed.
Each rank writes its pid to FOLDER/RANK.pid.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def rank(folder: str, argv: list[str]) -> None:
    (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(sys.argv[1]),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
    )
    elastic_launch(config, rank)(sys.argv[2], sys.argv[3:])
