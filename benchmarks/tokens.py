"""Tokens that are hard for float32: the accuracy benchmark and its test share them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of independent tokens x [1, N, D] and a mask [1, N].
KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": lambda x, mask: x,
    "nearly equal": lambda x, mask: x[:, :1] + 1e-3 * x,
    "much in common": lambda x, mask: x[:, :1] + 0.05 * x,
    "near twins": lambda x, mask: torch.cat((x[:, ::2], x[:, ::2] + 1e-3 * x[:, 1::2]), 1),
    # the massive activations of trained ViTs
    "one channel": lambda x, mask: x + 60 * (torch.arange(x.shape[-1]) == 7),
    # mask tokens, all alike at first, and the visible ones
    "two clusters": lambda x, mask: torch.where(mask[:, :, None], x[:, :1], x[:, 1:2]) + 0.05 * x,
}
# Kinds whose gradient is no difference of nearly equal numbers.
SMOOTH = ("independent", "nearly equal", "much in common")
BARS = {3e3: 1e-4, 3e4: 1e-3}  # of H, in nats, by the largest logit
GRADIENT_BAR = 1e-3  # of its norm, float32 tokens, logits up to 3e3


def mask_of(size: int, masked: int) -> Tensor:
    """Bool [1, size]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, size, generator=generator).argsort(1) < masked


def tokens_of(kind: str, largest_logit: float, mask: Tensor, dim: int) -> Tensor:
    """Float32 [1, N, dim] whose largest dot product is `largest_logit`."""
    x = torch.randn(1, mask.shape[1], dim, generator=torch.Generator().manual_seed(0))
    x = KINDS[kind](x, mask)
    return x * (largest_logit / (x @ x.mT).abs().max()).sqrt()
