"""The root of the mto clone: the folder that holds `patches/` and `upstream/`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mto_tools.errors import MissingError


def find_home() -> Path:
    """Return the root of the mto clone.

    Looked for in this order: the environment variable `MTO_HOME`, the working directory and its
    parents, the clone this package was installed from with `pip install -e`. So a command acts on
    the clone it is given in, also where the installed package belongs to another one.

    Raises:
        MissingError: None of them holds `patches/` and `mto_core/`.
    """
    named = os.environ.get("MTO_HOME")
    working: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # a working folder that was deleted
        working = [Path.cwd(), *Path.cwd().parents]
    installed = Path(__file__).parents[2]
    for candidate in [Path(named)] if named else [*working, installed]:
        if (candidate / "patches").is_dir() and (candidate / "mto_core").is_dir():
            return candidate.resolve()
    where = named or "the working directory, its parents, and the folder of the package"
    raise MissingError(
        f"no mto clone found: looked for a folder with patches/ and mto_core/ in {where}",
        hint="cd into your clone of mto, or export MTO_HOME=/path/to/it",
    )
