"""Measurements to judge a model by: its affinity map, and RAUC between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from mto_core.checks import Scale, check_mask, check_tokens, compute_dtype
from mto_core.entropy import chunks, scaled

Curve: TypeAlias = Sequence[tuple[float, float]]


def affinity(tokens: Tensor, mask: Tensor, *, scale: Scale = "raw") -> Tensor:
    """softmax(X Xᵀ) with rows and columns ordered masked first, then visible.

    Figure 2 of arXiv 2404.08330. With `m = mask[b].sum()`, rows `[:m]` are masked tokens and
    `[m:]` visible ones, and so are columns. Within each set tokens keep their order.

    Args:
        tokens: [B, N, D] patch tokens of one depth, any floating dtype.
        mask: bool [B, N], True = masked.
        scale: "raw", "sqrt_dim" or "layernorm", as in `heterogeneity`.

    Returns:
        [B, N, N], rows sum to 1; float64 for float64 tokens and float32 for any other.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example:
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
    """Where the visible rows of softmax(X Xᵀ) put their mass; tokens [B, N, D], mask [B, N].

    Returns:
        The mass on the diagonal (a token looking at itself) and the mass on masked columns, each
        [B] in [0, 1]: means over the visible rows, 0 for an image without any.
    """
    parts = []
    for images in chunks(mask.shape[0], mask.shape[1] ** 2):
        p, masked = _map(tokens[images], scale), mask[images]  # [b, N, N], [b, N]
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


def rauc(baseline: Curve, target: Curve, start: float, stop: float) -> float:
    """Relative area under the curve (eq 8 of arXiv 2404.08330).

    How much more the target gained than the baseline: both areas lie above the baseline's score at
    `start`. 1 means no difference, 1.3 that the target's area is 30 % larger. Curves are linear
    between their points.

    Args:
        baseline: (epoch, score) pairs with rising epochs, at least two; it must cover the range.
        target: As `baseline`; its epochs may be others.
        start: First epoch of the range (E1).
        stop: Last epoch of the range (E2), after `start`.

    Returns:
        Area of the target over area of the baseline.

    Raises:
        ValueError: A curve is too short, unsorted, not finite or does not cover the range; or the
            baseline's area is 0, so that there is nothing to relate to.

    Example:
        >>> rauc([(0, 10), (100, 20)], [(0, 10), (50, 20), (100, 20)], start=0, stop=100)
        1.5
    """
    for name, curve in (("baseline", baseline), ("target", target)):
        epochs = [x for x, _ in curve]
        if not all(math.isfinite(number) for point in curve for number in point):
            raise ValueError(f"{name} has a point that is not finite")
        if len(curve) < 2 or any(x1 <= x0 for x0, x1 in pairwise(epochs)):
            raise ValueError(f"{name} needs at least two points, and epochs that rise: {epochs}")
        if not epochs[0] <= start < stop <= epochs[-1]:
            raise ValueError(
                f"{name} covers epochs {epochs[0]} to {epochs[-1]}; the range must lie within, "
                f"with start < stop, got start={start}, stop={stop}"
            )
    floor = _at(baseline, start)

    def area(curve: Curve) -> float:
        cuts = [start, *(x for x, _ in curve if start < x < stop), stop]
        points = [(x, _at(curve, x) - floor) for x in cuts]
        return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))

    own = area(baseline)
    if own == 0:
        raise ValueError(
            f"the baseline's area above its score {floor} at epoch {start} is 0: RAUC is undefined"
        )
    return area(target) / own


def _at(curve: Curve, epoch: float) -> float:
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(curve) if a[0] <= epoch <= b[0])
    return y1 if epoch == x1 else y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)
