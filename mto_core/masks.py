"""One mask for all depths: hierarchical models see it at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from mto_core.checks import check_is_mask

Shape = tuple[int, ...]


def masks_by_depth(
    mask: Tensor | Sequence[Tensor], shapes: Sequence[Shape], depths: Iterable[int]
) -> list[Tensor]:
    """Brings a mask to the resolution of the depths asked for.

    Args:
        mask: bool, True = masked: [B, N] or [B, h, w] at the finest resolution, or one per depth.
        shapes: Of the patch tokens at each depth: (B, N), or (B, H, W) where their grid is known.
        depths: Those whose mask is wanted.

    Returns:
        One bool mask [B, N] per depth; depths of equal shape and mask share the same tensor.

    Raises:
        TypeError: A mask is no tensor.
        ValueError: A mask is not bool, does not fit, or has a coarse cell that is masked in part.
        RuntimeError: The last of these under `torch.compile`.
    """
    per_depth = isinstance(mask, (list, tuple)) and all(isinstance(m, Tensor) for m in mask)
    given: list[Tensor] = list(mask) if per_depth else [mask] * len(shapes)  # type: ignore[list-item]
    if len(given) != len(shapes):
        raise ValueError(f"got {len(given)} masks for {len(shapes)} depths")
    for m, (batch, *_) in zip(given, shapes, strict=True):
        check_is_mask(m)
        if m.ndim not in (2, 3):
            raise ValueError(f"mask must be [B, N] or [B, h, w], got {list(m.shape)}")
        if batch != m.shape[0]:
            raise ValueError(f"tokens of {batch} images, but a mask of {m.shape[0]}")
    if not per_depth:
        _check_finest(given[0], shapes)
    pooled: list[tuple[Tensor, Shape, Tensor]] = []
    for depth in depths:
        m, grid = given[depth], shapes[depth][1:]
        if not any(m is known and grid == size for known, size, _ in pooled):
            pooled.append((m, grid, _pool(m, grid, depth)))
    return [
        next(p for known, size, p in pooled if known is given[d] and size == shapes[d][1:])
        for d in depths
    ]


def _check_finest(mask: Tensor, shapes: Sequence[Shape]) -> None:
    """Refuses a mask with more cells than any depth has tokens: then some tokens are missing."""
    cells, tokens = math.prod(mask.shape[1:]), max(math.prod(shape[1:]) for shape in shapes)
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


def _pool(mask: Tensor, shape: Shape, depth: int) -> Tensor:
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


def _misfit(mask: Tensor, shape: Shape, depth: int) -> str:
    extra = math.prod(shape) - math.prod(mask.shape[1:])
    if 0 < extra <= 16:
        hint = f"Did you forget num_prefix_tokens={extra}?"
    elif -16 <= extra < 0:
        hint = (
            f"Has the mask columns for prefix tokens (pass mask[:, {-extra}:]), were these "
            "stripped twice, or is the mask as long as the visible tokens?"
        )
    else:
        hint = "A mask of a hierarchical model must be its finest grid, square or as [B, h, w]."
    size = " x ".join(map(str, shape))
    return f"depth {depth} has {size} patch tokens, but the mask is {list(mask.shape)}. {hint}"
