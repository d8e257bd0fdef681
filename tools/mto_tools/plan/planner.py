"""Micro batch, accumulation and ZeRO stage that keep a recipe's total batch on given GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mto_tools.errors import MissingError, RefusedError
from mto_tools.plan.estimate import GIB, Memory, Pace, Traffic, bucket_size, memory, pace, traffic
from mto_tools.plan.recipes import Recipe, Size, find_recipe

if TYPE_CHECKING:
    from mto_tools.plan.activations import Footprint

# Stage 2 reduces the gradients in every micro batch. It is worth that only where stage 1 leaves a
# GPU fewer images at a time than this.
FEW_IMAGES = 32
BOOTMAE_SAVES = 20  # epochs between its checkpoints, by default; one is saved after the last, too


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        name: The recipe.
        gpus: GPUs per node.
        gpu_mem: Memory of a GPU in GiB.
        nodes: Machines.
        model: One of the recipe's; `None` for its default.
        precision: "fp16", "bf16" or "float32"; `None` for the recipe's default.
        stage: ZeRO stage; `None` to choose.
        batch: Images per step on all GPUs; `None` for the recipe's.
        epochs: Length of the schedule; `None` for the recipe's.
        rate: Images per second of one GPU, measured by the user.
        bandwidth: GB per second that a GPU sends at, measured by the user.
    """

    name: str
    gpus: int = 8
    gpu_mem: float = 24.0
    nodes: int = 1
    model: str | None = None
    precision: str | None = None
    stage: int | None = None
    batch: int | None = None
    epochs: int | None = None
    rate: float | None = None
    bandwidth: float | None = None

    @property
    def world(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Plan:
    """How to run it.

    Attributes:
        request: What was asked for.
        recipe: The recipe.
        size: The model, with total batch and epochs of this plan.
        footprint: What the model needs.
        precision: What it computes in.
        micro: Images per GPU and micro batch.
        accumulation: Micro batches per step.
        stage: ZeRO stage.
        memory: Estimate for one GPU.
        traffic: What one GPU sends in a step.
        pace: An epoch; `None` for a recipe that counts steps.
        learning_rate: The peak, as upstream computes it.
        notes: What to know before starting.
    """

    request: Request
    recipe: Recipe
    size: Size
    footprint: Footprint
    precision: str
    micro: int
    accumulation: int
    stage: int
    memory: Memory
    traffic: Traffic
    pace: Pace | None
    learning_rate: float
    notes: tuple[str, ...]


def make_plan(request: Request) -> Plan:
    """Find the largest micro batch that fits, and the ZeRO stage for it.

    Memory for MTO is set aside whether it will be on or not, so that a baseline runs under the very
    same configuration.

    Raises:
        MissingError: No such recipe, model, schedule or precision.
        RefusedError: The total batch cannot be shared out evenly, the model does not fit, or the
            schedule ends within its warm-up.
    """
    from mto_tools.plan.activations import footprint

    recipe = find_recipe(request.name)
    known = recipe.size(request.model, request.epochs)
    size = replace(known, total=request.batch or known.total)
    precision = request.precision or recipe.precisions[0]
    if precision not in recipe.precisions:
        raise MissingError(
            f"{recipe.name} computes in {' or '.join(recipe.precisions)}: upstream has no option "
            f"for {precision}"
        )
    if size.total % request.world:
        raise _uneven(size.total, request)
    model = footprint(recipe.name, size.model)
    share = size.total // request.world
    stages = (1, 2) if request.stage is None else (request.stage,)
    fitting = [
        (micro, -stage, estimate)
        for micro in _divisors(share)
        if micro <= (recipe.largest_micro or share)
        for stage in stages
        if (micro <= FEW_IMAGES or stage == stages[0])
        and (estimate := _memory(model, request, precision, share, micro, stage)).fits
    ]
    if not fitting:
        smallest = _memory(model, request, precision, share, 1, stages[-1])
        raise _too_large(size, request, smallest, stages[-1])
    micro, stage, estimate = max(fitting, key=lambda found: found[:2])
    accumulation, stage = share // micro, -stage
    sent = traffic(model.trainable, world=request.world, accumulation=accumulation, stage=stage)
    epoch = pace(
        world=request.world,
        micro=micro,
        accumulation=accumulation,
        sent=sent.total,
        rate=request.rate,
        bandwidth=request.bandwidth,
    )
    return Plan(
        request,
        recipe,
        size,
        model,
        precision,
        micro,
        accumulation,
        stage,
        estimate,
        sent,
        epoch if size.epochs else None,
        recipe.learning_rate(size, size.total),
        tuple(_notes(recipe, known, size, epoch, micro)),
    )


def _memory(
    model: Footprint, request: Request, precision: str, share: int, micro: int, stage: int
) -> Memory:
    return memory(
        model,
        world=request.world,
        micro=micro,
        accumulation=share // micro,
        stage=stage,
        bucket=bucket_size(model.trainable),
        precision=precision,
        limit=int(request.gpu_mem * GIB),
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _uneven(total: int, request: Request) -> RefusedError:
    below = max(d for d in _divisors(total) if d < request.world)
    above = [d for d in _divisors(total) if d > request.world][:1]
    near = " or ".join(str(count) for count in [below, *above])
    return RefusedError(
        f"{request.name}: {total} images per step cannot be shared out evenly to "
        f"{request.nodes} x {request.gpus} = {request.world} GPUs: {total} / {request.world} = "
        f"{total / request.world:.2f}",
        hint=f"use {near} GPUs in all (or another total with --batch: another recipe)",
    )


def _too_large(size: Size, request: Request, smallest: Memory, stage: int) -> RefusedError:
    largest = smallest.largest
    helps = []
    if stage == 1:
        helps.append("--zero 2 shards the gradients")
    if any(part.kind == "state" and "/" in part.how for part in smallest.parts):
        helps.append("more GPUs make the shards smaller")
    helps.append(f"cards of {-(-smallest.card // GIB)} GB hold one image at a time")
    return RefusedError(
        f"{size.model} does not fit on {request.world} GPUs of {request.gpu_mem:g} GB: with one "
        f"image at a time and ZeRO {stage} it takes {smallest.total / GIB:.1f} GiB on each; the "
        f"largest part is {largest.name}, {largest.bytes / GIB:.1f} GiB ({largest.how})",
        hint="; ".join(helps),
    )


def _notes(recipe: Recipe, known: Size, size: Size, epoch: Pace, micro: int) -> list[str]:
    notes = []
    if micro < recipe.largest_micro:
        notes.append(
            f"{recipe.name} normalises by the micro batch: {micro} images here, "
            f"{recipe.largest_micro} on upstream's GPUs"
        )
    if size.total != known.total:
        scaled = (
            "upstream scales the learning rate"
            if recipe.scaled_by
            else (f"the learning rate stays {size.rate}, which upstream chose for {known.total}")
        )
        notes.append(
            f"{size.total} images per step are not the recipe's {known.total}: {scaled}; compare "
            "with a baseline made alike only"
        )
    if size.epochs and epoch.left_over:
        end = _bootmae_end(size.epochs) if recipe.name == "bootmae" else ""
        notes.append(
            f"micro batches left over at the end of an epoch, too few for a step and dropped: "
            f"{epoch.left_over}{end}"
        )
    return notes


def _bootmae_end(epochs: int) -> str:
    """What is lost where BootMAE looks up the learning rate of a step that the schedule lacks."""
    saved = (epochs - 1) // BOOTMAE_SAVES * BOOTMAE_SAVES - 1
    words = (
        ", and in the last epoch the script stops with an IndexError; the last checkpoint is then "
        f"checkpoint-{saved}.pth"
    )
    if epochs % BOOTMAE_SAVES == 0:
        words += f": --epochs {epochs + 1} keeps checkpoint-{epochs - 1}.pth as well"
    return words
