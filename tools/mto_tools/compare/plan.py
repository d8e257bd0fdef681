"""The plan of a comparison: the command of every run, and what decides its numbers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from mto_tools.compare.options import Choices, JsonModel, comparison
from mto_tools.launch.command import Launch
from mto_tools.upstreams.recipe import Logs, Recipe, Score

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
    cwd: str
    data: str
    scores: tuple[Score, ...]
    moving_target: bool = False
    logs: Logs
    runs: list[Run]
    made_by: str  # the command line that made this plan
    versions: dict[str, str]

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


def make_plan(
    recipe: Recipe,
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
        recipe: How the upstream is run.
        choices: What `resolve` returns, in whole epochs.
        upstream: Name of the recipe.
        checkout: Where its scripts are.
        out: Folder of the comparison.
        data: The data set.
        cwd: Where the scripts are started, by default in the checkout.
        gpu: Whether torch sees a GPU; without one, CUDA-only scripts run on the CPU.
        versions: What the numbers come from.
    """
    compare = comparison(recipe, upstream)
    steps, epochs = choices.steps, choices.epochs
    log_every = max(1, steps // 90)
    measures = {"log_every": log_every, "grad_every": 5 * log_every}  # on lines logged anyway
    if recipe.styles[choices.style].maps:
        measures["affinity_steps"] = steps
    values = {
        "checkout": checkout,
        "data": data,
        "steps": steps,
        "middle": steps,
        "epochs": epochs,
        "save": epochs,
        "warmup": (epochs or 0) // 10,
        "batch": choices.batch,
        "total": choices.batch,
        "log_every": log_every,
        "eval_every": max(1, steps // 9),
        "workers": 0,
    }
    runs = []
    for seed in choices.seeds:
        for arm in ARMS:
            run = Run(arm=arm, seed=seed, command=[])
            # The baseline measures the same things and adds nothing: all its weights are 0.
            preset = "observe" if arm == "baseline" else choices.preset
            arguments = [
                *recipe.words(
                    recipe.arguments,
                    choices.style,
                    **values,
                    seed=seed,
                    out=out / "runs" / run.name,
                ),
                *recipe.options.mto({"preset": preset, **measures}),
                *choices.shared_options,
                *(choices.mto_options if arm == "mto" else []),
            ]
            script = (checkout / recipe.pretrain).absolute()
            launch = Launch(upstream, recipe, script, arguments, cpu=not gpu, seed=seed)
            run.command = launch.argv()
            runs.append(run)
    return Plan(
        **choices.model_dump(),
        upstream=upstream,
        log_every=log_every,
        cwd=str(cwd or checkout),
        data=str(data),
        scores=compare.scores,
        moving_target=compare.moving_target,
        logs=recipe.logs,
        runs=runs,
        made_by=shlex.join(["mto", *sys.argv[1:]]),
        versions=versions or {},
    )
