"""Time and memory of one depth of heterogeneity, forward and backward, for each backend.

    python benchmarks/row_entropy.py [--save] [--rounds 15] [--shapes simmim mae swin]

The baseline is `dense`. Backends take turns within each round, so that whatever else the machine
does falls on all alike; times are medians over rounds, ratios medians of the ratios within a round.
The floor is three products (logits, gradient by queries, gradient by keys) at the rate of a large
matmul in the same run; `recompute` pays a fourth product for saving no logits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import Saved, matmul_rate, report, timed
from models import SHAPES
from torch import Tensor

from mto_core import heterogeneity
from mto_core.masks import split_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="default: that of `overhead.py`")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/row_entropy*")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forms: dict[str, Callable[..., Tensor]] = {
        name: partial(heterogeneity, backend=name) for name in ("dense", "recompute")
    }
    rows = []
    for name in args.shapes:
        rows += measure(name, args.batch, device, getattr(torch, args.dtype), args.rounds, forms)
    title = f"Row entropy, one depth, forward and backward, {args.dtype}"
    report(f"row_entropy_{args.dtype}", title, rows, device, args.save)


def measure(
    name: str,
    batch: int | None,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    forms: dict[str, Callable[..., Tensor]],
) -> list[dict[str, object]]:
    """One row per backend, for the first depth of a model."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    mask = shape.masks(batch or getattr(shape, f"batch_{device.type}")).flatten(1).to(device)
    (batch, size), dim = mask.shape, shape.dim
    tokens = torch.randn(batch, shape.prefix + size, dim, device=device, dtype=dtype)
    tokens = tokens.mul_(dim**-0.25).requires_grad_()
    split = split_mask(mask, shape.prefix)

    def run(form: Callable[..., Tensor]) -> None:
        tokens.grad = None
        form(tokens, split).sum().backward()

    took: dict[str, list[float]] = {name: [] for name in forms}
    peaks = dict.fromkeys(forms, 0.0)
    for turn in range(rounds + 2):
        for name, form in forms.items():
            milliseconds, peak = timed(partial(run, form), device)
            if turn > 1:
                took[name].append(milliseconds)
                peaks[name] = max(peaks[name], peak)
    masked = int(mask[0].sum())
    floor = 6 * batch * masked * (size - masked) * dim / matmul_rate(device, dim)
    rows: list[dict[str, object]] = []
    for name, form in forms.items():
        with (saved := Saved([tokens, *split])):  # these are shared by all depths
            form(tokens, split)
        ratios = [t / d for t, d in zip(took[name], took["dense"], strict=True)]
        rows.append(
            {
                "shape": f"{shape.title}, B={batch}, N={size}, {masked} masked, D={dim}",
                "backend": name,
                "time": f"{statistics.median(took[name]):.2f} ms",
                "ratio to dense": f"{statistics.median(ratios):.2f}",
                "floor": f"{floor:.2f} ms",
                "saved": f"{saved.megabytes():.3f} MB",
                "peak": f"{peaks[name]:.0f} MB" if peaks[name] else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
