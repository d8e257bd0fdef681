"""A recipe's model in miniature, its flags, and a batch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mto_tools import recipe


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


def attached(output_dir: Path | None = None) -> Tiny:
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=output_dir)
    return model


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
