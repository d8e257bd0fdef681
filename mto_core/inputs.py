"""What `MaskedTokenOptimization` is called with: checked, and brought into one form."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mto_core.entropy import MaskIndex, check_tokens, split_mask
from mto_core.masks import masks_by_depth
from mto_core.trace import TracedTokens, flatten_grid


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
    if isinstance(tokens_by_depth, Tensor):
        raise TypeError(
            "tokens_by_depth must be a sequence of tensors, one per depth, got a tensor"
        )
    if not tokens_by_depth:
        raise ValueError("tokens_by_depth is empty")
    return list(tokens_by_depth), num_prefix_tokens


def align(
    tokens: list[Tensor], prefix: int, mask: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[MaskIndex]]:
    """Tokens as [B, P + N, D], with mask and split mask of every depth."""
    if prefix < 0:
        raise ValueError(f"num_prefix_tokens must be >= 0, got {prefix}")
    grids = [flatten_grid(t, prefix) for t in tokens]
    for depth, grid in enumerate(grids):
        check_tokens(grid, f"tokens at depth {depth}")
        if grid.shape[0] == 0 or grid.shape[1] <= prefix:
            raise ValueError(
                f"tokens at depth {depth} are {list(grid.shape)}: there must be images, and more "
                f"tokens than the {prefix} of num_prefix_tokens"
            )
    shapes = [(t.shape[0], t.shape[1] - prefix) if t.ndim == 3 else t.shape[:3] for t in tokens]
    masks = masks_by_depth(mask, shapes)
    split = {id(m): split_mask(m, prefix) for m in {id(m): m for m in masks}.values()}
    return grids, masks, [split[id(m)] for m in masks]


def check_grad(grids: list[Tensor], on: list[str]) -> None:
    """Raises ValueError where a term in `on` would have no gradient."""
    needs = {"sparsity": grids[:1], "singularity": grids[:1], "ranking": grids}
    for name in on:
        if not any(t.requires_grad for t in needs[name]):
            where = "at depth 0" if name != "ranking" else "at any depth"
            raise ValueError(
                f"{name} has a weight, but no tokens {where} require grad, so it would train "
                "nothing: were they detached, or made under no_grad? To evaluate without training, "
                "call under torch.no_grad()"
            )
