"""The command line and the environment that start an upstream's script."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.upstreams.recipe import Recipe

# Settings of one run, exported for processes that it starts itself; see mto_tools.recipe and .ds.
OF_ONE_RUN = ("MTO_SETTINGS", "MTO_DEEPSPEED_CONFIG")


@dataclass(frozen=True)
class Rendezvous:
    """How the machines of one run meet; names and meaning are those of torchrun.

    Attributes:
        nnodes: Number of machines, or "MIN:MAX".
        node_rank: Number of this one.
        rdzv_id: Name of the run.
        rdzv_backend: "c10d", "etcd" …
        rdzv_endpoint: "HOST:PORT" of the first machine.
        master_addr: Host of the first machine, for the static backend.
        master_port: Its port.
    """

    nnodes: str = "1"
    node_rank: int | None = None
    rdzv_id: str | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    master_addr: str | None = None
    master_port: int | None = None

    def options(self) -> list[str]:
        """Options for torchrun."""
        if self == Rendezvous():
            return ["--standalone"]
        return [f"--{name}={value}" for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True)
class Launch:
    """How to start a script.

    Attributes:
        name: The upstream's name.
        recipe: How it is run.
        script: The script's path.
        arguments: What the script itself gets.
        processes: Processes on this machine, one per GPU.
        rendezvous: Other machines.
        cpu: Run a CUDA-only script on the CPU.
        precision: On the CPU, "float32" or "bfloat16".
        unpatched: No patch has touched the script: activate the recipe's shims from outside.
        before: Python files to run first in every process.
        seed: For Python's own generator, which some recipes leave unseeded.
    """

    name: str
    recipe: Recipe
    script: Path
    arguments: Sequence[str] = ()
    processes: int = 1
    rendezvous: Rendezvous = Rendezvous()
    cpu: bool = False
    precision: str = "float32"
    unpatched: bool = False
    before: Sequence[Path] = ()
    seed: int | None = None

    @property
    def plain(self) -> bool:
        """One process, which no torchrun starts."""
        alone = self.processes == 1 and self.rendezvous == Rendezvous()
        return alone and not self.recipe.always_distributed

    def argv(self) -> list[str]:
        """The command, starting with the Python that runs now."""
        worker = self._worker()
        start = [sys.executable]
        if not self.plain:
            start += ["-m", "torch.distributed.run", *self.rendezvous.options()]
            start += [f"--nproc_per_node={self.processes}"]
        module = ["-m", "mto_tools.launch.worker", *worker] if worker else []
        return [*start, *module, str(self.script), *self.arguments]

    def _worker(self) -> list[str]:
        options = [f"--before={file}" for file in self.before]
        if self.cpu and self.recipe.cuda_only:
            options += ["--cpu", f"--precision={self.precision}"]
        if self.seed is not None:
            options += [f"--seed={self.seed}"]
        if self.unpatched:
            options += [f"--compat={shim}" for shim in self.recipe.compat]
        return options

    def check(self) -> None:
        """Look before a start.

        Raises:
            MissingError: The script is not there.
        """
        if self.script.is_file():
            return
        known = [name for name in self.recipe.scripts if (self.script.parent / name).is_file()]
        if not known:
            raise MissingError(
                f"{self.script}: no such script; the upstream {self.name} is not checked out",
                hint=f"make apply-{self.name}   (MTO_UPSTREAM_URL names a mirror)",
            )
        raise MissingError(
            f"{self.script}: {self.name} is checked out, but has no such script",
            hint=f"--script one of: {', '.join(known)}",
        )

    def environment(
        self, more: Mapping[str, str] | None = None, *, inherit: bool = False
    ) -> dict[str, str]:
        """Variables for the run.

        A lone process is no task of a SLURM step, though the shell it is started from may be one:
        recipes would wait for the others.

        Args:
            more: Variables that are added.
            inherit: Hand on what another run exported for its own processes, MTO and DeepSpeed.
                Runs that are compared must not get it: one of them is a baseline.
        """
        kept = {k: v for k, v in os.environ.items() if inherit or k not in OF_ONE_RUN}
        if self.plain and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            kept.pop("SLURM_PROCID", None)
        return {**kept, **(more or {})}
