"""What MTO will cost on a GPU, predicted without one.

    python benchmarks/roofline.py [--shapes simmim mae swin] [--rounds 7] [--batch N]

`counting.py` counts the kernels of a training step: their products, and the bytes that they move.
The model's forward, backward and fused AdamW run on fake tensors under autocast; MTO's kernels run
for real on the CPU, with tokens of the same shapes and dtypes. A GPU's time is the roofline of each
kernel, at the rates of the vendor's data sheet: what it takes at least, for the model as for MTO.
Float32 products count outside the tensor cores unless TensorFloat-32 is allowed where they run.

The same count is held against a clock: on this machine's CPU, with the rates of a batched float32
product and of a copy of the tokens from the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from counting import Count, Counting, Rates
from models import SHAPES
from overhead import variants
from table import Row, show
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mto_core import TokenTrace
from mto_core.checks import Preset

# Dense rates without sparsity. 16-bit products are summed in float32, as torch's are.
GPUS = (
    # NVIDIA Ampere GA102 GPU Architecture whitepaper, table "GeForce RTX 3090"
    Rates("RTX 3090", {"16 bit": 71e12, "tf32": 35.6e12, "float32": 35.6e12}, 936e9),
    # NVIDIA A100 Tensor Core GPU data sheet, SXM, 80 GB
    Rates("A100", {"16 bit": 312e12, "tf32": 156e12, "float32": 19.5e12}, 2039e9),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM; its figures with sparsity are halved
    Rates("H100", {"16 bit": 989e12, "tf32": 494e12, "float32": 67e12}, 3350e9),
)
KINDS = ("16 bit", "tf32", "float32")
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["simmim", "mae", "swin"])
    parser.add_argument("--batch", type=int, help="on the GPUs; default: 128 (Swin 64)")
    parser.add_argument("--cpu-batch", type=int, help="default: 8 (Swin 4)")
    parser.add_argument("--rounds", type=int, default=7, help="of the CPU's clock")
    args = parser.parse_args()
    for name in args.shapes:
        torch.manual_seed(0)
        model: Any = SHAPES[name]
        batch = args.batch or model.batch_cuda
        preset: Preset = "mae" if name == "mae" else "simmim"
        step, tokens = count_step(model, batch)
        title = f"Predicted share of a training step: {model.title}, B = {batch}, 16-bit autocast"
        show(title, predict(step, tokens, model.masks(batch), model.prefix, preset), CPU)
        batch = args.cpu_batch or model.batch_cpu
        few = [t[:batch].float() for t in tokens]
        title = f"Predicted and measured on this CPU: {model.title}, B = {batch}, float32"
        show(title, check(few, model.masks(batch), model.prefix, args.rounds, preset), CPU)


def predict(
    step: Count, tokens: list[Tensor], mask: Tensor, prefix: int, preset: Preset
) -> list[Row]:
    """The step without MTO, then what each variant adds, in parts of that step by GPU."""
    rows = [_row("without MTO", step) | {g.name: f"{1e3 * step.seconds(g):.1f} ms" for g in GPUS}]
    for name, mto in variants(CPU, preset).items():
        added = count(partial(train, mto, tokens, mask, prefix))
        shares = {g.name: f"{100 * added.seconds(g) / step.seconds(g):.2f} %" for g in GPUS}
        rows.append(_row(name, added) | shares)
    return rows


def check(
    tokens: list[Tensor], mask: Tensor, prefix: int, rounds: int, preset: Preset
) -> list[Row]:
    """Each variant's forward and backward by the count and by the clock, on one thread of the CPU.

    The clock is the process's own, which a busy machine disturbs least. Rates and variants take
    turns, and medians count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dim = tokens[0].shape[-1]
    a, b = torch.randn(len(mask), 128, dim), torch.randn(len(mask), dim, 128)
    runs: dict[str, Callable[[], object]] = {
        name: partial(train, mto, tokens, mask, prefix)
        for name, mto in variants(CPU, preset).items()
    }
    probes = {"product": partial(torch.bmm, a, b), "copy": partial(_copy_each, tokens)}
    took: dict[str, list[float]] = {name: [] for name in runs | probes}
    for _ in range(rounds + 1):
        for name, run in (runs | probes).items():
            took[name].append(_cpu_seconds(run))
    torch.set_num_threads(threads)
    middle = {name: statistics.median(times[1:]) for name, times in took.items()}
    flop = dict.fromkeys(KINDS, 2 * 128 * a.numel() / middle["product"])
    rates = Rates("this CPU", flop, 2 * sum(t.nbytes for t in tokens) / middle["copy"])
    rows: list[Row] = []
    for name, run in runs.items():
        predicted, measured = count(run).seconds(rates), middle[name]
        row: Row = {"variant": name, "predicted": f"{1e3 * predicted:.1f} ms"}
        row["measured"] = f"{1e3 * measured:.1f} ms"
        row["predicted / measured - 1"] = f"{100 * (predicted / measured - 1):+.0f} %"
        rows.append(row)
    return rows


def _copy_each(tokens: list[Tensor]) -> None:
    """Into new tensors that stay, as those of a graph do: the system's pages have their part."""
    _ = [t.clone() for t in tokens]


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def count(run: Callable[[], object]) -> Count:
    """All kernels of a call."""
    with Counting() as counting:
        run()
    return counting.count


def count_step(kind: Any, batch: int) -> tuple[Count, list[Tensor]]:
    """The kernels of a step of the model, and tokens as its blocks give them, of noise."""
    model = kind().train().to("meta")
    for module in model.modules():  # autocast: float32 on CUDA, and 16 bit on a CPU
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    trace = TokenTrace(model.blocks, num_prefix_tokens=kind.prefix)
    mask = kind.masks(batch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        images = torch.empty(batch, 3, kind.pixels, kind.pixels)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16), trace:
                loss = model(images, mask)
            loss.backward()
            optimizer.step()

        step()  # makes the moments
        counted = count(step)
        found = [(t.shape, t.dtype) for t in trace.tokens_by_depth.whole]
    return counted, [torch.randn(shape).to(dtype) for shape, dtype in found]


def train(mto: Callable[..., Any], tokens: list[Tensor], mask: Tensor, prefix: int) -> None:
    """Forward and backward of MTO alone."""
    leaves = [t.detach().requires_grad_() for t in tokens]
    mto(leaves, mask, num_prefix_tokens=prefix).total.backward()


def _row(name: str, counted: Count) -> Row:
    row: Row = {"": name, "kernels": len(counted.kernels)}
    row |= {f"TFLOP {kind}": f"{counted.flop(kind) / 1e12:.3f}" for kind in KINDS}
    return row | {"GB": f"{counted.bytes() / 1e9:.2f}"}


if __name__ == "__main__":
    main()
