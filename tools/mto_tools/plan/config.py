"""The configuration for DeepSpeed, and the commands that use it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import RefusedError
from mto_tools.plan.estimate import bucket_size
from mto_tools.plan.planner import Plan

PORT = 29500  # where torchrun's ranks meet, on the first node


def content(plan: Plan) -> dict[str, Any]:
    """What DeepSpeed is told: numbers only, and nothing that belongs to the recipe."""
    bucket = bucket_size(plan.footprint.trainable)
    return {
        "train_batch_size": plan.size.total,
        "train_micro_batch_size_per_gpu": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": plan.recipe.clip_grad,  # DeepSpeed's default is 1.0
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
    """Name of the file, such as `mae_vit_base_patch16-8x24gb.json`."""
    request = plan.request
    nodes = f"{request.nodes}x" if request.nodes > 1 else ""
    return f"{plan.size.model}-{nodes}{request.gpus}x{request.gpu_mem:g}gb.json"


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
    """Where things are when the command is started.

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


def commands(plan: Plan, place: Place, *, mto: bool) -> dict[str, str]:
    """The command that starts the run, by launcher: "torchrun" and "deepspeed"."""
    request, recipe, size = plan.request, plan.recipe, plan.size
    words = recipe.arguments.replace("{flags}", size.flags).split()
    values = {
        "checkout": place.checkout,
        "model": size.model,
        "total": size.total,
        "micro": plan.micro,
        "accumulation": plan.accumulation,
        "epochs": size.epochs,
        "warmup": recipe.warmup,
        "rate": size.rate,
        "amp": {"float32": "none"}.get(plan.precision, plan.precision),
        "config": place.config,
        "data": place.data,
        "output": place.output or f"{size.model}{'-mto' if mto else ''}",
        "arm": "mto" if mto else "baseline",
    }
    arguments = [word.format(**values) for word in [*words, *(recipe.mto.split() if mto else [])]]
    script = [f"{place.checkout}/{place.script}", *arguments]
    torchrun = ["torchrun", f"--nproc_per_node={request.gpus}"]
    deepspeed = ["deepspeed", "--no_local_rank", f"--num_gpus={request.gpus}"]
    if request.nodes == 1:
        torchrun.insert(1, "--standalone")
    else:
        torchrun += [f"--nnodes={request.nodes}", f"--rdzv_id={recipe.name}"]
        torchrun += ["--rdzv_backend=c10d", f"--rdzv_endpoint=$FIRST_NODE:{PORT}"]
        deepspeed += [f"--num_nodes={request.nodes}", "--hostfile=hostfile"]
    return {
        "torchrun": _join([*torchrun, *script]),
        "deepspeed": _join([*deepspeed, *script]),
    }


def before(plan: Plan, place: Place) -> str:
    """What to do first in the folder the run is started from; "" for nothing."""
    return plan.recipe.before.format(checkout=place.checkout)


def hostfile(plan: Plan) -> str:
    """What `deepspeed --hostfile` reads, with names to be replaced; "" for one node."""
    nodes, slots = plan.request.nodes, plan.request.gpus
    lines = [f"node{number} slots={slots}\n" for number in range(1, nodes + 1)]
    return "".join(lines) if nodes > 1 else ""


def _join(words: list[str]) -> str:
    """Quote for a shell, which is to replace `$NAME`."""
    return " ".join(f'"{w}"' if "$" in w else shlex.quote(w) for w in words)
