"""Where the house stands: the clone that holds `patches/` and `upstream/`."""

from __future__ import annotations

import os
from pathlib import Path

from mto_tools.errors import MissingError


def find_home() -> Path:
    """Return the root of the mto clone.

    Looked for in this order: the environment variable `MTO_HOME`, the clone this package was
    installed from with `pip install -e`, the working directory and its parents.

    Raises:
        MissingError: None of them holds a `patches` folder.
    """
    named = os.environ.get("MTO_HOME")
    cwd = Path.cwd()
    candidates = [Path(named)] if named else [Path(__file__).parents[2], cwd, *cwd.parents]
    for candidate in candidates:
        if (candidate / "patches").is_dir() and (candidate / "mto_core").is_dir():
            return candidate.resolve()
    raise MissingError(
        f"no mto clone found: looked for a folder with patches/ and mto_core/ in "
        f"{named or cwd}{'' if named else ' and its parents'}",
        hint="cd into your clone of mto, or export MTO_HOME=/path/to/it",
    )
