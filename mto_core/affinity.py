"""The affinity map of one depth (Figure 2), and where the visible tokens' part of it goes."""

from __future__ import annotations

import torch
from torch import Tensor

from mto_core.checks import SCALES, Scale, check_mask, check_name, check_tokens, compute_dtype
from mto_core.entropy import scaled
from mto_core.recompute import chunks
from mto_core.split import MaskSplit


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
    check_name("scale", scale, SCALES)
    order = mask.sort(dim=1, descending=True, stable=True)[1]
    with torch.autocast(tokens.device.type, enabled=False):
        x, factor = scaled(tokens.to(compute_dtype(tokens)), scale)
        x = x.take_along_dim(order[:, :, None], 1)
        return ((x * factor) @ x.mT).softmax(-1)


@torch.no_grad()
def attention_mass(
    tokens: Tensor, mask: Tensor, split: MaskSplit, *, scale: Scale = "raw"
) -> tuple[Tensor, Tensor]:
    """Where the rows of the visible tokens in softmax(X Xᵀ) put their mass.

    Args:
        tokens: [B, P + N, D].
        mask: bool [B, N].
        split: `split_mask(mask, P)`.
        scale: "raw", "sqrt_dim" or "layernorm".

    Returns:
        The mass on the diagonal (a token looking at itself) and the mass on masked columns, each
        [B] in [0, 1]: means over the visible rows, 0 for an image without any.
    """
    x, factor = scaled(tokens, scale)
    visible, patches = split.visible, split.patches
    own = (visible.rows - patches.rows[:, :1])[..., None]  # [B, V, 1], each row's own column
    counts = torch.ones_like(visible.rows) if visible.valid is None else visible.valid  # [B, V]
    with torch.autocast(tokens.device.type, enabled=False):
        k, q = patches.take(x), visible.take(x) * factor  # [B, N, D], [B, V, D]
        mass = k.new_zeros(2, len(k))
        for images, rows in chunks(visible.rows.shape, k.shape[1], k.shape[2]):
            p = (q[images, rows] @ k[images].mT).softmax(-1)  # [b, r, N]
            itself = p.gather(-1, own[images, rows])  # [b, r, 1]
            masked = p @ mask[images, :, None].to(p)  # [b, r, 1]
            both = torch.cat((itself, masked), -1) * counts[images, rows, None]  # [b, r, 2]
            mass[:, images] += both.sum(1).mT
    diagonal, onto_masked = mass / split.num_visible.clamp_min(1)
    return diagonal, onto_masked
