"""What MTO adds to a training step: time, saved activations, peak memory.

    python benchmarks/overhead.py [--shapes simmim mae swin] [--rounds 9] [--device cuda] [--save]

The baseline is forward and backward of the same model without MTO, in the same run: each step of a
variant has one beside it, before or after by turns. `added` is the median over rounds of
(variant - baseline) / baseline, with quartiles. On a CPU, where such a difference of long times is
noisy, `within` is what MTO took of the very same steps, by the clock: its forward, and its own
nodes in the backward; relative to the rest of that step. Only the sum of its gradients with the
model's is not in it. `dense`, `recompute` and `default` weigh all three terms; the `simmim` ones
have the weights of that preset. Logged steps have `diagnostics=True`: all terms and depths.

Saved activations are the distinct storages that autograd packs, parameters not counted; tokens that
the model saves anyway are counted once, with the baseline. The floor is the three products of each
depth (logits, gradients by queries and by keys) at the rate of a large float32 matmul in the same
run, and one reading of the tokens each way and one writing of their gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
from common import Saved, describe, matmul_rate, save, timed
from models import MAE, SimMIM, Swin
from torch import Tensor

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace

WEIGHTS: dict[str, Any] = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001}
SHAPES: dict[str, Any] = {"simmim": SimMIM, "mae": MAE, "swin": Swin}
PIXELS = {"simmim": 224, "mae": 224, "swin": 192}
BATCHES = {
    "cpu": {"simmim": 8, "mae": 8, "swin": 4},
    "cuda": {"simmim": 128, "mae": 128, "swin": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--batch", type=int, help="default: 8 (Swin 4) on the CPU, 128 (64) on CUDA"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/overhead_*")
    args = parser.parse_args()
    device = torch.device(args.device)
    machine = describe(device) | {
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
        "timm": timm.__version__,
    }
    print("\n".join(f"- {key}: {value}" for key, value in machine.items()), flush=True)
    for name in args.shapes:
        rows = measure(name, args.batch or BATCHES[args.device][name], args.rounds, device)
        table = markdown(rows)
        print(f"\n{table}", flush=True)
        if args.save:
            command = f"benchmarks/overhead.py --shapes {name} --rounds {args.rounds}"
            title = "What MTO adds to a training step"
            save(f"overhead_{args.device}_{name}", title, command, rows, table, machine)


def measure(name: str, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per variant, the baseline first."""
    torch.manual_seed(0)
    model = SHAPES[name]().to(device).train()
    images = torch.randn(batch, 3, PIXELS[name], PIXELS[name], device=device)
    mask = model.masks(batch).to(device)
    trace = TokenTrace(model.blocks, num_prefix_tokens=model.prefix)
    variants = make_variants(device)
    times: dict[str, list[tuple[float, float]]] = {title: [] for title in variants}
    within: dict[str, list[float]] = {title: [] for title in variants}
    peaks = dict.fromkeys(("none", *variants), 0)
    for turn in range(rounds + 1):
        for title, mto in variants.items():
            clock = Clock() if device.type == "cpu" else None
            with_mto = partial(step, model, images, mask, trace, mto, clock)
            without = partial(step, model, images, mask, trace)
            pair = [(title, with_mto), ("none", without)]
            took = {}
            for which, run in pair if turn % 2 else reversed(pair):
                took[which], peak = timed(run, device)
                if turn:  # the first round warms up
                    peaks[which] = max(peaks[which], peak)
            if turn:
                times[title].append((took[title], took["none"]))
                within[title].append(clock.seconds if clock else 0.0)

    base = statistics.median(none for pairs in times.values() for _, none in pairs)
    base_saved, _ = saved_bytes(model, images, mask, trace, None)
    row = {"shape": model.title, "batch": batch, "variant": "none", "median_ms": 1e3 * base}
    rows = [row | {"saved_mb": base_saved / 1e6, "peak_mb": peaks["none"] / 1e6}]
    gflop, megabytes = floor(tokens_shapes(model, images, mask, trace), mask, model.prefix)
    rate = matmul_rate(device, 2048, model.dim)
    for title, pairs in times.items():
        low, middle, high = quartiles([t / none - 1 for t, none in pairs])
        added = saved_bytes(model, images, mask, trace, variants[title])[1]
        clocked = [
            (inside, t - inside) for inside, (t, _) in zip(within[title], pairs, strict=True)
        ]
        row = {
            "shape": model.title,
            "batch": batch,
            "variant": title,
            "median_ms": 1e3 * statistics.median(t for t, _ in pairs),
            "added": middle,
            "added_q1": low,
            "added_q3": high,
            "within_ms": 1e3 * statistics.median(mine for mine, _ in clocked),
            "within": statistics.median(mine / rest for mine, rest in clocked),
            "saved_mb": (base_saved + added) / 1e6,
            "added_saved": added / base_saved,
            "peak_mb": peaks[title] / 1e6,
            "added_peak": peaks[title] / peaks["none"] - 1 if peaks["none"] else 0.0,
            "floor_ms": gflop / rate * 1e3,
            "floor_gflop": gflop,
            "floor_mb": megabytes,
        }
        rows.append(row)
    return rows


def make_variants(device: torch.device) -> dict[str, Callable[..., Any]]:
    """Backends with all terms weighted, weights of preset `simmim`; on CUDA also compiled dense."""

    def form(config: MTOConfig, logged: bool, compiled: bool = False) -> Callable[..., Any]:
        module: Any = MaskedTokenOptimization(config)
        return partial(torch.compile(module) if compiled else module, diagnostics=logged)

    dense = MTOConfig(**WEIGHTS, backend="dense")
    found = {
        "dense": form(dense, False),
        "recompute": form(MTOConfig(**WEIGHTS, backend="recompute"), False),
        "default, logged": form(MTOConfig(**WEIGHTS), True),
        "simmim, logged": form(MTOConfig.preset("simmim"), True),
        "simmim, unlogged": form(MTOConfig.preset("simmim"), False),
    }
    if device.type == "cuda":
        found["dense compiled"] = form(dense, False, compiled=True)
    return found


def autocast(device: torch.device) -> Any:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


class Clock:
    """Seconds that MTO takes within a step; on a CPU only, where calls end when their work does."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.start = 0.0

    def go(self, *_: Any) -> None:
        """Starts; the arguments are those of a hook."""
        self.start = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Adds the time since `go`."""
        self.seconds += time.perf_counter() - self.start

    def watch(self, total: Tensor, tokens: Sequence[Tensor]) -> None:
        """Counts the nodes of the backward between `total` and the tokens."""
        seen: list[Any] = [t.grad_fn for t in tokens]
        found = [total.grad_fn]
        while found:
            node: Any = found.pop()
            if node is None or node in seen:
                continue
            seen.append(node)
            node.register_prehook(self.go)
            node.register_hook(self.stop)
            found += [following for following, _ in node.next_functions]


def step(
    model: Any,
    images: Tensor,
    mask: Tensor,
    trace: TokenTrace,
    mto: Callable[..., Any] | None = None,
    clock: Clock | None = None,
) -> None:
    """Forward and backward; without MTO the trace stays unarmed."""
    model.zero_grad(set_to_none=True)
    with autocast(images.device):
        if mto is None:
            model(images, mask).backward()
            return
        with trace:
            loss = model(images, mask)
        tokens = trace.tokens_by_depth
        if clock:
            clock.go()
        total = mto(tokens, mask).total
        if clock:
            clock.stop()
            clock.watch(total, tokens.whole)
    trace.clear()
    (loss + total).backward()


def saved_bytes(
    model: Any, images: Tensor, mask: Tensor, trace: TokenTrace, mto: Callable[..., Any] | None
) -> tuple[int, int]:
    """Bytes that the model's graph holds, and those that MTO adds to it."""
    with autocast(images.device), Saved([*model.parameters(), images, mask]) as saved:
        with trace:
            loss = model(images, mask)
        before = saved.nbytes()
        total = None if mto is None else mto(trace.tokens_by_depth, mask).total
    del loss, total
    trace.clear()
    return before, saved.nbytes() - before


def tokens_shapes(
    model: Any, images: Tensor, mask: Tensor, trace: TokenTrace
) -> list[tuple[int, int, int]]:
    """(N, D, bytes per number) of the patch tokens by depth."""
    with autocast(images.device), trace:
        model(images[:1], mask[:1])
    whole = trace.tokens_by_depth
    trace.clear()
    return [(t.shape[1], t.shape[2], t.element_size()) for t in whole]


def floor(shapes: list[tuple[int, int, int]], mask: Tensor, prefix: int) -> tuple[float, float]:
    """GFLOP and MB of the batch: three products per depth, plus those of L_spa at depth 0."""
    batch, share = mask.shape[0], mask.flatten(1).float().mean().item()
    flop = nbytes = 0.0
    for depth, (n, d, size) in enumerate(shapes):
        masked, visible = share * n, (1 - share) * n
        flop += 6 * batch * masked * visible * d + (6 * batch * visible * n * d) * (depth == 0)
        nbytes += 3 * batch * n * d * size
    return flop / 1e9, nbytes / 1e6


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def markdown(rows: list[dict[str, Any]]) -> str:
    """The columns people read."""
    lines = [
        f"{rows[0]['shape']}, B = {rows[0]['batch']}",
        "",
        "| variant | step | added (quartiles) | within | floor | saved | added | peak | added |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        within = f"{row['within_ms']:.1f} ms, {row['within']:.2%}" if row.get("within_ms") else ""
        peak = f"{row['peak_mb']:.0f} MB | {row['added_peak']:+.2%}" if row["peak_mb"] else "| "
        line = f"| {row['variant']} | {row['median_ms']:.0f} ms | "
        if row["variant"] == "none":
            lines.append(line + f"| | | {row['saved_mb']:.1f} MB | | {peak.split('|')[0]}| |")
            continue
        lines.append(
            line + f"{row['added']:+.2%} ({row['added_q1']:+.2%} to {row['added_q3']:+.2%}) | "
            f"{within} | {row['floor_ms']:.1f} ms, "
            f"{row['floor_gflop']:.1f} GFLOP, {row['floor_mb']:.0f} MB | "
            f"{row['saved_mb']:.1f} MB | {row['added_saved']:+.2%} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
