"""Memory of a GPU, traffic of a step and time of an epoch, by arithmetic.

What ZeRO holds was read in `deepspeed/runtime/zero/stage_1_and_2.py` of 0.19.8: the weights stay
float32 and whole; each rank has a float32 copy of its shard and Adam's two moments for it. Stage 1
keeps whole gradients until the step; stage 2 keeps a shard's, and reduces all of them in every
micro batch. With `reduce_scatter` both reduce by all-reduce (`use_multi_rank_bucket_allreduce`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mto_tools.plan.recipes import IMAGENET

if TYPE_CHECKING:
    from mto_tools.plan.activations import Footprint

GIB = 2**30
BUCKET = 50_000_000  # elements that ZeRO reduces at a time: 200 MB in float32
CONTEXT = GIB  # assumption: CUDA context, cuBLAS and cuDNN workspaces
NCCL = GIB // 2  # assumption: NCCL's channels and buffers
MARGIN = 0.1  # assumption: share of the card lost to fragmentation and to what is not counted


@dataclass(frozen=True)
class Part:
    """One part of a GPU's memory.

    Attributes:
        name: What it is.
        kind: "state", "images" (grows with the micro batch) or "reserve" (an assumption).
        bytes: How much.
        how: The arithmetic, for a person.
    """

    name: str
    kind: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Memory:
    """A GPU's memory at the peak of a step, which is the start of a backward pass.

    Attributes:
        parts: What it is made of.
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
        """Whether they fit on the card."""
        return self.total <= self.limit

    @property
    def largest(self) -> Part:
        """The part that dominates, of those which are no mere assumption."""
        counted = [part for part in self.parts if part.kind != "reserve"]
        return max(counted, key=lambda part: part.bytes)

    @property
    def card(self) -> int:
        """Bytes of the smallest card that would do; more of a larger one is lost."""
        lost = int(MARGIN * self.limit)
        return int((self.total - lost) / (1 - MARGIN)) + 1


def bucket_size(trainable: int) -> int:
    """Elements of a bucket: `BUCKET`, or for a smaller model its parameters, to a round number."""
    return min(BUCKET, -(-trainable // 100_000) * 100_000)


def memory(
    model: Footprint,
    *,
    world: int,
    micro: int,
    accumulation: int,
    stage: int,
    bucket: int,
    precision: str,
    limit: int,
) -> Memory:
    """Estimate the memory of one GPU.

    Args:
        model: What the model holds, and what it saves per image.
        world: GPUs in all.
        micro: Images per GPU and micro batch.
        accumulation: Micro batches per step.
        stage: ZeRO stage, 1 or 2.
        bucket: Elements that ZeRO reduces at a time.
        precision: "fp16", "bf16" or "float32", the recipe's autocast.
        limit: Bytes of the card.
    """
    mixed = precision != "float32"
    weights, trainable = _millions(model.parameters), _millions(model.trainable)
    activations = model.activations if mixed else model.activations_float32
    gradients, held = _gradients(model.trainable, world, accumulation, stage)
    buckets = f"4 B x {bucket:,}"
    if stage == 2:  # reduces during the backward pass, in a copy
        buckets = f"2 x {buckets}, filled and reduced"
    parts = [
        Part("weights", "state", 4 * model.parameters, f"4 B x {weights}"),
        Part("other models", "state", model.other_bytes, "teacher or moving average"),
        Part("gradients", "state", gradients, held),
        Part(
            "optimizer, sharded",
            "state",
            12 * model.trainable // world,
            f"(4 B copy + 8 B Adam) x {trainable} / {world}",
        ),
        Part("buckets", "state", 4 * stage * bucket, buckets),
    ]
    if mixed:
        parts.append(
            Part("weights in 16 bit", "state", 2 * model.trainable, f"2 B x {trainable}, autocast")
        )
    parts += [
        Part("activations", "images", activations * micro, _per_image(activations, micro)),
        Part("workspace", "images", model.transient * micro, _per_image(model.transient, micro)),
        Part(
            "MTO",
            "images",
            model.mto * micro,
            f"{_per_image(model.mto, micro)}, set aside in any case",
        ),
        Part("CUDA, cuDNN, NCCL", "reserve", CONTEXT + NCCL, "assumed"),
        Part("fragmentation", "reserve", int(MARGIN * limit), f"assumed, {MARGIN:.0%} of the card"),
    ]
    return Memory(tuple(part for part in parts if part.bytes), limit)


def _gradients(trainable: int, world: int, accumulation: int, stage: int) -> tuple[int, str]:
    if stage == 1:
        return 4 * trainable, f"4 B x {_millions(trainable)}, whole until the step"
    copies = 2 if accumulation > 1 else 1  # the sum, and what the micro batch adds to it
    times = f"{copies} x " if copies > 1 else ""
    return copies * 4 * trainable // world, f"{times}4 B x {_millions(trainable)} / {world}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _per_image(count: int, micro: int) -> str:
    return f"{count / 2**20:.2f} MiB x {micro} images"


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends in a step, and as much that it receives; rings over all GPUs.

    Attributes:
        reductions: Times that the gradients are reduced.
        reduced: Bytes sent for one reduction of all gradients: 2 (n - 1) / n of them.
        gathered: Bytes sent to gather the weights after the step: (n - 1) / n of them.
    """

    reductions: int
    reduced: int
    gathered: int

    @property
    def total(self) -> int:
        """Bytes per step."""
        return self.reductions * self.reduced + self.gathered


def traffic(trainable: int, *, world: int, accumulation: int, stage: int) -> Traffic:
    """Count what a GPU sends in one step."""
    share = 4 * trainable * (world - 1) // world
    return Traffic(accumulation if stage == 2 else 1, 2 * share, share)


@dataclass(frozen=True)
class Pace:
    """An epoch over ImageNet-1K at a given rate.

    Attributes:
        steps: Optimizer steps.
        left_over: Micro batches at the end that fill no step.
        computing: Seconds of computation; `None` without a rate.
        sending: Seconds of traffic, if none of it hides behind computation; `None` without a
            bandwidth.
    """

    steps: int
    left_over: int
    computing: float | None
    sending: float | None

    @property
    def epoch(self) -> float | None:
        """Seconds of an epoch."""
        return None if self.computing is None else self.computing + (self.sending or 0.0)


def pace(
    *,
    world: int,
    micro: int,
    accumulation: int,
    sent: int,
    rate: float | None,
    bandwidth: float | None,
) -> Pace:
    """Work out an epoch.

    Args:
        world: GPUs in all.
        micro: Images per GPU and micro batch.
        accumulation: Micro batches per step.
        sent: Bytes that a GPU sends in a step.
        rate: Images per second of one GPU, measured by the user.
        bandwidth: GB per second that a GPU sends at, measured by the user.
    """
    # DistributedSampler gives each GPU the same number, and drop_last drops what fills no batch.
    batches = -(-IMAGENET // world) // micro
    steps, left_over = divmod(batches, accumulation)
    return Pace(
        steps,
        left_over,
        None if rate is None else IMAGENET / (rate * world),
        None if bandwidth is None else steps * sent / (bandwidth * 1e9),
    )
