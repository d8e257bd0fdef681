"""`--local_rank`: the launchers spell it `--local-rank` now, or set `LOCAL_RANK` instead."""

from __future__ import annotations

import os
import sys


def dashed_flag() -> bool:
    """Read `--local-rank`, as `torch.distributed.launch` passes it since 2.0, as `--local_rank`."""
    changed = False
    for place, argument in enumerate(sys.argv[1:], start=1):
        if argument == "--local-rank" or argument.startswith("--local-rank="):
            sys.argv[place] = argument.replace("--local-rank", "--local_rank", 1)
            changed = True
    return changed


def required_flag() -> bool:
    """Give `--local_rank` from torchrun's `LOCAL_RANK` to a recipe that demands the flag."""
    given = any(a.split("=")[0] in ("--local_rank", "--local-rank") for a in sys.argv[1:])
    if given or "LOCAL_RANK" not in os.environ:
        return False
    sys.argv[1:1] = ["--local_rank", os.environ["LOCAL_RANK"]]
    return True
