"""Recipes of this clone, and one process that stands for a rank of eight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for plans.py
PATCHES = HERE.parents[1] / "patches"


@pytest.fixture(scope="session")
def rank_of_eight() -> dict[str, Any]:
    """DeepSpeed's reading of all committed configurations, and ZeRO's memory."""
    pytest.importorskip("deepspeed")
    files = sorted(str(file) for file in PATCHES.glob("*/deepspeed/*.json"))
    done = subprocess.run(
        [sys.executable, str(HERE / "rank_of_eight.py"), *files],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
