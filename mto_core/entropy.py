"""Entropy of the rows of softmax(Q Kᵀ): the one computation behind heterogeneity and sparsity.

Two backends, one result:

- "dense" is plain autograd. It saves gathered tokens and probabilities, more than the tokens' own
  size per depth, and can be differentiated twice.
- "recompute" saves three numbers per row and makes the logits anew in the backward: four products
  instead of three. See `mto_core.recompute`.

"auto" is "dense" for less than 2^17 numbers of tokens on the CPU, where calls cost more than
products, and "recompute" elsewhere. `benchmarks/row_entropy.py` measures both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.checks import (
    Backend,
    Scale,
    check_mask,
    check_name,
    check_tokens,
    compute_dtype,
)
from mto_core.recompute import recompute, row_statistics
from mto_core.split import TokenRows, row_index, take

DENSE_MAX_NUMEL = 1 << 17


def row_entropy(
    queries: Tensor,
    keys: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Entropy, in nats, of each row of softmax(scale · Q Kᵀ) over the keys that `key_mask` admits.

    It is what equations 2 and 3 of "Emerging Property of Masked Token for Effective Pre-training"
    (arXiv 2404.08330) take of their affinities.

    Args:
        queries: [B, Q, D], floating.
        keys: [B, K, D], same dtype and device.
        query_mask: bool [B, Q]; rows where it is False give 0. None means all rows.
        key_mask: bool [B, K]; keys where it is False take no part. None means all keys.
        scale: factor on the logits.
        backend: "auto", "dense" or "recompute"; their costs stand at the head of this module.

    Returns:
        [B, Q], float64 for float64 tokens and float32 for any other. A row without keys gives 0.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype or name that does not fit.
        RuntimeError: "recompute" is differentiated twice.

    Example:
        >>> import torch
        >>> row_entropy(torch.zeros(1, 1, 8), torch.zeros(1, 4, 8))  # ln 4
        tensor([[1.3863]])
    """
    check_tokens(queries, "queries")
    check_tokens(keys, "keys")
    batch, num_queries, dim = queries.shape
    if (batch, dim) != (keys.shape[0], keys.shape[2]):
        raise ValueError(
            f"queries {list(queries.shape)} and keys {list(keys.shape)} must agree in B and D"
        )
    if queries.dtype != keys.dtype:
        raise ValueError(f"queries are {queries.dtype} and keys {keys.dtype}: they must be equal")
    if query_mask is not None:
        check_mask(query_mask, queries, "query_mask")
    if key_mask is not None:
        check_mask(key_mask, keys, "key_mask")
    same = queries is keys
    tokens = queries if same else torch.cat((queries, keys), 1)
    length, first_key = tokens.shape[1], 0 if same else num_queries
    query_rows = row_index(batch, length, 0, num_queries, tokens.device)
    key_rows = row_index(batch, length, first_key, length, tokens.device)
    return _solve(
        tokens, TokenRows(query_rows, query_mask), TokenRows(key_rows, key_mask), scale, backend
    )


def token_entropy(
    tokens: Tensor,
    queries: TokenRows,
    keys: TokenRows,
    *,
    scale: Scale = "raw",
    backend: Backend = "auto",
) -> Tensor:
    """Entropy [B, Q] of the affinity of some rows of tokens [B, T, D] to others."""
    tokens, factor = scaled(tokens, scale)
    return _solve(tokens, queries, keys, factor, backend)


def scaled(tokens: Tensor, scale: Scale) -> tuple[Tensor, float]:
    """Tokens and the factor on their products; "layernorm" makes a float32 copy of the tokens."""
    check_name("scale", scale)
    if scale == "layernorm":
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = F.layer_norm(tokens.to(compute_dtype(tokens)), tokens.shape[-1:])
    return tokens, 1 / math.sqrt(tokens.shape[-1]) if scale == "sqrt_dim" else 1.0


def resolve_backend(backend: Backend, tokens: Tensor) -> Backend:
    """The backend that "auto" means for these tokens."""
    check_name("backend", backend)
    if backend != "auto":
        return backend
    small = tokens.device.type == "cpu" and tokens.numel() < DENSE_MAX_NUMEL
    return "dense" if small else "recompute"


def dense(tokens: Tensor, queries: TokenRows, keys: TokenRows, scale: float) -> Tensor:
    """Entropy [B, Q] by plain autograd, in float32 (or float64) whatever autocast says."""
    with torch.autocast(tokens.device.type, enabled=False):
        q = take(tokens, queries.rows) * scale  # [B, Q, D]
        k = take(tokens, keys.rows)  # [B, K, D]
        if k.shape[1] == 0:
            return q[:, :, :0].sum(-1)
        entropy, _, _ = row_statistics(q, k, keys.valid)  # [B, Q]
    return entropy if queries.valid is None else entropy.masked_fill(~queries.valid, 0)


def _solve(
    tokens: Tensor, queries: TokenRows, keys: TokenRows, scale: float, backend: Backend
) -> Tensor:
    solve = dense if resolve_backend(backend, tokens) == "dense" else recompute
    return solve(tokens, queries, keys, scale)
