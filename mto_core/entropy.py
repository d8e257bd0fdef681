"""Entropy of the rows of softmax(Q Kᵀ): the one computation behind heterogeneity and sparsity.

Queries and keys are tokens of one tensor [B, T, D]. Each set is an index, int64 [B, R]: row numbers
of `tokens.flatten(0, 1)`, and -1 as padding, where an image has fewer than R.

Three backends, one result:

- "dense" is plain autograd. It saves gathered tokens and probabilities, more than the tokens' own
  size per depth, and can be differentiated twice.
- "recompute" saves the tokens, which the model holds anyway, and the indices. The backward makes
  the logits anew, chunk by chunk: four products instead of three. Both are custom operators, single
  nodes to `torch.compile`, so the chunk loop stays and nothing of size B x N x N is made.
- "fused" does as "recompute" in Triton kernels: see `mto_core.fused`. For NVIDIA GPUs from compute
  capability 8.0 on, and any dtype but float64.

"auto" is "fused" where that runs; "dense" for less than 2^17 numbers of tokens on the CPU, where
calls cost more than products; and "recompute" elsewhere. `benchmarks/overhead.py` measures all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mto_core.checks import Backend, Scale, check_mask, check_name, check_tokens, compute_dtype

DENSE_MAX_NUMEL = 1 << 17
FUSED_MIN_CAPABILITY = 8  # TensorFloat-32
TRITON = find_spec("triton") is not None  # comes with torch for CUDA on Linux

# Numbers of a chunk, gathered tokens and logits together: 64 MiB in float32. An image of SimMIM's
# ViT-B has 120 queries and 76 keys of 768 numbers, 196 · 768 + 120 · 76, so a chunk holds 104.
CHUNK_ELEMENTS = 1 << 24

# exp(-64) = 1.6e-28: a lower logit moves H by under 1e-22 nat, but exp of it may be denormal, which
# is ten times as slow on a CPU.
MIN_SHIFTED_LOGIT = -64.0


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
        backend: "auto", "dense", "recompute" or "fused"; their costs stand at the head of this
            module.

    Returns:
        [B, Q], float64 for float64 tokens and float32 for any other. A row without keys gives 0.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        RuntimeError: "recompute" or "fused" is differentiated twice; "fused" cannot run here.

    Example:
        >>> row_entropy(torch.zeros(1, 1, 8), torch.zeros(1, 4, 8))  # ln 4
        tensor([[1.3863]])
    """
    check_tokens(queries, "queries")
    check_tokens(keys, "keys")
    if (*queries.shape[::2], queries.dtype) != (*keys.shape[::2], keys.dtype):
        raise ValueError(
            f"queries {list(queries.shape)} {queries.dtype} and keys {list(keys.shape)} "
            f"{keys.dtype} must agree in B, D and dtype"
        )
    tokens = torch.cat((queries, keys), 1)
    batch, length, _ = tokens.shape
    index = torch.arange(batch * length, device=tokens.device).view(batch, length)
    query_index, key_index = index[:, : queries.shape[1]], index[:, queries.shape[1] :]
    if query_mask is not None:
        check_mask(query_mask, queries, "query_mask")
        query_index = query_index.where(query_mask, -1)
    if key_mask is not None:
        check_mask(key_mask, keys, "key_mask")
        key_index = key_index.where(key_mask, -1)
    return token_entropy(tokens, query_index, key_index, scale=scale, backend=backend)


def token_entropy(
    tokens: Tensor, queries: Tensor, keys: Tensor, *, scale: Scale | float, backend: Backend
) -> Tensor:
    """Entropy [B, Q] of the affinity of some rows of tokens [B, T, D] to others; 0 on padding."""
    backend, factor = resolve_backend(backend, tokens), _factor(scale, tokens.shape[-1])
    if 0 in (*queries.shape, *keys.shape):
        return _take(tokens, queries).sum(-1) * 0
    entropy: Tensor
    if backend == "fused":
        from mto_core.fused import fused_entropy

        entropy = fused_entropy(tokens, queries, keys, factor, scale == "layernorm")
    else:
        tokens, factor = scaled(tokens, scale)
        if backend == "dense":
            return _dense(tokens, queries, keys, factor)
        entropy = _recompute(tokens, queries, keys, factor)
    if not torch.compiler.is_compiling():
        _postpone_backward(entropy, tokens)
    return entropy


def scaled(tokens: Tensor, scale: Scale | float) -> tuple[Tensor, float]:
    """Tokens and the factor on their products; "layernorm" makes a float32 copy of the tokens."""
    factor = _factor(scale, tokens.shape[-1])
    if scale == "layernorm":
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = F.layer_norm(tokens.to(compute_dtype(tokens)), tokens.shape[-1:])
    return tokens, factor


def _factor(scale: Scale | float, dim: int) -> float:
    if isinstance(scale, (int, float)):
        return float(scale)
    check_name("scale", scale)
    return 1 / math.sqrt(dim) if scale == "sqrt_dim" else 1.0


def resolve_backend(backend: Backend, tokens: Tensor) -> Backend:
    """The backend that "auto" means for these tokens.

    Raises:
        ValueError: Unknown backend.
        RuntimeError: "fused" cannot run on these tokens.
    """
    check_name("backend", backend)
    if backend == "auto":
        if _can_fuse(tokens):
            return "fused"
        small = tokens.device.type == "cpu" and tokens.numel() < DENSE_MAX_NUMEL
        return "dense" if small else "recompute"
    if backend == "fused" and not _can_fuse(tokens):
        raise RuntimeError(
            f"backend 'fused' does not run on {tokens.dtype} tokens on {tokens.device}: it needs "
            "Triton, an NVIDIA GPU from compute capability 8.0 on, and a dtype other than float64. "
            "Pass backend='auto'"
        )
    return backend


def _can_fuse(tokens: Tensor) -> bool:
    if not (TRITON and tokens.is_cuda and tokens.dtype != torch.float64) or torch.version.hip:
        return False
    return torch.cuda.get_device_properties(tokens.device).major >= FUSED_MIN_CAPABILITY


def chunks(batch: int, numbers: int) -> Iterator[slice]:
    """Slices of a batch whose images take so many numbers each."""
    images = max(1, CHUNK_ELEMENTS // max(1, numbers))
    return (slice(first, first + images) for first in range(0, batch, images))


def _dense(tokens: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """H = log Z - Σ p d: all terms of the sum are non-negative, so nothing cancels."""
    with torch.autocast(tokens.device.type, enabled=False):
        q = _take(tokens, queries) * scale  # [B, Q, D]
        k = _centered(_take(tokens, keys), keys >= 0)  # [B, K, D]
        p, d, total = _softmax(q, k, keys >= 0)  # [B, Q, K], [B, Q, K], [B, Q, 1]
        entropy = total[..., 0].log() - (p * d).sum(-1)  # [B, Q]
    return entropy.masked_fill(queries < 0, 0)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows [B, R, D] of tokens [B, T, D], in the dtype of the computation; row 0 as padding."""
    taken = tokens.flatten(0, 1).index_select(0, index.clamp_min(0).flatten())
    return taken.view(*index.shape, tokens.shape[-1]).to(compute_dtype(tokens))


def _centered(keys: Tensor, valid: Tensor) -> Tensor:
    """Keys [B, K, D] without the mean of the valid ones; no gradient is due to that mean.

    Without it all logits of a row change alike, and no probability. A large logit is mostly what
    tokens have in common; float32 then has no digits left for differences. At logits of 3e4 the
    error of near ties falls from 3e-3 nat to 1e-6.
    """
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)  # [B, K]
    return keys - share.to(keys.dtype)[:, None] @ keys.detach()


def _softmax(q: Tensor, k: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For logits s = q kᵀ and their row maximum m: p [b, Q, K], d = s - m and Z = Σ exp(d)."""
    logits = q @ k.mT  # [b, Q, K]
    invalid = ~valid[:, None]  # [b, 1, K]
    logits = logits.masked_fill(invalid, torch.finfo(q.dtype).min)  # -inf times p = 0 is NaN
    d = (logits - logits.detach().amax(-1, keepdim=True)).clamp_min(MIN_SHIFTED_LOGIT)
    z = d.exp().masked_fill(invalid, 0)  # [b, Q, K]
    total = z.sum(-1, keepdim=True)  # [b, Q, 1]
    total = total + (total == 0)  # no keys: log 1 = 0
    return z / total, d, total


@torch.library.custom_op("mto_core::row_entropy", mutates_args=())
def _recompute(tokens: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """`_dense` without a graph, in chunks."""
    entropy = _empty(tokens, queries)  # [B, Q]
    with _full_precision(tokens.device):
        for images in _image_chunks(tokens, queries, keys):
            entropy[images] = _dense(tokens, queries[images], keys[images], scale)
    return entropy


@torch.library.custom_op("mto_core::row_entropy_backward", mutates_args=())
def _backward(grad: Tensor, tokens: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Gradient [B, T, D] by the tokens: dH/ds = -p (log p + H) = -p (d - Σ p d)."""
    grad = grad.masked_fill(queries < 0, 0)  # [B, Q]
    by_tokens = torch.zeros_like(tokens.flatten(0, 1), dtype=grad.dtype)  # [B·T, D]
    with _full_precision(tokens.device):
        for images in _image_chunks(tokens, queries, keys):
            valid = keys[images] >= 0  # [b, K]
            q = _take(tokens, queries[images]) * scale  # [b, Q, D]
            k = _centered(_take(tokens, keys[images]), valid)  # [b, K, D]
            p, d, _ = _softmax(q, k, valid)  # [b, Q, K] each
            by_logits = p * ((p * d).sum(-1, keepdim=True) - d) * grad[images, :, None]
            by_q, by_k = (by_logits @ k) * scale, by_logits.mT @ q  # [b, Q, D], [b, K, D]
            for index, by_rows in ((queries[images], by_q), (keys[images], by_k)):
                by_tokens.index_add_(0, index.clamp_min(0).flatten(), by_rows.flatten(0, 1))
    return by_tokens.view(tokens.shape).to(tokens.dtype)


def _image_chunks(tokens: Tensor, queries: Tensor, keys: Tensor) -> Iterator[slice]:
    rows, columns = queries.shape[1], keys.shape[1]
    return chunks(tokens.shape[0], (rows + columns) * tokens.shape[2] + rows * columns)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TensorFloat-32, which put logits of 1e4 off by nats."""
    matmul: Any = torch.backends.cuda.matmul
    new = hasattr(matmul, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(matmul, name)
    try:
        setattr(matmul, name, full)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(matmul, name, before)


def _empty(tokens: Tensor, queries: Tensor, *_: object) -> Tensor:
    return tokens.new_empty(queries.shape, dtype=compute_dtype(tokens))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the 'recompute' backend of mto_core has no second derivative: pass backend='dense'"
    )


_recompute.register_fake(_empty)
_recompute.register_autograd(_differentiate, setup_context=_save)
_backward.register_fake(
    lambda grad, tokens, *_: torch.empty_like(tokens, memory_format=torch.contiguous_format)
)
_backward.register_autograd(_refuse)


def _postpone_backward(entropy: Tensor, tokens: Tensor) -> None:
    """Has the gradient by `tokens` made when the model's backward gets there, not before.

    Autograd runs the youngest node first. The terms are younger than the model, so the gradients of
    all depths would be made at once, each as large as the tokens, and wait in memory.
    """
    node, source = entropy.grad_fn, tokens.grad_fn
    if node is not None and source is not None and hasattr(node, "_set_sequence_nr"):
        node._set_sequence_nr(source._sequence_nr())
