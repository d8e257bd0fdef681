"""The arguments of `MaskedTokenOptimization`: checked, and brought into one form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mto_core.checks import check_tokens
from mto_core.masks import masks_by_depth
from mto_core.split import MaskSplit, split_mask
from mto_core.tokens import TracedTokens, flatten_grid


class Layer(NamedTuple):
    """One depth that is measured."""

    tokens: Tensor  # [B, P + N, D]
    mask: Tensor  # bool [B, N]
    split: MaskSplit


def whole_tokens(
    tokens_by_depth: Sequence[Tensor], num_prefix_tokens: int
) -> tuple[list[Tensor], int]:
    """Tokens as the blocks gave them, and how many of them are prefix."""
    if isinstance(tokens_by_depth, TracedTokens):
        if num_prefix_tokens not in (0, tokens_by_depth.num_prefix_tokens):
            raise ValueError(
                f"num_prefix_tokens={num_prefix_tokens}, but the trace was made with "
                f"{tokens_by_depth.num_prefix_tokens}: say it once, to the trace"
            )
        return list(tokens_by_depth.whole), tokens_by_depth.num_prefix_tokens
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
    tokens: list[Tensor], prefix: int, mask: Tensor | Sequence[Tensor], depths: Sequence[int]
) -> dict[int, Layer]:
    """Tokens, mask and split mask of the depths asked for; depths with one mask share its split."""
    grids = [flatten_grid(t, prefix) for t in tokens]
    for depth, grid in enumerate(grids):
        check_tokens(grid, f"tokens at depth {depth}")
        if grid.shape[0] == 0 or grid.shape[1] <= prefix:
            raise ValueError(
                f"tokens at depth {depth} are {list(grid.shape)}: there must be images, and more "
                f"tokens than the {prefix} of num_prefix_tokens"
            )
    shapes = [(t.shape[0], t.shape[1] - prefix) if t.ndim == 3 else t.shape[:3] for t in tokens]
    layers: dict[int, Layer] = {}
    for depth, m in zip(depths, masks_by_depth(mask, shapes, depths), strict=True):
        shared = [layer.split for layer in layers.values() if layer.mask is m]
        split = shared[0] if shared else split_mask(m, prefix)
        layers[depth] = Layer(grids[depth], m, split)
    return layers


def check_grad(tokens: list[Tensor], active_terms: list[str]) -> None:
    """Raises ValueError where an active term would have no gradient."""
    needs = {"sparsity": tokens[:1], "singularity": tokens[:1], "ranking": tokens}
    for name in active_terms:
        if not any(t.requires_grad for t in needs[name]):
            where = "at depth 0" if name != "ranking" else "at any depth"
            raise ValueError(
                f"{name} has a weight, but no tokens {where} require grad, so it would train "
                "nothing: were they detached, or made under no_grad? To evaluate without training, "
                "call under torch.no_grad()"
            )


def warn_undefined(layers: dict[int, Layer]) -> bool:
    """Warns where heterogeneity is 0 by definition in every image; returns whether it did."""
    if torch.compiler.is_compiling():  # counts are not known
        return False
    for depth, (_, mask, split) in layers.items():
        masked, visible = split.masked.rows.shape[1], split.visible.rows.shape[1]
        if masked == 0 or visible <= 1:
            warnings.warn(
                f"at depth {depth} every image has at most {masked} masked and {visible} visible "
                f"of {mask.shape[1]} tokens, so heterogeneity, singularity and ranking are 0: they "
                "need a masked token and two visible ones. Is True = masked in this mask?",
                stacklevel=3,
            )
            return True
    return False
