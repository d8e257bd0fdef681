"""Put what the user edited on a branch of its own."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timezone

from mto_tools.errors import RefusedError
from mto_tools.patchset.build import temporary_index, write_commit
from mto_tools.patchset.git import Git
from mto_tools.patchset.holding import deferred_interrupt
from mto_tools.patchset.journal import Journal, begin, index_digest, private, settle
from mto_tools.patchset.switch import edited_files, in_the_way, refuse_beyond_keeping
from mto_tools.patchset.worktree import Change, Version, changes

KEEP = "refs/heads/mto-keep"


def keep(git: Git, files: dict[str, Change], *, verb: str) -> str:
    """Put the user's edits on a branch of their own and clean the work tree; needs the lock.

    The commit has the form of a stash: its parents are HEAD, the index, and the untracked files
    that are in the way, so `git stash apply --index BRANCH` restores all three. Untracked files
    that are not in the way stay where they are.

    Returns:
        Name of the branch, "" where there was nothing to keep.
    """
    edited = edited_files(git, submodules=False)
    blocked = in_the_way(git, files)
    untracked = sorted(path for path in blocked if path not in edited and files[path][0] is None)
    hidden = sorted(path for path in blocked if path not in edited and path not in untracked)
    if not edited and not blocked:
        return ""
    refuse_beyond_keeping(git, [*edited, *blocked], verb)
    for path in sorted({*edited, *blocked}):
        file = git.folder / path
        if os.path.lexists(file) and not file.is_file() and not file.is_symlink():
            who = "the switch adds" if path in untracked else "the clone has"
            raise RefusedError(
                f"{file} is no file, and {who} a file of that name",
                hint=f"move it away, then run mto {verb} --keep again",
            )
    unmerged = git.text("ls-files", "--unmerged")
    if unmerged:
        raise RefusedError(
            f"{git.folder} is in the middle of a merge",
            hint=f"git -C {git.folder} merge --abort, or finish it first",
        )
    head = git.resolve("HEAD")
    now = datetime.now(timezone.utc)
    seconds = int(now.timestamp())
    with temporary_index(git) as index:
        shutil.copyfile(git.git_dir() / "index", index.env["GIT_INDEX_FILE"])
        staged = index.text("write-tree", "--missing-ok")
        if hidden:
            index.run("update-index", "--no-assume-unchanged", "--", *hidden)
        index.run("add", "--update", "--", ":/", convert=True)
        worktree = index.text("write-tree", "--missing-ok")
    parents = [head, write_commit(git, staged, [head], f"index on {head}", seconds)]
    if untracked:
        with temporary_index(git) as index:
            index.run("add", "--force", "--", *untracked, convert=True)
            tree = index.text("write-tree")
        parents.append(write_commit(git, tree, [], f"untracked files on {head}", seconds))
    commit = write_commit(git, worktree, parents, f"kept by mto {verb}, on {head}", seconds)
    ref = f"{KEEP}/{now:%Y%m%d-%H%M%S}"
    number = 1
    # A git killed here leaves a lock on a name that nobody else wants: take the next one.
    while git.resolve(ref) or (git.common_dir() / f"{ref}.lock").exists():
        number += 1
        ref = f"{KEEP}/{now:%Y%m%d-%H%M%S}-{number}"
    git.run("update-ref", ref, commit, "0" * len(commit))
    branch = ref.removeprefix("refs/heads/")

    undone = changes(git, worktree, head)
    for path in untracked:
        oid, mode = _blob(git, parents[-1], path)
        undone[path] = (Version(oid, mode), None)
    clean = private(git) / "index"
    shutil.copyfile(git.git_dir() / "index", clean)
    git.run("read-tree", "--reset", head, env={"GIT_INDEX_FILE": str(clean)})
    note = f"your edits are on branch {branch}: {restore_command(git, branch)}"
    journal = Journal(verb, head, head, undone, index_digest(git), forward=True, note=note)
    with deferred_interrupt():
        begin(git, journal)
        settle(git, journal)
    return branch


def restore_command(git: Git, branch: str) -> str:
    """The command with which a person gets kept edits back."""
    return f"git -C {git.folder} stash apply --index {branch}"


def _blob(git: Git, commit: str, path: str) -> tuple[str, str]:
    mode, _, oid = git.text("ls-tree", commit, "--", path).split("\t")[0].split()
    return oid, mode
