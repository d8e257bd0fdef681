"""Entropy of the rows of softmax(Q Kᵀ): the one computation behind heterogeneity and sparsity.

Two backends, one result:

- "dense" is plain autograd. It saves gathered tokens and probabilities, more than the tokens' own
  size per depth, and can be differentiated twice.
- "recompute" saves three numbers per row and makes the logits anew in the backward: four products
  instead of three. Nothing of size N x N outlives a chunk, but for the logits of those depths whose
  saving the module can afford (`mto_core.module.KEEP`). See `mto_core.recompute`.

"auto" is "recompute", but "dense" for less than 2^17 numbers of tokens on the CPU: there a step
costs more in calls than in products, dense makes fewer of them, and saves about a megabyte at most.
`benchmarks/row_entropy.py` measures both. A fused GPU kernel would be a third name in `choose`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.chunks import Rows, key_mean
from mto_core.recompute import recompute

BACKENDS = ("auto", "dense", "recompute")
SCALES = ("raw", "sqrt_dim", "layernorm")
SMALL = 1 << 17


class MaskIndex(NamedTuple):
    """Where the masked and the visible tokens are: made once per mask, used at every depth.

    An index holds row numbers of `tokens.flatten(0, 1)`, padded to the largest count in the batch;
    `*_valid` is False on the padding and None where there is none. An index of None means every
    patch token, in its own order.
    """

    masked: Tensor | None  # [B, max |M|] int64
    visible: Tensor | None  # [B, max |V|] int64
    masked_valid: Tensor | None  # [B, max |M|] bool
    visible_valid: Tensor | None  # [B, max |V|] bool
    num_masked: Tensor  # [B] int64
    num_visible: Tensor  # [B] int64
    num_prefix_tokens: int  # leading tokens (cls) that are no patches
    place: Tensor | None = None  # [B, P + N] int64, without padding: the way back; see `Rows`


def split_mask(mask: Tensor, num_prefix_tokens: int = 0) -> MaskIndex:
    """Splits a bool mask [B, N] into index tensors, at the price of one host sync on a GPU.

    While `torch.compile` traces, counts are unknown and a size that depends on data would break the
    graph: then every token is kept, in place, and only the `valid` masks tell the two sets apart.
    """
    num_masked = mask.sum(1)
    num_visible = mask.shape[1] - num_masked
    if torch.compiler.is_compiling():
        return MaskIndex(None, None, mask, ~mask, num_masked, num_visible, num_prefix_tokens)
    batch, size = mask.shape
    low, high = torch.stack(num_masked.aminmax()).tolist() if mask.numel() else (0, 0)
    masked_first = mask.sort(dim=1, descending=True, stable=True)
    length = num_prefix_tokens + size
    first = torch.arange(batch, device=mask.device) * length + num_prefix_tokens
    rows = masked_first.indices + first[:, None]
    ragged = low != high
    place = None
    if not ragged and 0 < high < size:
        place = torch.full((batch * length,), batch * size, device=mask.device)
        by_side = torch.cat((rows[:, :high].flatten(), rows[:, high:].flatten()))
        place[by_side] = torch.arange(batch * size, device=mask.device)
        place = place.view(batch, length)
    return MaskIndex(
        rows[:, :high].contiguous(),
        rows[:, low:].contiguous(),
        masked_first.values[:, :high] if ragged else None,
        ~masked_first.values[:, low:] if ragged else None,
        num_masked,
        num_visible,
        num_prefix_tokens,
        place,
    )


def row_entropy(
    queries: Tensor,
    keys: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Entropy, in nats, of each row of softmax(scale · Q Kᵀ) over the keys that `key_mask` admits.

    Args:
        queries: [B, Q, D], floating.
        keys: [B, K, D], same dtype and device.
        query_mask: bool [B, Q]; rows where it is False give 0. None means all rows.
        key_mask: bool [B, K]; keys where it is False take no part. None means all keys.
        scale: factor on the logits.
        backend: "auto", "dense" or "recompute"; what they cost stands at the head of this module.

    Returns:
        [B, Q], float64 for float64 tokens and float32 for any other. A row without keys gives 0.

    Raises:
        ValueError: a shape, dtype or name that does not fit.
        RuntimeError: "recompute" is differentiated twice.

    Example:
        >>> import torch
        >>> round(row_entropy(torch.zeros(1, 2, 8), torch.zeros(1, 4, 8))[0, 0].item(), 4)  # ln 4
        1.3863
    """
    check_tokens(queries, "queries")
    check_tokens(keys, "keys")
    if queries.shape[::2] != keys.shape[::2]:
        raise ValueError(
            "queries [B, Q, D] and keys [B, K, D] must agree in B and D, "
            f"got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if queries.dtype != keys.dtype:
        raise ValueError(f"queries are {queries.dtype}, keys are {keys.dtype}: they must be equal")
    if query_mask is not None:
        check_mask(query_mask, queries, "query_mask")
    if key_mask is not None:
        check_mask(key_mask, keys, "key_mask")
    check_name("backend", backend, BACKENDS)
    if choose(backend, queries) == "recompute":
        rows = Rows(None, None, query_mask, key_mask, scale=scale)
        return recompute(queries, None if keys is queries else keys, rows)
    return dense(queries, keys, query_mask, key_mask, scale)


def token_entropy(
    tokens: Tensor,
    index: MaskIndex,
    *,
    rows: str,
    scale: str = "raw",
    backend: str = "auto",
    keep: bool = False,
) -> Tensor:
    """Row entropy within one token tensor: masked rows over visible keys, or visible over all.

    With `keep`, "recompute" saves the logits.

    Returns:
        [B, R]: one entropy per row of `index.masked` (or `index.visible`), 0 on padding.
    """
    if rows == "masked":
        sides = index.masked, index.visible, index.masked_valid, index.visible_valid
        place = index.place
    else:
        sides = index.visible, None, index.visible_valid, None
        place = None
    number, normalize = factor(scale, tokens), scale == "layernorm"
    if choose(backend, tokens) == "recompute":
        prefix = index.num_prefix_tokens
        return recompute(tokens, None, Rows(*sides, place, number, normalize, prefix), keep=keep)
    queries, keys = (_take(tokens, i, index.num_prefix_tokens, normalize) for i in sides[:2])
    return dense(queries, keys, *sides[2:], number)


def choose(backend: str, tokens: Tensor) -> str:
    """What "auto" means for these tokens."""
    if backend != "auto":
        return backend
    return "dense" if tokens.device.type == "cpu" and tokens.numel() < SMALL else "recompute"


def dense(
    queries: Tensor,
    keys: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    scale: float,
) -> Tensor:
    """The plain autograd form, in float32 (or float64) whatever autocast says.

    H = log Z - sum(z d) / Z with d = s - max s and z = exp(d): all terms are non-negative. Masked
    logits get finite values, since -inf times a probability of 0 is NaN in the backward.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = compute_dtype(queries)
        queries, keys = queries.to(dtype), keys.to(dtype)
        if keys.shape[1] == 0:
            return queries[:, :, :0].sum(-1)
        keys = keys - key_mean(keys.detach(), key_valid)
        logits = (queries * scale) @ keys.mT
    if key_valid is None:
        shifted = logits - logits.detach().amax(-1, keepdim=True)
        weights = shifted.exp()
    else:
        out = ~key_valid[:, None, :]
        top = logits.detach().masked_fill(out, torch.finfo(dtype).min).amax(-1, keepdim=True)
        shifted = (logits - top).masked_fill(out, 0)
        weights = shifted.exp().masked_fill(out, 0)
    total = weights.sum(-1)
    total = total + (total == 0)  # no keys: log 1 = 0. (clamp_min stops gradients at Z = 1.)
    entropy = total.log() - (weights * shifted).sum(-1) / total
    return entropy if query_valid is None else entropy.masked_fill(~query_valid, 0)


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """float64 stays; all else is computed in float32."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def factor(scale: str, tokens: Tensor) -> float:
    """The factor on the logits for a named scale."""
    return 1 / math.sqrt(tokens.shape[-1]) if scale == "sqrt_dim" else 1.0


def check_tokens(tokens: Tensor, name: str = "tokens") -> None:
    """Raises ValueError unless `tokens` is floating [B, N, D]."""
    if tokens.ndim != 3:
        raise ValueError(f"{name} must be [B, N, D], got shape {tuple(tokens.shape)}")
    if not tokens.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tokens.dtype}")


def check_mask(mask: Tensor, tokens: Tensor, name: str = "mask") -> None:
    """Raises ValueError unless `mask` is bool and fits `tokens`."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {mask.dtype}: pass {name}.bool()")
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name} must be {list(tokens.shape[:2])} to fit tokens {list(tokens.shape)} "
            f"(strip prefix tokens first), got {list(mask.shape)}"
        )


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless `name` is one of `known`."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")


def _take(tokens: Tensor, index: Tensor | None, num_prefix_tokens: int, normalize: bool) -> Tensor:
    if index is None:
        x = tokens[:, num_prefix_tokens:]
    else:  # index_select, not gather: on the CPU it is some 30 times as fast, both ways
        x = tokens.flatten(0, 1).index_select(0, index.flatten())
        x = x.view(*index.shape, x.shape[1])
    x = x.to(compute_dtype(tokens))
    return F.layer_norm(x, x.shape[-1:]) if normalize else x
