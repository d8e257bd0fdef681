"""The recipe copied to a temporary folder, tiny images, and real processes that train on them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ..forkserver import Forked, ForkServer

RECIPE = Path(__file__).parents[2] / "upstream" / "embedded" / "mini"

TINY = (
    *("--img_size", "8", "--patch_size", "2", "--embed_dim", "16", "--depth", "2"),
    *("--num_heads", "2", "--decoder_dim", "16", "--decoder_depth", "1", "--decoder_num_heads"),
    *("2", "--batch_size", "8", "--steps", "12", "--warmup_steps", "3", "--log_every", "4"),
    *("--eval_every", "8", "--save_every", "5", "--device", "cpu"),
)


@dataclass
class Process:
    """One run of a script of the recipe."""

    forked: Forked
    out: Path
    err: Path

    def wait(self) -> int:
        return self.forked.wait()

    @property
    def stderr(self) -> str:
        return self.err.read_text()


@dataclass
class Recipe:
    """Starts scripts of the recipe; `data` is a tiny image folder."""

    folder: Path
    data: Path
    tmp: Path
    server: ForkServer
    processes: list[Process] = field(default_factory=list)

    def start(self, *argv: str | Path, **how: Any) -> Process:
        """Start a script; `how` goes to `ForkServer.start`."""
        n = len(self.processes)
        out, err = self.tmp / f"{n}.out", self.tmp / f"{n}.err"
        process = Process(self.server.start(*argv, out=out, err=err, **how), out, err)
        self.processes.append(process)
        return process

    def command(self, output_dir: Path, *argv: str | Path) -> list[str | Path]:
        """The command of a tiny run; later arguments win over the defaults."""
        script = self.folder / "main_pretrain.py"
        return [script, "--data_path", self.data, "--output_dir", output_dir, *TINY, *argv]

    def start_tiny(self, output_dir: Path, *argv: str | Path, **how: Any) -> Process:
        return self.start(*self.command(output_dir, *argv), **how)

    def train(self, output_dir: Path, *argv: str | Path) -> Path:
        process = self.start_tiny(output_dir, *argv)
        assert process.wait() == 0, process.stderr
        return output_dir


def write_images(root: Path, per_class: int, rng: np.random.Generator) -> None:
    """Two classes of noisy 10 x 8 images, bright on the left or on the right."""
    for label in (0, 1):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 100, (8, 10, 3))
            pixels[:, 5 * label : 5 * label + 5] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    write_images(root / "train", 15, rng)
    write_images(root / "val", 6, rng)
    return root


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, mini_server: ForkServer
) -> Iterator[Recipe]:
    folder = tmp_path_factory.mktemp("recipe") / "mini"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = Recipe(folder, tiny_data, tmp_path_factory.mktemp("processes"), mini_server)
    yield recipe
    for process in recipe.processes:
        process.forked.kill()


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted tiny run."""
    return recipe.train(tmp_path_factory.mktemp("whole") / "out", "--save_steps", "0", "5")


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """That run as a kill between step 8 and its second checkpoint leaves it."""
    out = Path(shutil.copytree(whole, tmp_path / "stopped"))
    (out / "checkpoint-000005.pth").replace(out / "checkpoint.pth")
    return out


@pytest.fixture(scope="session")
def mini() -> SimpleNamespace:
    """The recipe's modules, imported here and taken out of sys.modules again: their names are
    too common to stay."""
    names = ("runtime", "models", "data", "evaluate", "checkpoint", "engine", "main_pretrain")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(RECIPE))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(RECIPE))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def read_checkpoint(output_dir: Path, name: str = "checkpoint.pth") -> dict[str, Any]:
    return torch.load(output_dir / name, weights_only=True)


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """The log's lines without their step time."""
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("step_ms", None)
    return lines


def losses(output_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(output_dir) if "loss" in line]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested containers as one dictionary; tensors as lists."""
    if isinstance(value, dict):
        return {k: v for n, x in value.items() for k, v in leaves(x, f"{path}/{n}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for n, x in enumerate(value) for k, v in leaves(x, f"{path}/{n}").items()}
    return {path: value.tolist() if isinstance(value, torch.Tensor) else value}


def assert_same_run(a: Path, b: Path) -> None:
    """Same log but for step times, same checkpoint but for the paths of the run."""
    assert read_log(a) == read_log(b)
    ours, theirs = read_checkpoint(a), read_checkpoint(b)
    ours.pop("args")
    theirs.pop("args")
    assert leaves(ours) == leaves(theirs)
