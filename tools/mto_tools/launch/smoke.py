"""`mto smoke NAME`: baseline, MTO off, MTO on and a resume, on a few images, and do they agree?"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

from mto_tools.errors import MissingError, RefusedError
from mto_tools.launch.small import BATCH, Runner

CODE = (".py", ".yaml", ".yml", ".json")
Say = Callable[[str], None]


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


def smoke(runner: Runner, checkout: Path, pin: str, say: Say, *, steps: int = 4) -> list[str]:
    """Run baseline, MTO off, MTO on and a resume; return the promises that do not hold.

    Args:
        runner: Starts the runs.
        checkout: The patched clone.
        pin: Its base commit.
        say: Takes lines for a person.
        steps: Optimizer steps of an epoch.

    Raises:
        RefusedError: The images, which come in eights, are not those of so many steps.
        MtoError: A run failed.
    """
    unit = 8 // math.gcd(8, BATCH * runner.processes)
    if steps < 1 or steps % unit:
        raise RefusedError(
            f"{steps} steps cannot be run: images come in eights, and each of {runner.processes} "
            f"process(es) takes {BATCH} a step",
            hint=f"--steps {max(1, -(-steps // unit)) * unit}, or another multiple of {unit}",
        )
    problems: list[str] = []

    def expect(holds: bool, promise: str) -> None:
        say(f"  {'ok ' if holds else 'NOT'} {promise}")
        if not holds:
            problems.append(promise)

    say(f"{runner.upstream}, {runner.style}: baseline on {runner.processes} process(es)")
    plain = unpatched(checkout, pin, runner.work / "unpatched")
    base = runner.pretrain("baseline", plain, patched=False, steps=steps)
    say(f"MTO off, {len(base.losses)} steps as the baseline")
    off = runner.pretrain("off", checkout, steps=steps)
    saved = [runner.checkpoint(run.out, 0, steps) for run in (base, off)]
    expect(base.losses == off.losses, "losses are those of the baseline, bit for bit")
    expect(not differences(*saved), "so is the checkpoint")
    say("MTO on")
    options = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001, "log_every": 1}
    on = runner.pretrain("on", checkout, runner.mto(options), steps=steps)
    lines = runner.log(on.out)
    first = next(line for line in lines if line["step"] == 1)
    own = float.fromhex(base.losses[0])
    expect(
        runner.processes > 1 or first["loss"] == own,
        "the first step's own loss is the baseline's",
    )
    expect(on.rng == base.rng, "the random numbers drawn are the baseline's")
    expect(on.mask_token[0] != base.mask_token[0], "the mask token's gradient is not")
    totals = [line["total"] for line in lines]
    finite = all(isinstance(total, float) and math.isfinite(total) for total in totals)
    expect(
        finite and len(lines) == len(base.losses), "all terms are finite, and logged at every step"
    )
    say("resume")
    again = runner.pretrain(
        "resumed", checkout, runner.mto(options), steps=steps, epochs=2, resume=on.out
    )
    expect(
        runner.log(again.out)[0]["step"] == steps + 1,
        f"it goes on with step {steps + 1}",
    )
    return problems
