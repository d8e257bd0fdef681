"""A plan for a person to read, and for a program."""

from __future__ import annotations

import importlib.util
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mto_tools.plan.config import PORT, Place, before, command, content, hostfile
from mto_tools.plan.memory import GIB
from mto_tools.plan.planner import Plan

TRUST = """\
This is an estimate, made without a GPU. Weights, gradients, optimizer and buckets follow
DeepSpeed's source. Activations are the bytes that autograd saves in upstream's model, counted on a
CPU. Workspace and MTO are computed from shapes; assumed parts are marked. Look at nvidia-smi in the
first minute; if memory is too tight, plan again with a smaller --gpu-mem."""


def show(plan: Plan, place: Place, console: Console, *, mto: bool, launcher: str) -> None:
    """Print all of the plan but the command, which goes to stdout."""
    request = plan.request
    gpus = f"{request.nodes} x {request.gpus}" if request.nodes > 1 else f"{request.gpus}"
    head = f"{plan.schedule.model} on {gpus} GPUs of {request.gpu_mem:g} GB"
    console.print(Text(head, style="bold"))
    console.print(
        f"{plan.micro} images x {plan.accumulation} micro batches x {request.world} GPUs = "
        f"{plan.total} a step; peak learning rate {plan.learning_rate:.6g}; ZeRO {plan.stage}; "
        f"{plan.precision}"
    )
    console.print(_table(plan))
    for note in notes(plan, mto=mto):
        console.print(f"note: {note}", markup=False)
    console.print(TRUST)
    if first := before(plan, place):
        console.print(f"first, in this folder:\n  {first}", markup=False)
    if (hosts := hostfile(plan)) and launcher == "deepspeed":
        console.print(f"deepspeed reads the file `hostfile`, with your names:\n{hosts.rstrip()}")
    elif hosts:
        console.print(f"start it on every node; FIRST_NODE names one of them, port {PORT}")


def notes(plan: Plan, *, mto: bool) -> list[str]:
    """Sentences to read before the start."""
    found = plan.notes
    if not mto:
        found.append("this command trains the baseline; --mto adds the losses of MTO")
    if importlib.util.find_spec("deepspeed") is None:
        found.append("DeepSpeed is not installed here: pip install -e '.[deepspeed]'")
    return found


def as_json(plan: Plan, place: Place, *, mto: bool, launcher: str) -> dict[str, Any]:
    """The plan for programs, in bytes."""
    return {
        "recipe": plan.name,
        "model": plan.schedule.model,
        "nodes": plan.request.nodes,
        "gpus_per_node": plan.request.gpus,
        "gpu_memory": plan.memory.limit,
        "precision": plan.precision,
        "micro_batch": plan.micro,
        "accumulation": plan.accumulation,
        "total_batch": plan.total,
        "learning_rate": plan.learning_rate,
        "zero_stage": plan.stage,
        "config_file": place.config,
        "config": content(plan),
        "command": command(plan, place, mto=mto, launcher=launcher),
        "before": before(plan, place),
        "hostfile": hostfile(plan),
        "memory": {
            "total": plan.memory.total,
            "dominates": plan.memory.largest.name,
            "parts": {part.name: part.bytes for part in plan.memory.parts},
        },
        "notes": notes(plan, mto=mto),
    }


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("memory of a GPU")
    table.add_column("GiB", justify="right")
    table.add_column("how", overflow="fold")
    for part in plan.memory.parts:
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", part.how)
    memory = plan.memory
    share = f"{memory.total / memory.limit:.0%} of the card; most for {memory.largest.name}"
    table.add_row(Text("together", style="bold"), f"{memory.total / GIB:.2f}", share)
    return table
