"""The command line and the environment that start an upstream's script."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.upstreams.recipe import Recipe

# Settings of one run, exported for processes that it starts itself; see mto_tools.recipe and .ds.
OF_ONE_RUN = ("MTO_SETTINGS", "MTO_DEEPSPEED_CONFIG")


@dataclass(frozen=True)
class Launch:
    """How to start a script."""

    name: str  # of the upstream
    recipe: Recipe
    script: Path
    arguments: Sequence[str] = ()  # of the script itself
    processes: int = 1  # on this machine, one per GPU
    torchrun: Sequence[str] = ()  # options by which it meets other machines
    cpu: bool = False  # run a CUDA-only script on the CPU
    precision: str = "float32"  # on the CPU; or "bfloat16"
    unpatched: bool = False  # activate the recipe's shims, which no patch has inserted
    before: Sequence[Path] = ()  # Python files to run first in every process
    seed: int | None = None  # for Python's own generator, which some recipes leave unseeded

    @property
    def plain(self) -> bool:
        """One process, which no torchrun starts."""
        return self.processes == 1 and not self.torchrun and not self.recipe.always_distributed

    def argv(self) -> list[str]:
        """The command, starting with the Python that runs now."""
        start = [sys.executable]
        if not self.plain:
            start += ["-m", "torch.distributed.run", *(self.torchrun or ["--standalone"])]
            start += [f"--nproc_per_node={self.processes}"]
        options = [f"--before={file}" for file in self.before]
        if self.cpu and self.recipe.cuda_only:
            options += ["--cpu", f"--precision={self.precision}"]
        if self.seed is not None:
            options += [f"--seed={self.seed}"]
        if self.unpatched:
            options += [f"--compat={shim}" for shim in self.recipe.compat]
        if options:
            start += ["-m", "mto_tools.launch.worker", *options]
        return [*start, str(self.script), *self.arguments]

    def check(self) -> None:
        """Look before a start.

        Raises:
            MissingError: The script is not there.
        """
        if self.script.is_file():
            return
        what = f"the upstream {self.name} is not checked out"
        hint = f"make apply-{self.name}   (MTO_UPSTREAM_URL names a mirror)"
        if known := [x for x in self.recipe.scripts if (self.script.parent / x).is_file()]:
            what = f"{self.name} is checked out, but does not have it"
            hint = f"--script one of: {', '.join(known)}"
        raise MissingError(f"{self.script}: no such script; {what}", hint=hint)

    def environment(self, *, inherit: bool = False) -> dict[str, str]:
        """Variables for the run.

        A lone process is no task of a SLURM step, though the shell it is started from may be one:
        recipes would wait for the others.

        Args:
            inherit: Hand on what another run exported for its own processes, MTO and DeepSpeed.
                Runs that are compared must not get it: one of them is a baseline.
        """
        kept = {k: v for k, v in os.environ.items() if inherit or k not in OF_ONE_RUN}
        if self.plain and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            kept.pop("SLURM_PROCID", None)
        return kept
