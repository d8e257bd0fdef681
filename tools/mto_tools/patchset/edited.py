"""What stands in a checkout that a person edited."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset.build import temporary_index
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock
from mto_tools.upstreams.upstream import Upstream


def applied_patches(git: Git, upstream: Upstream, lock: Lock) -> int:
    """Return how many patches of the series the checkout's HEAD holds.

    Raises:
        RefusedError: HEAD descends neither from the pin nor from a commit of the series; or it is
            a commit of the user's on top of a part of the series.
    """
    known = {patch.commit: n for n, patch in enumerate(lock.patches, 1)} | {lock.base_commit: 0}
    head = git.resolve("HEAD")
    for line in git.text("rev-list", "--first-parent", "--max-count=1000", "HEAD").split("\n"):
        if line in known:
            count = known[line]
            if line != head and count < len(lock.patches) and git.resolve(lock.commit):
                raise _unclear(git, upstream, lock, count)
            if lock.patches and not count:
                raise RefusedError(
                    f"{git.folder} stands on the pin, without the {len(lock.patches)} patches that "
                    f"{upstream.name} has: an export from here would lose them",
                    hint=f"mto apply {upstream.name}, then edit and export",
                )
            return count
    raise RefusedError(
        f"{git.folder}: HEAD {head} descends neither from the pin {upstream.pin} nor from a "
        "commit of its series",
        hint=f"mto status {upstream.name}",
    )


def _unclear(git: Git, upstream: Upstream, lock: Lock, count: int) -> RefusedError:
    """`commit --amend` and rebase leave the later patches' lines in a commit of another name."""
    ends = ", ".join(f"{patch.file} {patch.commit}" for patch in lock.patches[max(count - 1, 0) :])
    return RefusedError(
        f"{git.folder}: HEAD {git.resolve('HEAD')} is a commit of yours on top of {count} of "
        f"{len(lock.patches)} patches; it may hold the others too, if you amended or rebased them",
        hint=f"git -C {git.folder} reset --soft COMMIT changes no file; COMMIT belongs to the last "
        f"patch they hold: {ends}"
        + ("" if count else f"; if they hold none: mto apply {upstream.name}, then edit"),
    )


def edited_tree(git: Git) -> str:
    """Return the tree of all tracked files as they stand in the work tree.

    Raises:
        ConflictError: The index has unmerged files.
        RefusedError: A file differs that git was told to overlook.
    """
    unmerged = git.text("diff", "--name-only", "--diff-filter=U")
    if unmerged:
        raise ConflictError(
            f"{git.folder} has unmerged files: {', '.join(unmerged.splitlines())}",
            hint="resolve them and git add them",
        )
    with copied_index(git) as away:
        away.run("add", "-u", convert=True)
        return away.text("write-tree", "--missing-ok")


@contextmanager
def copied_index(git: Git) -> Iterator[Git]:
    """Give the same repository with a copy of its index, in which nothing is overlooked.

    Raises:
        MissingError: There is no index.
        RefusedError: A file differs that git was told to overlook.
    """
    with temporary_index(git) as away:
        index = git.git_dir() / "index"
        if not index.exists():
            raise MissingError(f"{git.folder} has no index: nothing is checked out there")
        shutil.copy2(index, away.env["GIT_INDEX_FILE"])
        _refuse_overlooked(away)
        yield away


def _refuse_overlooked(away: Git) -> None:
    """Clear assume-unchanged and skip-worktree in the copy, and refuse the files that differ."""
    listed = away.text("ls-files", "-z", "-v").split("\0")[:-1]
    told = [(entry[0], entry[2:]) for entry in listed if entry[0] == "S" or entry[0].islower()]
    # What a sparse checkout left out is not there, and is no edit.
    marked = {p for tag, p in told if tag not in "Ss" or os.path.lexists(away.folder / p)}
    if not marked:
        return
    names = "\0".join(sorted(marked)).encode("utf-8", "surrogateescape")
    for flag in ("--no-assume-unchanged", "--no-skip-worktree"):  # git takes one at a time
        away.run("update-index", flag, "-z", "--stdin", input=names)
    away.run("update-index", "-q", "--refresh", check=False, convert=True)
    differ = away.text("diff-files", "--name-only", "-z", convert=True).split("\0")[:-1]
    if hidden := sorted(marked.intersection(differ)):
        raise RefusedError(
            f"{away.folder} has edits that git was told to overlook: {', '.join(hidden)}",
            hint=f"git -C {away.folder} update-index --no-assume-unchanged FILE (or "
            "--no-skip-worktree) makes them part; git diff then shows them",
        )


def untracked(git: Git) -> tuple[str, ...]:
    """Return files git would track but does not."""
    out = git.text("ls-files", "-z", "--others", "--exclude-standard", convert=True)
    return tuple(out.split("\0")[:-1])
