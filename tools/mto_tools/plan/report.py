"""A plan for a person to read."""

from __future__ import annotations

import importlib.util
import shlex

from rich.console import Console
from rich.table import Table

from mto_tools.plan.config import PORT, Start
from mto_tools.plan.memory import GIB
from mto_tools.plan.planner import Plan


def show(plan: Plan, start: Start, console: Console) -> None:
    """Print all of the plan but the command, which goes to stdout."""
    request, memory = plan.request, plan.memory
    console.print(
        f"{plan.schedule.model} on {request.nodes} x {request.gpus} GPUs of {request.gpu_mem:g} GB:"
        f" {plan.micro} images x {plan.accumulation} micro batches x {request.world} GPUs = "
        f"{plan.total} a step; peak learning rate {plan.learning_rate:.6g}; ZeRO {plan.stage}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("memory of a GPU")
    table.add_column("GiB", justify="right")
    table.add_column("how", overflow="fold")
    for part in memory.parts:
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", part.how)
    table.add_row("together", f"{memory.sum() / GIB:.2f}", style="bold")
    console.print(table)
    for note in notes(plan, start):
        console.print(f"note: {note}", markup=False)
    if plan.facts.before:
        first = plan.facts.before.format(checkout=shlex.quote(start.checkout))
        console.print(f"first, in this folder:\n  {first}", markup=False)


def notes(plan: Plan, start: Start) -> list[str]:
    """Sentences to read before the start: deviations from upstream's own run, and what it needs."""
    facts, total, known = plan.facts, plan.total, plan.schedule.total_batch
    found = [
        "this is an estimate, made without a GPU (docs/deepspeed.md says how); look at nvidia-smi "
        "in the first minute, and plan again with a smaller --gpu-mem if memory is too tight"
    ]
    if plan.micro < facts.largest_micro_batch:
        found.append(
            f"{plan.name} normalises by the micro batch: {plan.micro} images here, "
            f"{facts.largest_micro_batch} on upstream's GPUs"
        )
    if total != known:
        rate = f"the learning rate stays {plan.schedule.rate}, which upstream chose for {known}"
        if facts.rate_per_images:
            rate = "upstream scales the learning rate"
        found.append(
            f"{total} images per step are not the recipe's {known}: {rate}; compare with a "
            "baseline of the same total only"
        )
    if plan.left_over:
        found.append(
            f"{plan.left_over} micro batches at the end of an epoch are too few for a step: "
            f"{facts.left_over}"
        )
    if plan.request.nodes > 1:
        meet = f"FIRST_NODE names one of the nodes, port {PORT}: start it on every node"
        if start.launcher == "deepspeed":
            meet = f"deepspeed reads `hostfile`: a line `NAME slots={plan.request.gpus}` a node"
        found.append(meet)
    if not start.mto:
        found.append("this command trains the baseline; --mto adds the losses of MTO")
    if importlib.util.find_spec("deepspeed") is None:
        found.append("DeepSpeed is not installed here: pip install -e '.[deepspeed]'")
    return found
