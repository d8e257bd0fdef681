"""What a low loss does not tell: where the affinity goes, and how large tokens are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.entropy import MaskIndex, compute_dtype, factor

_CHUNK = 1 << 24  # logits at a time: 64 MiB in float32


@torch.no_grad()
def visible_mass(
    tokens: Tensor, mask: Tensor, index: MaskIndex, *, scale: str = "raw"
) -> tuple[Tensor, Tensor]:
    """Where the rows of the visible tokens in softmax(X Xᵀ) put their mass.

    Args:
        tokens: [B, P + N, D].
        mask: bool [B, N].
        index: `split_mask(mask, P)`.
        scale: "raw", "sqrt_dim" or "layernorm".

    Returns:
        The mass on the diagonal (a token looking at itself) and the mass on masked columns, each
        [B] in [0, 1]: means over the visible rows, 0 for an image without any.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        keys = tokens[:, index.num_prefix_tokens :].to(compute_dtype(tokens))
        if scale == "layernorm":
            keys = F.layer_norm(keys, keys.shape[-1:])
        batch, size = mask.shape
        width = size if index.visible is None else index.visible.shape[1]
        where = mask.sort(dim=1, stable=True).indices[:, :width]  # visible first
        seen = ~mask.gather(1, where)  # padding, in an image with fewer visible tokens, is masked
        image = torch.arange(batch, device=keys.device)[:, None]
        rows = keys[image, where] * factor(scale, keys)
        masked = mask.to(keys.dtype)[:, :, None]
        diagonal, onto_masked = keys.new_zeros(batch), keys.new_zeros(batch)
        step = max(1, _CHUNK // max(1, batch * size))
        for start in range(0, width, step):
            part = slice(start, start + step)
            mass = (rows[:, part] @ keys.mT).softmax(-1)
            itself = mass.gather(-1, where[:, part, None])[..., 0]
            there = (mass @ masked)[..., 0]
            diagonal += (itself * seen[:, part]).sum(1)
            onto_masked += (there * seen[:, part]).sum(1)
        count = index.num_visible.clamp_min(1)
        return diagonal / count, onto_masked / count


@torch.no_grad()
def token_norms(tokens_by_depth: Sequence[Tensor], num_prefix_tokens: int = 0) -> Tensor:
    """Mean Euclidean norm of the patch tokens at each depth: [L+1] for tokens [B, P + N, D]."""
    return torch.stack(
        [
            torch.linalg.vector_norm(
                t[:, num_prefix_tokens:], dim=-1, dtype=compute_dtype(t)
            ).mean()
            for t in tokens_by_depth
        ]
    )
