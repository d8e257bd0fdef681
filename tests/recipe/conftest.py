"""A recipe's model in miniature, its flags, and a batch."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mto_tools import recipe

from ..forkserver import ForkServer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).tanh()


class Tiny(nn.Module):
    """A recipe's model in miniature: residual blocks over [B, 1 + N, D], a scalar loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask_token = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.more = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.where(mask[:, :, None], self.mask_token, x)
        tokens = torch.cat([tokens.new_zeros(len(x), 1, 8), tokens], 1)
        other = tokens * 0.5
        for block, more in zip(self.blocks, self.more, strict=True):
            tokens = block(tokens)
            other = more(other)
        return (tokens**2).mean() + (other**2).mean()


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    flags()
    recipe.attach(nn.Linear(1, 1))


def flags(*argv: str, preset: str = "mae") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1.0)
    recipe.add_arguments(parser, preset=preset)
    return parser.parse_args(argv)


def begin(*argv: str, folder: Path | None = None) -> tuple[Tiny, Tensor, Tensor]:
    """A model attached under these options, images and masks for it."""
    flags(*argv)
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
    return model, *batch()


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 6, 8, generator=generator)
    mask = torch.rand(size, 6, generator=generator).argsort(1) < 3
    return x, mask


def lines(folder: Path, *drop: str, name: str = "mto.jsonl") -> list[dict[str, Any]]:
    """The records of a file; `drop` names fields that depend on the clock, say."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    text = (folder / name).read_text()
    records = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [{k: v for k, v in record.items() if k not in drop} for record in records]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(20):
        folder = root / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def small(images: Path) -> list[str]:
    """Arguments of a small run of mini. Every run has the same, in a folder of its own."""
    return [
        *("--data_path", str(images), "--output_dir", "out", "--img_size", "16"),
        *("--patch_size", "4", "--embed_dim", "16", "--depth", "2", "--num_heads", "2"),
        *("--decoder_dim", "16", "--decoder_depth", "2", "--decoder_num_heads", "2"),
        *("--drop_path", "0.2", "--batch_size", "8", "--steps", "12", "--log_every", "2"),
        *("--eval_every", "1000", "--save_every", "3", "--device", "cpu"),
    ]


Train = Callable[..., Path]


@pytest.fixture(scope="session")
def train(mini_server: ForkServer, recipes: dict[str, Path], small: list[str]) -> Train:
    """Runs mini to the end in a folder, with these flags besides; returns its output."""

    def run(cwd: Path, *flags: str, recipe: str = "patched", ranks: int = 0) -> Path:
        cwd.mkdir(exist_ok=True)
        python = mini_server.command
        torchrun = [*python, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        start = [*torchrun, f"--nproc_per_node={ranks}"] if ranks else []
        script = str(recipes[recipe] / "main_pretrain.py")
        done = subprocess.run(
            [*start, *python, script, *small, *flags],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return cwd / "out"

    return run
