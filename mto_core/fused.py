"""The "fused" backend of `mto_core.entropy`: Triton kernels that read tokens in place.

Rows of the tokens are read by index, in their own dtype, and normalised on the way ("layernorm").
Logits exist in registers only: the forward keeps two numbers a row, and the backward makes them
anew. Sets may be padded to any length, so the host reads no count.

Logits are three products in TensorFloat-32 for one in float32 ("tf32x3"), which is about as exact;
their gradients take one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mto_core import kernels

EPS = 1e-5  # of F.layer_norm
SCRATCH = 1 << 26  # gradients by logits at a time, 256 MiB: those of 12 images of Swin's stage 1
LOGITS, GRADIENTS = "tf32x3", "tf32"
# Sizes of a block: queries, keys, channels; then rows, columns, channels of a gradient.
CENTERS: dict[str, Any] = {"bk": 128, "bd": 32, "num_warps": 4}
ENTROPIES: dict[str, Any] = {"bq": 64, "bk": 64, "bd": 32, "num_warps": 4}
BY_LOGITS: dict[str, Any] = ENTROPIES
BY_TOKENS: dict[str, Any] = {"br": 32, "bc": 32, "bd": 128, "num_warps": 4}

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def fused_entropy(
    tokens: Tensor, queries: Tensor, keys: Tensor, scale: float, norm: bool
) -> Tensor:
    """Entropy [B, Q] as `token_entropy` has it; `norm` reads tokens through a LayerNorm.

    No row may stand twice in a set.
    """
    if torch.compiler.is_compiling():
        found: Tensor = _operator(tokens, queries, keys, scale, norm)[0]
        return found
    entropy: Tensor = _Fused.apply(tokens, queries, keys, scale, norm)
    return entropy


_on: Any = torch.cuda.device_of  # kernels start on the current device


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _forward(tokens: Tensor, queries: Tensor, keys: Tensor, scale: float, norm: bool) -> Found:
    """H, maximum of the logits and ln Z, [B, Q] each; mean and rstd [B·T]; center [B, D]."""
    (batch, rows), columns, dim = queries.shape, keys.shape[1], tokens.shape[2]
    new = tokens.new_empty
    entropy, top, log_z = (new((batch, rows), dtype=torch.float32) for _ in range(3))
    center = new((batch, dim), dtype=torch.float32)
    mean, rstd = (new(0, dtype=torch.float32) for _ in range(2))
    with _on(tokens):
        if norm:
            variance, mean = torch.var_mean(tokens.flatten(0, 1).float(), -1, correction=0)
            rstd = (variance + EPS).rsqrt()
        kernels.centers[_blocks(dim, CENTERS["bd"]), batch](
            tokens, mean, rstd, keys, center, columns, dim, norm=norm, **CENTERS
        )
        kernels.entropies[_blocks(rows, ENTROPIES["bq"]), batch](
            *(tokens, mean, rstd, center, queries, keys, entropy, top, log_z),
            *(rows, columns, dim, scale),
            **{"norm": norm, "exact": LOGITS, **ENTROPIES},
        )
    return entropy, top, log_z, mean, rstd, center


def _backward(grad: Tensor, saved: Sequence[Tensor], scale: float, norm: bool) -> Tensor:
    """Gradient [B, T, D] by the tokens; `saved` are the tensors of `_forward`, in and out."""
    tokens, queries, keys, entropy, top, log_z, *prepared = saved
    grad = grad.contiguous()
    (batch, rows), columns, dim = queries.shape, keys.shape[1], tokens.shape[2]
    by_tokens = torch.zeros_like(tokens, dtype=torch.float32)
    stride = 16 * _blocks(columns, 16)  # so that rows are aligned
    images = max(1, min(batch, SCRATCH // (rows * stride)))
    by_logits = tokens.new_empty((images, rows, stride), dtype=torch.float32)
    with _on(tokens):
        for first in range(0, batch, images):
            count = min(images, batch - first)
            kernels.gradients_by_logits[_blocks(rows, BY_LOGITS["bq"]), count](
                *(tokens, *prepared, queries, keys, grad, entropy, top, log_z, by_logits),
                *(first, rows, columns, stride, dim, scale),
                **{"norm": norm, "exact": LOGITS, **BY_LOGITS},
            )
            for to, of in ((queries, keys), (keys, queries)):
                blocks = _blocks(dim, BY_TOKENS["bd"]), _blocks(to.shape[1], BY_TOKENS["br"])
                kernels.gradients_by_tokens[(*blocks, count)](
                    *(tokens, *prepared, to, of, by_logits, by_tokens),
                    *(first, to.shape[1], of.shape[1], stride, rows * stride, dim),
                    **{"norm": norm, "by_queries": to is queries, "exact": GRADIENTS, **BY_TOKENS},
                )
        if norm:
            shape = (*tokens.shape[:2], 1)
            mean, rstd = (x.view(shape) for x in prepared[:2])
            by_tokens = torch.ops.aten.native_layer_norm_backward(
                *(by_tokens, tokens.float(), tokens.shape[-1:], mean, rstd, None, None),
                [True, False, False],
            )[0]
    return by_tokens.to(tokens.dtype)


class _Fused(Function):
    """The operator below, for eager runs: custom operators cost the host several times as much."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Keeps what the backward needs."""
        tokens, queries, keys = (x.contiguous() for x in inputs[:3])
        ctx.scale, ctx.norm = inputs[3:]
        found = _forward(tokens, queries, keys, ctx.scale, ctx.norm)
        ctx.save_for_backward(tokens, queries, keys, *found)
        return found[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """By the tokens; with a graph of its own, the operator refuses to go through it."""
        backward = _operator_backward if torch.is_grad_enabled() else _backward
        by_tokens = backward(grad, list(ctx.saved_tensors), ctx.scale, ctx.norm)
        return by_tokens, None, None, None, None


@torch.library.custom_op("mto_core::fused_entropy", mutates_args=())
def _operator(
    tokens: Tensor, queries: Tensor, keys: Tensor, scale: float, norm: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _forward(tokens.contiguous(), queries.contiguous(), keys.contiguous(), scale, norm)


@torch.library.custom_op("mto_core::fused_entropy_backward", mutates_args=())
def _operator_backward(grad: Tensor, saved: Sequence[Tensor], scale: float, norm: bool) -> Tensor:
    return _backward(grad, [x.contiguous() for x in saved], scale, norm)


def _shapes(tokens: Tensor, queries: Tensor, keys: Tensor, scale: float, norm: bool) -> Found:
    (batch, length, dim), rows = tokens.shape, queries.shape[1]
    each = batch * length if norm else 0

    def new(*size: int) -> Tensor:
        return tokens.new_empty(size, dtype=torch.float32)

    h, m, z = (new(batch, rows) for _ in range(3))
    return h, m, z, new(each), new(each), new(batch, dim)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Found) -> None:
    *tensors, ctx.scale, ctx.norm = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    by_tokens = _operator_backward(grad, list(ctx.saved_tensors), ctx.scale, ctx.norm)
    return by_tokens, None, None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the 'fused' backend of mto_core has no second derivative: pass backend='dense'"
    )


_operator.register_fake(_shapes)
_operator.register_autograd(_differentiate, setup_context=_save)
_operator_backward.register_fake(
    lambda grad, saved, *_: torch.empty_like(saved[0], memory_format=torch.contiguous_format)
)
_operator_backward.register_autograd(_refuse)
