"""Memory of one GPU by arithmetic: under ZeRO 1 and 2, and under DDP, which is stage 0 here.

ZeRO's tensors were read in `deepspeed/runtime/zero/stage_1_and_2.py` of 0.19.8: the weights stay
float32 and whole; each rank has a float32 copy of its shard and Adam's two moments for it. Stage 1
keeps whole gradients until the step; stage 2 keeps a shard's, and reduces all of them in every
micro batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mto_tools.upstreams.facts import Counts

GIB = 2**30
BUCKET = 50_000_000  # elements that ZeRO reduces at a time: 200 MB in float32
CONTEXT = GIB  # assumption: CUDA context, cuBLAS and cuDNN workspaces
NCCL = GIB // 2  # assumption: NCCL's channels and buffers
MARGIN = 0.1  # assumption: share of the card lost to fragmentation and to what is not counted


@dataclass(frozen=True)
class Part:
    """One part of a GPU's memory; images grow with the micro batch, reserves are assumptions."""

    name: str
    kind: Literal["state", "images", "reserve"]
    bytes: int
    how: str  # the arithmetic, for a person


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU at the peak of a step, which is the start of a backward pass."""

    parts: tuple[Part, ...]
    limit: int  # bytes of the card

    def sum(self, *kinds: str) -> int:
        """Bytes of all parts, or of those of some kinds."""
        return sum(part.bytes for part in self.parts if not kinds or part.kind in kinds)

    @property
    def card(self) -> int:
        """GiB of the smallest card that holds these parts; a larger card loses more."""
        lost = int(MARGIN * self.limit)
        return -int(-(self.sum() - lost) / (1 - MARGIN) // GIB)


def bucket_size(trainable: int) -> int:
    """Elements of a bucket: `BUCKET`, or a smaller model's parameters rounded up to 10 million."""
    return min(BUCKET, -(-trainable // 10_000_000) * 10_000_000)


def estimate(
    model: Counts,
    *,
    stage: int,
    micro: int,
    beside: int,
    world: int = 1,
    accumulation: int = 1,
    limit: int = 0,
) -> Memory:
    """Estimate the memory of one GPU.

    Args:
        model: Counts of the model.
        stage: ZeRO stage, 1 or 2; 0 for DDP without DeepSpeed.
        micro: Images per GPU and micro batch.
        beside: Bytes per parameter of models without gradient.
        world: GPUs in all.
        accumulation: Micro batches per step.
        limit: Bytes of the card.
    """
    trainable, bucket = model.trainable, bucket_size(model.trainable)
    elements = f"{trainable / 1e6:.1f} M"
    gradients, held = 4 * trainable, f"4 B x {elements}, whole until the step"
    optimizer, moments = 12 * trainable // world, f"(4 B copy + 8 B Adam) x {elements} / {world}"
    # Stage 2 reduces during the backward pass, in a copy.
    buckets, reduced = 4 * stage * bucket, f"{stage} x 4 B x {bucket:,}"
    if stage == 2:
        copies = 2 if accumulation > 1 else 1  # the sum, and what the micro batch adds to it
        gradients, held = gradients * copies // world, f"{copies} x 4 B x {elements} / {world}"
    if stage == 0:
        optimizer, moments = 8 * trainable, f"8 B Adam x {elements}"
        buckets, reduced = 4 * trainable, f"4 B x {elements}"

    def images(name: str, each: int, note: str = "") -> Part:
        how = f"{each / 2**20:.2f} MiB x {micro} images{note}"
        return Part(name, "images", each * micro, how)

    parts = [
        Part("weights", "state", 4 * model.parameters, f"4 B x {model.parameters / 1e6:.1f} M"),
        Part("other models", "state", beside * model.parameters, "teacher or moving average"),
        Part("gradients", "state", gradients, held),
        Part("optimizer", "state", optimizer, moments),
        Part("buckets", "state", buckets, reduced),
        Part("weights in 16 bit", "state", 2 * trainable, f"2 B x {elements}, autocast"),
        images("activations", model.activations),
        images("workspace", model.workspace),
        images("MTO", model.mto, ", set aside in any case"),
        Part("CUDA, cuDNN, NCCL", "reserve", CONTEXT + NCCL, "assumed"),
        Part("fragmentation", "reserve", int(MARGIN * limit), f"assumed, {MARGIN:.0%} of the card"),
    ]
    return Memory(tuple(part for part in parts if part.bytes), limit)
