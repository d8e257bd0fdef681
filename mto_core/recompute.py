"""Row entropy that saves the tokens the model holds anyway, and computes logits anew in backward.

Per row, the largest logit m, Z = Σ exp(s - m) and the entropy H are saved. From the logits s made
anew, dH/ds_j = -p_j (log p_j + H); the rest is what any product Q Kᵀ does with its gradient.

`forward` and `backward` are plain torch, for any device. An `autograd.Function` calls them; or,
while `torch.compile` traces, two custom operators do. To the compiler these are single nodes, so
that the loop over chunks and the float32 products stay as written and nothing of size B x N x N is
made. In eager mode the way to an operator and back takes some 5 % of the time on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mto_core.chunks import Problem, Rows, zeros_like

Pair: TypeAlias = tuple[Tensor, Tensor]

SCHEMA = (
    "Tensor? query_index, Tensor? key_index, Tensor? query_valid, Tensor? key_valid, "
    "Tensor? place, float scale, bool normalize, int num_prefix_tokens"
)


NUM_INDICES = 5  # the leading fields of Rows, which are tensors


def recompute(queries: Tensor, keys: Tensor | None, rows: Rows, *, keep: bool = False) -> Tensor:
    """Entropy [B, R] of each row; `keys` None means that the keys are among `queries` too.

    With `keep` the logits, B x R x K numbers, are saved after all, which spares the backward one of
    its three products. Under `torch.compile` they are not.
    """
    entropy: Tensor
    if torch.compiler.is_compiling():
        entropy = forward_op(queries, keys, *rows)[0]
    else:
        entropy = RowEntropy.apply(queries, keys, rows, keep)
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


def _full_precision(solve: Callable[..., Pair]) -> Callable[..., Pair]:
    """Runs without autocast and TensorFloat-32, which put logits of 1e4 off by nats."""

    @wraps(solve)
    def run(first: Tensor, *rest: Any, **kept: Any) -> Pair:
        device = first.device.type
        if device == "cpu" and not torch.is_autocast_enabled(device):
            return solve(first, *rest, **kept)
        with torch.autocast(device, enabled=False):
            if device != "cuda":
                return solve(first, *rest, **kept)
            matmul: Any = torch.backends.cuda.matmul
            new = torch.__version__ >= "2.9"
            name, full = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
            before = getattr(matmul, name)
            setattr(matmul, name, full)
            try:
                return solve(first, *rest, **kept)
            finally:
                setattr(matmul, name, before)

    return run


@_full_precision
def forward(
    queries: Tensor, keys: Tensor | None, *rest: Any, keep: list[Tensor] | None = None
) -> Pair:
    """H [B, R], and m and Z [2, B, R]; `rest` are the fields of `Rows`.

    The logits of each chunk, less m, are appended to `keep`.
    """
    problem = Problem(queries, keys, Rows(*rest))
    entropy, stats = problem.outputs()
    for images, row_chunks in problem.chunks():
        for rows, (q, _), (k, _) in problem.take(images, row_chunks):
            logits = problem.logits(q, k, images)
            top = logits.amax(1)
            weights = problem.shift(logits, top.unsqueeze(1)).exp()
            total = weights.sum(1)
            if keep is not None:
                keep.append(logits)
                logits = logits * weights
            else:
                logits.mul_(weights)
            spread = logits.sum(1).div_(total)
            entropy[images, rows] = total.log().sub_(spread)
            stats[:, images, rows] = torch.stack((top, total))
    return problem.only_valid(entropy), stats


@_full_precision
def backward(
    grad: Tensor,
    entropy: Tensor,
    stats: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    *rest: Any,
    kept: Sequence[Tensor] = (),
) -> Pair:
    """Gradients by queries and keys, the latter empty where `keys` is None."""
    problem = Problem(queries, keys, Rows(*rest))
    top, total = stats.unsqueeze(2)
    # p (log p + H) is exp(s - m) (s - m - shift) / Z; 1 / Z and all that is per row go to `factor`
    shift = total.log() - entropy.unsqueeze(1)
    factor = problem.only_valid(grad * -problem.rows.scale).unsqueeze(1) / total
    grad_queries, grad_keys = problem.room_for_gradient(), zeros_like(keys)
    saved = iter(kept)
    for images, row_chunks in problem.chunks():
        grad_k = None
        for rows, queries_, keys_ in problem.take(images, row_chunks):
            (q, through_q), (k, through_k) = queries_, keys_
            logits = next(saved, None)
            if logits is None:
                logits = problem.shift(problem.logits(q, k, images), top[images, :, rows])
            weights = logits.exp()
            weights.mul_(logits - shift[images, :, rows]).mul_(factor[images, :, rows])
            if problem.whole:
                problem.fill(grad_queries, images, weights, queries_, keys_)
                continue
            problem.queries.put(grad_queries, through_q(torch.bmm(weights.mT, k)), images, rows)
            if grad_k is None:
                grad_k = torch.bmm(weights, q)
            else:
                grad_k.baddbmm_(weights, q)
        if grad_k is not None:
            target = grad_queries if keys is None else grad_keys
            problem.keys.put(target, through_k(grad_k), images)
    return grad_queries, grad_keys


class RowEntropy(torch.autograd.Function):
    """The eager way to `forward` and `backward`."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor | None, rows: Rows, keep: bool) -> Tensor:
        """H [B, R]."""
        kept: list[Tensor] = []
        entropy, stats = forward(queries, keys, *rows, keep=kept if keep else None)
        ctx.save_for_backward(entropy, stats, queries, keys, *rows[:NUM_INDICES], *kept)
        ctx.rest = rows[NUM_INDICES:]
        return entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by queries and keys."""
        entropy, stats, queries, keys, *saved = ctx.saved_tensors
        rows, kept = (*saved[:NUM_INDICES], *ctx.rest), saved[NUM_INDICES:]
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            # The operator refuses a second derivative, and is opaque to compiled autograd.
            grads = backward_op(grad, entropy, stats, queries, keys, *rows)
        else:
            grads = backward(grad, entropy, stats, queries, keys, *rows, kept=kept)
        return grads[0], None if keys is None else grads[1], None, None


forward_op = torch.library.custom_op(
    "mto_core::row_entropy",
    forward,
    mutates_args=(),
    schema=f"(Tensor queries, Tensor? keys, {SCHEMA}) -> (Tensor, Tensor)",
)
backward_op = torch.library.custom_op(
    "mto_core::row_entropy_backward",
    backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor entropy, Tensor stats, Tensor queries, Tensor? keys, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
)


@forward_op.register_fake
def _(queries: Tensor, keys: Tensor | None, *rest: Any) -> Pair:
    return Problem(queries, keys, Rows(*rest)).outputs()


@backward_op.register_fake
def _(
    grad: Tensor, entropy: Tensor, stats: Tensor, queries: Tensor, keys: Tensor | None, *rest: Any
) -> Pair:
    return zeros_like(queries), zeros_like(keys)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    queries, keys, *rest = inputs
    ctx.save_for_backward(*output, queries, keys, *rest[:NUM_INDICES])
    ctx.rest = rest[NUM_INDICES:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    keys = ctx.saved_tensors[3]
    grads = backward_op(grad, *ctx.saved_tensors, *ctx.rest)
    return (grads[0], None if keys is None else grads[1], *[None] * len(Rows._fields))


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the 'recompute' backend of mto_core has no second derivative: pass backend='dense'"
    )


forward_op.register_autograd(_differentiate, setup_context=_save)
backward_op.register_autograd(_refuse)
