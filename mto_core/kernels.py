"""Triton kernels of `mto_core.fused`: row entropies, and their gradient by the tokens.

Pointers: `tokens` [B·T, dim] in any dtype, `mean` and `rstd` [B·T] of each token (read with `norm`
only), `center` [B, dim], index sets [B, rows] and [B, columns], everything else float32. Programs
run over blocks of rows and over images; a block of padding is skipped.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# fmt: off

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def take(index, image, first, width, block: tl.constexpr):
    """Row numbers [block], -1 on padding, and whether there are any."""
    at = first + tl.arange(0, block)
    rows = tl.load(index + image * width + at, mask=at < width, other=-1)
    return rows, tl.max(rows, 0) >= 0


@triton.jit
def moments(mean, rstd, rows, norm: tl.constexpr):
    """Of each token, [rows]."""
    m = tl.zeros(rows.shape, tl.float32)
    r = m
    if norm:
        m = tl.load(mean + rows, mask=rows >= 0, other=0.0)
        r = tl.load(rstd + rows, mask=rows >= 0, other=0.0)
    return m, r


@triton.jit
def read(tokens, m, r, rows, d, dim, norm: tl.constexpr):
    """Float32 [rows, d] of the tokens, or of their LayerNorm; 0 on padding."""
    there = (rows >= 0)[:, None] & (d < dim)[None, :]
    x = tl.load(tokens + rows[:, None] * dim + d[None, :], mask=there, other=0.0).to(tl.float32)
    if norm:
        x = tl.where(there, (x - m[:, None]) * r[:, None], 0.0)
    return x


@triton.jit
def read_centered(tokens, m, r, center, image, rows, d, dim, norm: tl.constexpr):
    """Keys without the mean of those of the image: see `_centered` of `mto_core.entropy`."""
    x = read(tokens, m, r, rows, d, dim, norm)
    return x - tl.load(center + image * dim + d, mask=d < dim, other=0.0)[None, :]


@triton.jit
def products(
    tokens, mean, rstd, center, image, queries, keys, dim, scale,
    norm: tl.constexpr, exact: tl.constexpr, bq: tl.constexpr, bk: tl.constexpr, bd: tl.constexpr,
):
    """Logits [bq, bk]."""
    logits = tl.zeros([bq, bk], tl.float32)
    q_mean, q_rstd = moments(mean, rstd, queries, norm)
    k_mean, k_rstd = moments(mean, rstd, keys, norm)
    for first in range(0, dim, bd):
        d = first + tl.arange(0, bd)
        q = read(tokens, q_mean, q_rstd, queries, d, dim, norm)
        k = read_centered(tokens, k_mean, k_rstd, center, image, keys, d, dim, norm)
        logits = tl.dot(q, tl.trans(k), logits, input_precision=exact)
    return logits * scale


@triton.jit
def centers(
    tokens, mean, rstd, keys, center, columns, dim,
    norm: tl.constexpr, bk: tl.constexpr, bd: tl.constexpr,
):
    """Mean of the keys of an image."""
    image = tl.program_id(1)
    d = tl.program_id(0) * bd + tl.arange(0, bd)
    total = tl.zeros([bd], tl.float32)
    count = 0
    for first in range(0, columns, bk):
        rows, some = take(keys, image, first, columns, bk)
        if some:
            m, r = moments(mean, rstd, rows, norm)
            total += tl.sum(read(tokens, m, r, rows, d, dim, norm), 0)
            count += tl.sum((rows >= 0).to(tl.int32), 0)
    tl.store(center + image * dim + d, total / tl.maximum(count, 1).to(tl.float32), mask=d < dim)


@triton.jit
def entropies(
    tokens, mean, rstd, center, queries, keys, entropy, top, log_z, rows, columns, dim, scale,
    norm: tl.constexpr, exact: tl.constexpr, bq: tl.constexpr, bk: tl.constexpr, bd: tl.constexpr,
):
    """H, the maximum m of the logits s, and ln Z with Z = Σ exp(s - m), of bq rows."""
    image = tl.program_id(1)
    i = tl.program_id(0) * bq + tl.arange(0, bq)
    query, some = take(queries, image, tl.program_id(0) * bq, rows, bq)
    m = tl.full([bq], -1e30, tl.float32)
    z = tl.zeros([bq], tl.float32)
    zd = tl.zeros([bq], tl.float32)  # Σ exp(d) d of d = s - m
    if some:
        for first in range(0, columns, bk):
            key, any_key = take(keys, image, first, columns, bk)
            if any_key:
                s = products(
                    tokens, mean, rstd, center, image, query, key, dim, scale,
                    norm, exact, bq, bk, bd,
                )
                valid = (key >= 0)[None, :]
                s = tl.where(valid, s, -1e30)
                higher = tl.maximum(m, tl.max(s, 1))
                d = s - higher[:, None]
                e = tl.where(valid, tl.exp(d), 0.0)
                shift = m - higher
                zd = tl.exp(shift) * (zd + shift * z) + tl.sum(e * d, 1)
                z = tl.exp(shift) * z + tl.sum(e, 1)
                m = higher
    z = tl.where(z == 0.0, 1.0, z)  # no keys: ln 1 = 0
    at = image * rows + i
    tl.store(entropy + at, tl.where(query >= 0, tl.log(z) - zd / z, 0.0), mask=i < rows)
    tl.store(top + at, m, mask=i < rows)
    tl.store(log_z + at, tl.log(z), mask=i < rows)


@triton.jit
def gradients_by_logits(
    tokens, mean, rstd, center, queries, keys, grad, entropy, top, log_z, by_logits,
    first_image, rows, columns, stride, dim, scale,
    norm: tl.constexpr, exact: tl.constexpr, bq: tl.constexpr, bk: tl.constexpr, bd: tl.constexpr,
):
    """Times `scale`, [rows, stride]: dH/ds = -p (d - Σ p d), and Σ p d = ln Z - H."""
    image = first_image + tl.program_id(1)
    i = tl.program_id(0) * bq + tl.arange(0, bq)
    query, some = take(queries, image, tl.program_id(0) * bq, rows, bq)
    if some:
        at = image * rows + i
        m = tl.load(top + at, mask=i < rows, other=0.0)
        ln_z = tl.load(log_z + at, mask=i < rows, other=0.0)
        expected = ln_z - tl.load(entropy + at, mask=i < rows, other=0.0)
        g = tl.load(grad + at, mask=i < rows, other=0.0) * scale
        row = by_logits + (tl.program_id(1) * rows + i).to(tl.int64) * stride
        for first in range(0, columns, bk):
            key, any_key = take(keys, image, first, columns, bk)
            if any_key:
                s = products(
                    tokens, mean, rstd, center, image, query, key, dim, scale,
                    norm, exact, bq, bk, bd,
                )
                valid = (query >= 0)[:, None] & (key >= 0)[None, :]
                d = tl.where(valid, s - m[:, None], 0.0)
                p = tl.where(valid, tl.exp(d - ln_z[:, None]), 0.0)
                by = p * (expected[:, None] - d) * g[:, None]
                j = first + tl.arange(0, bk)
                there = (i < rows)[:, None] & (j < columns)[None, :]
                tl.store(row[:, None] + j[None, :], by, mask=there)


@triton.jit
def gradients_by_tokens(
    tokens, mean, rstd, center, to, of, by_logits, by_tokens,
    first_image, rows, columns, stride, per_image, dim,
    norm: tl.constexpr, by_queries: tl.constexpr, exact: tl.constexpr,
    br: tl.constexpr, bc: tl.constexpr, bd: tl.constexpr,
):
    """Of the tokens in the set `to`: gradients by logits times the tokens in the set `of`.

    First those of the queries, over centered keys; then those of the keys, onto what is there.
    """
    image = first_image + tl.program_id(2)
    i = tl.program_id(1) * br + tl.arange(0, br)
    d = tl.program_id(0) * bd + tl.arange(0, bd)
    row, some = take(to, image, tl.program_id(1) * br, rows, br)
    if some:
        total = tl.zeros([br, bd], tl.float32)
        base = by_logits + tl.program_id(2).to(tl.int64) * per_image
        for first in range(0, columns, bc):
            column, any_column = take(of, image, first, columns, bc)
            if any_column:
                j = first + tl.arange(0, bc)
                valid = (row >= 0)[:, None] & (column >= 0)[None, :]
                m, r = moments(mean, rstd, column, norm)
                if by_queries:
                    at = base + i[:, None] * stride + j[None, :]
                    x = read_centered(tokens, m, r, center, image, column, d, dim, norm)
                else:
                    at = base + j[None, :] * stride + i[:, None]
                    x = read(tokens, m, r, column, d, dim, norm)
                by = tl.load(at, mask=valid, other=0.0)
                total = tl.dot(by, x, total, input_precision=exact)
        where = by_tokens + row[:, None] * dim + d[None, :]
        there = (row >= 0)[:, None] & (d < dim)[None, :]
        if not by_queries:
            total += tl.load(where, mask=there, other=0.0)
        tl.store(where, total, mask=there)
