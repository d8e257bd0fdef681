"""What stands in a checkout that a person edited."""

from __future__ import annotations

import shutil

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset.build import temporary_index
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock
from mto_tools.patchset.upstreams import Upstream


def applied_patches(git: Git, upstream: Upstream, lock: Lock) -> int:
    """Return how many patches of the series the checkout's HEAD holds.

    Raises:
        RefusedError: HEAD descends neither from the pin nor from a commit of the series.
    """
    known = {patch.commit: n for n, patch in enumerate(lock.patches, 1)} | {lock.base_commit: 0}
    for line in git.text("rev-list", "--first-parent", "--max-count=1000", "HEAD").split("\n"):
        if line in known:
            count = known[line]
            if lock.patches and not count:
                raise RefusedError(
                    f"{git.folder} stands on the pin, without the {len(lock.patches)} patches that "
                    f"{upstream.name} has: an export from here would lose them",
                    hint=f"mto apply {upstream.name}, then edit and export",
                )
            return count
    raise RefusedError(
        f"{git.folder}: HEAD {git.resolve('HEAD')} descends neither from the pin "
        f"{upstream.pin} nor from a commit of its series",
        hint=f"mto status {upstream.name}",
    )


def edited_tree(git: Git) -> str:
    """Return the tree of all tracked files as they stand in the work tree.

    Raises:
        ConflictError: The index has unmerged files.
    """
    unmerged = git.text("diff", "--name-only", "--diff-filter=U")
    if unmerged:
        raise ConflictError(
            f"{git.folder} has unmerged files: {', '.join(unmerged.splitlines())}",
            hint="resolve them and git add them",
        )
    with temporary_index(git) as away:
        index = git.git_dir() / "index"
        if not index.exists():
            raise MissingError(f"{git.folder} has no index: nothing is checked out there")
        shutil.copy2(index, away.env["GIT_INDEX_FILE"])
        away.run("add", "-u", convert=True)
        return away.text("write-tree", "--missing-ok")


def untracked(git: Git) -> tuple[str, ...]:
    """Return files git would track but does not."""
    out = git.text("ls-files", "-z", "--others", "--exclude-standard", convert=True)
    return tuple(out.split("\0")[:-1])
