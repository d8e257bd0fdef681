"""Heterogeneity and its gradient by every backend, against float64 on the same device.

Tokens are rounded to their dtype first, so what is left is the backend's own error: the largest of
any row of H, in nats, and that of the gradient relative to its norm. The bars are those of
tests/mto_core/test_numerics.py. `tf32` says whether torch may run float32 products in
TensorFloat-32, as many training scripts allow it to.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from table import Row, show
from torch import Tensor

from mto_core.entropy import row_entropy

SHAPES = {"simmim": (120, 76, 768), "mae": (147, 49, 512), "swin": (1408, 896, 128)}
TINY = {"tiny": (40, 30, 64)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BARS = {3e3: 1e-4, 3e4: 1e-3}  # nats, by the largest logit


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
            q, k = tokens(shape, largest, dtype, device)
            exact = with_gradient(reference, q.double(), k.double())
            for backend in ("dense", "recompute", *(["fused"] if device.type == "cuda" else [])):
                h, grad = with_gradient(row_entropy, q, k, backend=backend)
                error = (h.double() - exact[0]).abs().max().item()
                lost = (grad.double() - exact[1]).norm().item() / (exact[1].norm().item() or 1.0)
                row: Row = {"shape": name, "tokens": str(dtype).split(".")[1], "tf32": tf32}
                row |= {"largest logit": f"{largest:.0e}", "backend": backend}
                row |= {"error of H": f"{error:.1e}", "of the gradient": f"{lost:.1e}"}
                rows.append(row | {"bar": "met" if error < BARS[largest] else "missed"})
    file = args.save / f"accuracy_{args.device}" if args.save else None
    show("Accuracy against float64", rows, device, file)


def tokens(
    shape: tuple[int, int, int], largest: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Queries [2, Q, D] and keys [2, K, D] with much in common, as those of a trained model."""
    queries, keys, dim = shape
    x = torch.randn(2, queries + keys, dim, generator=torch.Generator().manual_seed(0))
    x = x[:, :1] + 0.05 * x
    x = (x * (largest / (x @ x.mT).abs().max()).sqrt()).to(device, dtype)
    return x[:, :queries], x[:, queries:]


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
