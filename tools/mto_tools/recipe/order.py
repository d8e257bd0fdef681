"""Whether the tokens stand in image order, as the mask does."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def warn_of_order(tokens: Tensor, mask: Tensor) -> None:
    """Warn where a decoder is traced whose visible tokens stand first (UM-MAE, say).

    The token of a masked patch is the mask token plus its position, so two images that both mask
    patch n have equal tokens there. Where some differ, yet tokens of the one image recur at other
    places of the other, the mask is in another order than the tokens.

    Args:
        tokens: `[B, N, D]`, the patch tokens that enter the first block.
        mask: `[B, N]`, bool, True = masked.
    """
    if tokens.ndim != 3 or len(tokens) < 2 or tokens.shape[:2] != mask.shape:
        return
    first, second = tokens[:2].detach()
    both = mask[0] & mask[1]
    equal = (first == second).all(1)
    if not both.any() or bool(equal[both].all()):
        return
    _, row = torch.unique(torch.cat([first, second]), dim=0, return_inverse=True)
    recurring = torch.isin(row[: len(first)], row[len(first) :])
    if bool((recurring & ~equal).any()):
        warnings.warn(
            "mto: the traced tokens are not in the order of the mask: masked patches of two images "
            "differ at one place, but recur at another. The decoder may put visible tokens first: "
            "give mto.add the mask in the order of its tokens",
            stacklevel=2,
        )
