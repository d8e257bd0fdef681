"""See that the patched checkout is in place before it is run."""

from __future__ import annotations

import shlex
from pathlib import Path

from mto_tools.errors import MtoError, RefusedError
from mto_tools.patchset.apply import apply
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import open_upstream
from mto_tools.patchset.locks import Say
from mto_tools.patchset.status import EDITED, status


def ready(home: Path, name: str, say: Say, *, allow_edited: bool) -> tuple[Path, dict[str, str]]:
    """Apply the series of `name` where that is needed.

    Args:
        home: The mto clone.
        name: Of the upstream.
        say: Takes lines for the user.
        allow_edited: Run a checkout with the user's own edits as it is.

    Returns:
        The checkout, and the commits that the numbers come from.

    Raises:
        RefusedError: The checkout was edited since the series was applied.
        MissingError, CorruptError: Whatever keeps the series from being applied.
    """
    upstream = open_upstream(home, name, say)
    found = status(upstream, say)
    edited = ""
    if found.word == EDITED:
        edited = f", edited: {', '.join(found.edited) or found.detail}"
        if not allow_edited:
            raise RefusedError(
                f"{found.repo} was edited since the series was applied{edited[:300]}; "
                "the report would not say what was run",
                hint=f"git -C {shlex.quote(found.repo)} stash    # sets the edits aside; or "
                "compare with --allow-edited",
            )
        commit = found.head
    else:
        commit = apply(upstream, say).commit
    return Path(found.repo), {
        "mto commit": _head(home),
        f"{name} pin": upstream.pin,
        f"{name} commit": commit + edited,
    }


def _head(home: Path) -> str:
    git = Git(home)
    try:
        if not git.is_toplevel():
            return "unknown: not a git clone"
    except MtoError as error:  # such as a clone that another user owns
        return f"unknown: {error.message}"
    edits = git.text("status", "--porcelain", "--untracked-files=no", convert=True)
    return git.resolve("HEAD") + (" with local edits" if edits else "")
