"""Which tokens a mask makes queries and keys, at the resolution of every depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class MaskSplit(NamedTuple):
    """A mask as indices of tokens [B, P + N, D] (see `mto_core.entropy`): one for all terms."""

    masked: Tensor  # int64 [B, max |M|], -1 on padding
    visible: Tensor  # int64 [B, max |V|], -1 on padding
    patches: Tensor  # int64 [B, N], in their own order
    mask: Tensor  # bool [B, N], as it was

    def defined(self) -> Tensor:
        """bool [B], images whose heterogeneity can be anything but 0."""
        return self.mask.any(1) & ((~self.mask).sum(1) > 1)


def split_mask(mask: Tensor, num_prefix_tokens: int = 0) -> MaskSplit:
    """Splits a bool mask [B, N] into indices of tokens [B, P + N, D].

    Sets are as long as the largest of the batch, which costs one host sync on a GPU. While
    `torch.compile` traces, counts are unknown: both sets then keep all N columns.
    """
    batch, length = mask.shape[0], num_prefix_tokens + mask.shape[1]
    rows = torch.arange(batch * length, device=mask.device).view(batch, length)
    patches = rows[:, num_prefix_tokens:]
    masked, visible = patches.where(mask, -1), patches.where(~mask, -1)
    if mask.numel() and not torch.compiler.is_compiling():
        low, high = torch.stack(mask.sum(1).aminmax()).tolist()
        masked = masked.sort(descending=True)[0][:, :high]
        visible = visible.sort(descending=True)[0][:, : mask.shape[1] - low]
    return MaskSplit(masked, visible, patches, mask)


def pool(mask: Tensor, shape: Sequence[int], depth: int, finest: int) -> Tensor:
    """[B, N] or [B, h, w] to [B, N'], over square cells that are masked wholly or not at all.

    `shape` is (N',) or (H', W') at this depth, `finest` the most patch tokens of any depth.

    Raises:
        ValueError: The mask does not fit this depth, or a cell is masked in part.
        RuntimeError: The latter under `torch.compile`.
    """
    cells, size = math.prod(mask.shape[1:]), math.prod(shape)
    if cells == size and (1 in (mask.ndim - 1, len(shape)) or mask.shape[1:] == shape):
        return mask.flatten(1)
    side, step = math.isqrt(cells), max(1, math.isqrt(cells // size))
    grid = mask
    if mask.ndim == 2:
        grid = mask.view(-1, side, side) if side * side == cells else mask[:, :, None]
    height, width = grid.shape[1:]
    fits = step * step * size == cells <= finest and height % step == width % step == 0
    if not fits or tuple(shape) not in ((size,), (height // step, width // step)):
        raise ValueError(_misfit(mask, shape, depth, finest))
    blocks = rearrange(grid, "b (h i) (w j) -> b (h w) (i j)", i=step, j=step)
    masked, whole = blocks.any(-1), blocks.all(-1)
    misaligned = (
        f"depth {depth}: {{}} covers {step}x{step} cells of the mask that are masked only in part. "
        "Make masks in cells of the coarsest traced depth (SimMIM: mask_patch_size 32), or trace "
        "fewer stages."
    )
    if torch.compiler.is_compiling():  # a branch on data would break the graph
        torch._assert_async((masked == whole).all(), misaligned.format("a token"))
    elif not torch.equal(masked, whole):
        image, cell = (masked != whole).nonzero()[0].tolist()
        raise ValueError(misaligned.format(f"token {cell} of image {image}"))
    return masked


def _misfit(mask: Tensor, shape: Sequence[int], depth: int, finest: int) -> str:
    """Why a mask may not fit, likeliest cause first."""
    size = math.prod(shape)
    more = math.prod(mask.shape[1:]) - size
    found = f"depth {depth} has {' x '.join(map(str, shape))} patch tokens, but the mask is "
    found += f"{list(mask.shape)}"
    visible = False
    if not torch.compiler.is_compiling():
        visible = bool(((~mask).flatten(1).sum(1) == size).all())
    if visible or size + more - min(16, finest) > finest:
        found += f", of which {size} are visible: masked tokens are missing" if visible else ""
        return (
            f"{found}. Blocks that see visible tokens only (the encoder of MAE, model.blocks; "
            "timm's patch_drop_rate) cannot be traced: trace those that hold the mask tokens, e.g. "
            "model.decoder_blocks. If the tokens are a coarser grid, pass the mask at their "
            "resolution"
        )
    if -16 <= more < 0:
        return f"{found}. Did you forget num_prefix_tokens={-more}?"
    if 0 < more <= 16:
        return (
            f"{found}. Has the mask columns for prefix tokens (pass mask[:, {more}:]), "
            "were these stripped twice, or is the mask as long as the visible tokens?"
        )
    return f"{found}. A hierarchical model's mask must be its finest grid, square or as [B, h, w]."
