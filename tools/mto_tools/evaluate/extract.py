"""In a process of the fine-tuning script: features of whole images by its loaded model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mto_tools.checkpoint import read_checkpoint
from mto_tools.errors import CorruptError, MtoError
from mto_tools.evaluate.images import SPLITS, open_split
from mto_tools.evaluate.rows import create, write

REQUEST = "MTO_EVALUATE"  # variable with a `Request` as JSON
DONE, FAILED = "done.json", "failed.json"  # in Request.out


class Request(BaseModel):
    """What a process shall do once the script has built its model."""

    checkpoint: Path
    data: Path  # folder with both splits
    out: Path  # gets train.npy, val.npy and DONE, or FAILED
    counts: Path  # folder in which each rank's file has a byte per image that is done
    head: str  # as `Evaluate.head`, and so on
    fresh: tuple[str, ...]
    resized: tuple[str, ...]
    batch: int
    workers: int


class Made(BaseModel):
    """What the features were made with."""

    model: str  # class of the fine-tuning model
    transform: str
    size: int  # D


def extract(model: nn.Module, transform: Callable[[Any], Tensor], request: Request) -> None:
    """Write the features of both splits, each rank its share; rank 0 says when all is done.

    Raises:
        CorruptError: The model's weights are not the checkpoint's.
        MtoError: The transform is random, or a feature is not finite.
        OSError: An image is broken, or the disk is full.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        check_weights(model, request)
    model.eval()
    size = 0
    for split in SPLITS:
        images = open_split(request.data, split, transform)
        with features(model, request.head) as compute:
            size = check_first(images, compute)
            file = request.out / f"{split}.npy"
            if rank == 0:
                create(file, len(images), size)
            wait()
            first, end = len(images) * rank // world, len(images) * (rank + 1) // world
            loader = DataLoader(
                Subset(images, range(first, end)), request.batch, num_workers=request.workers
            )
            for pixels, _ in loader:
                found = compute(pixels)
                if not np.isfinite(found).all():
                    bad = images.samples[first + int((~np.isfinite(found)).any(1).argmax())][0]
                    raise MtoError(f"the features of {bad} are not finite: the weights diverged")
                write(file, first, found)
                first += len(found)
                with (request.counts / str(rank)).open("ab") as counts:
                    counts.write(b"." * len(found))
    wait()
    if rank == 0:
        done = Made(model=type(model).__name__, transform=repr(transform), size=size)
        (request.out / DONE).write_text(done.model_dump_json())


@contextmanager
def features(model: nn.Module, head: str) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """The input of a model's head as a function: images [B, 3, H, W] to [B, D], float32."""
    device = next(model.parameters()).device
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, x: seen.append(x[0]))

    def compute(pixels: Tensor) -> np.ndarray:
        seen.clear()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            model(pixels.to(device))
        if [x.ndim for x in seen] != [2]:
            shapes = [tuple(x.shape) for x in seen]
            raise MtoError(f"{head} of the fine-tuning model got {shapes}, not one [B, D]")
        return seen[0].float().cpu().numpy()

    try:
        yield compute
    finally:
        hook.remove()


def check_first(images: Any, compute: Callable[[Tensor], np.ndarray]) -> int:
    """Look whether the transform is the same twice; return the size of a feature."""
    first, again = images[0][0], images[0][0]
    if not torch.equal(first, again):
        raise MtoError(
            f"the script's last data set has a random transform: {images.transform!r}",
            hint="evaluation needs that of val; see that the arguments after -- build it",
        )
    return int(compute(first[None]).shape[1])


def check_weights(model: nn.Module, request: Request) -> None:
    """Find each parameter among the checkpoint's, by value: scripts load what fits, and go on.

    Raises:
        CorruptError: A parameter is not there, though no module that is new holds it.
    """
    weights = read_checkpoint(request.checkpoint).weights
    by_size = defaultdict(list)
    for weight in weights.values():
        by_size[weight.numel()].append(weight.reshape(-1).float())
    new = tuple(f"{module}." for module in (request.head, *request.fresh))
    missing = []
    for name, parameter in model.named_parameters():
        value = parameter.detach().reshape(-1).float().cpu()
        same = any(torch.equal(value, weight) for weight in by_size[value.numel()])
        if not (same or name.startswith(new) or resized(name, parameter, weights, request)):
            missing.append(name)
    if missing:
        raise CorruptError(
            f"{request.checkpoint}: {len(missing)} parameters of the fine-tuning model, such as "
            f"{missing[0]}, are not in the checkpoint: it is of another model",
            hint="name its model after --, as the fine-tuning script does",
        )


def resized(name: str, parameter: Tensor, weights: Mapping[str, Tensor], request: Request) -> bool:
    """Whether a parameter is a table that the script interpolated to another size."""
    return any(
        name.endswith(end) and weight.shape != parameter.shape
        for end in request.resized
        for other, weight in weights.items()
        if other.endswith(end)
    )


def wait() -> None:
    """Wait for the other ranks."""
    if dist.is_initialized():
        dist.barrier()
