"""The arguments of `MaskedTokenOptimization`: checked, and brought into one form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mto_core.checks import check_device, check_mask
from mto_core.masks import MaskSplit, pool, split_mask
from mto_core.trace import TracedTokens, flatten_grid

Layer: TypeAlias = tuple[Tensor, MaskSplit]  # tokens [B, P + N, D] of one depth, and its mask


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
    tokens: list[Tensor], prefix: int, mask: Tensor | Sequence[Tensor], depths: int
) -> list[Layer]:
    """Tokens and split mask of the first `depths`; neighbours with one mask share its split."""
    grids = [flatten_grid(t, prefix, f"tokens at depth {depth}") for depth, t in enumerate(tokens)]
    batch = grids[0].shape[0]
    for depth, grid in enumerate(grids):
        if grid.shape[0] == 0 or grid.shape[1] <= prefix:
            raise ValueError(
                f"tokens at depth {depth} are {list(grid.shape)}: there must be images, and more "
                f"tokens than the {prefix} of num_prefix_tokens"
            )
        if grid.shape[0] != batch:
            raise ValueError(f"depths 0 and {depth} differ in their number of images")
    masks: list[Any] = list(mask) if isinstance(mask, (list, tuple)) else [mask] * len(tokens)
    for m in masks:
        check_mask(m)
        if m.ndim not in (2, 3):
            raise ValueError(f"mask must be [B, N] or [B, h, w], got {list(m.shape)}")
        check_device(m, tokens[0])
        if m.shape[0] != batch:
            raise ValueError(f"tokens of {batch} images, but a mask of {m.shape[0]}")
    if len(masks) != len(tokens):
        raise ValueError(f"got {len(masks)} masks for {len(tokens)} depths")
    finest = max(grid.shape[1] for grid in grids) - prefix
    shapes = [t.shape[1:3] if t.ndim == 4 else (t.shape[1] - prefix,) for t in tokens]
    layers: list[Layer] = []
    for d in range(depths):
        if d == 0 or masks[d] is not masks[d - 1] or shapes[d] != shapes[d - 1]:
            split = split_mask(pool(masks[d], shapes[d], d, finest), prefix)
        layers.append((grids[d], split))
    return layers


def check_trainable(tokens: list[Tensor], active_terms: Sequence[str]) -> None:
    """Raises ValueError where an active term is undefined, or would have no gradient."""
    if len(tokens) < 2 and "ranking" in active_terms:
        raise ValueError(
            "ranking compares depths, but there is only one: trace at least one block, or set "
            "ranking=0"
        )
    for name in active_terms if torch.is_grad_enabled() else ():
        needed, where = (tokens, "any depth") if name == "ranking" else (tokens[:1], "depth 0")
        if not any(t.requires_grad for t in needed):
            raise ValueError(
                f"{name} has a weight, but no tokens at {where} require grad, so it would train "
                "nothing: were they detached, or made under no_grad? To evaluate without training, "
                "call under torch.no_grad()"
            )


def warn_undefined(layers: list[Layer]) -> bool:
    """Warns where heterogeneity is 0 by definition in every image; returns whether it did."""
    if torch.compiler.is_compiling():  # counts are not known
        return False
    for depth, (_, split) in enumerate(layers):
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
