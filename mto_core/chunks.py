"""Chunks of a row entropy: rows gathered out of tokens, and gradients put back in their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

# Gathered tokens and logits of a chunk: 16 MiB of float32 on the CPU, 64 MiB on any other device.
CHUNK_ELEMENTS = {"cpu": 1 << 22}
GPU_CHUNK_ELEMENTS = 1 << 24
MIN_ROWS = 64  # a chunk of one image has at least that many
LAYER_NORM_EPS = 1e-5
LOWEST = -64.0

_scratch = threading.local()


class Rows(NamedTuple):
    """Which tokens are queries and which are keys.

    An index holds row numbers of `tokens.flatten(0, 1)`, int64 [B, R], no row twice, or is None for
    all but the prefix tokens. A validity is bool [B, R], False on padding, or None without padding.
    Where every patch token is one query or one key of its image, `place` is the way back: for each
    token its number among all queries, then all keys, of the batch; B N for a prefix token.
    """

    query_index: Tensor | None = None
    key_index: Tensor | None = None
    query_valid: Tensor | None = None
    key_valid: Tensor | None = None
    place: Tensor | None = None  # int64 [B, P + N]
    scale: float = 1.0
    normalize: bool = False  # LayerNorm without affine first
    num_prefix_tokens: int = 0  # leading tokens that an index of None leaves out


class Taken(NamedTuple):
    """Rows taken out of tokens."""

    rows: Tensor  # [b, r, D]
    through: Callable[[Tensor], Tensor]  # from a gradient by them to one by the tokens


def key_mean(keys: Tensor, valid: Tensor | None) -> Tensor:
    """The mean [B, 1, D] of the valid keys, to be taken off all of them.

    That moves all logits of a row alike, and so changes no probability.

    What tokens have in common makes most of a large logit and nothing of its difference to others.
    Without it, float32 has digits left for that difference: where near ties decide the entropy, its
    error at logits of 3e4 fell from 3e-3 nat to 1e-6. For the same reason no gradient is due to it.
    """
    if valid is None:
        return keys.mean(1, keepdim=True)
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)
    return torch.bmm(share.to(keys.dtype).unsqueeze(1), keys)


class Side:
    """The queries, or the keys: rows taken out of a token tensor, gradients put back into one."""

    def __init__(self, name: str, tokens: Tensor, index: Tensor | None, rows: Rows) -> None:
        self.name, self.tokens, self.index, self.rows = name, tokens, index, rows
        if index is not None:  # once, since it copies tokens that are not contiguous
            self.flat = tokens.flatten(0, 1)
        self.count = tokens.shape[1] - rows.num_prefix_tokens if index is None else index.shape[1]
        self.dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        self.copies = index is not None or rows.normalize or tokens.dtype != self.dtype

    def take(self, images: slice, rows: slice = slice(None)) -> Taken:
        """The rows, in memory of this side which the next call overwrites."""
        if self.index is None:
            x = self.tokens[images, self.rows.num_prefix_tokens :][:, rows]
        else:
            index = self.index[images, rows]
            x = _room(self.name, (*index.shape, self.flat.shape[1]), self.flat)
            torch.index_select(self.flat, 0, index.flatten(), out=x.flatten(0, 1))
        x = x.to(self.dtype)
        if not self.rows.normalize:
            return Taken(x, _as_it_is)
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPS)

        def through(grad: Tensor) -> Tensor:
            rest = x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
            by_x: Tensor = torch.ops.aten.native_layer_norm_backward(grad, *rest)[0]
            return by_x

        return Taken(y, through)

    def put(self, target: Tensor, grad: Tensor, images: slice, rows: slice = slice(None)) -> None:
        """Adds a gradient by the rows to that by all tokens."""
        if self.index is None:
            target[images, self.rows.num_prefix_tokens :][:, rows] += grad
        else:
            index = self.index[images, rows].flatten()
            target.view(-1, target.shape[-1]).index_add_(0, index, grad.flatten(0, 1).to(target))


class Problem:
    """One call: its two sides, its chunks, and what both directions compute alike."""

    def __init__(self, queries: Tensor, keys: Tensor | None, rows: Rows) -> None:
        self.rows = rows
        self.queries = Side("queries", queries, rows.query_index, rows)
        self.keys = Side("keys", queries if keys is None else keys, rows.key_index, rows)
        counts = self.queries.count, self.keys.count
        dim = queries.shape[2]
        room = CHUNK_ELEMENTS.get(queries.device.type, GPU_CHUNK_ELEMENTS)
        self.images = max(1, room // max(1, prod(counts) + sum(counts) * dim))
        rows_in_room = (room - counts[1] * dim) // max(1, counts[1] + dim)
        self.step = min(counts[0], max(MIN_ROWS, rows_in_room))
        # Queries and keys of a chunk are all of its tokens, each once: taken and put in one go.
        self.whole = rows.place is not None and self.step == counts[0]

    def take(self, images: slice, row_chunks: list[slice]) -> Iterator[tuple[slice, Taken, Taken]]:
        """The row chunks of `images`, each with its queries and the keys, centred."""
        k, through = self.keys.take(images)
        keys = Taken(self.centred(k, images), through)
        for rows in row_chunks:
            yield rows, self.queries.take(images, rows), keys

    def room_for_gradient(self) -> Tensor:
        """Zeros for the gradient by the queries, or less where `fill` will write all of it."""
        tokens = self.queries.tokens
        if not self.whole:
            return zeros_like(tokens)
        return torch.empty_like(tokens, memory_format=torch.contiguous_format)

    def fill(
        self, target: Tensor, images: slice, weights: Tensor, queries: Taken, keys: Taken
    ) -> None:
        """Writes the gradient by all tokens of `images`, prefix too, into `target`.

        Rows are put in their place by reading them in the order of the tokens, which a CPU does
        several times as fast as writing them all over the place.
        """
        (q, through_q), (k, through_k) = queries, keys
        (batch, split, dim), size = q.shape, q.shape[1] + k.shape[1]
        both = _room("gradients", (batch * size + 1, dim), q)
        by_q = torch.bmm(weights.mT, k, out=both[: batch * split].view_as(q))
        by_k = torch.bmm(weights, q, out=both[batch * split : -1].view_as(k))
        if self.rows.normalize:
            by_q.copy_(through_q(by_q))
            by_k.copy_(through_k(by_k))
        both[-1] = 0  # for the prefix
        torch.index_select(
            both.to(target.dtype),
            0,
            self._places(images, batch, split, size).flatten(),
            out=target[images].flatten(0, 1),
        )

    def _places(self, images: slice, batch: int, split: int, size: int) -> Tensor:
        """`place` for a chunk of `batch` images, in which it counts queries, keys and one row."""
        place = self.rows.place
        assert place is not None
        if batch == len(place):
            return place
        queries, start = len(place) * split, images.start
        before = torch.where(
            place[images] < queries,
            start * split,
            queries - batch * split + start * (size - split),
        )
        return (place[images] - before).clamp_max_(batch * size)

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Room for H [B, R] and for m and Z [2, B, R]."""
        shape = (self.queries.tokens.shape[0], self.queries.count)
        new = self.queries.tokens.new_zeros
        return new(shape, dtype=self.queries.dtype), new((2, *shape), dtype=self.queries.dtype)

    def chunks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Images that fit the scratch together; where one does not fit, its rows in parts."""
        batch, rows, keys = self.queries.tokens.shape[0], self.queries.count, self.keys.count
        if not (rows and keys):
            return
        row_chunks = [slice(row, row + self.step) for row in range(0, rows, self.step)]
        for image in range(0, batch, self.images):
            yield slice(image, image + self.images), row_chunks

    def logits(self, q: Tensor, k: Tensor, images: slice) -> Tensor:
        """Scaled products [b, K, r], padding at the lowest finite value.

        Keys first: on a CPU, products and sums over keys take a tenth to a third less time so.
        """
        logits = torch.bmm(k, q.mT)
        if self.rows.scale != 1:
            logits.mul_(self.rows.scale)
        if self.rows.key_valid is not None:
            logits.masked_fill_(~self.rows.key_valid[images, :, None], torch.finfo(q.dtype).min)
        return logits

    def centred(self, k: Tensor, images: slice) -> Tensor:
        """Keys less the mean of the valid ones."""
        mean = key_mean(k, None if self.rows.key_valid is None else self.rows.key_valid[images])
        return k.sub_(mean) if self.keys.copies else k - mean

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


def _as_it_is(grad: Tensor) -> Tensor:
    return grad


def _room(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory; on the CPU the same at every call with this name, in each thread.

    Fresh memory of this size comes as pages that the kernel first fills with zeros, which takes as
    long as gathering the rows. What stays is about two chunks.
    """
    if like.device.type != "cpu" or type(like) is not Tensor:  # fake tensors must not stay
        return like.new_empty(shape)
    key, size = f"{name} {like.dtype}", prod(shape)
    kept: Tensor | None = getattr(_scratch, key, None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=like.dtype, device="cpu")
        setattr(_scratch, key, kept)
    return kept[:size].view(shape)


def zeros_like(tokens: Tensor | None) -> Tensor:
    """Contiguous zeros; nothing for `None`, which an operator could not return."""
    if tokens is None:
        return torch.empty(0)
    return torch.zeros_like(tokens, memory_format=torch.contiguous_format)
