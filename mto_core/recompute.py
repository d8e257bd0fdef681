"""Row entropy that saves no logits for the backward but makes them anew, chunk by chunk.

Saved are the tokens, which the model holds anyway, and three numbers per row: the largest logit m,
Z = Σ exp(s - m) and the entropy H. From the logits s, dH/ds_j = -p_j (log p_j + H).

Forward and backward are two custom operators in plain torch, for any device. To `torch.compile`
they are single nodes, so the chunk loop stays and nothing of size B x N x N is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mto_core.checks import compute_dtype
from mto_core.split import TokenRows, take

# Numbers of a chunk, gathered tokens and logits together: 64 MiB in float32. ViT-B of SimMIM has
# 120 queries and 76 keys of 768 numbers, so an image takes 196 · 768 + 120 · 76 = 160 k numbers and
# a chunk holds 104 images. All of B = 128 would take 82 MB; the tokens of one depth are 77 MB.
CHUNK_ELEMENTS = 1 << 24
MIN_ROWS = 64  # a chunk of one image has at least so many queries

# exp(-64) = 1.6e-28: a lower logit moves H by under 1e-22 nat, but exp of it may be denormal, which
# is ten times as slow on a CPU.
MIN_SHIFTED_LOGIT = -64.0


def recompute(tokens: Tensor, queries: TokenRows, keys: TokenRows, scale: float) -> Tensor:
    """Entropy [B, Q] of each row of softmax(scale · Q Kᵀ), 0 on padding; tokens are [B, T, D]."""
    entropy: Tensor = forward(tokens, queries.rows, keys.rows, queries.valid, keys.valid, scale)[0]
    if not torch.compiler.is_compiling():
        _postpone_backward(entropy, tokens)
    return entropy


def centered(keys: Tensor, valid: Tensor | None) -> Tensor:
    """Keys [B, K, D] without the mean of the valid ones; no gradient is due to that mean.

    Without it all logits of a row change alike, and no probability. A large logit is mostly what
    tokens have in common; float32 then has no digits left for differences. At logits of 3e4 the
    error of near ties falls from 3e-3 nat to 1e-6.
    """
    fixed = keys.detach()
    if valid is None:
        return keys - fixed.mean(1, keepdim=True)
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)
    return keys - share.to(keys.dtype)[:, None] @ fixed


def shifted_logits(
    q: Tensor, k: Tensor, valid: Tensor | None, top: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For s = q kᵀ: s - m and exp(s - m) [b, r, K], and the largest valid logit m [b, r, 1]."""
    logits = q @ k.mT  # [b, r, K]
    if valid is not None:  # finite: -inf times a probability of 0 is NaN
        logits = logits.masked_fill(~valid[:, None], torch.finfo(q.dtype).min)
    if top is None:
        top = logits.detach().amax(-1, keepdim=True)
    shifted = (logits - top).clamp_min(MIN_SHIFTED_LOGIT)
    weights = shifted.exp()
    return shifted, weights if valid is None else weights.masked_fill(~valid[:, None], 0), top


def row_statistics(q: Tensor, k: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """H = log Z - Σ z d / Z, m and Z [b, r] of softmax(q kᵀ), with d = s - m and z = exp(d).

    All terms of the sum are non-negative, so nothing cancels. A row without keys has H = 0.
    """
    shifted, weights, top = shifted_logits(q, centered(k, valid), valid)
    total = weights.sum(-1)
    total = total + (total == 0)  # no keys: log 1 = 0
    return total.log() - (weights * shifted).sum(-1) / total, top[..., 0], total


def chunks(shape: Sequence[int], keys: int, dim: int) -> Iterator[tuple[slice, slice]]:
    """Slices of queries [B, Q]: as many images as fit, or the queries of one image in parts."""
    batch, queries = shape
    if not queries or not keys:
        return
    images = max(1, CHUNK_ELEMENTS // ((queries + keys) * dim + queries * keys))
    rows = max(MIN_ROWS, (CHUNK_ELEMENTS - keys * dim) // (keys + dim))
    for image in range(0, batch, images):
        for row in range(0, queries, rows):
            yield slice(image, image + images), slice(row, row + rows)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TensorFloat-32, which put logits of 1e4 off by nats."""
    matmul: Any = torch.backends.cuda.matmul
    new = hasattr(matmul, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(matmul, name) if device.type == "cuda" else None
    with torch.autocast(device.type, enabled=False):
        try:
            if device.type == "cuda":
                setattr(matmul, name, full)
            yield
        finally:
            if device.type == "cuda":
                setattr(matmul, name, before)


def _forward(
    tokens: Tensor,
    query_rows: Tensor,
    key_rows: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """H [B, Q]; m and Z [2, B, Q]."""
    entropy, stats = _outputs(tokens, query_rows)
    with _full_precision(tokens.device):
        for images, rows in chunks(query_rows.shape, key_rows.shape[1], tokens.shape[2]):
            valid = None if key_valid is None else key_valid[images]  # [b, K]
            q = take(tokens, query_rows[images, rows]) * scale  # [b, r, D]
            k = take(tokens, key_rows[images])  # [b, K, D]
            entropy[images, rows], *top_and_total = row_statistics(q, k, valid)  # [b, r] each
            stats[:, images, rows] = torch.stack(top_and_total)
    return entropy if query_valid is None else entropy.masked_fill(~query_valid, 0), stats


def _backward(
    grad: Tensor,
    entropy: Tensor,
    stats: Tensor,
    tokens: Tensor,
    query_rows: Tensor,
    key_rows: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    scale: float,
) -> Tensor:
    """Gradient [B, T, D] by the tokens."""
    if query_valid is not None:
        grad = grad.masked_fill(~query_valid, 0)
    top, total = stats.unsqueeze(-1)  # [B, Q, 1] each
    # dH/ds = -p (log p + H) = -exp(s - m) / Z · ((s - m) - (log Z - H))
    factor = -grad.unsqueeze(-1) / total  # [B, Q, 1]
    shift = total.log() - entropy.unsqueeze(-1)  # [B, Q, 1]
    by_tokens = torch.zeros_like(tokens.flatten(0, 1), dtype=entropy.dtype)  # [B·T, D]
    with _full_precision(tokens.device):
        for images, rows in chunks(query_rows.shape, key_rows.shape[1], tokens.shape[2]):
            valid = None if key_valid is None else key_valid[images]  # [b, K]
            q = take(tokens, query_rows[images, rows]) * scale  # [b, r, D]
            k = centered(take(tokens, key_rows[images]), valid)  # [b, K, D]
            shifted, weights, _ = shifted_logits(q, k, valid, top[images, rows])  # [b, r, K] each
            by_logits = weights * (shifted - shift[images, rows]) * factor[images, rows]
            by_q, by_k = (by_logits @ k) * scale, by_logits.mT @ q  # [b, r, D], [b, K, D]
            by_tokens.index_add_(0, query_rows[images, rows].flatten(), by_q.flatten(0, 1))
            by_tokens.index_add_(0, key_rows[images].flatten(), by_k.flatten(0, 1))
    return by_tokens.view(tokens.shape).to(tokens.dtype)


def _outputs(tokens: Tensor, query_rows: Tensor) -> tuple[Tensor, Tensor]:
    entropy = tokens.new_zeros(query_rows.shape, dtype=compute_dtype(tokens))
    return entropy, entropy.new_zeros(2, *query_rows.shape)


ROWS = "Tensor query_rows, Tensor key_rows, Tensor? query_valid, Tensor? key_valid, float scale"
forward = torch.library.custom_op(
    "mto_core::row_entropy",
    _forward,
    mutates_args=(),
    schema=f"(Tensor tokens, {ROWS}) -> (Tensor, Tensor)",
)
backward = torch.library.custom_op(
    "mto_core::row_entropy_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor entropy, Tensor stats, Tensor tokens, {ROWS}) -> Tensor",
)
forward.register_fake(lambda tokens, query_rows, *_: _outputs(tokens, query_rows))
backward.register_fake(
    lambda grad, entropy, stats, tokens, *_: torch.empty_like(
        tokens, memory_format=torch.contiguous_format
    )
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.scale = inputs[-1]
    ctx.save_for_backward(*output, *inputs[:-1])


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    by_tokens = None if grad is None else backward(grad, *ctx.saved_tensors, ctx.scale)
    return by_tokens, None, None, None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the 'recompute' backend of mto_core has no second derivative: pass backend='dense'"
    )


forward.register_autograd(_differentiate, setup_context=_save)
backward.register_autograd(_refuse)


def _postpone_backward(entropy: Tensor, tokens: Tensor) -> None:
    """Has the gradient by `tokens` made when the model's backward gets there, not before.

    Autograd runs the youngest node first. The terms are younger than the model, so the gradients of
    all depths would be made at once, each as large as the tokens, and wait in memory.
    """
    node, source = entropy.grad_fn, tokens.grad_fn
    if node is not None and source is not None and hasattr(node, "_set_sequence_nr"):
        node._set_sequence_nr(source._sequence_nr())
