"""The command `mto` as a process, and clones of mto for it to act on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[1]


def mto(*words: object, cwd: Path | None = None, **env: str | None) -> subprocess.CompletedProcess:
    """Run `mto WORDS`; `env` changes the environment, None takes a variable away."""
    return subprocess.run(
        [sys.executable, "-m", "mto_tools.cli", *map(str, words)],
        env={name: value for name, value in {**os.environ, **env}.items() if value is not None},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def make_home(folder: Path, *names: str) -> Path:
    """Make a clone of mto that has some of our upstreams."""
    for name in ("patches", "mto_core"):
        (folder / name).mkdir(parents=True)
    for name in names:
        shutil.copytree(HOME / "patches" / name, folder / "patches" / name)
    if "mini" in names:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HOME / "upstream/embedded", folder / "upstream/embedded", ignore=ignore)
    return folder
