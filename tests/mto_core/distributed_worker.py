"""One rank of test_trace_distributed.py; run as `worker.py CASE RANK WORLD FOLDER`.

The same functions run in the test itself, as the single process over the whole batch that the ranks
must agree with. `Model` serves other tests too.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace

WEIGHTS = MTOConfig(sparsity=0.5, singularity=0.5, ranking=0.5, backend="recompute")
BALANCED = dataclasses.replace(WEIGHTS, balance=0.1, balance_every=2, balance_decay=0.5)
CALIBRATED = dataclasses.replace(
    WEIGHTS,
    calibrate=0.1,
    calibrate_steps=10,
    sparsity_depth=-1,
    sparsity_scale="layernorm",
)
STEPS = 13  # ten are measured


class Block(nn.Module):
    def __init__(self, style: str = "tensor") -> None:
        super().__init__()
        self.style = style
        self.mix = nn.Linear(6, 6)

    def forward(self, hidden: torch.Tensor, scale: float | torch.Tensor = 1.0) -> object:
        out = hidden + torch.tanh(self.mix(hidden)) * scale
        return (out, None) if self.style == "tuple" else out


class Model(nn.Module):
    """One cls token, 12 patches, three blocks; `how` says how the blocks are called."""

    def __init__(self, how: str = "plain", style: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block(style) for _ in range(3))
        self.head = nn.Linear(6, 4)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if self.how == "keyword":
                x = block(scale=x.new_ones(()), hidden=x)  # another tensor comes first
            elif self.how in ("reentrant", "nonreentrant"):
                x = checkpoint(block, x, use_reentrant=self.how == "reentrant")
            else:
                x = block(x)
            x = x[0] if isinstance(x, tuple) else x
            if self.how == "in place":
                x = x.add_(1.0)
        return x

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        if self.how == "outer reentrant":
            x = checkpoint(self.run, x, use_reentrant=True)
        else:
            x = self.run(x)
        return (self.head(x) - images).square().mean()


def batch(step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every world-th image of a batch of eight, with masks of different counts."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 13, 4, generator=generator)
    mask = torch.rand(8, 12, generator=generator) < 0.6
    mask[0] = True  # one image without any visible token, on rank 0 only
    return images[rank::world], mask[rank::world]


def train(
    model: nn.Module,
    wrap: Callable[[nn.Module], Callable[..., torch.Tensor]],
    config: MTOConfig,
    rank: int = 0,
    world: int = 1,
    micro: int = 1,
) -> dict[str, torch.Tensor]:
    """Some SGD steps; parameters, last gradients and the module's state afterwards."""
    trace = TokenTrace(model.blocks, num_prefix_tokens=1)
    run = wrap(model)
    mto = MaskedTokenOptimization(config)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    weights = []
    for step in range(STEPS if config.calibrate else 5):
        sgd.zero_grad()
        images, mask = batch(step, rank, world)
        for part in range(micro):
            with trace:
                loss = run(images[part::micro])
            terms = mto(trace.tokens_by_depth, mask[part::micro], step=step, loss=loss)
            ((loss + terms.total) / micro).backward()
            weights.append(torch.stack([torch.as_tensor(w) for w in terms.weights.values()]))
        sgd.step()
    trace.close()
    found = {f"param.{name}": p.detach() for name, p in model.named_parameters()}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    found |= {f"mto.{name}": value for name, value in mto.state_dict().items()}
    return found | {"weights": weights[-1]}


def ddp(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    from torch.nn.parallel import DistributedDataParallel

    found = {}
    configs = {"fixed": WEIGHTS, "balanced": BALANCED, "calibrated": CALIBRATED}
    for name, config in configs.items():
        found[name] = train(Model(), DistributedDataParallel, config, rank, world)

    def compiled(model: nn.Module) -> Callable[..., torch.Tensor]:
        return torch.compile(DistributedDataParallel(model), backend="aot_eager")

    model = Model("nonreentrant")
    found["checkpointing"] = train(model, DistributedDataParallel, WEIGHTS, rank, world)
    found["compiled"] = train(Model(), compiled, WEIGHTS, rank, world)
    return found


def zero(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    import deepspeed

    # Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    found = {}
    for stage in (1, 2):
        model = Model()
        trace = TokenTrace(model.blocks, num_prefix_tokens=1)
        mto = MaskedTokenOptimization(WEIGHTS)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            config={
                "train_micro_batch_size_per_gpu": 8 // world,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 0.0,  # DeepSpeed's default is to clip to 1.0
            },
            dist_init_required=False,
        )
        for step in range(5):
            images, mask = batch(step, rank, world)
            with trace:
                loss = engine(images)
            engine.backward(loss + mto(trace.tokens_by_depth, mask).total)
            engine.step()
        found[f"stage {stage}"] = {
            f"param.{name}": p.detach().clone() for name, p in model.named_parameters()
        }
        engine.destroy()
    return found


def main() -> None:
    """Runs one rank and leaves its results in FOLDER/RANK.pt."""
    case, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    # A file, not a port: nothing to collide with.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    torch.save({"ddp": ddp, "zero": zero}[case](rank, world), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
