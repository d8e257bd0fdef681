"""A plan for a person to read, and for a program."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mto_tools.plan.config import Place, before, commands, content, hostfile
from mto_tools.plan.estimate import GIB
from mto_tools.plan.planner import Plan
from mto_tools.plan.recipes import IMAGENET

WIDTH = 60  # characters of the bar
COLORS = {
    "weights": "blue",
    "other models": "bright_blue",
    "gradients": "cyan",
    "optimizer, sharded": "bright_cyan",
    "buckets": "magenta",
    "weights in 16 bit": "bright_magenta",
    "activations": "green",
    "workspace": "bright_green",
    "MTO": "yellow",
    "CUDA, cuDNN, NCCL": "bright_black",
    "fragmentation": "white",
}
TRUST = """\
An estimate: no GPU was at hand when it was written. Weights, gradients, optimizer and buckets
follow from DeepSpeed's source; activations are the bytes that autograd saves in upstream's model,
counted on a CPU; workspace and MTO are worked out from shapes; what is marked as assumed is no more
than that. Look at nvidia-smi in the first minute, and if it is too close, plan again with a smaller
--gpu-mem."""


def show(plan: Plan, place: Place, console: Console, *, mto: bool, launcher: str) -> None:
    """Print the plan, but for the command of `launcher`, which comes last and on stdout."""
    console.print(_head(plan))
    console.print(_table(plan))
    console.print(_bar(plan))
    for line in (*_words(plan), TRUST):
        console.print(line, highlight=False)
    console.print()
    if command := before(plan, place):
        console.print(f"first, where you stand:\n  {command}", markup=False, highlight=False)
    if hosts := hostfile(plan):
        lines = hosts.replace("\n", "\n  ").rstrip()
        console.print(f"deepspeed reads hostfile, with your names:\n  {lines}", highlight=False)
        console.print("torchrun is started on every node, with FIRST_NODE the name of one of them")
    offered = commands(plan, place, mto=mto)
    for name in sorted(offered, key=lambda name: name == launcher):
        console.print(f"with {name}:", highlight=False)
        if name != launcher:
            console.print(offered[name], markup=False, highlight=False)


def as_json(plan: Plan, place: Place, *, mto: bool) -> dict[str, Any]:
    """The plan as a program reads it; bytes and seconds."""
    sent, pace = plan.traffic, plan.pace
    return {
        "recipe": plan.recipe.name,
        "model": plan.size.model,
        "nodes": plan.request.nodes,
        "gpus_per_node": plan.request.gpus,
        "gpu_memory": plan.memory.limit,
        "precision": plan.precision,
        "micro_batch": plan.micro,
        "accumulation": plan.accumulation,
        "total_batch": plan.size.total,
        "learning_rate": plan.learning_rate,
        "zero_stage": plan.stage,
        "config_file": place.config,
        "config": content(plan),
        "commands": commands(plan, place, mto=mto),
        "before": before(plan, place),
        "hostfile": hostfile(plan),
        "memory": {
            "total": plan.memory.total,
            "dominates": plan.memory.largest.name,
            "parts": {part.name: part.bytes for part in plan.memory.parts},
        },
        "sent_per_step": {
            "reductions": sent.reductions,
            "per_reduction": sent.reduced,
            "gather": sent.gathered,
            "total": sent.total,
        },
        "epoch": pace
        and {
            "steps": pace.steps,
            "left_over_micro_batches": pace.left_over,
            "computing": pace.computing,
            "sending": pace.sending,
            "total": pace.epoch,
        },
        "notes": list(plan.notes),
    }


def _head(plan: Plan) -> Group:
    request, world = plan.request, plan.request.world
    gpus = f"{request.nodes} x {request.gpus}" if request.nodes > 1 else f"{request.gpus}"
    return Group(
        Text(f"{plan.size.model} on {gpus} GPUs of {request.gpu_mem:g} GB", style="bold"),
        Text(
            f"{plan.micro} images x {plan.accumulation} micro batches x {world} GPUs = "
            f"{plan.size.total} a step; peak learning rate {plan.learning_rate:.6g}; "
            f"ZeRO {plan.stage}; {plan.precision}"
        ),
    )


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("memory of a GPU")
    table.add_column("GiB", justify="right")
    table.add_column("how", overflow="fold")
    for part in plan.memory.parts:
        name = Text("■ ", style=COLORS[part.name]).append(part.name, style="default")
        table.add_row(name, f"{part.bytes / GIB:.2f}", part.how)
    share = plan.memory.total / plan.memory.limit
    table.add_row(
        Text("  together", style="bold"),
        f"{plan.memory.total / GIB:.2f}",
        f"{share:.0%} of the card; most for {plan.memory.largest.name}",
    )
    return table


def _bar(plan: Plan) -> Text:
    bar, done, drawn = Text(), 0, 0
    for part in plan.memory.parts:
        done += part.bytes
        end = round(WIDTH * done / plan.memory.limit)
        bar.append("█" * (end - drawn), style=COLORS[part.name])
        drawn = end
    return bar.append("·" * (WIDTH - drawn)).append(f" {plan.memory.limit / GIB:g} GiB")


def _words(plan: Plan) -> list[str]:
    sent, request = plan.traffic, plan.request
    n = request.world
    lines = [
        f"traffic: each GPU sends {sent.total / 1e9:.2f} GB a step = {sent.reductions} x "
        f"{sent.reduced / 1e9:.2f} GB to reduce gradients, 2 ({n} - 1) / {n} of 4 B x "
        f"{plan.footprint.trainable / 1e6:.1f} M, + {sent.gathered / 1e9:.2f} GB to gather weights",
    ]
    if request.nodes > 1:
        lines.append("  as much crosses from each node to the next, if rings are laid well")
    lines += [*_epoch(plan), *(f"note: {note}" for note in plan.notes)]
    return lines


def _epoch(plan: Plan) -> list[str]:
    request, pace = plan.request, plan.pace
    if pace is None:
        return []
    if pace.computing is None or request.rate is None:
        return [f"epoch: {pace.steps} steps; with --rate, images per second of a GPU, its time"]
    flops = 6 * plan.footprint.macs * request.rate
    lines = [
        f"epoch: {pace.steps} steps; {IMAGENET:,} images / ({request.rate:g} images/s x "
        f"{request.world} GPUs) = {_time(pace.computing)}",
        f"  that rate asks at least {flops / 1e12:.1f} TFLOP/s of each GPU (forward "
        f"{plan.footprint.macs / 1e9:.2f} GMAC an image, x 2 x 3 with backward): can yours?",
    ]
    if pace.sending is not None and pace.epoch is not None:
        lines.append(
            f"  traffic, if none of it hides: {pace.steps} x {plan.traffic.total / 1e9:.2f} GB / "
            f"{request.bandwidth:g} GB/s = {_time(pace.sending)}; together {_time(pace.epoch)}"
        )
    whole = (pace.epoch or 0.0) * plan.size.epochs
    lines.append(f"  {plan.size.epochs} epochs: {whole / 86400:.1f} days")
    return lines


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
