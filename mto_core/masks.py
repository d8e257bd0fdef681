"""One mask for all depths: hierarchical models see it at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from mto_core.checks import check_mask


def masks_by_depth(
    mask: Tensor | Sequence[Tensor], batch: int, shapes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The mask of each depth as it was given; `shapes` are (N,) or (H, W), the patch tokens'.

    Raises:
        TypeError: A mask is no tensor.
        ValueError: A mask is not bool, or does not fit.
    """
    per_depth = isinstance(mask, (list, tuple)) and all(isinstance(m, Tensor) for m in mask)
    masks: list[Tensor] = list(mask) if per_depth else [mask] * len(shapes)  # type: ignore[list-item]
    if len(masks) != len(shapes):
        raise ValueError(f"got {len(masks)} masks for {len(shapes)} depths")
    for m in masks:
        check_mask(m)
        if m.ndim not in (2, 3):
            raise ValueError(f"mask must be [B, N] or [B, h, w], got {list(m.shape)}")
        if batch != m.shape[0]:
            raise ValueError(f"tokens of {batch} images, but a mask of {m.shape[0]}")
    if not per_depth:
        _check_finest(masks[0], max(math.prod(shape) for shape in shapes))
    return masks


def pool(mask: Tensor, shape: Sequence[int], depth: int) -> Tensor:
    """[B, N] or [B, h, w] to [B, N'], over square cells that are masked wholly or not at all.

    Raises:
        ValueError: The mask does not fit this depth, or a cell is masked in part.
        RuntimeError: The latter under `torch.compile`.
    """
    cells, size = math.prod(mask.shape[1:]), math.prod(shape)
    if cells == size and (1 in (mask.ndim - 1, len(shape)) or mask.shape[1:] == shape):
        return mask.flatten(1)
    side = math.isqrt(cells)
    grid = mask
    if mask.ndim == 2:
        grid = mask.view(-1, side, side) if side * side == cells else mask[:, :, None]
    height, width = grid.shape[1:]
    step = math.isqrt(cells // size)
    fits = step > 1 and step * step * size == cells and height % step == width % step == 0
    if not fits or (len(shape) == 2 and tuple(shape) != (height // step, width // step)):
        raise ValueError(_misfit(mask, shape, depth))
    blocks = rearrange(grid, "b (h i) (w j) -> b (h w) (i j)", i=step, j=step)
    masked, whole = blocks.any(-1), blocks.all(-1)
    misaligned = (
        "depth {}: {} covers {}x{} cells of the mask that are masked only in part. Make masks in "
        "cells of the coarsest traced depth (SimMIM: mask_patch_size 32), or trace fewer stages."
    )
    if torch.compiler.is_compiling():  # a branch on data would break the graph
        torch._assert_async(
            (masked == whole).all(), misaligned.format(depth, "a token", step, step)
        )
    elif not torch.equal(masked, whole):
        image, cell = (masked != whole).nonzero()[0].tolist()
        token = f"token {cell} of image {image}"
        raise ValueError(misaligned.format(depth, token, step, step))
    return masked


def _check_finest(mask: Tensor, tokens: int) -> None:
    """Refuses a mask with more cells than any depth has tokens: then some tokens are missing."""
    cells = math.prod(mask.shape[1:])
    if tokens >= cells:
        return
    found = f"the traced blocks have {tokens} patch tokens, but the mask is {list(mask.shape)}"
    if not torch.compiler.is_compiling() and bool(((~mask).flatten(1).sum(1) == tokens).all()):
        found += f", of which {tokens} are visible: masked tokens are missing in these blocks"
    elif cells - tokens <= min(16, tokens):
        return  # prefix tokens: `_misfit` says so
    raise ValueError(
        f"{found}. Blocks that see visible tokens only (the encoder of MAE, model.blocks; timm's "
        "patch_drop_rate) cannot be traced: trace those that hold the mask tokens, e.g. "
        "model.decoder_blocks. If the tokens are a coarser grid, pass the mask at their resolution"
    )


def _misfit(mask: Tensor, shape: Sequence[int], depth: int) -> str:
    extra = math.prod(shape) - math.prod(mask.shape[1:])
    hint = "A mask of a hierarchical model must be its finest grid, square or as [B, h, w]."
    if 0 < extra <= 16:
        hint = f"Did you forget num_prefix_tokens={extra}?"
    elif -16 <= extra < 0:
        hint = (
            f"Has the mask columns for prefix tokens (pass mask[:, {-extra}:]), were these "
            "stripped twice, or is the mask as long as the visible tokens?"
        )
    size = " x ".join(map(str, shape))
    return f"depth {depth} has {size} patch tokens, but the mask is {list(mask.shape)}. {hint}"
