"""`mto smoke NAME`: baseline, MTO off, MTO on and a resume, on a few images, and do they agree?"""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mto_tools.launch.small import STEPS, Runner
from mto_tools.patchset.git import Git

CODE = (".py", ".yaml", ".yml", ".json")


def unpatched(checkout: Path, pin: str, folder: Path) -> Path:
    """Write the code files of the pinned commit to `folder`, beside the checkout, not into it.

    Raises:
        MtoError: `checkout` is no clone that has the commit.
    """
    git = Git(checkout)
    listed = git.text("ls-tree", "-r", "--name-only", "-z", pin).split("\0")
    packed = git.run("archive", "--format=tar", pin, *(x for x in listed if x.endswith(CODE)))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """Return the names at which two checkpoints differ in a bit; paths do not count."""
    import torch

    first, second = (
        _leaves(torch.load(file, map_location="cpu", weights_only=False), "checkpoint")
        for file in (one, other)
    )
    both = {**first, **second}
    names = [x for x in both if (x in first, first.get(x)) != (x in second, second.get(x))]
    return names or ([] if list(first) == list(second) else ["checkpoint: order of keys"])


def _leaves(value: Any, name: str) -> dict[str, Any]:
    """Values of nested containers by their path; a tensor as type, shape and checksum."""
    import torch

    if isinstance(value, torch.Tensor):
        raw = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {name: (value.dtype, value.shape, hashlib.sha256(raw).digest())}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, dict):
        value = vars(value)
    if isinstance(value, dict):
        inner = [_leaves(one, f"{name}.{key}") for key, one in value.items()]
        return {key: one for leaves in inner for key, one in leaves.items()}
    return {name: "a path" if isinstance(value, (str, Path)) and "/" in str(value) else value}


def smoke(runner: Runner, checkout: Path, pin: str, say: Callable[[str], None]) -> list[str]:
    """Run baseline, MTO off, MTO on and a resume; return the promises that do not hold.

    Args:
        runner: Starts the runs.
        checkout: The patched clone.
        pin: Its base commit.
        say: Takes lines for a person.

    Raises:
        MtoError: A run failed.
    """
    problems: list[str] = []

    def expect(holds: bool, promise: str) -> None:
        say(f"  {'ok ' if holds else 'NOT'} {promise}")
        if not holds:
            problems.append(promise)

    processes = runner.launch.processes
    say(f"{runner.launch.name}, {runner.style}: baseline on {processes} process(es)")
    plain = unpatched(checkout, pin, runner.work / "unpatched")
    base = runner.pretrain("baseline", plain, patched=False)
    say(f"MTO off, {len(base.loss)} steps as the baseline")
    off = runner.pretrain("off", checkout)
    saved = [runner.checkpoint(run.out, 0) for run in (base, off)]
    expect(base.loss == off.loss, "losses are those of the baseline, bit for bit")
    expect(not differences(*saved), "so is the checkpoint")
    say("MTO on")
    given = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001, "calibrate": 0, "log_every": 1}
    options = runner.launch.recipe.options.mto(given)
    on = runner.pretrain("on", checkout, options)
    lines = runner.log(on.out)
    same = processes > 1 or lines[0]["loss"] == float.fromhex(base.loss[0])
    expect(same, "the first step's own loss is the baseline's")
    expect(on.rng == base.rng, "the random numbers drawn are the baseline's")
    expect(on.mask_token[0] != base.mask_token[0], "the mask token's gradient is not")
    totals = [line["total"] for line in lines]
    finite = all(isinstance(total, float) and math.isfinite(total) for total in totals)
    logged = [line["step"] for line in lines] == list(range(1, len(base.loss) + 1))
    expect(finite and logged, "all terms are finite, and logged at every step")
    say("resume")
    again = runner.pretrain("resumed", checkout, options, epochs=2, resume=on.out)
    expect(runner.log(again.out)[0]["step"] == STEPS + 1, f"it goes on with step {STEPS + 1}")
    return problems
