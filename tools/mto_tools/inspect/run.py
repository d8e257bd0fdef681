"""One process of the recipe for each checkpoint, all on the same images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mto_tools.checkpoint import Checkpoint, read_checkpoint
from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.inspect.huggingface import read_vit_mae
from mto_tools.inspect.images import stage
from mto_tools.launch.command import Launch
from mto_tools.launch.process import start
from mto_tools.upstreams.recipe import Inspect, Recipe
from mto_tools.upstreams.upstream import fill

PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Seen:
    """What was measured with one checkpoint: arrays of `probe.py`, by name."""

    path: Path
    progress: float | None
    arrays: dict[str, Any]


def read(path: Path, known: Inspect) -> Checkpoint:
    """Read a checkpoint file, or a folder of Hugging Face's ViTMAE.

    Raises:
        MissingError, CorruptError, MtoError: It cannot be read, or holds no mask token.
    """
    found = read_vit_mae(path, known.vit_mae) if path.is_dir() else read_checkpoint(path)
    if not any("mask_token" in name for name in found.weights):
        raise MtoError(
            f"{path} holds no mask token: an encoder alone, as many releases are, cannot be "
            "inspected",
            hint="give a whole checkpoint of the pre-training",
        )
    return found


@dataclass(frozen=True)
class Prober:
    """Starts the recipe's script on chosen images, with the weights of a checkpoint."""

    name: str  # of the upstream
    recipe: Recipe
    known: Inspect
    checkout: Path
    files: list[Path]  # the images
    seed: int
    extra: Sequence[str] = ()  # arguments for the script, which win
    cpu: bool = False

    def look(self, paths: Sequence[Path], say: Callable[[str], object]) -> list[Seen]:
        """Measure with every checkpoint.

        Raises:
            CorruptError: Weights do not fit the model that the settings make.
            MtoError: The script failed, or it made other images or masks for some checkpoint.
        """
        for path in paths:  # all before the first minute is spent
            read(path, self.known)
        found: list[Seen] = []
        for number, path in enumerate(paths, 1):
            say(f"{path} ({number} of {len(paths)})")
            with tempfile.TemporaryDirectory(prefix=f"mto-inspect-{self.name}-") as work:
                found.append(self._measure(path, Path(work).resolve()))
            first, last = (seen.arrays for seen in (found[0], found[-1]))
            for what in ("images", "mask"):
                if first[what] != last[what]:
                    raise MtoError(
                        f"{path} was shown other {what}{'s' * (what == 'mask')} than {paths[0]}: "
                        "their settings of size, crops or masks differ",
                        hint="inspect them one by one, or give both the same after --, such as "
                        "-- --mask_ratio 0.75",
                    )
        return found

    def _measure(self, path: Path, work: Path) -> Seen:
        import numpy as np
        import torch

        from mto_tools.inspect.probe import VARIABLE, Task

        checkpoint = read(path, self.known)
        weights, result, error = (work / name for name in ("weights", "result.npz", "error.txt"))
        try:
            torch.save(checkpoint.weights, weights)
        except RuntimeError as full:  # torch's writer makes this of a full disk
            raise MissingError(
                f"the weights of {path} cannot be written to {work}: {full}",
                hint="free some disk space, or name another disk: TMPDIR=/elsewhere mto inspect …",
            ) from None
        settings = work / "settings.yaml"
        settings.write_text(json.dumps(checkpoint.settings, default=str))  # JSON is YAML
        data = stage(self.recipe.data, self.files, work / "images")
        own = {k: v for k, v in checkpoint.settings.items() if k not in self.known.foreign}
        Task(
            weights=str(weights),
            result=str(result),
            error=str(error),
            images=len(self.files),
            seed=self.seed,
            settings=own,
        ).save(work / "task.json")
        values = {"data": data, "images": len(self.files), "out": work / "out", "seed": self.seed}
        launch = Launch(
            self.name,
            self.recipe,
            self.checkout / self.recipe.pretrain,
            [
                *fill(self.known.arguments, {**values, "settings": settings}),
                *self.recipe.options.mto({"preset": "observe"}),
                *self.extra,
            ],
            cpu=self.cpu,
            before=[PROBE],
            seed=self.seed,
        )
        launch.check()
        variables = {**launch.environment(), VARIABLE: str(work / "task.json")}
        run = start(launch.argv(), cwd=work, log=work / "log.txt", environment=variables)
        code = run.wait()
        if error.is_file():
            which = "is it of this recipe?" if checkpoint.settings else "it holds no settings:"
            raise CorruptError(
                f"{path}: {error.read_text()}",
                hint=f"{which} arguments after -- name a model; docs/inspect.md shows how",
            )
        if code or not result.is_file():
            raise MtoError(
                f"{self.recipe.pretrain} failed with {path}:\n{run.cause()}",
                hint="arguments for it can be given after --",
            )
        with np.load(result) as arrays:
            return Seen(path, checkpoint.progress, {key: arrays[key] for key in arrays.files})
