"""One rank of the tests: `worker.py RANK WORLD FOLDER CASE...`, results in FOLDER/CASE-RANK.pt.

Every case trains a toy recipe twice or more, as the recipes do under DDP and on DeepSpeed, and
returns what the runs leave behind, by their names.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mto_tools import ds
from mto_tools.compat import apex

STEPS = 5


class Model(nn.Module):
    """Blocks whose outputs a hook captures, as MTO's trace does; one weight gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 7)
        self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in range(3))
        self.head = nn.Linear(7, 5)
        self.unused = nn.Linear(3, 11)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.embed(x)
        for block in self.blocks:
            y = y + torch.tanh(block(y))
        return (self.head(y).float() - x).square().mean()


class NativeScaler:
    """Behaves as the class of that name in the recipes."""

    def __init__(self, enabled: bool = False) -> None:
        self._scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        self.state_dict = self._scaler.state_dict
        self.load_state_dict = self._scaler.load_state_dict

    def __call__(
        self,
        loss: Tensor,
        optimizer: Any,
        clip_grad: float | None = None,
        parameters: Any = None,
        create_graph: bool = False,
        update_grad: bool = True,
    ) -> Tensor | None:
        self._scaler.scale(loss).backward()
        if not update_grad:
            return None
        self._scaler.unscale_(optimizer)
        parameters = list(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, clip_grad or float("inf"))
        self._scaler.step(optimizer)
        self._scaler.update()
        return norm


def batch(step: int, part: int, rank: int) -> Tensor:
    """Different images on every rank and in every micro batch."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * part + rank)
    return torch.randn(4, 5, generator=generator) * (1 + part)


def configure(folder: Path, stage: int, micro: int, clip: float | None) -> list[str]:
    """The flag with a configuration as `mto plan` writes it; none at stage 0, which is DDP."""
    if not stage:
        return []
    world = dist.get_world_size()
    content = {
        "train_batch_size": 4 * micro * world,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": micro,
        "gradient_clipping": clip or 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100},
        "zero_allow_untested_optimizer": True,
    }
    file = folder / f"ds-{dist.get_rank()}.json"
    file.write_text(json.dumps(content))
    return ["--deepspeed_config", str(file)]


def train(
    folder: Path,
    stage: int,
    *,
    micro: int = 1,
    clip: float | None = None,
    steps: range = range(STEPS),
    state: dict[str, Any] | None = None,
    scaling: bool = False,
    autocast: bool = False,
    own_accumulation: bool = False,
    leftover: bool = False,
    spoil: int = -1,
    load_late: bool = True,
    style: str = "native",
) -> dict[str, Any]:
    """The toy recipe, under DDP at stage 0; everything it leaves behind."""
    rank = dist.get_rank()
    torch.manual_seed(rank)  # as in the recipes: DDP makes the weights alike
    parser = argparse.ArgumentParser()
    ds.add_arguments(parser)
    args = parser.parse_args(configure(folder, stage, micro, clip))
    assert vars(args) == {}
    raw = Model()
    taps: list[Tensor] = []
    for block in raw.blocks:
        block.register_forward_hook(lambda module, inputs, output: taps.append(output))
    model: Any = DistributedDataParallel(raw, find_unused_parameters=True)
    decay = [p for p in raw.parameters() if p.ndim > 1]
    rest = [p for p in raw.parameters() if p.ndim == 1]
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": 0.3, "lr_scale": 1.0},
            {"params": rest, "weight_decay": 0.0, "lr_scale": 0.5},
        ],
        lr=0.05,
        betas=(0.9, 0.95),
    )
    scaler: Any = NativeScaler(scaling)
    if style == "torch":
        scaler = torch.amp.GradScaler("cpu", enabled=scaling)
    elif style == "apex":
        scaler = apex
        raw, optimizer = apex.initialize(raw, optimizer)
    if state and not load_late:
        optimizer.load_state_dict(state["optimizer"])
    model, optimizer, scaler = ds.start(
        model,
        optimizer,
        scaler,
        batch_size=4,
        accumulation=None if own_accumulation else micro,
        clip_grad=clip,
    )
    if state:
        state = copy.deepcopy(state)  # torch's optimizers take the tensors they are given
        raw.load_state_dict(state["model"])
        if load_late:
            optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    if stage:
        assert list(model.parameters()) == [], "gradients of one rank must not be clipped"
    losses, norms, scales = [], [], []
    model.train(True)
    for step in steps:
        for group in optimizer.param_groups:  # a schedule of rate and weight decay
            group["lr"] = 0.05 / (1 + step) * group["lr_scale"]
            if group["weight_decay"] > 0:
                group["weight_decay"] = 0.3 / (1 + step)
        if leftover and step % 2 == 0:  # an epoch that ends within a step
            loss = forward(model, taps, step, 7, rank, autocast) / micro
            scaler(loss, optimizer, update_grad=False)
            optimizer.zero_grad()
        for part in range(micro):
            loss = forward(model, taps, step, part, rank, autocast)
            if step == spoil and rank == 1:
                loss = loss * torch.inf
            losses.append(loss.item())
            if own_accumulation:  # as ConMIM's loop, which has none of its own
                loss = loss if stage else loss / micro
                if not stage and part < micro - 1:
                    loss.backward()
                    continue
                if ds.accumulate(loss):
                    continue
                if stage:
                    optimizer.zero_grad()  # before every backward
                norms.append(float(backward(style, scaler, loss, optimizer, model, clip, True)))
                if not stage:
                    optimizer.zero_grad()
                continue
            last = part == micro - 1
            norm = backward(style, scaler, loss / micro, optimizer, model, clip, last)
            if last:
                norms.append(float(ds.grad_norm(norm)))
                optimizer.zero_grad()
        scales.append(scaler.state_dict().get("scale"))
    return {
        "losses": losses,
        "norms": norms,
        "scales": scales,
        "model": raw.state_dict(),
        "names": list(model.state_dict()),  # by which moving averages find the weights
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "scaler": scaler.state_dict(),
    }


def forward(
    model: Any, taps: list[Tensor], step: int, part: int, rank: int, autocast: bool
) -> Tensor:
    """The recipe's loss, plus one from what the hooks caught, under the recipe's autocast."""
    taps.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.set_autocast_enabled("cuda", autocast)  # what DeepSpeed looks at, and switches off
        loss = model(batch(step, part, rank))
        torch.set_autocast_enabled("cuda", False)
        extra = torch.stack([tap.float().square().mean() for tap in taps]).mean()
    return loss + 0.1 * extra


def backward(
    style: str,
    scaler: Any,
    loss: Tensor,
    optimizer: Any,
    model: Any,
    clip: float | None,
    update: bool,
) -> Any:
    """Backward and step, as the three kinds of recipes write it."""
    if style == "native":
        return scaler(
            loss, optimizer, clip_grad=clip, parameters=model.parameters(), update_grad=update
        )
    if style == "torch":  # mini
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        scaler.step(optimizer)
        scaler.update()
        return norm
    with scaler.scale_loss(loss, optimizer) as scaled:  # SimMIM
        scaled.backward()
    norm = nn.utils.clip_grad_norm_(scaler.master_params(optimizer), clip or float("inf"))
    optimizer.step()
    return norm


Runs = dict[str, dict[str, Any]]
# Each under DDP, under ZeRO 1 and under ZeRO 2, with these options of worker.train.
ALIKE: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro": 2},
    "leftovers": {"micro": 2, "leftover": True},
    "own_accumulation": {"micro": 3, "own_accumulation": True},
    "clipped": {"clip": 0.1},
    "bfloat16": {"autocast": True},
    "scaled": {"scaling": True, "spoil": 2, "clip": 0.1},
}


def run(case: str, folder: Path) -> Runs:
    """The runs of a case of `ALIKE`, or of the function of that name."""
    if case in ALIKE:
        names = ("ddp", "stage 1", "stage 2")
        return {n: train(folder, stage, **ALIKE[case]) for stage, n in enumerate(names)}
    others = {"styles": styles, "resumed": resumed, "on_other_ranks": on_other_ranks}
    runs: Runs = (others | {"elsewhere": elsewhere})[case](folder)
    return runs


def styles(folder: Path) -> Runs:
    return {
        f"{style} {stage}": train(folder, stage, clip=0.1, style=style)
        for style in ("torch", "apex")
        for stage in (0, 1)
    }


def resumed(folder: Path) -> Runs:
    first, rest = range(3), range(3, STEPS)
    saved = {name: train(folder, stage, steps=first) for stage, name in enumerate(("ddp", "zero"))}
    for name in saved:  # only rank 0 saves, as in the recipes
        if torch.distributed.get_rank() == 0:
            torch.save(saved[name], folder / f"{name}.ckpt")
    torch.distributed.barrier()
    ddp, zero = (torch.load(folder / f"{name}.ckpt", weights_only=False) for name in saved)
    return {
        "whole": train(folder, 0),
        "ddp to zero": train(folder, 1, steps=rest, state=ddp),
        "ddp to zero 2": train(folder, 2, steps=rest, state=ddp),
        "zero to ddp": train(folder, 0, steps=rest, state=zero),
        "zero to zero": train(folder, 1, steps=rest, state=zero),
        "loaded before": train(folder, 1, steps=rest, state=ddp, load_late=False),
    }


def elsewhere(folder: Path) -> Runs:
    """Under the test of tensors that our code makes without a device; see tests/devices.py."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from devices import Elsewhere  # type: ignore[import-not-found]

    how: dict[str, Any] = {"micro": 2, "clip": 0.1, "scaling": True, "own_accumulation": False}
    runs = {"here": train(folder, 1, **how)}
    with Elsewhere():
        runs["elsewhere"] = train(folder, 1, **how)
    return runs


def on_other_ranks(folder: Path) -> Runs:
    """Go on from a checkpoint of two ranks, on one."""
    zero = torch.load(folder / "zero.ckpt", weights_only=False)
    return {
        name: train(folder, stage, steps=range(3, STEPS), state=zero)
        for stage, name in enumerate(("ddp", "zero"))
    }


def main() -> None:
    rank, world, folder, *cases = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{world}",
        rank=int(rank),
        world_size=int(world),
    )
    for case in cases:
        torch.save(run(case, Path(folder)), f"{folder}/{case}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
