"""Results on the screen and in files, with the machine that gave them."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

RESULTS = Path(__file__).parent / "results"
Row: TypeAlias = dict[str, Any]


def machine(device: torch.device) -> str:
    """Hardware, threads and versions in a line."""
    hardware = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        named = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        hardware = f"{named[0].split(':')[1].strip()}, {len(named)} logical cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{hardware}, {torch.get_num_threads()} threads, {versions}"


def show(
    title: str,
    rows: list[Row],
    device: torch.device,
    save: Path | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Prints a table with its machine and notes; with `save` also into `save`.md, `save`.csv."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[str(row.get(name, "")) for name in columns] for row in rows]
    lines = [f"# {title}", machine(device), ""]
    lines += ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *cells)]
    text = "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"
    print(text, flush=True)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.with_suffix(".md").write_text(text)
        with save.with_suffix(".csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *cells])
