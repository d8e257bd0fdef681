"""What the numbers depend on besides the command: software and hardware."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "timm", "numpy", "scikit-learn", "mto-core")


def versions() -> dict[str, str]:
    """Versions of the software and names of the processors."""
    import torch

    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    gpus = torch.cuda.device_count()
    return {
        "python": platform.python_version(),
        **{name: installed.get(name, "not installed") for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": _cpu(),
        "GPU": f"{gpus} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
        if gpus
        else "none",
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
