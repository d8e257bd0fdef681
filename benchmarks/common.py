"""Shared by the benchmarks: the machine, its rate, what autograd saves, tables of results."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

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


def report(
    stem: str, title: str, rows: list[dict[str, object]], device: torch.device, save: bool
) -> None:
    """Prints machine and table; with `save` also into benchmarks/results/STEM.md."""
    hardware = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        named = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        hardware = f"{named[0].split(':')[1].strip()}, {len(named)} logical cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [f"# {title}", f"{hardware}, {torch.get_num_threads()} threads, {versions}", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]))]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{stem}_{device.type}.md").write_text(text)
