"""One mask for all depths: hierarchical models see it at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor


def masks_by_depth(
    mask: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Brings a mask to the resolution of every depth.

    Args:
        mask: bool, True = masked: [B, N] or [B, h, w] at the finest resolution, or one per depth.
        sizes: (B, N) of the patch tokens at each depth.

    Returns:
        One bool mask [B, N] per depth; depths of equal size share the same tensor.

    Raises:
        ValueError: A mask is not bool, does not fit, or has a coarse cell that is masked in part.
    """
    if not isinstance(mask, Tensor):
        if len(mask) != len(sizes):
            raise ValueError(f"got {len(mask)} masks for {len(sizes)} depths")
        per_depth = [masks_by_depth(m, [size])[0] for m, size in zip(mask, sizes, strict=True)]
        known = {id(m): p for m, p in zip(mask, per_depth, strict=True)}
        return [known[id(m)] for m in mask]
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool with True = masked, got {mask.dtype}: pass mask.bool()"
        )
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be [B, N] or [B, h, w], got {list(mask.shape)}")
    pooled: dict[tuple[int, int], Tensor] = {}
    for depth, (batch, size) in enumerate(sizes):
        if batch != mask.shape[0]:
            raise ValueError(
                f"depth {depth}: tokens of {batch} images, but a mask of {mask.shape[0]}"
            )
        if (batch, size) not in pooled:
            pooled[batch, size] = _pool(mask, size, depth)
    return [pooled[size] for size in sizes]


def _pool(mask: Tensor, size: int, depth: int) -> Tensor:
    """[B, N] or [B, h, w] to [B, size], over square cells that are masked wholly or not at all."""
    cells = math.prod(mask.shape[1:])
    if cells == size:
        return mask.flatten(1)
    side = math.isqrt(cells)
    grid = mask
    if mask.ndim == 2:
        grid = mask.reshape(-1, side, side) if side * side == cells else mask[:, :, None]
    height, width = grid.shape[1:]
    step = math.isqrt(cells // size) if size else 0
    if step < 2 or step * step * size != cells or height % step or width % step:
        raise ValueError(_misfit(mask, size, depth, cells))
    blocks = rearrange(grid, "b (h i) (w j) -> b (h w) (i j)", i=step, j=step)
    masked = blocks.any(-1)
    # Not while torch.compile traces: a branch on data would break the graph.
    if not torch.compiler.is_compiling() and not torch.equal(masked, blocks.all(-1)):
        image, cell = (masked != blocks.all(-1)).nonzero()[0].tolist()
        raise ValueError(
            f"depth {depth}: token {cell} of image {image} covers {step}x{step} cells of the "
            "mask that are masked only in part. Make masks in cells of the coarsest traced depth "
            "(SimMIM: mask_patch_size 32), or trace fewer stages."
        )
    return masked


def _misfit(mask: Tensor, size: int, depth: int, cells: int) -> str:
    extra = size - cells
    if 0 < extra <= 16:
        hint = f"Did you forget num_prefix_tokens={extra}?"
    elif -16 <= extra < 0:
        hint = "Were prefix tokens stripped twice, or is the mask as long as the visible tokens?"
    else:
        hint = "A mask of a hierarchical model must be its finest grid, square or as [B, h, w]."
    return f"depth {depth} has {size} patch tokens, but the mask is {list(mask.shape)}. {hint}"
