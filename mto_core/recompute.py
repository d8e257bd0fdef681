"""Row entropy that saves the tokens the model holds anyway, and computes logits anew in backward.

Forward and backward are custom operators rather than an `autograd.Function` that `torch.compile`
would trace: to the compiler they are single nodes, so the loop over chunks and the float32 products
stay as written and nothing of size B x N x N is made. Inside is plain torch, for any device.

Per row, the largest logit m, Z = Σ exp(s - m) and the entropy H are saved. From the logits s made
anew, dH/ds_j = -p_j (log p_j + H); the rest is what any product Q Kᵀ does with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

# Gathered tokens and logits of a chunk: 2 MiB of float32 on the CPU, where larger ones leave the
# cache and are paged in anew each time; 64 MiB on any other device.
CHUNK_ELEMENTS = {"cpu": 1 << 22}
GPU_CHUNK_ELEMENTS = 1 << 24
MIN_ROWS = 64  # a chunk of one image has at least that many
LAYER_NORM_EPS = 1e-5
LOWEST = -64.0

Pair: TypeAlias = tuple[Tensor, Tensor]


class Rows(NamedTuple):
    """Which tokens are queries and which are keys.

    An index holds row numbers of `tokens.flatten(0, 1)`, int64 [B, R], no row twice, or is None for
    all but the prefix tokens. A validity is bool [B, R], False on padding, or None without padding.
    """

    query_index: Tensor | None = None
    key_index: Tensor | None = None
    query_valid: Tensor | None = None
    key_valid: Tensor | None = None
    scale: float = 1.0
    normalize: bool = False  # LayerNorm without affine first
    num_prefix_tokens: int = 0  # leading tokens that an index of None leaves out
    disjoint: bool = False  # no token is both query and key


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


def centred(keys: Tensor, valid: Tensor | None) -> Tensor:
    """Keys less their mean: it moves all logits of a row alike, and so changes no probability.

    What tokens have in common makes most of a large logit and nothing of its difference to others.
    Without it, float32 has digits left for that difference: where near ties decide the entropy, its
    error at logits of 3e4 fell from 3e-3 nat to 1e-6. For the same reason no gradient is due to it.
    """
    fixed = keys.detach()
    if valid is None:
        return keys - fixed.mean(1, keepdim=True)
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)
    return keys - torch.bmm(share.to(keys.dtype).unsqueeze(1), fixed)


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
    problem = _Problem(queries, keys, Rows(*rest))
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
    problem = _Problem(queries, keys, Rows(*rest))
    top, total = stats.unsqueeze(-1)
    # p (log p + H) is exp(s - m) (s - m - shift) / Z; 1 / Z and all that is per row go to `factor`
    shift = total.log() - entropy.unsqueeze(-1)
    factor = problem.only_valid(grad * -problem.rows.scale).unsqueeze(-1) / total
    grad_queries, grad_keys = problem.room_for_gradient(), _zeros_like(keys)
    for images, row_chunks in problem.chunks():
        k, through_k = problem.keys.take(images)
        k, grad_k = problem.centred(k, images), None
        for rows in row_chunks:
            q, through_q = problem.queries.take(images, rows)
            logits = problem.shift(problem.logits(q, k, images), top[images, rows])
            weights = logits.exp()
            weights.mul_(logits.sub_(shift[images, rows])).mul_(factor[images, rows])
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
    return _Problem(queries, keys, Rows(*rest)).outputs()


@_backward.register_fake
def _(
    grad: Tensor, entropy: Tensor, stats: Tensor, queries: Tensor, keys: Tensor | None, *rest: Any
) -> Pair:
    return _zeros_like(queries), _zeros_like(keys)


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


class _Side:
    """The queries, or the keys: rows taken out of a token tensor, gradients put back into one."""

    def __init__(self, tokens: Tensor, index: Tensor | None, rows: Rows) -> None:
        self.tokens, self.index, self.rows = tokens, index, rows
        self.once = False  # whether each row of a gradient is written once, over what was there
        if index is not None:  # once, since it copies tokens that are not contiguous
            self.flat = tokens.flatten(0, 1)
        self.count = tokens.shape[1] - rows.num_prefix_tokens if index is None else index.shape[1]
        self.dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32

    def take(
        self, images: slice, rows: slice = slice(None)
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The rows, [b, r, D], and what takes a gradient by them to one by the tokens."""
        if self.index is None:
            x = self.tokens[images, self.rows.num_prefix_tokens :][:, rows]
        else:
            index = self.index[images, rows]
            x = self.flat.index_select(0, index.flatten()).view(*index.shape, self.flat.shape[1])
        x = x.to(self.dtype)
        if not self.rows.normalize:
            return x, lambda grad: grad
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPS)
        return y, lambda grad: torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]

    def put(self, target: Tensor, grad: Tensor, images: slice, rows: slice = slice(None)) -> None:
        """Adds a gradient by the rows to that by all tokens."""
        if self.index is None:
            target[images, self.rows.num_prefix_tokens :][:, rows] += grad
        else:
            index = self.index[images, rows].flatten()
            flat, values = target.view(-1, target.shape[-1]), grad.flatten(0, 1).to(target)
            flat.index_copy_(0, index, values) if self.once else flat.index_add_(0, index, values)


class _Problem:
    """One call: its two sides, its chunks, and what both directions compute alike."""

    def __init__(self, queries: Tensor, keys: Tensor | None, rows: Rows) -> None:
        self.rows = rows
        self.queries = _Side(queries, rows.query_index, rows)
        self.keys = _Side(queries if keys is None else keys, rows.key_index, rows)

    def room_for_gradient(self) -> Tensor:
        """Zeros for the gradient by the queries; less where every token is written once anyway."""
        tokens, prefix = self.queries.tokens, self.rows.num_prefix_tokens
        sides = (self.queries, self.keys)
        full = sum(side.count for side in sides) == tokens.shape[1] - prefix
        padded = self.rows.query_valid is not None or self.rows.key_valid is not None
        if not (self.rows.disjoint and full and not padded and all(s.count for s in sides)):
            return _zeros_like(tokens)
        for side in sides:
            side.once = True
        grad = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        grad[:, :prefix] = 0
        return grad

    def outputs(self) -> Pair:
        """Room for H [B, R] and for m and Z [2, B, R]."""
        shape = (self.queries.tokens.shape[0], self.queries.count)
        new = self.queries.tokens.new_zeros
        return new(shape, dtype=self.queries.dtype), new((2, *shape), dtype=self.queries.dtype)

    def chunks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Images that fit the scratch together; where one does not fit, its rows in parts."""
        batch, rows, keys = self.queries.tokens.shape[0], self.queries.count, self.keys.count
        if not (rows and keys):
            return
        dim = self.queries.tokens.shape[2]
        room = CHUNK_ELEMENTS.get(self.queries.tokens.device.type, GPU_CHUNK_ELEMENTS)
        images = max(1, room // (rows * keys + (rows + keys) * dim))
        step = min(rows, max(MIN_ROWS, (room - keys * dim) // (keys + dim)))
        row_chunks = [slice(row, row + step) for row in range(0, rows, step)]
        for image in range(0, batch, images):
            yield slice(image, image + images), row_chunks

    def logits(self, q: Tensor, k: Tensor, images: slice) -> Tensor:
        """Scaled products [b, r, K], padding at the lowest finite value."""
        logits = torch.bmm(q, k.mT)
        if self.rows.scale != 1:
            logits.mul_(self.rows.scale)
        if self.rows.key_valid is not None:
            logits.masked_fill_(~self.rows.key_valid[images, None], torch.finfo(q.dtype).min)
        return logits

    def centred(self, k: Tensor, images: slice) -> Tensor:
        """Keys less the mean of the valid ones."""
        return centred(k, None if self.rows.key_valid is None else self.rows.key_valid[images])

    def shift(self, logits: Tensor, top: Tensor) -> Tensor:
        """s - m, in place; never so low that exp of it is 0 or denormal, which costs tenfold.

        A weight of exp(-64) instead of less moves H by under 1e-22 nat.
        """
        logits.sub_(top)
        return logits.clamp_min_(LOWEST) if self.rows.key_valid is None else logits

    def only_valid(self, values: Tensor) -> Tensor:
        """`values` [B, R], but 0 on padding and on images without keys."""
        if self.rows.query_valid is not None:
            values = values.masked_fill(~self.rows.query_valid, 0)
        if self.rows.key_valid is not None:
            values = values.masked_fill(~self.rows.key_valid.any(1, keepdim=True), 0)
        return values


def _zeros_like(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        return torch.empty(0)  # an operator cannot return None
    return torch.zeros_like(tokens, memory_format=torch.contiguous_format)
