"""The terms of Masked Token Optimization, each per image.

Source: "Emerging Property of Masked Token for Effective Pre-training" (ECCV 2024), arXiv
2404.08330. Where a `MaskSplit` stands for the mask, tokens are [B, P + N, D], its prefix tokens
included: to slice these off first would cost a zero-padded copy per depth in the backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.checks import Backend, Direction, Reduction, Scale, check_name
from mto_core.entropy import token_entropy
from mto_core.inputs import MaskSplit, as_split


def heterogeneity(
    tokens: Tensor, mask: Tensor | MaskSplit, *, scale: Scale = "raw", backend: Backend = "auto"
) -> Tensor:
    """Heterogeneity H of masked towards visible tokens (eq 2 of arXiv 2404.08330).

    The mean, over masked tokens, of the entropy of softmax(X_M X_Vᵀ): how evenly a masked token
    looks at the visible ones. At most ln |V|.

    Args:
        tokens: [B, N, D] patch tokens of one depth, without cls token, any floating dtype.
        mask: bool [B, N], True = masked; any count per image.
        scale: of the logits: "raw" dot products, "sqrt_dim" (divided by sqrt(D)), or "layernorm"
            (dot products after a LayerNorm without affine: a token's norm plays no part).
        backend: "auto", "dense", "recompute" or "fused"; see `row_entropy`.

    Returns:
        [B] in nats; 0 for an image without masked tokens or with fewer than two visible ones.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example:
        >>> mask = torch.tensor([[True, True, False, False]])
        >>> heterogeneity(torch.zeros(1, 4, 8), mask)  # ln 2
        tensor([0.6931])
    """
    split = as_split(tokens, mask)
    rows = token_entropy(tokens, split.masked, split.visible, scale=scale, backend=backend)
    return rows.sum(1) / split.num_masked.clamp_min(1)  # [B, max |M|] to [B]


def sparsity_loss(
    tokens: Tensor,
    mask: Tensor | MaskSplit,
    *,
    reduction: Reduction = "mean",
    scale: Scale = "raw",
    backend: Backend = "auto",
) -> Tensor:
    """Sparsity loss L_spa (eq 3 of arXiv 2404.08330): entropy of visible tokens towards all.

    Args:
        tokens: [B, N, D] patch tokens at depth 0, any floating dtype.
        mask: bool [B, N], True = masked.
        reduction: over visible rows; "mean" (at most ln N), or "sum" as the paper prints it,
            which is |V| times as large.
        scale: as in `heterogeneity`.
        backend: as in `heterogeneity`.

    Returns:
        [B] in nats; 0 for an image without visible tokens.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example:
        >>> mask = torch.tensor([[True, True, False, False]])
        >>> sparsity_loss(torch.zeros(1, 4, 8), mask)  # ln 4
        tensor([1.3863])
    """
    check_name("reduction", reduction)
    split = as_split(tokens, mask)
    rows = token_entropy(tokens, split.visible, split.patches, scale=scale, backend=backend)
    total = rows.sum(1)  # [B, max |V|] to [B]
    return total if reduction == "sum" else total / split.num_visible.clamp_min(1)


def singularity_loss(h0: Tensor, *, eps: float = 1e-2, valid: Tensor | None = None) -> Tensor:
    """Singularity loss L_e = 1 / (H⁰ + eps) (eq 6 of arXiv 2404.08330).

    Near a one-hot row the gradient of H⁰ by the logits is about H⁰ itself, so that of L_e is at
    most 1 / (4 eps), where H⁰ = eps. The default keeps L_e under 100 and that gradient under 25,
    and moves L_e by less than 1 % where H⁰ is above 1.

    Args:
        h0: [B] heterogeneity at depth 0, in nats.
        eps: positive, in nats.
        valid: bool [B]; images where it is False give 0. Pass `(|M| > 0) & (|V| > 1)`: elsewhere
            H⁰ is 0 whatever the tokens are.

    Returns:
        [B].

    Raises:
        ValueError: `h0` is not [B], or `eps` is not positive.

    Example:
        >>> singularity_loss(torch.tensor([2.0, 0.0]), eps=0.5, valid=torch.tensor([True, False]))
        tensor([0.4000, 0.0000])
    """
    if h0.ndim != 1:
        raise ValueError(f"h0 must be [B], got shape {tuple(h0.shape)}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    loss = 1 / (h0 + eps)
    return loss if valid is None else torch.where(valid, loss, 0)


def ranking_loss(h: Tensor, *, direction: Direction = "decreasing") -> Tensor:
    """Ranking loss L_r = Σ_l log(1 + exp(H^l - H^{l-1})) (eq 7 of arXiv 2404.08330).

    Heterogeneity should fall with depth.

    Args:
        h: [L+1, B] heterogeneity by depth, in nats, L >= 1.
        direction: "decreasing", as the paper's text asks; or "as_printed", the opposite sign of
            its formula, which makes H rise: it can ruin a model, and is for replication.

    Returns:
        [B]; L ln 2 where H is the same at all depths.

    Raises:
        ValueError: `h` is not [L+1, B] with L >= 1, or the direction is unknown.

    Example:
        >>> ranking_loss(torch.tensor([[3.0], [1.0]])), ranking_loss(torch.tensor([[1.0], [3.0]]))
        (tensor([0.1269]), tensor([2.1269]))
    """
    check_name("direction", direction)
    if h.ndim != 2 or h.shape[0] < 2:
        raise ValueError(f"h must be [L+1, B] with at least two depths, got {tuple(h.shape)}")
    rise = h[1:] - h[:-1]
    return F.softplus(rise if direction == "decreasing" else -rise).sum(0)
