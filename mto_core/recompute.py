"""Row entropy that saves the tokens the model holds anyway, and computes logits anew in backward.

Forward and backward are custom operators rather than an `autograd.Function` that `torch.compile`
would trace: to the compiler they are single nodes, so the loop over chunks and the float32 products
stay as written and nothing of size B x N x N is made. Inside is plain torch, for any device.

Per row, the largest logit m, Z = Σ exp(s - m) and the entropy H are saved. From the logits s made
anew, dH/ds_j = -p_j (log p_j + H); the rest is what any product Q Kᵀ does with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mto_core.chunks import Problem, Rows, zeros_like

Pair: TypeAlias = tuple[Tensor, Tensor]

SCHEMA = (
    "Tensor? query_index, Tensor? key_index, Tensor? query_valid, Tensor? key_valid, "
    "float scale, bool normalize, int num_prefix_tokens, bool disjoint"
)


def recompute(queries: Tensor, keys: Tensor | None, rows: Rows) -> Tensor:
    """Entropy [B, R] of each row; `keys` None means that the keys are among `queries` too."""
    entropy: Tensor = _forward(queries, keys, *rows)[0]
    if not torch.compiler.is_compiling():
        _postpone_backward(entropy, queries)
    return entropy


def _postpone_backward(entropy: Tensor, tokens: Tensor) -> None:
    """Has the gradient by `tokens` computed when the model's backward gets there, not before.

    Autograd runs the youngest node first. The terms of all depths are younger than the model, so
    all their gradients, each as large as the tokens, would be made at once and wait for the model's
    backward to take them. With the age of the tokens' own node they are made one at a time.
    """
    node, source = entropy.grad_fn, tokens.grad_fn
    if node is not None and source is not None and hasattr(node, "_set_sequence_nr"):
        node._set_sequence_nr(source._sequence_nr())


def _full_precision(op: Callable[..., Pair]) -> Callable[..., Pair]:
    """Runs an operator without autocast and TensorFloat-32, which put logits of 1e4 off by nats."""

    @wraps(op)
    def run(first: Tensor, *rest: Any) -> Pair:
        with torch.autocast(first.device.type, enabled=False):
            if first.device.type != "cuda":
                return op(first, *rest)
            matmul: Any = torch.backends.cuda.matmul
            new = torch.__version__ >= "2.9"
            name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
            before = getattr(matmul, name)
            setattr(matmul, name, full)
            try:
                return op(first, *rest)
            finally:
                setattr(matmul, name, before)

    return run


@torch.library.custom_op(
    "mto_core::row_entropy",
    mutates_args=(),
    schema=f"(Tensor queries, Tensor? keys, {SCHEMA}) -> (Tensor, Tensor)",
)
@_full_precision
def _forward(queries: Tensor, keys: Tensor | None, *rest: Any) -> Pair:
    problem = Problem(queries, keys, Rows(*rest))
    entropy, stats = problem.outputs()
    for images, row_chunks in problem.chunks():
        k = problem.centred(problem.keys.take(images)[0], images)
        for rows in row_chunks:
            logits = problem.logits(problem.queries.take(images, rows)[0], k, images)
            top = logits.amax(-1)
            weights = problem.shift(logits, top.unsqueeze(-1)).exp()
            total = weights.sum(-1)
            spread = logits.mul_(weights).sum(-1).div_(total)
            entropy[images, rows] = total.log().sub_(spread)
            stats[:, images, rows] = torch.stack((top, total))
    return problem.only_valid(entropy), stats


@torch.library.custom_op(
    "mto_core::row_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor entropy, Tensor stats, Tensor queries, Tensor? keys, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
)
@_full_precision
def _backward(
    grad: Tensor, entropy: Tensor, stats: Tensor, queries: Tensor, keys: Tensor | None, *rest: Any
) -> Pair:
    problem = Problem(queries, keys, Rows(*rest))
    top, total = stats.unsqueeze(-1)
    # p (log p + H) is exp(s - m) (s - m - shift) / Z; 1 / Z and all that is per row go to `factor`
    shift = total.log() - entropy.unsqueeze(-1)
    factor = problem.only_valid(grad * -problem.rows.scale).unsqueeze(-1) / total
    grad_queries, grad_keys = problem.room_for_gradient(), zeros_like(keys)
    for images, row_chunks in problem.chunks():
        k, through_k = problem.keys.take(images)
        k, grad_k = problem.centred(k, images), None
        for rows in row_chunks:
            q, through_q = problem.queries.take(images, rows)
            logits = problem.shift(problem.logits(q, k, images), top[images, rows])
            weights = logits.exp()
            weights.mul_(logits.sub_(shift[images, rows])).mul_(factor[images, rows])
            if problem.whole:
                problem.fill(grad_queries, images, weights, (q, through_q), (k, through_k))
                continue
            problem.queries.put(grad_queries, through_q(torch.bmm(weights, k)), images, rows)
            if grad_k is None:
                grad_k = torch.bmm(weights.mT, q)
            else:
                grad_k.baddbmm_(weights.mT, q)
        if grad_k is not None:
            target = grad_queries if keys is None else grad_keys
            problem.keys.put(target, through_k(grad_k), images)
    return grad_queries, grad_keys


@_forward.register_fake
def _(queries: Tensor, keys: Tensor | None, *rest: Any) -> Pair:
    return Problem(queries, keys, Rows(*rest)).outputs()


@_backward.register_fake
def _(
    grad: Tensor, entropy: Tensor, stats: Tensor, queries: Tensor, keys: Tensor | None, *rest: Any
) -> Pair:
    return zeros_like(queries), zeros_like(keys)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    queries, keys, *rest = inputs
    ctx.save_for_backward(*output, queries, keys, *rest[:4])
    ctx.rest = rest[4:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    entropy, stats, queries, keys, *rest = ctx.saved_tensors
    grads = _backward(grad, entropy, stats, queries, keys, *rest, *ctx.rest)
    return (grads[0], None if keys is None else grads[1], *[None] * len(Rows._fields))


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the 'recompute' backend of mto_core has no second derivative: pass backend='dense'"
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
