"""The recipe copied to a temporary folder, tiny images, and real processes that train on them."""

from __future__ import annotations

import importlib
import json
import shutil
import socket
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

    def start(self, *argv: str | Path, script: str = "main_pretrain.py", **how: Any) -> Process:
        """Start a script; `how` goes to `ForkServer.start`."""
        n = len(self.processes)
        out, err = self.tmp / f"{n}.out", self.tmp / f"{n}.err"
        forked = self.server.start(self.folder / script, *argv, out=out, err=err, **how)
        process = Process(forked, out, err)
        self.processes.append(process)
        return process

    def start_tiny(self, output_dir: Path, *argv: str | Path, **how: Any) -> Process:
        """Start a tiny run; later arguments win over the defaults."""
        return self.start("--data_path", self.data, "--output_dir", output_dir, *TINY, *argv, **how)

    def start_ranks(self, output_dir: Path, *argv: str | Path) -> list[Process]:
        """Start two ranks of one tiny run, with the variables that torchrun sets."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start_tiny(output_dir, *argv, env={**world, "RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]

    def train(self, output_dir: Path, *argv: str | Path, **kwargs: Any) -> Path:
        process = self.start_tiny(output_dir, *argv, **kwargs)
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


@pytest.fixture
def recipe(tmp_path: Path, tiny_data: Path, mini_server: ForkServer) -> Iterator[Recipe]:
    folder = tmp_path / "mini"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    logs = tmp_path / "processes"
    logs.mkdir()
    recipe = Recipe(folder, tiny_data, logs, mini_server)
    yield recipe
    for process in recipe.processes:
        process.forked.kill()
        process.wait()


@pytest.fixture(scope="session")
def mini() -> SimpleNamespace:
    """The recipe's modules, imported here and taken out of sys.modules again: their names are
    too common to stay."""
    names = ("runtime", "models", "data", "evaluate", "checkpoint", "engine", "make_digits")
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


def assert_same(a: Any, b: Any) -> None:
    """Equality to the last bit through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Same log but for step times, same checkpoint but for the paths of the run."""
    assert read_log(a) == read_log(b)
    ours, theirs = read_checkpoint(a), read_checkpoint(b)
    ours.pop("args")
    theirs.pop("args")
    assert_same(ours, theirs)
