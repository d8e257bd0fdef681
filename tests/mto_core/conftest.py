"""Masks and tokens that several files use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

BACKENDS = ["dense", "recompute"]
SCALES = ["raw", "sqrt_dim", "layernorm"]
MASKS = {
    "equal counts": ["MM...M.", ".M.M.M."],
    "ragged": ["MM...MM", ".M.....", "MMMMMM.", "....MMM"],
    "empty and full": ["MMMMMMM", ".......", ".M.M.M."],
}


def bits(rows: list[str]) -> Tensor:
    """Bool [B, N], True where a letter is M."""
    return torch.tensor([[char == "M" for char in row] for row in rows])


def make(
    batch: int = 3,
    size: int = 16,
    dim: int = 4,
    depths: int = 3,
    prefix: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], Tensor]:
    """Tokens [B, P + N, D] by depth, with gradients, and a mask [B, N]; the same every time."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, prefix + size, dim)
    tokens = [torch.randn(shape, generator=generator).to(dtype) for _ in range(depths)]
    mask = torch.rand(batch, size, generator=generator) < 0.6
    return [t.requires_grad_() for t in tokens], mask


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Nothing that another test has compiled counts."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
