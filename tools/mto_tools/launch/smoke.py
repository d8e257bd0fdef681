"""`mto smoke NAME`: baseline, MTO off, MTO on and a resume, on a few images, and do they agree?"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.command import Launch
from mto_tools.launch.recipes import BATCH, Recipe

RECORD = Path(__file__).with_name("record.py")
CODE = (".py", ".yaml", ".yml", ".json")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What one run left.

    Attributes:
        out: Its output folder.
        losses: The loss of each backward pass on rank 0, as a hexadecimal float.
        rng: The state of all generators at each backward pass, as a checksum.
        grads: Checksums of all gradients at each optimizer step.
        mask_token: Checksums of the mask token's gradient at each optimizer step.
    """

    out: Path
    losses: list[str]
    rng: list[str]
    grads: list[str]
    mask_token: list[str]


@dataclass(frozen=True)
class Runner:
    """Starts runs of one recipe below one folder.

    Attributes:
        recipe: What to run.
        work: Folder for data, outputs and logs.
        processes: Processes of each run.
        cpu: Run on the CPU.
        precision: On the CPU, "float32" or "bfloat16".
        before: Python files every process runs first.
    """

    recipe: Recipe
    work: Path
    processes: int = 1
    cpu: bool = True
    precision: str = "float32"
    before: Sequence[Path] = ()

    def data(self, steps: int) -> Path:
        """Lay out images for `steps` steps an epoch; 8 images, or a multiple, are 1 per class."""
        per_class = max(1, steps * BATCH * self.processes // 8)
        return self.recipe.prepare(self.work / f"data{per_class}", per_class)

    def pretrain(
        self,
        name: str,
        checkout: Path,
        arguments: Sequence[str] = (),
        *,
        patched: bool = True,
        steps: int = 4,
        epochs: int = 1,
        before: Sequence[Path] = (),
        environment: dict[str, str] | None = None,
    ) -> Run:
        """Pre-train for `epochs` of `steps`, and return what was recorded.

        Raises:
            MtoError: The script failed; the message names its log.
        """
        out = self.work / name
        given = self.recipe.pretrain(checkout, self.data(steps), out, epochs)
        record = self.work / f"{name}.record"
        self.start(
            name,
            checkout / self.recipe.script,
            [*given, *arguments],
            patched=patched,
            before=[RECORD, *([] if patched else self.recipe.unpatched), *self.before, *before],
            environment={"MTO_RECORD": str(record), **(environment or {})},
        )
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        return Run(
            out=out,
            losses=[line["loss"] for line in lines if "loss" in line],
            rng=[line["rng"] for line in lines if "rng" in line],
            grads=[line["grads"] for line in lines if "grads" in line],
            mask_token=["".join(line["mask_token"]) for line in lines if "mask_token" in line],
        )

    def start(
        self,
        name: str,
        script: Path,
        arguments: Sequence[str],
        *,
        patched: bool = True,
        before: Sequence[Path] = (),
        environment: dict[str, str] | None = None,
    ) -> str:
        """Run a script to its end and return all it printed."""
        launch = Launch(
            name=self.recipe.upstream,
            script=script,
            arguments=arguments,
            processes=self.processes,
            cpu=self.cpu,
            precision=self.precision,
            compat=not patched,
            before=before,
        )
        log = self.work / f"{name}.log"
        with log.open("w") as file:
            done = subprocess.run(
                launch.argv(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=self.work,
                check=False,
            )
        text = log.read_text(errors="replace")
        if done.returncode:
            last = "\n".join(text.strip().splitlines()[-5:])
            raise MtoError(
                f"{script.name} exited with {done.returncode}:\n{last}", hint=f"see {log}"
            )
        return text


def unpatched(checkout: Path, pin: str, folder: Path) -> Path:
    """Write the code files of the pinned commit to `folder`, beside the checkout, not into it.

    Raises:
        MissingError: `checkout` is no clone that has the commit.
    """
    git = ["git", "-C", str(checkout)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", pin], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise MissingError(
            f"{checkout}: no clone with commit {pin}", hint=f"make apply-{checkout.name}"
        )
    paths = [path for path in listed.stdout.splitlines() if path.endswith(CODE)]
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        [*git, "archive", "--format=tar", pin, "--", *paths], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """Return the names at which two checkpoints differ in a bit; paths and clocks do not count."""
    import torch

    first, second = (torch.load(f, map_location="cpu", weights_only=False) for f in (one, other))
    found: list[str] = []

    def walk(a: object, b: object, name: str) -> None:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                found.append(name)
        elif isinstance(a, dict) and isinstance(b, dict):
            if list(a) != list(b):
                found.append(f"{name}: keys")
            for key in a.keys() & b.keys():
                walk(a[key], b[key], f"{name}.{key}")
        elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            for place, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(x, y, f"{name}.{place}")
        elif hasattr(a, "__dict__") and hasattr(b, "__dict__") and type(a) is type(b):
            walk(vars(a), vars(b), name)
        elif a != b and not (_is_path(a) and _is_path(b)):
            found.append(name)

    walk(first, second, "checkpoint")
    return found


def _is_path(value: object) -> bool:
    return isinstance(value, (str, Path)) and "/" in str(value)


def smoke(
    recipe: Recipe,
    checkout: Path,
    pin: str,
    work: Path,
    say: Say,
    *,
    cpu: bool,
    processes: int = 1,
    steps: int = 4,
) -> list[str]:
    """Run baseline, MTO off, MTO on and a resume; return what was not as promised.

    Raises:
        RefusedError: The images, which come in eights, are not those of so many steps.
        MtoError: A run failed.
    """
    unit = 8 // math.gcd(8, BATCH * processes)
    if steps < 1 or steps % unit:
        raise RefusedError(
            f"{steps} steps cannot be run: images come in eights, and each of {processes} "
            f"process(es) takes {BATCH} a step",
            hint=f"--steps {max(1, -(-steps // unit)) * unit}, or another multiple of {unit}",
        )
    runner = Runner(recipe, work, processes=processes, cpu=cpu)
    problems: list[str] = []

    def expect(holds: bool, promise: str) -> None:
        say(f"  {'ok ' if holds else 'NOT'} {promise}")
        if not holds:
            problems.append(promise)

    say(f"{recipe.name}: baseline, {steps} steps on {processes} process(es)")
    plain = unpatched(checkout, pin, work / "unpatched")
    base = runner.pretrain("baseline", plain, patched=False, steps=steps)
    say("MTO off")
    off = runner.pretrain("off", checkout, steps=steps)
    saved = [recipe.checkpoint(run.out, 0) for run in (base, off)]
    expect(base.losses == off.losses, "losses are those of the baseline, bit for bit")
    expect(not differences(*saved), "so is the checkpoint")
    say("MTO on")
    options = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001, "log_every": 1}
    on = runner.pretrain("on", checkout, recipe.mto(dict(options)), steps=steps)
    lines = [json.loads(line) for line in recipe.log(on.out).read_text().splitlines()]
    first = next(line for line in lines if line["step"] == 1)
    own = float.fromhex(base.losses[0])
    expect(processes > 1 or first["loss"] == own, "the first step's own loss is the baseline's")
    expect(on.rng == base.rng, "the random numbers drawn are the baseline's")
    expect(on.mask_token[0] != base.mask_token[0], "the mask token's gradient is not")
    finite = all(abs(line["total"]) < float("inf") for line in lines)
    expect(finite and len(lines) == steps, "all terms are finite, and logged at every step")
    say("resume")
    where = recipe.checkpoint(on.out, 0)
    again = runner.pretrain(
        "resumed",
        checkout,
        [*recipe.mto(dict(options)), *recipe.resume(where)],
        steps=steps,
        epochs=2,
    )
    lines = [json.loads(line) for line in recipe.log(again.out).read_text().splitlines()]
    expect(lines[0]["step"] == steps + 1, f"it goes on with step {steps + 1}")
    return problems
