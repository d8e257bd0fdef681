"""The configuration for DeepSpeed, and the commands that use it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan.memory import bucket_size
from mto_tools.plan.planner import Plan

LAUNCHERS = ("torchrun", "deepspeed")
PORT = 29500  # where torchrun's ranks meet, on the first node


def text(plan: Plan) -> str:
    """DeepSpeed's configuration as JSON: numbers only, and nothing that is the recipe's."""
    bucket = bucket_size(plan.counts.trainable)
    content = {
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
    return json.dumps(content, indent=2) + "\n"


def file_name(plan: Plan) -> str:
    """Name by content: images x micro batches x GPUs and stage, such as `256x2x8-zero1.json`."""
    return f"{plan.micro}x{plan.accumulation}x{plan.request.world}-zero{plan.stage}.json"


def write(plan: Plan, file: Path, *, force: bool = False) -> None:
    """Write the configuration.

    Raises:
        RefusedError: Another configuration stands there already, and `force` is not given.
    """
    new = text(plan)
    if file.exists() and file.read_text() != new and not force:
        raise RefusedError(f"{file} exists and holds something else", hint="--out FILE, or --force")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(new)


@dataclass(frozen=True)
class Start:
    """How a run is started; paths as seen from the folder in which the command is given."""

    checkout: str  # the patched upstream
    script: str
    config: str
    mto: bool = False
    launcher: str = "torchrun"  # one of `LAUNCHERS`
    data: str = "$IMAGENET"  # `$NAME` is left to the shell
    output: str = ""  # folder for checkpoints and logs, named by model where it is ""


def command(plan: Plan, start: Start) -> str:
    """The command that starts the run."""
    request, schedule = plan.request, plan.schedule
    values = {
        "checkout": start.checkout,
        "model": schedule.model,
        "total": plan.total,
        "micro": plan.micro,
        "accumulation": plan.accumulation,
        "epochs": schedule.epochs,
        "warmup": plan.facts.warmup_epochs,
        "rate": schedule.rate,
        "config": start.config,
        "data": start.data,
        "output": start.output or f"{schedule.model}{'-mto' if start.mto else ''}",
        "arm": "mto" if start.mto else "baseline",
    }
    arguments = plan.facts.arguments.replace("{flags}", schedule.flags).split()
    arguments += plan.facts.mto.split() if start.mto else []
    words = [f"{start.checkout}/{start.script}", *(word.format(**values) for word in arguments)]
    several = request.nodes > 1
    if start.launcher == "torchrun":
        meet = [f"--rdzv_id={plan.name}", "--rdzv_backend=c10d"]
        meet += [f"--rdzv_endpoint=$FIRST_NODE:{PORT}", f"--nnodes={request.nodes}"]
        first = [*(meet if several else ["--standalone"]), f"--nproc_per_node={request.gpus}"]
    else:
        hosts = [f"--num_nodes={request.nodes}", "--hostfile=hostfile"]
        first = ["--no_local_rank", f"--num_gpus={request.gpus}", *(hosts if several else [])]
    # Quoted for a shell, which is to replace `$NAME`.
    quoted = (f'"{w}"' if "$" in w else shlex.quote(w) for w in [start.launcher, *first, *words])
    return " ".join(quoted)
