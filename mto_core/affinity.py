"""The affinity map of one depth (Figure 2), and where the visible tokens' part of it goes."""

from __future__ import annotations

import torch
from torch import Tensor

from mto_core import recompute
from mto_core.checks import Scale, check_mask, check_tokens, compute_dtype
from mto_core.entropy import scaled


def affinity(tokens: Tensor, mask: Tensor, *, scale: Scale = "raw") -> Tensor:
    """softmax(X Xᵀ) with rows and columns ordered masked first, then visible (Figure 2).

    With `m = mask[b].sum()`, the quadrants of image b are `[:m, :m]` masked to masked, `[:m, m:]`
    masked to visible, `[m:, :m]` visible to masked and `[m:, m:]` visible to visible. Within each
    set tokens keep their order. Source: arXiv 2404.08330.

    Args:
        tokens: [B, N, D] patch tokens of one depth, any floating dtype.
        mask: bool [B, N], True = masked.
        scale: "raw", "sqrt_dim" or "layernorm", as in `heterogeneity`.

    Returns:
        [B, N, N], rows sum to 1; float64 for float64 tokens and float32 for any other.

    Raises:
        TypeError: an argument is no tensor.
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
    order = mask.sort(dim=1, descending=True, stable=True)[1]
    return _map(tokens.take_along_dim(order[:, :, None], 1), scale)


@torch.no_grad()
def attention_mass(tokens: Tensor, mask: Tensor, *, scale: Scale = "raw") -> tuple[Tensor, Tensor]:
    """Where the rows of the visible tokens in softmax(X Xᵀ) put their mass.

    Args:
        tokens: [B, N, D].
        mask: bool [B, N].
        scale: "raw", "sqrt_dim" or "layernorm".

    Returns:
        The mass on the diagonal (a token looking at itself) and the mass on masked columns, each
        [B] in [0, 1]: means over the visible rows, 0 for an image without any.
    """
    parts = []
    images = max(1, recompute.CHUNK_ELEMENTS // mask.shape[1] ** 2)
    for x, masked in zip(torch.split(tokens, images), torch.split(mask, images), strict=True):
        p = _map(x, scale)  # [b, N, N]
        visible = (~masked).to(p)  # [b, N]
        itself, on_masked = p.diagonal(dim1=1, dim2=2), (p * masked[:, None]).sum(-1)
        mass = torch.stack((itself, on_masked)) * visible  # [2, b, N]
        parts.append(mass.sum(-1) / visible.sum(-1).clamp_min(1))  # [2, b]
    diagonal, onto_masked = torch.cat(parts, 1)
    return diagonal, onto_masked


def _map(tokens: Tensor, scale: Scale) -> Tensor:
    """softmax(X Xᵀ) [B, N, N]."""
    with torch.autocast(tokens.device.type, enabled=False):
        x, factor = scaled(tokens.to(compute_dtype(tokens)), scale)
        return ((x * factor) @ x.mT).softmax(-1)
