"""Shared by the benchmarks: the machine, its rate, what autograd saves, files of results."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the distinct storages that autograd saves, those of `known` tensors left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        owned = {t.untyped_storage().data_ptr() for t in known}
        self.kept: dict[int, Tensor] = {}  # alive while counting, so that no address recurs

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in owned:
                self.kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    def __enter__(self) -> Saved:
        super().__enter__()
        return self

    def nbytes(self) -> int:
        """Bytes saved so far."""
        return sum(t.untyped_storage().nbytes() for t in self.kept.values())


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds, and on CUDA the peak of allocated bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated()
    return time.perf_counter() - start, 0


def matmul_rate(device: torch.device, rows: int, dim: int) -> float:
    """Float32 GFLOP per second of a large matmul of this width."""
    a, b = torch.randn(rows, dim, device=device), torch.randn(dim, 4 * dim, device=device)
    seconds = [timed(partial(torch.matmul, a, b), device)[0] for _ in range(12)]
    return 2 * rows * dim * 4 * dim / statistics.median(seconds[2:]) / 1e9


def describe(device: torch.device) -> dict[str, str]:
    """Hardware and versions."""
    hardware = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        named = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        hardware = f"{named[0].split(':')[1].strip()}, {len(named)} logical cores"
    return {
        "hardware": hardware,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(
    stem: str,
    title: str,
    command: str,
    rows: list[dict[str, Any]],
    table: str,
    machine: dict[str, str],
) -> None:
    """benchmarks/results/STEM.csv and .md."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[-1], *machine], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    head = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    (RESULTS / f"{stem}.md").write_text(f"# {title}\n\n`python {command}`\n\n{head}\n\n{table}\n")
