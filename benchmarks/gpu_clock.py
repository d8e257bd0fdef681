"""Time of every optimizer step of a run, and its peak memory, into the file `MTO_CLOCK`.

`mto_tools.launch.worker --before` runs this file ahead of an upstream's script: one clock for runs
with and without MTO.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_stamps: list[float] = []


def _write() -> None:
    if _stamps and int(os.environ.get("RANK", "0")) == 0:
        found = {"seconds": _stamps, "peak": 0, "reserved": 0}
        if torch.cuda.is_available():
            found |= {"peak": torch.cuda.max_memory_allocated()}
            found |= {"reserved": torch.cuda.max_memory_reserved()}
        Path(os.environ["MTO_CLOCK"]).write_text(json.dumps(found))


register_optimizer_step_post_hook(lambda *_: _stamps.append(time.perf_counter()))
atexit.register(_write)
