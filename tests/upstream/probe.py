"""Runs before a recipe's script, in its process, and writes down what the tests compare.

Into the folder PROBE_OUT, per rank and per optimizer step: the loss that went backward as an exact
hexadecimal number, and a digest of every mask token's gradient. With PROBE_TOKENS, also the tokens
that enter and leave the blocks named there, which the tests feed to mto_core by hand.

At the start of each epoch all generators are seeded from the epoch's number, for the recipes save
no generator's state: only so can a resumed run be asked to equal one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

OUT = Path(os.environ["PROBE_OUT"])
RANK = int(os.environ.get("RANK", "0"))
BLOCKS = [name for name in os.environ.get("PROBE_TOKENS", "").split(",") if name]
SEED = 1000

models: list[nn.Module] = []
tokens: dict[str, list[Tensor]] = {}
backward = torch.Tensor.backward
set_epoch = DistributedSampler.set_epoch
wrap = DistributedDataParallel.__init__


def seeded(sampler: Any, epoch: int) -> None:
    seed = SEED * (epoch + 1) + RANK
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    set_epoch(sampler, epoch)


def wrapped(self: Any, module: nn.Module, *args: Any, **more: Any) -> None:
    if not models:
        models.append(module)
        for name in BLOCKS:
            watch(name, list(module.get_submodule(name).children()))
    wrap(self, module, *args, **more)


def watch(name: str, blocks: list[nn.Module]) -> None:
    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            tokens[name] = [inputs[0].detach()]

    def after(_: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            tokens[name].append(output.detach())

    blocks[0].register_forward_pre_hook(before)
    for block in blocks:
        block.register_forward_hook(after)


def recorded(loss: Tensor, *args: Any, **more: Any) -> None:
    backward(loss, *args, **more)
    parameters = dict(models[0].named_parameters()) if models else {}
    gradients = {
        name: hashlib.sha1(p.grad.numpy().tobytes()).hexdigest()
        for name, p in parameters.items()
        if "mask_token" in name and p.grad is not None
    }
    record = {"loss": float(loss.detach()).hex(), "mask_tokens": gradients}
    with (OUT / f"probe-{RANK}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    if tokens and not (OUT / "tokens.pt").exists() and RANK == 0:
        torch.save(tokens, OUT / "tokens.pt")


OUT.mkdir(parents=True, exist_ok=True)
DistributedSampler.set_epoch = seeded  # type: ignore[method-assign]
DistributedDataParallel.__init__ = wrapped  # type: ignore[method-assign]
torch.Tensor.backward = recorded  # type: ignore[method-assign]
