"""A rank of a run, or the torchrun that starts it.

    rank.py torchrun RANKS FOLDER SCRIPT ARGUMENTS...
    rank.py FOLDER SCRIPT ARGUMENTS...

torchrun is the real one, and starts for every rank the command in the variable FORKED_PYTHON. Each
rank writes its pid to FOLDER/RANK.pid.

With KILL=RANK:STEP in the environment, this rank kills itself at this step of DeepSpeed's engine.
"""

import itertools
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import deepspeed
from torch.distributed.run import main as torchrun

from mto_tools.ds.engine import Engine

# Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def kill_at(step: int) -> None:
    """Make the engine's step number `step` a SIGKILL of this process."""
    own, steps = Engine.step, itertools.count(1)

    def counted(self: Engine) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        own(self)

    Engine.step = counted  # type: ignore[method-assign]


def main(folder: str, *argv: str) -> None:
    if folder == "torchrun":
        ranks, folder, *argv = argv
        start = ["--standalone", f"--nproc_per_node={ranks}", "--no-python"]
        python = json.loads(os.environ["FORKED_PYTHON"])
        torchrun([*start, *python, __file__, folder, *argv])
        return
    (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    rank, _, step = os.environ.get("KILL", "").partition(":")
    if rank == os.environ["RANK"]:
        kill_at(int(step))
    sys.argv = list(argv)
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
