"""The tokens of one forward by depth, as blocks took and gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor


class TracedTokens(Sequence[Tensor]):
    """The tokens of one forward by depth: item l is [B, N, D], without prefix tokens.

    The whole tensors stay at hand, since `MaskedTokenOptimization` computes on them: slicing the
    prefix off first would cost a zero-padded copy per depth in the backward.

    Attributes:
        whole: What the blocks took and gave, as it was: [B, P + N, D] or [B, H, W, D] per depth.
        num_prefix_tokens: P.
    """

    def __init__(self, whole: Sequence[Tensor], num_prefix_tokens: int) -> None:
        self.whole = tuple(whole)
        self.num_prefix_tokens = num_prefix_tokens

    def __len__(self) -> int:
        return len(self.whole)

    @overload
    def __getitem__(self, depth: int) -> Tensor: ...
    @overload
    def __getitem__(self, depth: slice) -> list[Tensor]: ...
    def __getitem__(self, depth: int | slice) -> Tensor | list[Tensor]:
        """The patch tokens at a depth, or a list of them."""
        if isinstance(depth, slice):
            return [self[d] for d in range(len(self))[depth]]
        return flatten_grid(self.whole[depth], self.num_prefix_tokens)[:, self.num_prefix_tokens :]


def flatten_grid(tokens: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """[B, H, W, D] as [B, H·W, D]; [B, N, D] as it is.

    Raises:
        ValueError: Another number of dimensions, or a grid that is said to have prefix tokens.
    """
    if tokens.ndim == 3:
        return tokens
    if tokens.ndim != 4:
        raise ValueError(f"tokens must be [B, N, D] or [B, H, W, D], got {list(tokens.shape)}")
    if num_prefix_tokens:
        raise ValueError(
            f"tokens {list(tokens.shape)} are a grid, which has no room for "
            f"num_prefix_tokens={num_prefix_tokens}"
        )
    return tokens.flatten(1, 2)
