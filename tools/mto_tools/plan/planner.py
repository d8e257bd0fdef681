"""Micro batch, accumulation and ZeRO stage that keep a recipe's total batch on given GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from mto_tools.errors import MissingError, RefusedError
from mto_tools.plan.memory import GIB, Memory, estimate
from mto_tools.upstreams.facts import Counts, Facts, Schedule
from mto_tools.upstreams.recipe import plan_facts
from mto_tools.upstreams.upstream import Upstream

# Stage 2 reduces the gradients in every micro batch. It is worth that only where stage 1 leaves a
# GPU fewer images at a time than this.
FEW_IMAGES = 32


@dataclass(frozen=True)
class Request:
    """The user's wishes; `None` leaves the choice to the recipe, and the stage to the plan."""

    gpus: int = 8  # of each node
    gpu_mem: float = 24.0  # GiB of each GPU
    nodes: int = 1
    model: str | None = None
    stage: int | None = None
    batch: int | None = None  # images per step on all GPUs
    epochs: int | None = None

    @property
    def world(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Plan:
    """A recipe on given GPUs."""

    name: str
    request: Request
    facts: Facts
    schedule: Schedule  # with the epochs of this plan
    counts: Counts
    total: int  # images per step on all GPUs
    micro: int = 1  # images per GPU and micro batch
    stage: int = 1  # of ZeRO

    @property
    def accumulation(self) -> int:
        """Micro batches per step."""
        return self.total // self.request.world // self.micro

    @cached_property
    def memory(self) -> Memory:
        """Estimate for one GPU."""
        return estimate(
            self.counts,
            stage=self.stage,
            micro=self.micro,
            beside=self.facts.bytes_beside,
            world=self.request.world,
            accumulation=self.accumulation,
            limit=int(self.request.gpu_mem * GIB),
        )

    @property
    def learning_rate(self) -> float:
        """The peak, as upstream computes it."""
        rate, scaled = float(self.schedule.rate), self.facts.rate_per_images
        return rate * self.total / scaled if scaled else rate

    @property
    def left_over(self) -> int:
        """Micro batches at the end of an epoch that fill no step; 0 where steps are counted."""
        # DistributedSampler gives each GPU as many images; drop_last drops an unfilled batch.
        return -(-self.facts.images // self.request.world) // self.micro % self.accumulation


def make_plan(upstream: Upstream, request: Request) -> Plan:
    """Find the largest micro batch that fits, and the ZeRO stage for it.

    Memory for MTO is set aside whether it will be on or not, so that a baseline runs under the very
    same configuration.

    Raises:
        MissingError: No such model or schedule, or its memory has not been counted.
        RefusedError: The total batch cannot be shared out evenly, the model does not fit, or the
            schedule ends within its warm-up.
    """
    facts = plan_facts(upstream)
    schedule = facts.schedule(request.model, request.epochs)
    total = request.batch or schedule.total_batch
    if total % request.world:
        raise _uneven(upstream.name, total, request)
    counts = facts.memory.get(schedule.model)
    if counts is None:
        raise MissingError(
            f"{upstream.folder / 'recipe.toml'}: memory of {schedule.model} has not been counted: "
            f"no [plan.memory.{schedule.model}]",
            hint="docs/deepspeed.md, A fifth upstream, says how to count it",
        )
    base = Plan(upstream.name, request, facts, schedule, counts, total)
    stages = [request.stage] if request.stage else [2, 1]
    plans = [  # the one that needs least memory first
        replace(base, micro=micro, stage=stage)
        for micro in _divisors(total // request.world)
        for stage in stages
        if micro <= (facts.largest_micro_batch or micro)
        and (request.stage or stage == 1 or micro <= FEW_IMAGES)
    ]
    fitting = [plan for plan in plans if plan.memory.sum() <= plan.memory.limit]
    if not fitting:
        raise _too_large(plans[0])
    return max(fitting, key=lambda plan: (plan.micro, -plan.stage))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _uneven(name: str, total: int, request: Request) -> RefusedError:
    below = max(d for d in _divisors(total) if d < request.world)
    above = [d for d in _divisors(total) if d > request.world][:1]
    near = " or ".join(str(count) for count in [below, *above])
    return RefusedError(
        f"{name}: {total} images per step cannot be shared out evenly to {request.nodes} x "
        f"{request.gpus} = {request.world} GPUs",
        hint=f"use {near} GPUs in all (or another total with --batch: another recipe)",
    )


def _too_large(plan: Plan) -> RefusedError:
    request, memory = plan.request, plan.memory
    counted = [part for part in memory.parts if part.kind != "reserve"]
    largest = max(counted, key=lambda part: part.bytes)
    helps = ["--zero 2 shards the gradients"] if plan.stage == 1 else []
    helps.append("more GPUs make the shards smaller")
    helps.append(f"cards of {memory.card} GB hold one image at a time")
    return RefusedError(
        f"{plan.schedule.model} does not fit on {request.world} GPUs of {request.gpu_mem:g} GB: "
        f"with one image at a time and ZeRO {plan.stage} it takes {memory.sum() / GIB:.1f} GiB on "
        f"each; the largest part is {largest.name}, {largest.bytes / GIB:.1f} GiB ({largest.how})",
        hint="; ".join(helps),
    )
