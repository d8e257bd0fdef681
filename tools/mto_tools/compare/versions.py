"""What the numbers depend on besides the command: software, commits, hardware."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "timm", "numpy", "scikit-learn", "mto-core")


def versions() -> dict[str, str]:
    """Versions of the software and the names of the processors."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["CPU"] = _cpu()
    found["GPU"] = _gpu()
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
