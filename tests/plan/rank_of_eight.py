"""Rank 3 of 8 under DeepSpeed, whose messages go nowhere: sizes are real, numbers are not.

LOCAL_RANK=3 python rank_of_eight.py CONFIG.json ... prints, as JSON, DeepSpeed's reading of each
file, and by stage and accumulation, the bytes that ZeRO held in two steps of a small model.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

WORLD = 8
WIDTH, DEPTH = 200, 25
TRAINABLE = WIDTH * WIDTH * DEPTH
BUCKET = 10 * WIDTH * WIDTH


def held_bytes() -> int:
    """Bytes of all tensors now alive."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            grad = thing.grad if thing.is_leaf else None
            for tensor in (thing, grad):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class AtCollectives(TorchDispatchMode):
    """Look at memory whenever ranks exchange something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.seen.append(held_bytes())
        return func(*args, **(kwargs or {}))


def two_steps(stage: int, accumulation: int) -> int:
    """Bytes that ZeRO adds at most."""
    gc.collect()
    before = held_bytes()
    layers = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))
    model = torch.nn.Sequential(*layers)
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "overlap_comm": False}
    config = {
        "train_batch_size": WORLD * accumulation,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    engine = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )[0]
    with AtCollectives() as watch:
        for _ in range(2):
            for micro in range(accumulation):
                engine.set_gradient_accumulation_boundary(micro == accumulation - 1)
                loss = engine(torch.zeros(1, WIDTH)).sum()
                watch.seen.append(held_bytes())
                engine.backward(loss, scale_wrt_gas=False)
                watch.seen.append(held_bytes())
            engine.step()
    engine.destroy()
    return max(watch.seen) - before


def parse(file: str) -> dict[str, Any]:
    """A configuration as DeepSpeed reads it, for eight ranks."""
    config = DeepSpeedConfig(file)
    names = [f"train_{name}" for name in ("batch_size", "micro_batch_size_per_gpu")]
    names += ["gradient_accumulation_steps", "gradient_clipping"]
    of_zero = ["stage", "reduce_bucket_size", "overlap_comm"]
    found = {name: getattr(config, name) for name in names}
    return found | {name: getattr(config.zero_config, name) for name in of_zero}


if __name__ == "__main__":
    gc.freeze()  # what the imports have left need not be looked at
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    store = FakeStore()
    torch.distributed.init_process_group("fake", rank=3, world_size=WORLD, store=store)
    deepspeed.init_distributed("fake", dist_init_required=False)
    found = {
        "parsed": {file: parse(file) for file in sys.argv[1:]},
        "trainable": TRAINABLE,
        "bucket": BUCKET,
        "peak": {f"{stage} {micro}": two_steps(stage, micro) for stage, micro in ((1, 1), (2, 2))},
    }
    print(json.dumps(found))
