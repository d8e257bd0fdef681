"""Memory of one GPU under ZeRO, and under DDP without DeepSpeed, by arithmetic.

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
# Bytes per trainable parameter under DDP: gradient, bucket, Adam's two moments, autocast's copy.
DDP_TRAINED = 4 + 4 + 8 + 2


@dataclass(frozen=True)
class Part:
    """One part of a GPU's memory.

    Attributes:
        name: Name of the part.
        kind: "state", "images" (grows with the micro batch) or "reserve" (an assumption).
        bytes: Size.
        how: The arithmetic, for a person.
    """

    name: str
    kind: Literal["state", "images", "reserve"]
    bytes: int
    how: str


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU at the peak of a step, which is the start of a backward pass.

    Attributes:
        parts: Its parts.
        limit: Bytes of the card.
    """

    parts: tuple[Part, ...]
    limit: int

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether the parts fit on the card."""
        return self.total <= self.limit

    @property
    def largest(self) -> Part:
        """The largest part that is not an assumption."""
        counted = [part for part in self.parts if part.kind != "reserve"]
        return max(counted, key=lambda part: part.bytes)

    @property
    def card(self) -> int:
        """Bytes of the smallest card that holds these parts; a larger card loses more."""
        lost = int(MARGIN * self.limit)
        return int((self.total - lost) / (1 - MARGIN)) + 1


def bucket_size(trainable: int) -> int:
    """Elements of a bucket: `BUCKET`, or a smaller model's parameters rounded up to 10 million."""
    return min(BUCKET, -(-trainable // 10_000_000) * 10_000_000)


def zero_memory(
    model: Counts,
    *,
    world: int,
    micro: int,
    accumulation: int,
    stage: int,
    bucket: int,
    precision: str,
    limit: int,
    beside: int = 0,
) -> Memory:
    """Estimate the memory of one GPU under ZeRO.

    Args:
        model: What the model holds, and what it saves per image.
        world: GPUs in all.
        micro: Images per GPU and micro batch.
        accumulation: Micro batches per step.
        stage: ZeRO stage, 1 or 2.
        bucket: Elements that ZeRO reduces at a time.
        precision: "fp16", "bf16" or "float32", the recipe's autocast.
        limit: Bytes of the card.
        beside: Bytes per parameter of models without gradient.
    """
    trainable = _millions(model.trainable)
    if stage == 1:
        gradients, held = 4 * model.trainable, f"4 B x {trainable}, whole until the step"
    else:
        copies = 2 if accumulation > 1 else 1  # the sum, and what the micro batch adds to it
        gradients = copies * 4 * model.trainable // world
        held = f"{copies} x 4 B x {trainable} / {world}"
    sharded = 12 * model.trainable // world
    autocast = 0 if precision == "float32" else 2 * model.trainable
    parts = [
        Part("weights", "state", 4 * model.parameters, f"4 B x {_millions(model.parameters)}"),
        Part("other models", "state", beside * model.parameters, "teacher or moving average"),
        Part("gradients", "state", gradients, held),
        Part("optimizer", "state", sharded, f"(4 B copy + 8 B Adam) x {trainable} / {world}"),
        # Stage 2 reduces during the backward pass, in a copy.
        Part("buckets", "state", 4 * stage * bucket, f"{stage} x 4 B x {bucket:,}"),
        Part("weights in 16 bit", "state", autocast, f"2 B x {trainable}, autocast"),
        _images("activations", model.activations(precision), micro),
        _images("workspace", model.workspace, micro),
        _images("MTO", model.mto, micro, ", set aside in any case"),
        Part("CUDA, cuDNN, NCCL", "reserve", CONTEXT + NCCL, "assumed"),
        Part("fragmentation", "reserve", int(MARGIN * limit), f"assumed, {MARGIN:.0%} of the card"),
    ]
    return Memory(tuple(part for part in parts if part.bytes), limit)


def ddp_state(model: Counts, beside: int) -> int:
    """Bytes of a GPU under DDP that do not grow with the batch."""
    return (4 + beside) * model.parameters + DDP_TRAINED * model.trainable


def ddp_per_image(model: Counts) -> int:
    """Bytes of one image under 16-bit autocast: activations, workspace and MTO."""
    return model.activations("fp16") + model.workspace + model.mto


def ddp_card(taken: int) -> int:
    """GiB of the smallest card that holds `taken` bytes and the assumed reserve."""
    return -int(-(taken + CONTEXT + NCCL) / (1 - MARGIN) // GIB)


def _images(name: str, each: int, micro: int, note: str = "") -> Part:
    return Part(name, "images", each * micro, f"{each / 2**20:.2f} MiB x {micro} images{note}")


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"
