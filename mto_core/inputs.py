"""Tokens and masks: checked, and brought into the form that the terms compute with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from mto_core.checks import check_mask, check_tokens
from mto_core.trace import TracedTokens, flatten_grid


class MaskSplit(NamedTuple):
    """A mask as indices of tokens [B, P + N, D] (see `mto_core.entropy`): one for all terms."""

    masked: Tensor  # int64 [B, max |M|], -1 on padding
    visible: Tensor  # int64 [B, max |V|], -1 on padding
    patches: Tensor  # int64 [B, N], in their own order
    mask: Tensor  # bool [B, N], as it was
    num_masked: Tensor  # int64 [B]
    num_visible: Tensor  # int64 [B]
    defined: Tensor  # bool [B], images whose heterogeneity can be anything but 0


def split_mask(mask: Tensor, num_prefix_tokens: int = 0, *, count: bool = True) -> MaskSplit:
    """Splits a bool mask [B, N] into indices of tokens [B, P + N, D].

    Sets are as long as the largest of the batch, which costs one host sync on a GPU. Without
    `count` both keep all N columns, padding last; while `torch.compile` traces, too, in any order.
    """
    batch, length = mask.shape[0], num_prefix_tokens + mask.shape[1]
    rows = torch.arange(batch * length, device=mask.device).view(batch, length)
    patches = rows[:, num_prefix_tokens:]
    masked, visible = patches.where(mask, -1), patches.where(~mask, -1)
    num_masked = mask.sum(1)
    num_visible = mask.shape[1] - num_masked
    if mask.numel() and not (count and torch.compiler.is_compiling()):
        masked, visible = (side.sort(descending=True)[0] for side in (masked, visible))
        if count:
            low, high = torch.stack(num_masked.aminmax()).tolist()
            masked, visible = masked[:, :high], visible[:, : mask.shape[1] - low]
    defined = (num_masked > 0) & (num_visible > 1)
    return MaskSplit(masked, visible, patches, mask, num_masked, num_visible, defined)


Layer: TypeAlias = tuple[Tensor, MaskSplit]  # tokens [B, P + N, D] of one depth, and its mask


def as_split(tokens: Tensor, mask: Tensor | MaskSplit) -> MaskSplit:
    """The mask of tokens [B, N, D], which are checked; a split one as it is."""
    check_tokens(tokens)
    if isinstance(mask, MaskSplit):
        return mask
    check_mask(mask, tokens)
    return split_mask(mask)


def whole_tokens(
    tokens_by_depth: Sequence[Tensor], num_prefix_tokens: int, step: int | None = None
) -> tuple[list[Tensor], int]:
    """Tokens as the blocks gave them, and how many of them are prefix."""
    if isinstance(tokens_by_depth, TracedTokens):
        if num_prefix_tokens not in (0, tokens_by_depth.num_prefix_tokens):
            raise ValueError(
                f"num_prefix_tokens={num_prefix_tokens}, but the trace was made with "
                f"{tokens_by_depth.num_prefix_tokens}: say it once, to the trace"
            )
        tokens_by_depth.recording.use(step)
        return tokens_by_depth.whole, tokens_by_depth.num_prefix_tokens
    if not isinstance(tokens_by_depth, Sequence):
        raise TypeError(
            "tokens_by_depth must be a sequence of tensors, one per depth, got "
            f"{type(tokens_by_depth).__name__}: pass trace.tokens_by_depth"
        )
    if not tokens_by_depth:
        raise ValueError("tokens_by_depth is empty")
    if num_prefix_tokens < 0:
        raise ValueError(f"num_prefix_tokens must be >= 0, got {num_prefix_tokens}")
    return list(tokens_by_depth), num_prefix_tokens


def align(
    tokens: list[Tensor],
    prefix: int,
    mask: Tensor | Sequence[Tensor],
    depths: Sequence[int],
    count: bool = True,
) -> dict[int, Layer]:
    """Tokens and split mask by depth, of rising `depths`; neighbours of one mask share a split.

    Without `count` the host waits for nothing: see `split_mask`.
    """
    grids = [flatten_grid(t, prefix, f"tokens at depth {depth}") for depth, t in enumerate(tokens)]
    batch = grids[0].shape[0]
    for depth, grid in enumerate(grids):
        if batch == 0 or grid.shape[0] != batch or grid.shape[1] <= prefix:
            raise ValueError(
                f"tokens at depth {depth} are {list(grid.shape)}: there must be images, as many as "
                f"at depth 0, and more tokens than the {prefix} of num_prefix_tokens"
            )
    masks: list[Any] = list(mask) if isinstance(mask, (list, tuple)) else [mask] * len(tokens)
    for m in masks:
        check_mask(m, tokens[0], flat=False)
        if m.ndim not in (2, 3) or m.shape[0] != batch:
            raise ValueError(
                f"mask must be [B, N] or [B, h, w] for {batch} images, got {list(m.shape)}"
            )
    if len(masks) != len(tokens):
        raise ValueError(f"got {len(masks)} masks for {len(tokens)} depths")
    finest = max(grid.shape[1] for grid in grids) - prefix
    shapes = [t.shape[1:3] if t.ndim == 4 else (t.shape[1] - prefix,) for t in tokens]
    layers: dict[int, Layer] = {}
    before = -1
    for d in depths:
        if before < 0 or masks[d] is not masks[before] or shapes[d] != shapes[before]:
            split = split_mask(pool(masks[d], shapes[d], d, finest, count), prefix, count=count)
        layers[d], before = (grids[d], split), d
    return layers


def check_trainable(tokens: list[Tensor], places: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError where a term that acts at these depths has no gradient, or no meaning."""
    if len(tokens) < 2 and "ranking" in places:
        raise ValueError(
            "ranking compares depths, but there is only one: trace at least one block, or set "
            "ranking=0"
        )
    for name, depths in places.items() if torch.is_grad_enabled() else ():
        if not any(tokens[depth].requires_grad for depth in depths):
            where = "any depth" if name == "ranking" else f"depth {depths[0]}"
            raise ValueError(
                f"{name} has a weight, but no tokens at {where} require grad, so it would train "
                "nothing: were they detached, or made under no_grad? To evaluate without training, "
                "call under torch.no_grad()"
            )


def warn_undefined(layers: Mapping[int, Layer]) -> bool:
    """Warns where heterogeneity is 0 by definition in every image; returns whether it did."""
    if torch.compiler.is_compiling():  # counts are not known
        return False
    for depth, (_, split) in layers.items():
        masked, visible = split.masked.shape[1], split.visible.shape[1]
        if masked == 0 or visible <= 1:
            warnings.warn(
                f"at depth {depth} every image has at most {masked} masked and {visible} visible "
                f"of {split.mask.shape[1]} tokens, so heterogeneity, singularity and ranking are "
                "0: they need a masked token and two visible ones. Is True = masked in this mask?",
                stacklevel=3,
            )
            return True
    return False


def pool(mask: Tensor, shape: Sequence[int], depth: int, finest: int, count: bool = True) -> Tensor:
    """[B, N] or [B, h, w] to [B, N'], over square cells that are masked wholly or not at all.

    `shape` is (N',) or (H', W') at this depth, `finest` the most patch tokens of any depth.

    Raises:
        ValueError: The mask does not fit this depth, or a cell is masked in part.
        RuntimeError: The latter under `torch.compile`, or without `count`.
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
    if torch.compiler.is_compiling() or not count:  # a branch on data breaks the graph, and waits
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
