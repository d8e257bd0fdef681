"""What is measured at one depth, image by image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core import heterogeneity
from mto_core.checks import Scale
from mto_core.metrics import attention_mass

MEASURES = (
    *("heterogeneity", "similarity", "masked_norm", "visible_norm", "diagonal_mass", "masked_mass"),
)
_IMAGES = 8  # at once


@torch.no_grad()
def measure(tokens: Tensor, mask: Tensor, scale: Scale = "raw") -> dict[str, Tensor]:
    """Measure one depth in float64.

    Args:
        tokens: [B, N, D] patch tokens, any floating dtype.
        mask: bool [B, N], True = masked.
        scale: of the logits, as `mto_core.heterogeneity` has it. Norms and cosines know none.

    Returns:
        Each of `MEASURES`, float64 [B] on the CPU; NaN for an image without masked tokens or with
        fewer than two visible ones. "heterogeneity": eq. 2 of arXiv 2404.08330, in nats.
        "similarity": mean cosine over all pairs of a masked and a visible token. "masked_norm",
        "visible_norm": mean norm. "diagonal_mass", "masked_mass": what visible rows of
        softmax(X Xᵀ) give to themselves, and to masked tokens.
    """
    parts = [
        _measure(x.double(), m, scale)
        for x, m in zip(tokens.split(_IMAGES), mask.split(_IMAGES), strict=True)
    ]
    return dict(zip(MEASURES, torch.cat(parts, 1).cpu(), strict=True))


def _measure(x: Tensor, mask: Tensor, scale: Scale) -> Tensor:
    """All measures [6, b] of tokens [b, N, D]."""
    masked, visible = mask.double(), (~mask).double()

    def mean(values: Tensor, chosen: Tensor) -> Tensor:
        return (values * chosen).sum(1) / chosen.sum(1).clamp_min(1)

    unit, norm = F.normalize(x, dim=2), x.norm(dim=2)
    # The mean of all pairs' products is the product of both means.
    centres = [mean(unit, chosen[:, :, None]) for chosen in (masked, visible)]
    found = torch.stack(
        [
            heterogeneity(x, mask, scale=scale),
            (centres[0] * centres[1]).sum(1),
            mean(norm, masked),
            mean(norm, visible),
            *attention_mass(x, mask, scale=scale),
        ]
    )
    defined = mask.any(1) & ((~mask).sum(1) > 1)
    return found.where(defined, torch.nan)
