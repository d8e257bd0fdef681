"""Row entropy that saves no logits for the backward but makes them anew, chunk by chunk.

Saved are the tokens, which the model holds anyway, and three numbers per row: the largest logit m,
Z = Σ exp(s - m) and the entropy H. From the logits s, dH/ds_j = -p_j (log p_j + H).

Forward and backward are two custom operators in plain torch, for any device. To `torch.compile`
they are single nodes, so the chunk loop stays and nothing of size B x N x N is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

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

Result = TypeVar("Result")


def recompute(
    tokens: Tensor, queries: TokenRows, keys: TokenRows, scale: float, save_logits: bool = False
) -> Tensor:
    """Entropy [B, Q] of each row of softmax(scale · Q Kᵀ), 0 on padding.

    Args:
        tokens: [B, T, D].
        queries: Rows [B, Q] of the tokens.
        keys: Rows [B, K] of the tokens.
        scale: Factor on the logits.
        save_logits: Saves B x Q x K numbers, and spares the backward one of its three products.
    """
    rows = queries.rows, keys.rows, queries.valid, keys.valid
    entropy: Tensor = forward(tokens, *rows, scale, save_logits)[0]
    if not torch.compiler.is_compiling():
        _postpone_backward(entropy, tokens)
    return entropy


def key_mean(keys: Tensor, valid: Tensor | None) -> Tensor:
    """The mean [B, 1, D] of the valid keys [B, K, D].

    Without it in the keys all logits of a row change alike, and no probability. A large logit is
    mostly what tokens have in common; float32 then has no digits left for differences. At logits of
    3e4 the error of near ties falls from 3e-3 nat to 1e-6. No gradient is due to the mean.
    """
    if valid is None:
        return keys.mean(1, keepdim=True)
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)
    return share.to(keys.dtype)[:, None] @ keys


def shifted_logits(
    q: Tensor, k: Tensor, valid: Tensor | None, top: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s - m [b, r, K] for s = q kᵀ, and the largest valid logit m [b, r, 1] of each row."""
    logits = q @ k.mT  # [b, r, K]
    if valid is not None:  # finite: -inf times a probability of 0 is NaN
        logits = logits.masked_fill(~valid[:, None], torch.finfo(q.dtype).min)
    if top is None:
        top = logits.detach().amax(-1, keepdim=True)
    return (logits - top).clamp_min(MIN_SHIFTED_LOGIT), top


def exp_valid(shifted: Tensor, valid: Tensor | None) -> Tensor:
    """exp(s - m) [b, r, K], 0 for keys that are padding."""
    weights = shifted.exp()
    return weights if valid is None else weights.masked_fill(~valid[:, None], 0)


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


def _full_precision(solve: Callable[..., Result]) -> Callable[..., Result]:
    """Runs without autocast and TensorFloat-32, which put logits of 1e4 off by nats."""

    @wraps(solve)
    def run(first: Tensor, *rest: Any) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            if first.device.type != "cuda":
                return solve(first, *rest)
            matmul: Any = torch.backends.cuda.matmul
            new = hasattr(matmul, "fp32_precision")
            name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
            before = getattr(matmul, name)
            setattr(matmul, name, full)
            try:
                return solve(first, *rest)
            finally:
                setattr(matmul, name, before)

    return run


ROWS = "Tensor query_index, Tensor key_index, Tensor? query_valid, Tensor? key_valid, float scale"


@_full_precision
def _forward(
    tokens: Tensor,
    query_index: Tensor,
    key_index: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    scale: float,
    save_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """H [B, Q]; m and Z [2, B, Q]; s - m [B, Q, K], or nothing [0] unless `save_logits`."""
    entropy, stats, saved = _outputs(tokens, query_index, key_index, save_logits)
    flat = tokens.flatten(0, 1)  # [B·T, D]
    for images, rows in chunks(query_index.shape, key_index.shape[1], tokens.shape[2]):
        valid = None if key_valid is None else key_valid[images]  # [b, K]
        q = take(flat, query_index[images, rows]) * scale  # [b, r, D]
        k = take(flat, key_index[images])  # [b, K, D]
        shifted, top = shifted_logits(q, k - key_mean(k, valid), valid)  # [b, r, K], [b, r, 1]
        weights = exp_valid(shifted, valid)  # [b, r, K]
        total = weights.sum(-1)  # [b, r]
        total += total == 0  # no keys: log 1 = 0
        entropy[images, rows] = total.log() - (weights * shifted).sum(-1) / total
        stats[:, images, rows] = torch.stack((top[..., 0], total))
        if save_logits:
            saved[images, rows] = shifted
    return entropy if query_valid is None else entropy.masked_fill(~query_valid, 0), stats, saved


@_full_precision
def _backward(
    grad: Tensor,
    entropy: Tensor,
    stats: Tensor,
    saved: Tensor,
    tokens: Tensor,
    query_index: Tensor,
    key_index: Tensor,
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
    flat = tokens.flatten(0, 1)  # [B·T, D]
    by_tokens = torch.zeros_like(flat, dtype=entropy.dtype)  # [B·T, D]
    for images, rows in chunks(query_index.shape, key_index.shape[1], tokens.shape[2]):
        valid = None if key_valid is None else key_valid[images]  # [b, K]
        q = take(flat, query_index[images, rows]) * scale  # [b, r, D]
        k = take(flat, key_index[images])  # [b, K, D]
        k = k - key_mean(k, valid)
        if saved.numel():
            shifted = saved[images, rows]  # [b, r, K]
        else:
            shifted, _ = shifted_logits(q, k, valid, top[images, rows])
        by_logits = exp_valid(shifted, valid) * (shifted - shift[images, rows])  # [b, r, K]
        by_logits *= factor[images, rows]
        by_q, by_k = (by_logits @ k) * scale, by_logits.mT @ q  # [b, r, D], [b, K, D]
        by_tokens.index_add_(0, query_index[images, rows].flatten(), by_q.flatten(0, 1))
        by_tokens.index_add_(0, key_index[images].flatten(), by_k.flatten(0, 1))
    return by_tokens.view(tokens.shape).to(tokens.dtype)


def _outputs(
    tokens: Tensor, query_index: Tensor, key_index: Tensor, save_logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = query_index.shape
    entropy = tokens.new_zeros(shape, dtype=compute_dtype(tokens))
    logits = (*shape, key_index.shape[1]) if save_logits else (0,)
    return entropy, entropy.new_zeros(2, *shape), entropy.new_empty(logits)


forward = torch.library.custom_op(
    "mto_core::row_entropy",
    _forward,
    mutates_args=(),
    schema=f"(Tensor tokens, {ROWS}, bool save_logits) -> (Tensor, Tensor, Tensor)",
)
backward = torch.library.custom_op(
    "mto_core::row_entropy_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor entropy, Tensor stats, Tensor saved, Tensor tokens, "
    f"{ROWS}) -> Tensor",
)


@forward.register_fake
def _(tokens: Tensor, query_index: Tensor, key_index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _outputs(tokens, query_index, key_index, rest[-1])


@backward.register_fake
def _(
    grad: Tensor, entropy: Tensor, stats: Tensor, saved: Tensor, tokens: Tensor, *rows: Any
) -> Tensor:
    return torch.empty_like(tokens, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.scale = inputs[5]
    ctx.save_for_backward(*output, *inputs[:5])


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    by_tokens = None if grad is None else backward(grad, *ctx.saved_tensors, ctx.scale)
    return by_tokens, None, None, None, None, None, None


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
