"""One mask for all depths: hierarchical models see it at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor


def masks_by_depth(
    mask: Tensor | Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """Brings a mask to the resolution of every depth.

    Args:
        mask: bool, True = masked: [B, N] or [B, h, w] at the finest resolution, or one per depth.
        shapes: Of the patch tokens at each depth: (B, N), or (B, H, W) where their grid is known.

    Returns:
        One bool mask [B, N] per depth; depths of equal shape and mask share the same tensor.

    Raises:
        ValueError: A mask is not bool, does not fit, or has a coarse cell that is masked in part.
        RuntimeError: The last of these under `torch.compile`.
    """
    if not isinstance(mask, Tensor):
        if len(mask) != len(shapes):
            raise ValueError(f"got {len(mask)} masks for {len(shapes)} depths")
        known: dict[tuple[int, ...], Tensor] = {}
        keys = [(id(m), *shape) for m, shape in zip(mask, shapes, strict=True)]
        for key, m in zip(keys, mask, strict=True):
            if key not in known:
                known[key] = masks_by_depth(m, [key[1:]])[0]
        return [known[key] for key in keys]
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool with True = masked, got {mask.dtype}: pass mask.bool()"
        )
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be [B, N] or [B, h, w], got {list(mask.shape)}")
    pooled: dict[tuple[int, ...], Tensor] = {}
    for depth, (batch, *grid) in enumerate(shapes):
        if batch != mask.shape[0]:
            raise ValueError(
                f"depth {depth}: tokens of {batch} images, but a mask of {mask.shape[0]}"
            )
        if tuple(grid) not in pooled:
            pooled[tuple(grid)] = _pool(mask, tuple(grid), depth)
    return [pooled[tuple(shape[1:])] for shape in shapes]


def _pool(mask: Tensor, shape: tuple[int, ...], depth: int) -> Tensor:
    """[B, N] or [B, h, w] to [B, N'], over square cells that are masked wholly or not at all."""
    cells, size = math.prod(mask.shape[1:]), math.prod(shape)
    if cells == size and (1 in (mask.ndim - 1, len(shape)) or mask.shape[1:] == shape):
        return mask.flatten(1)
    side = math.isqrt(cells)
    grid = mask
    if mask.ndim == 2:
        grid = mask.reshape(-1, side, side) if side * side == cells else mask[:, :, None]
    height, width = grid.shape[1:]
    step = math.isqrt(cells // size)
    if step < 2 or step * step * size != cells or height % step or width % step:
        raise ValueError(_misfit(mask, shape, depth))
    if len(shape) == 2 and shape != (height // step, width // step):
        raise ValueError(_misfit(mask, shape, depth))
    blocks = rearrange(grid, "b (h i) (w j) -> b (h w) (i j)", i=step, j=step)
    masked, whole = blocks.any(-1), blocks.all(-1)
    if torch.compiler.is_compiling():  # a branch on data would break the graph
        torch._assert_async((masked == whole).all(), _misaligned(depth, "a token", step))
    elif not torch.equal(masked, whole):
        image, cell = (masked != whole).nonzero()[0].tolist()
        raise ValueError(_misaligned(depth, f"token {cell} of image {image}", step))
    return masked


def _misaligned(depth: int, token: str, step: int) -> str:
    return (
        f"depth {depth}: {token} covers {step}x{step} cells of the mask that are masked only in "
        "part. Make masks in cells of the coarsest traced depth (SimMIM: mask_patch_size 32), or "
        "trace fewer stages."
    )


def _misfit(mask: Tensor, shape: tuple[int, ...], depth: int) -> str:
    extra = math.prod(shape) - math.prod(mask.shape[1:])
    if 0 < extra <= 16:
        hint = f"Did you forget num_prefix_tokens={extra}?"
    elif -16 <= extra < 0:
        hint = "Were prefix tokens stripped twice, or is the mask as long as the visible tokens?"
    else:
        hint = "A mask of a hierarchical model must be its finest grid, square or as [B, h, w]."
    size = " x ".join(map(str, shape))
    return f"depth {depth} has {size} patch tokens, but the mask is {list(mask.shape)}. {hint}"
