"""The command line that starts an upstream's script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import MissingError

# Recipes that make a process group even for a single process.
ALWAYS_DISTRIBUTED = ("simmim",)


@dataclass(frozen=True)
class Launch:
    """How to start a script.

    Attributes:
        name: The upstream's name.
        script: The script's path.
        arguments: What the script itself gets.
        processes: Processes on this machine, one per GPU.
        cpu: Run a CUDA-only script on the CPU.
        precision: On the CPU, "float32" or "bfloat16".
        compat: Activate the shims from outside, for a script without patches.
        before: Python files to run first in every process.
    """

    name: str
    script: Path
    arguments: Sequence[str] = ()
    processes: int = 1
    cpu: bool = False
    precision: str = "float32"
    compat: bool = False
    before: Sequence[Path] = field(default_factory=tuple)

    def argv(self) -> list[str]:
        """Return the command, starting with the Python that runs now.

        Raises:
            MissingError: The script is not there.
        """
        if not self.script.is_file():
            raise MissingError(
                f"{self.script}: no such script; the upstream {self.name} is not checked out",
                hint=f"make apply-{self.name}   (MTO_UPSTREAM_URL names a mirror)",
            )
        wrapped = self.cpu or self.compat or bool(self.before)
        return [
            *self._launcher(module=wrapped),
            *(self._worker() if wrapped else []),
            str(self.script),
            *self.arguments,
        ]

    def _launcher(self, module: bool) -> list[str]:
        if self.processes == 1 and self.name not in ALWAYS_DISTRIBUTED:
            return [sys.executable, *(["-m"] if module else [])]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, f"--nproc_per_node={self.processes}", *(["-m"] if module else [])]

    def _worker(self) -> list[str]:
        options = [f"--before={file}" for file in self.before]
        if self.cpu:
            options += ["--cpu", f"--precision={self.precision}"]
        if self.cpu or self.before:  # such runs are compared, and must meet the same images
            options += ["--seed=0"]
        if self.compat:
            options += [f"--compat={self.name}"]
        return ["mto_tools.launch.worker", *options]
