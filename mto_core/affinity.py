"""The affinity map of one depth, for looking at (Figure 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.entropy import SCALES, check_mask, check_name, check_tokens, compute_dtype, factor


def affinity(tokens: Tensor, mask: Tensor, *, scale: str = "raw") -> Tensor:
    """softmax(X Xᵀ) with rows and columns ordered masked first, then visible (Figure 2).

    With `m = mask[b].sum()`, the quadrants of image b are `[:m, :m]` masked to masked, `[:m, m:]`
    masked to visible, `[m:, :m]` visible to masked and `[m:, m:]` visible to visible. Within each
    set tokens keep their order.

    Args:
        tokens: [B, N, D] patch tokens of one depth, any floating dtype.
        mask: bool [B, N], True = masked.
        scale: "raw", "sqrt_dim" or "layernorm", as in `heterogeneity`.

    Returns:
        [B, N, N], rows sum to 1; float64 for float64 tokens and float32 for any other.

    Raises:
        ValueError: a shape, dtype or name that does not fit.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[False, True, False]])
        >>> tokens = torch.tensor([[[20.0, 0.0], [0.0, 20.0], [20.0, 0.0]]])
        >>> affinity(tokens, mask)[0]  # the masked token first, then the two equal visible ones
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.5000],
                [0.0000, 0.5000, 0.5000]])
    """
    check_tokens(tokens)
    check_mask(mask, tokens)
    check_name("scale", scale, SCALES)
    order = mask.sort(dim=1, descending=True, stable=True)[1]
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.to(compute_dtype(tokens)).take_along_dim(order[:, :, None], 1)
        if scale == "layernorm":
            x = F.layer_norm(x, x.shape[-1:])
        return ((x * factor(scale, x)) @ x.mT).softmax(-1)
