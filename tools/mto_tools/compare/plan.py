"""The plan of a comparison: the command of every run, and what decides its numbers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from mto_tools.compare.options import Choices, JsonModel
from mto_tools.compare.spec import Launch, LogSpec, Score
from mto_tools.launch.command import ALWAYS_DISTRIBUTED

ArmName = Literal["baseline", "mto"]
ARMS: tuple[ArmName, ...] = ("baseline", "mto")
VERSION = 2  # of plan.json and report.json


class Run(JsonModel):
    """One training run: an arm and a seed."""

    arm: ArmName
    seed: int
    command: list[str]

    @property
    def name(self) -> str:
        """Folder of the run inside `runs/`."""
        return f"{self.arm}-{self.seed}"


class Plan(Choices):
    """Everything that decides the numbers, written down before the first run starts."""

    schema_version: int = VERSION
    upstream: str
    log_every: int
    eval_every: int
    grad_every: int
    cwd: str
    data: str
    scores: list[Score]
    moving_target: bool = False
    logs: LogSpec
    runs: list[Run]
    made_by: str  # the command line that made this plan
    versions: dict[str, str]

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


def make_plan(
    launch: Launch,
    choices: Choices,
    *,
    upstream: str,
    checkout: Path,
    out: Path,
    data: Path,
    cwd: Path | None = None,
    gpu: bool = False,
    versions: dict[str, str] | None = None,
) -> Plan:
    """Turn choices into the full list of commands; every run writes into `out/runs/ARM-SEED`.

    Both arms of a seed stand next to each other, so that they run at the same time and meet the
    same machine; every run gets the same number of threads.

    Args:
        launch: How the recipe is run.
        choices: What `resolve` returns, in whole epochs.
        upstream: Name of the recipe.
        checkout: Where its scripts are.
        out: Folder of the comparison.
        data: The data set.
        cwd: Where it is started, by default in the checkout.
        gpu: Whether torch sees a GPU; `launch = "run"` runs CUDA-only code on the CPU without.
        versions: What the numbers come from.
    """
    log_every, eval_every = max(1, choices.steps // 90), max(1, choices.steps // 9)
    grad_every = 5 * log_every  # a ratio is logged on the lines that are logged anyway
    fields = {
        "data": str(data),
        "steps": str(choices.steps),
        "style": choices.style,
        "preset": choices.preset,
        "log_every": str(log_every),
        "eval_every": str(eval_every),
        "grad_every": str(grad_every),
        "affinity_steps": str(choices.steps),
        "batch": str(choices.batch),
        "epochs": str(choices.epochs),
        "warmup": str((choices.epochs or 0) // 10),
    }
    starter = _starter(launch, upstream, checkout, cpu=not gpu)
    own = launch.values.get(choices.style, {})
    runs = []
    for seed in choices.seeds:
        for arm in ARMS:
            here = {**fields, "seed": str(seed), "out": str(out / "runs" / f"{arm}-{seed}")}
            here |= {name: value.format(**here) for name, value in own.items()}
            chosen = launch.baseline if arm == "baseline" else launch.mto
            templates = [*starter, *launch.arguments, *chosen, *launch.measures]
            more = [*choices.shared_options, *(choices.mto_options if arm == "mto" else [])]
            command = [sys.executable, *(part.format(**here) for part in templates), *more]
            runs.append(Run(arm=arm, seed=seed, command=command))
    return Plan(
        **choices.model_dump(),
        upstream=upstream,
        log_every=log_every,
        eval_every=eval_every,
        grad_every=grad_every,
        cwd=str(cwd or checkout),
        data=str(data),
        scores=launch.scores,
        moving_target=launch.moving_target,
        logs=launch.logs,
        runs=runs,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=versions or {},
    )


def _starter(launch: Launch, upstream: str, checkout: Path, *, cpu: bool) -> list[str]:
    """What follows `python`, up to the script.

    `mto run` starts the script itself on a GPU; here it is always its worker, which seeds Python's
    own generator as well. BootMAE and ConMIM leave that alone, and the arms would see other images.
    """
    if launch.launch == "python":
        return [launch.entry]
    alone = upstream not in ALWAYS_DISTRIBUTED
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    worker = ["-m", "mto_tools.launch.worker", *(["--cpu"] if cpu else []), "--seed={seed}"]
    return [*([] if alone else torchrun), *worker, str((checkout / launch.entry).absolute())]
