"""Time and memory of one depth of heterogeneity, forward and backward, for each backend.

    python benchmarks/row_entropy.py [--save] [--rounds 15] [--compile] [--shapes simmim mae swin]

The baseline is `dense`. Backends take turns within each round, so that whatever else the machine
does falls on all alike; times are medians over rounds, ratios medians of the ratios within a round.
The floor is three products (logits, gradient by queries, gradient by keys) at the rate of a large
matmul in the same run, and in bytes one reading of the tokens each way and one writing of their
gradient; `recompute` pays a fourth product for saving no logits, `recompute saved` saves them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from common import Saved, describe, matmul_rate, save, timed
from torch import Tensor

from mto_core.losses import heterogeneity_of
from mto_core.split import MaskSplit, split_mask


class Shape(NamedTuple):
    """One depth of a recipe."""

    title: str
    batch_cpu: int
    batch_gpu: int
    num_prefix_tokens: int
    tokens: int
    masked: int
    dim: int


SHAPES = {
    "simmim": Shape("SimMIM ViT-B/16 encoder", 8, 128, 1, 196, 120, 768),
    "mae": Shape("MAE decoder", 8, 128, 1, 196, 147, 512),
    "swin": Shape("SimMIM Swin-B stage 1", 64, 64, 0, 2304, 1408, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="also dense under torch.compile")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/row_entropy.*"
    )
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe(device)
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    rows = []
    for name in args.shapes:
        rows += measure(SHAPES[name], device, getattr(torch, args.dtype), args.rounds, args.compile)
    table = markdown(rows)
    print(table)
    if args.save:
        command = f"benchmarks/row_entropy.py --dtype {args.dtype} --rounds {args.rounds}"
        title = "Row entropy, one depth, forward and backward"
        save(f"row_entropy_{device.type}_{args.dtype}", title, command, rows, table, machine)


def measure(
    shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int, compiled: bool
) -> list[dict[str, Any]]:
    """One row per backend."""
    torch.manual_seed(0)
    batch = shape.batch_gpu if device.type == "cuda" else shape.batch_cpu
    length = shape.num_prefix_tokens + shape.tokens
    tokens = torch.randn(batch, length, shape.dim, device=device, dtype=dtype)
    tokens = tokens.mul_(shape.dim**-0.25).requires_grad_()
    mask = torch.rand(batch, shape.tokens, device=device).argsort(1) < shape.masked
    split = split_mask(mask, shape.num_prefix_tokens)
    forms: dict[str, Callable[..., Tensor]] = {
        "dense": partial(heterogeneity_of, backend="dense"),
        "recompute": partial(heterogeneity_of, backend="recompute"),
        "recompute saved": partial(heterogeneity_of, backend="recompute", save_logits=True),
    }
    if compiled:
        forms["dense compiled"] = torch.compile(forms["dense"])

    def run(form: Callable[..., Tensor]) -> None:
        tokens.grad = None
        form(tokens, split).sum().backward()

    times: dict[str, list[float]] = {name: [] for name in forms}
    peaks = dict.fromkeys(forms, 0)
    for turn in range(rounds + 2):
        for name, form in forms.items():
            seconds, peak = timed(partial(run, form), device)
            if turn > 1:
                times[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
    rate = 1e9 * matmul_rate(device, min(batch * shape.tokens, 4096), shape.dim)
    product = 2 * batch * shape.masked * (shape.tokens - shape.masked) * shape.dim
    token_bytes = tokens.numel() * tokens.element_size()
    return [
        {
            "shape": shape.title,
            "batch": batch,
            "tokens": shape.tokens,
            "masked": shape.masked,
            "dim": shape.dim,
            "dtype": str(dtype).removeprefix("torch."),
            "backend": name,
            "median_ms": round(1e3 * statistics.median(times[name]), 3),
            "min_ms": round(1e3 * min(times[name]), 3),
            "ratio": round(
                statistics.median(t / d for t, d in zip(times[name], times["dense"], strict=True)),
                3,
            ),
            "floor_ms": round(1e3 * 3 * product / rate, 3),
            "floor_gflop": round(3 * product / 1e9, 2),
            "gflop": round((4 if name == "recompute" else 3) * product / 1e9, 2),
            "floor_mb": round(3 * token_bytes / 1e6, 2),
            "saved_mb": round(saved_bytes(forms[name], tokens, split) / 1e6, 3),
            "tokens_mb": round(token_bytes / 1e6, 3),
            "peak_mb": round(peaks[name] / 1e6, 1) if peaks[name] else "",
        }
        for name in forms
    ]


def saved_bytes(form: Callable[..., Tensor], tokens: Tensor, split: MaskSplit) -> int:
    """Bytes kept for the backward beyond the tokens and the split, which all depths share."""
    sides = split.masked, split.visible, split.patches
    with Saved([tokens, split.num_masked, *(side.rows for side in sides)]) as saved:
        form(tokens, split)
    return saved.nbytes()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The columns people read."""
    lines = []
    for row in rows:
        lines.append(
            f"| {row['shape']}, B={row['batch']}, N={row['tokens']}, {row['masked']} masked, "
            f"D={row['dim']} | {row['backend']} | {row['median_ms']:.2f} | {row['ratio']:.2f} | "
            f"{row['floor_ms']:.2f} ms, {row['floor_gflop']} GFLOP, {row['floor_mb']} MB | "
            f"{row['gflop']} | {row['saved_mb']:.3f} | "
            f"{row['saved_mb'] / row['tokens_mb']:.2%} | {row['peak_mb']} |"
        )
    return "\n".join(
        [
            "| shape | backend | ms | ratio to dense | floor | GFLOP | saved MB "
            "| saved / tokens | peak MB |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
