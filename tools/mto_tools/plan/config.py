"""The configuration for DeepSpeed, and the commands that use it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import RefusedError
from mto_tools.plan.memory import bucket_size
from mto_tools.plan.planner import Plan

LAUNCHERS = ("torchrun", "deepspeed")
PORT = 29500  # where torchrun's ranks meet, on the first node


def content(plan: Plan) -> dict[str, Any]:
    """The keys of DeepSpeed's configuration: numbers only, and nothing that is the recipe's."""
    bucket = bucket_size(plan.counts.trainable)
    return {
        "train_batch_size": plan.total,
        "train_micro_batch_size_per_gpu": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": plan.facts.clip_grad,  # DeepSpeed's default is 1.0
        "zero_allow_untested_optimizer": True,  # the recipe's own AdamW
        "zero_optimization": {
            "stage": plan.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "reduce_scatter": True,
            "allgather_partitions": True,
            "contiguous_gradients": True,
            "overlap_comm": False,
        },
    }


def text(plan: Plan) -> str:
    """The configuration as it stands in a file."""
    return json.dumps(content(plan), indent=2) + "\n"


def file_name(plan: Plan) -> str:
    """Name by content: images x micro batches x GPUs and stage, such as `256x2x8-zero1.json`."""
    return f"{plan.micro}x{plan.accumulation}x{plan.request.world}-zero{plan.stage}.json"


def write(plan: Plan, file: Path, *, force: bool = False) -> bool:
    """Write the configuration; return whether the file changed.

    Raises:
        RefusedError: Another configuration stands there already, and `force` is not given.
    """
    new = text(plan)
    if file.exists():
        if file.read_text() == new:
            return False
        if not force:
            raise RefusedError(
                f"{file} exists and holds something else", hint="--out FILE, or --force"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(new)
    return True


@dataclass(frozen=True)
class Place:
    """Paths as seen from the folder in which the command is started.

    Attributes:
        checkout: The patched upstream.
        script: The script that pre-trains.
        config: The configuration.
        data: The images; `$NAME` is left to the shell.
        output: Folder for checkpoints and logs.
    """

    checkout: str
    script: str
    config: str
    data: str = "$IMAGENET"
    output: str = ""


def command(plan: Plan, place: Place, *, mto: bool, launcher: str = "torchrun") -> str:
    """The command that starts the run, by one of `LAUNCHERS`."""
    request, schedule = plan.request, plan.schedule
    words = plan.facts.arguments.replace("{flags}", schedule.flags).split()
    values = {
        "checkout": place.checkout,
        "model": schedule.model,
        "total": plan.total,
        "micro": plan.micro,
        "accumulation": plan.accumulation,
        "epochs": schedule.epochs,
        "warmup": plan.facts.warmup_epochs,
        "rate": schedule.rate,
        "amp": {"float32": "none"}.get(plan.precision, plan.precision),
        "config": place.config,
        "data": place.data,
        "output": place.output or f"{schedule.model}{'-mto' if mto else ''}",
        "arm": "mto" if mto else "baseline",
    }
    words += plan.facts.mto.split() if mto else []
    if launcher == "torchrun":
        start = ["torchrun", f"--nproc_per_node={request.gpus}"]
        if request.nodes == 1:
            start.insert(1, "--standalone")
        else:
            start += [f"--nnodes={request.nodes}", f"--rdzv_id={plan.name}"]
            start += ["--rdzv_backend=c10d", f"--rdzv_endpoint=$FIRST_NODE:{PORT}"]
    else:
        start = ["deepspeed", "--no_local_rank", f"--num_gpus={request.gpus}"]
        if request.nodes > 1:
            start += [f"--num_nodes={request.nodes}", "--hostfile=hostfile"]
    script = f"{place.checkout}/{place.script}"
    return _join([*start, script, *(word.format(**values) for word in words)])


def before(plan: Plan, place: Place) -> str:
    """Command to run first in the folder from which the run is started; "" for none."""
    return plan.facts.before.format(checkout=shlex.quote(place.checkout))


def hostfile(plan: Plan) -> str:
    """Text for `deepspeed --hostfile`, with names to be replaced; "" for one node."""
    nodes, slots = plan.request.nodes, plan.request.gpus
    lines = [f"node{number} slots={slots}\n" for number in range(1, nodes + 1)]
    return "".join(lines) if nodes > 1 else ""


def _join(words: list[str]) -> str:
    """Quote for a shell, which is to replace `$NAME`."""
    return " ".join(f'"{w}"' if "$" in w else shlex.quote(w) for w in words)
