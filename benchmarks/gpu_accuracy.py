"""Heterogeneity and its gradient by every backend, against float64 on the same device.

Tokens are rounded to their dtype first, so what is left is the backend's own error: the largest of
any row of H, in nats, over all kinds of `tokens.py`; and that of the gradient relative to its norm,
over the smooth ones. At the larger logits rows are one-hot, and a gradient next to nothing is left
out. One by 16-bit tokens is rounded to 16 bits, and has no bar. `tf32` says whether torch may run
float32 products in TensorFloat-32, as many training scripts allow it to.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from table import Row, show
from tokens import BARS, GRADIENT_BAR, KINDS, SMOOTH, mask_of, tokens_of
from torch import Tensor

from mto_core.entropy import row_entropy

SHAPES = {"simmim": (196, 120, 768), "mae": (196, 147, 512), "swin": (2304, 1408, 128)}
TINY = {"tiny": (70, 40, 64)}  # patches, masked ones, channels
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    rows: list[Row] = []
    for name, shape in (TINY if args.tiny else SHAPES).items():
        for dtype, tf32, largest in product(DTYPES, (False, True), BARS):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for backend in ("dense", "recompute", *(["fused"] if device.type == "cuda" else [])):
                error, lost = errors(shape, dtype, largest, backend, device)
                some = largest == min(BARS)
                judged = some and dtype == torch.float32
                met = error < BARS[largest] and (lost < GRADIENT_BAR or not judged)
                row: Row = {"shape": name, "tokens": str(dtype).split(".")[1], "tf32": tf32}
                row |= {"largest logit": f"{largest:.0e}", "backend": backend}
                row |= {"error of H": f"{error:.1e}"}
                row |= {"of the gradient": f"{lost:.1e}" if some else ""}
                rows.append(row | {"bars": "met" if met else "missed"})
    file = args.save / f"accuracy_{args.device}" if args.save else None
    show("Accuracy against float64", rows, device, file)


def errors(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    largest: float,
    backend: str,
    device: torch.device,
) -> tuple[float, float]:
    """The largest of H in nats, and of the gradient by its norm."""
    size, masked, dim = shape
    mask, error, lost = mask_of(size, masked), 0.0, 0.0
    for kind in KINDS:
        x = tokens_of(kind, largest, mask, dim).to(device, dtype)
        q, k = x[:, mask[0].to(device)], x[:, ~mask[0].to(device)]
        h, grad = with_gradient(row_entropy, q, k, backend=backend)
        exact, exact_grad = with_gradient(reference, q.double(), k.double())
        error = max(error, (h.double() - exact).abs().max().item())
        if kind in SMOOTH:
            off = (grad.double() - exact_grad).norm().item()
            lost = max(lost, off / (exact_grad.norm().item() or 1.0))
    return error, lost


def reference(queries: Tensor, keys: Tensor) -> Tensor:
    """Equation 2, row by row, as it is written."""
    return torch.special.entr((queries @ keys.mT).softmax(-1)).sum(-1)


def with_gradient(entropy: Any, queries: Tensor, keys: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """H [B, Q], and the gradient of its mean by queries and keys, as one vector."""
    inputs = [queries.detach().requires_grad_(), keys.detach().requires_grad_()]
    h = entropy(*inputs, **how)
    grads = torch.autograd.grad(h.mean(), inputs)
    return h.detach(), torch.cat([grad.flatten() for grad in grads])


if __name__ == "__main__":
    main()
