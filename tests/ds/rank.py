"""A rank of a run, or the torchrun that starts it.

    rank.py torchrun RANKS FOLDER SCRIPT ARGUMENTS...
    rank.py FOLDER SCRIPT ARGUMENTS...

torchrun is the real one, and starts for every rank the command in the variable FORKED_PYTHON. Each
rank writes its pid to FOLDER/RANK.pid.

With KILL=RANK:STEP in the environment, this rank kills itself at this step of DeepSpeed's engine.
With ORDERED in the environment, gradients are summed in the order of the ranks. gloo's ring starts
elsewhere for every part of a buffer: with more than two ranks a sum depends on where in its bucket
a gradient stands, which is not the same in DDP and ZeRO.
"""

import itertools
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.run import main as torchrun
from torch.nn.parallel import DistributedDataParallel

from mto_tools.ds.engine import Engine

# Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
gloo_sum, plain_init = dist.all_reduce, DistributedDataParallel.__init__


def ordered_sum(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, *args: Any, **more: Any) -> Any:
    if op != dist.ReduceOp.SUM or not tensor.is_floating_point():
        return gloo_sum(tensor, op, *args, **more)
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    tensor.copy_(parts[0])
    for part in parts[1:]:
        tensor += part
    return None


def ordered_hook(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    ordered_sum(bucket.buffer().div_(dist.get_world_size()))
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def ordered_init(self: Any, *args: Any, **more: Any) -> None:
    plain_init(self, *args, **more)
    self.register_comm_hook(None, ordered_hook)


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
    if "ORDERED" in os.environ:
        dist.all_reduce = ordered_sum
        DistributedDataParallel.__init__ = ordered_init  # type: ignore[method-assign]
    rank, _, step = os.environ.get("KILL", "").partition(":")
    if rank == os.environ["RANK"]:
        kill_at(int(step))
    sys.argv = list(argv)
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
