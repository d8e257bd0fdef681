"""What MTO adds to a training step: time, saved activations, peak memory.

    python benchmarks/overhead.py [--shapes simmim mae swin] [--rounds 9] [--device cuda] [--save]

The baseline is forward and backward of the same model without MTO, in the same run: each step of a
variant has one beside it, before or after by turns. `added` is the median over rounds of
(variant - baseline) / baseline, with quartiles. On a CPU, where such a difference of long times is
noisy, `within` is what MTO took of the very same steps, by the clock: its forward, and its own
nodes in the backward; relative to the rest of that step. Only the sum of its gradients with the
model's is not in it. `preset` is that of the shapes, any other variant weighs all three terms
(preset `literal`). Logged steps have `diagnostics=True`: all terms and depths.

Below the table stands what balance and calibration add to a run, at their default schedules: the
median of a measured step less one that is not measured, over a step without MTO.

`a mean of tokens` is about the cheapest loss that reaches the same tokens: their mean, at all
depths or at that of the preset's term.

Saved activations are the distinct storages that autograd packs, parameters not counted; tokens that
the model saves anyway are counted once, with the baseline. The floor is the three products of each
depth (logits, gradients by queries and by keys), and those of L_spa at depth 0, at the rate of a
large float32 matmul in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from models import SHAPES
from table import RESULTS, Row, show
from torch import Tensor

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace
from mto_core.balance import CALIBRATIONS
from mto_core.checks import Backend, Preset
from mto_core.inputs import whole_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["simmim", "mae", "swin"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--batch", type=int, help="default: 8 (Swin 4) on the CPU, 128 (64) on CUDA"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--run_steps", type=int, default=10_000, help="of a run, for calibration")
    parser.add_argument("--compiled", action="store_true", help="also the default, compiled")
    parser.add_argument(
        "--save", nargs="?", const=RESULTS, type=Path, metavar="DIR", help="write DIR/overhead_*"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    precision = "bfloat16 autocast" if device.type == "cuda" else "float32"
    for name in args.shapes:
        torch.manual_seed(0)
        model: Any = SHAPES[name]().to(device).train()
        batch = args.batch or getattr(model, f"batch_{args.device}")
        title = f"MTO in a training step: {model.title}, B = {batch}, {precision}"
        steps = Steps(model, batch, device, "mae" if name == "mae" else "simmim")
        rows, base = steps.measure(variants(device, steps.preset, args.compiled), args.rounds)
        notes = steps.measuring(args.rounds, base, args.run_steps)
        file = args.save / f"overhead_{name}_{args.device}" if args.save else None
        show(title, rows, device, file, notes)


def variants(
    device: torch.device, preset: Preset, compiled: bool = False
) -> dict[str, Callable[..., Any]]:
    """Backends with all terms weighted, eager and compiled; the weights of `preset`."""

    def form(config: MTOConfig, logged: bool, compiled: bool = False) -> Callable[..., Any]:
        module: Any = MaskedTokenOptimization(config)
        return partial(torch.compile(module) if compiled else module, diagnostics=logged)

    cuda = device.type == "cuda"
    backends: list[Backend] = ["dense", "recompute", *(["fused"] if cuda else [])]
    literal = {name: MTOConfig.preset("literal", backend=name) for name in backends}
    found = {name: form(config, False) for name, config in literal.items()} | {
        "default, logged": form(MTOConfig.preset("literal"), True),
        f"preset {preset}, logged": form(MTOConfig.preset(preset), True),
        f"preset {preset}, unlogged": form(MTOConfig.preset(preset), False),
    }
    if compiled:
        found["default, compiled"] = form(MTOConfig.preset("literal"), False, compiled=True)
    depth = MTOConfig.preset(preset).sparsity_depth
    return found | {
        "a mean of tokens, all depths": mean_of_tokens(slice(None)),
        "a mean of tokens, one depth": mean_of_tokens(slice(depth, depth + 1 or None)),
    }


def mean_of_tokens(depths: slice) -> Callable[..., Any]:
    """A loss that reads the tokens of some depths, and does nothing else."""

    def forward(tokens: Sequence[Tensor], *_: Any, **__: Any) -> SimpleNamespace:
        means = [x.mean(dtype=torch.float32) for x in whole_tokens(tokens, 0)[0][depths]]
        return SimpleNamespace(total=torch.stack(means).sum())

    return forward


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the distinct storages that autograd saves, those of `known` tensors left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        owned = {t.untyped_storage().data_ptr() for t in known}
        self.kept: dict[int, Tensor] = {}  # alive while counting, so that no address recurs

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in owned:
                self.kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor.detach()  # a node that holds its own output is never freed

        super().__init__(pack, lambda tensor: tensor)

    def megabytes(self) -> float:
        """Saved so far."""
        return sum(t.untyped_storage().nbytes() for t in self.kept.values()) / 1e6


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds, and on CUDA the peak of allocated MB."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    took = 1e3 * (time.perf_counter() - start)
    return took, torch.cuda.max_memory_allocated() / 1e6 if cuda else 0.0


def matmul_rate(device: torch.device, dim: int) -> float:
    """Float32 FLOP per millisecond of a large matmul of this width."""
    a, b = torch.randn(2048, dim, device=device), torch.randn(dim, 4 * dim, device=device)
    took = [timed(partial(torch.matmul, a, b), device)[0] for _ in range(12)]
    return 2 * 2048 * dim * 4 * dim / statistics.median(took[2:])


class Clock:
    """Milliseconds that MTO takes within a step; on a CPU, where calls end when their work does."""

    def __init__(self) -> None:
        self.took = self.start = 0.0

    def go(self, *_: Any) -> None:
        """Starts; the arguments are those of a hook."""
        self.start = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Adds the time since `go`."""
        self.took += 1e3 * (time.perf_counter() - self.start)

    def watch(self, total: Tensor, tokens: Sequence[Tensor]) -> None:
        """Counts the nodes of the backward between `total` and the tokens."""
        seen: list[Any] = [None, *(t.grad_fn for t in tokens)]
        found: list[Any] = [total.grad_fn]
        while found:
            if (node := found.pop()) in seen:
                continue
            seen.append(node)
            node.register_prehook(self.go)
            node.register_hook(self.stop)
            found += [following for following, _ in node.next_functions]


class Steps:
    """Steps of one model, with and without MTO."""

    def __init__(self, model: Any, batch: int, device: torch.device, preset: Preset) -> None:
        self.model, self.device, self.preset = model, device, preset
        self.images = torch.randn(batch, 3, model.pixels, model.pixels, device=device)
        self.mask = model.masks(batch).to(device)
        on_cuda = device.type == "cuda"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=on_cuda)
        self.trace = TokenTrace(model.blocks, num_prefix_tokens=model.prefix)

    def step(self, mto: Callable[..., Any] | None, clock: Clock) -> None:
        """Forward and backward; without MTO the trace stays unarmed."""
        self.model.zero_grad(set_to_none=True)
        with self.autocast:
            if mto is None:
                self.model(self.images, self.mask).backward()
                return
            with self.trace:
                loss = self.model(self.images, self.mask)
            tokens = self.trace.tokens_by_depth
            clock.go()
            total = mto(tokens, self.mask, loss=loss).total
            clock.stop()
            if self.device.type == "cpu":
                clock.watch(total, tokens.whole)
        self.trace.clear()
        (loss + total).backward()

    def saved(self, mto: Callable[..., Any]) -> tuple[float, float, float]:
        """MB that the model's graph holds, MB that MTO adds, and the floor in FLOP."""
        saved = Saved([*self.model.parameters(), self.images, self.mask])
        with self.autocast, saved:
            with self.trace:
                loss = self.model(self.images, self.mask)
            tokens = self.trace.tokens_by_depth
            before = saved.megabytes()
            total = mto(tokens, self.mask).total
            added = saved.megabytes() - before
        del loss, total
        share, flop = self.mask.float().mean().item(), 0.0
        for depth, (batch, n, d) in enumerate(t.shape for t in tokens):
            rows = share + (depth == 0)  # L_spa has all keys
            flop += 6 * batch * d * n * n * (1 - share) * rows
        self.trace.clear()
        return before, added, flop

    def measuring(self, rounds: int, base: float, run_steps: int) -> list[str]:
        """A line each for balance and calibration; `base` is a step without MTO, in ms."""
        lines = []
        for mode in ("balance", "calibrate"):
            config = MTOConfig.preset(self.preset, **{mode: 0.1})
            more = []
            for turn in range(rounds + 1):
                mto = MaskedTokenOptimization(config)
                took = [
                    timed(
                        partial(self.step, partial(mto, diagnostics=False, step=step), Clock()),
                        self.device,
                    )[0]
                    for step in (0, 3)  # the first is measured, the other is not
                ]
                if turn:
                    more.append(took[0] - took[1])
            extra = statistics.median(more)
            every, which = f"every {config.balance_every} steps", "any run"
            share = extra / config.balance_every / base
            if mode == "calibrate":
                every, which = f"{CALIBRATIONS} times", f"a run of {run_steps} steps"
                share = CALIBRATIONS * extra / (run_steps * base)
            lines.append(
                f"{mode}, preset {self.preset}: a measured step takes {extra:.0f} ms more than "
                f"another ({100 * extra / base:.1f} % of one without MTO), {every}: "
                f"{100 * share:.3f} % of {which}."
            )
        return lines

    def measure(self, forms: dict[str, Callable[..., Any]], rounds: int) -> tuple[list[Row], float]:
        """One row per variant, the baseline first; and the baseline's step in milliseconds."""
        took: dict[str, list[tuple[float, float, float]]] = {}
        peaks: dict[str, float] = {}
        for turn in range(rounds + 1):  # the first round warms up
            for name, mto in forms.items():
                clock, times = Clock(), {}
                pair = [(name, mto), ("none", None)]
                for which, form in pair if turn % 2 else reversed(pair):
                    times[which], peak = timed(partial(self.step, form, clock), self.device)
                    if turn:
                        peaks[which] = max(peaks.get(which, 0.0), peak)
                if turn:
                    took.setdefault(name, []).append((times[name], times["none"], clock.took))
        base = statistics.median(none for pairs in took.values() for _, none, _ in pairs)
        rate = matmul_rate(self.device, self.model.dim)
        rows: list[Row] = []
        for name, pairs in took.items():
            added = [100 * (t / none - 1) for t, none, _ in pairs]
            low, middle, high = statistics.quantiles(added, n=4) if rounds > 1 else added * 3
            before, saved, flop = self.saved(forms[name])
            inside = statistics.median(mine for *_, mine in pairs)
            share = statistics.median(100 * mine / (t - mine) for t, _, mine in pairs)
            row: Row = {
                "variant": name,
                "step": f"{statistics.median(t for t, *_ in pairs):.0f} ms",
                "added (quartiles)": f"{middle:+.2f} % ({low:+.2f} to {high:+.2f})",
                "within": f"{inside:.1f} ms, {share:.2f} %" if self.device.type == "cpu" else "",
                "floor": f"{flop / rate:.1f} ms",
                "saved": f"{before + saved:.1f} MB, {100 * saved / before:+.2f} %",
            }
            none = {"variant": "none", "step": f"{base:.0f} ms", "saved": f"{before:.1f} MB"}
            if peak := peaks["none"]:
                row["peak"] = f"{peaks[name]:.0f} MB, {100 * (peaks[name] / peak - 1):+.2f} %"
                none["peak"] = f"{peak:.0f} MB"
            rows = rows or [dict.fromkeys(row, "") | none]
            rows.append(row)
        return rows, base


if __name__ == "__main__":
    main()
