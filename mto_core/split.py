"""Which tokens are masked and which are visible: one description for all terms and depths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mto_core.checks import compute_dtype


class TokenRows(NamedTuple):
    """Tokens of each image, as the queries or the keys of an affinity.

    Attributes:
        rows: int64 [B, R], row numbers of `tokens.flatten(0, 1)`; no row twice.
        valid: bool [B, R], False on padding; None without padding.
    """

    rows: Tensor
    valid: Tensor | None = None


class MaskSplit(NamedTuple):
    """A mask as rows of tokens [B, P + N, D]: made once per mask, used at every depth."""

    masked: TokenRows  # [B, max |M|]
    visible: TokenRows  # [B, max |V|]
    patches: TokenRows  # [B, N], in their own order
    num_masked: Tensor  # [B] int64
    num_visible: Tensor  # [B] int64
    defined: Tensor  # [B] bool, images whose heterogeneity can be anything but 0
    mask: Tensor  # bool [B, N], as it was


def split_mask(mask: Tensor, num_prefix_tokens: int = 0) -> MaskSplit:
    """Splits a bool mask [B, N] into rows of tokens [B, P + N, D]; costs one host sync on a GPU.

    Rows are padded to the largest count in the batch. While `torch.compile` traces, counts are
    unknown: both sets then keep all N rows, and `valid` tells them apart.
    """
    batch, size = mask.shape
    num_masked = mask.sum(1)
    num_visible = size - num_masked
    length = num_prefix_tokens + size
    patches = row_index(batch, length, num_prefix_tokens, length, mask.device)
    if torch.compiler.is_compiling():
        masked, visible = TokenRows(patches, mask), TokenRows(patches, ~mask)
    else:
        low, high = torch.stack(num_masked.aminmax()).tolist() if mask.numel() else (0, 0)
        is_masked, order = mask.sort(dim=1, descending=True, stable=True)
        rows = patches.gather(1, order)  # [B, N], masked first
        padded = low != high
        masked = TokenRows(rows[:, :high].contiguous(), is_masked[:, :high] if padded else None)
        visible = TokenRows(rows[:, low:].contiguous(), ~is_masked[:, low:] if padded else None)
    defined = (num_masked > 0) & (num_visible > 1)
    counts = num_masked, num_visible, defined
    return MaskSplit(masked, visible, TokenRows(patches), *counts, mask)


def row_index(batch: int, length: int, start: int, stop: int, device: torch.device) -> Tensor:
    """int64 [B, stop - start]: row numbers, in tokens [B · length, D], of tokens start to stop."""
    first = torch.arange(batch, device=device)[:, None] * length
    return first + torch.arange(start, stop, device=device)


def take(tokens: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, R, D] of tokens [B, T, D], in the dtype of the computation."""
    taken = tokens.flatten(0, 1).index_select(0, rows.flatten())
    return taken.view(*rows.shape, tokens.shape[-1]).to(compute_dtype(tokens))
