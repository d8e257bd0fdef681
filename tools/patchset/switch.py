"""Move a clone's work tree from one commit to another, and keep what is the user's."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.patchset.build import temporary_index, write_commit
from mto_tools.patchset.git import HINT_DISK, Git, is_disk_full
from mto_tools.patchset.journal import (
    Journal,
    begin,
    deferred_interrupt,
    index_digest,
    private,
    settle,
)
from mto_tools.patchset.lock import write_atomically
from mto_tools.patchset.worktree import Change, Version, changes, states

BRANCH = "refs/heads/mto"
BASE = "refs/heads/base"  # only in clones that mto made
KEEP = "refs/heads/mto-keep"


@dataclass
class Record:
    """What we keep about a clone between commands, in `.git/mto/state`.

    Attributes:
        made: mto made this clone; its branch `base` is ours to move.
        before_ref: Branch the user was on before apply; "" for a detached HEAD.
        before_commit: Commit the user was at.
        ours: Commits that mto put there: pins of clones it made, and commits of series.
        missing: Path to OID of files the source lacked.
    """

    made: bool = False
    before_ref: str = ""
    before_commit: str = ""
    ours: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def read_record(git: Git) -> Record:
    """Return what we know about the clone; a fresh record where that is nothing."""
    try:
        return Record(**json.loads((git.git_dir() / "mto" / "state").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return Record()


def write_record(git: Git, record: Record) -> None:
    """Keep what we know about the clone."""
    write_atomically(private(git) / "state", json.dumps(asdict(record), indent=1).encode())


def edited_files(git: Git) -> dict[str, str]:
    """Return tracked files that differ from HEAD, each with git's two letters (index, file).

    The user's configuration decides, so CRLF under autocrlf=true is no edit.
    """
    raw = git.run(
        *("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames"),
        convert=True,
    ).decode("utf-8", "surrogateescape")
    return {entry[3:]: entry[:2] for entry in raw.split("\0") if entry}


def in_the_way(git: Git, files: dict[str, Change]) -> dict[str, str]:
    """Return the files a switch would have to overwrite, each with the reason.

    Contents are compared by OID as well: git overlooks edits of files marked assume-unchanged.
    """
    blocked: dict[str, str] = {}
    edited = edited_files(git)
    for path, state in states(git, files).items():
        letters = edited.get(path, "  ")
        if files[path][0] is None and letters != "  ":
            blocked[path] = "staged by you, and the switch adds it"
        elif files[path][0] is None and state != "from":
            blocked[path] = "untracked, and the switch adds it"
        elif letters[0] != " ":
            blocked[path] = "staged"
        elif state != "from" or letters != "  ":
            blocked[path] = "edited" if (git.folder / path).exists() else "deleted"
    return blocked


def refuse_if_blocked(git: Git, files: dict[str, Change], verb: str) -> None:
    """Raise where going on would overwrite something of the user's.

    Raises:
        RefusedError: Names every such file.
    """
    blocked = in_the_way(git, files)
    if blocked:
        names = ", ".join(f"{path} ({why})" for path, why in sorted(blocked.items()))
        raise RefusedError(
            f"mto {verb} would overwrite what you have in {git.folder}: {names}",
            hint=f"commit it, or let mto put it on a branch first: mto {verb} --keep",
        )


def switch(
    git: Git,
    goal: str,
    *,
    verb: str,
    refs: list[list[str]] | None = None,
    attach: str = "",
) -> None:
    """Bring work tree, index and HEAD to `goal`; needs the clone's lock.

    Args:
        git: The clone.
        goal: Full OID of a commit.
        verb: What the user asked for, e.g. "apply mini".
        refs: [ref, new or "" to delete, old or ""], moved after the switch.
        attach: Branch to be on afterwards, if it then points to `goal`.

    Raises:
        RefusedError: Local edits are in the way, or another git is at work.
        MtoError: git could not switch; the clone is as it was before.
    """
    start = git.resolve("HEAD")
    files = changes(git, start, goal) if start != goal else {}
    refuse_if_blocked(git, files, verb)
    journal = Journal(verb, start, goal, files, index_digest(git), refs or [], attach)
    index = begin(git, journal)
    words = ""
    with deferred_interrupt():
        if start != goal:
            # Not --overwrite-ignore: an ignored file is the user's, too.
            _, _, words = git.try_run(
                *("switch", "--quiet", "--detach", "--no-guess", "--no-overwrite-ignore", goal),
                env={"GIT_INDEX_FILE": str(index)},
                convert=True,
            )
        _, kept = settle(git, journal)
    if git.resolve("HEAD") != goal:
        what = (
            f"mto {verb}: git could not switch {git.folder} from {start} to {goal}: "
            f"{' '.join(words.split())}; everything is as it was before"
        )
        if is_disk_full(words):
            raise MissingError(what, hint=HINT_DISK)
        raise MtoError(what, hint=f"see that {git.folder} and all in it is yours to write")
    if kept:
        raise MtoError(
            f"mto {verb}: {', '.join(kept)} changed in {git.folder} during the switch; left alone",
            hint="mto status says where you are; mto revert NAME --keep goes back",
        )


def keep(git: Git, files: dict[str, Change], *, verb: str) -> str:
    """Put the user's edits on a branch of their own and clean the work tree; needs the lock.

    The commit has the form of a stash: its parents are HEAD, the index, and the untracked files
    that are in the way, so `git stash apply --index BRANCH` restores all three. Untracked files
    that are not in the way stay where they are.

    Returns:
        Name of the branch, "" where there was nothing to keep.
    """
    edited = edited_files(git)
    blocked = in_the_way(git, files)
    untracked = sorted(path for path in blocked if path not in edited and files[path][0] is None)
    hidden = sorted(path for path in blocked if path not in edited and path not in untracked)
    if not edited and not blocked:
        return ""
    for path in untracked:
        if not (git.folder / path).is_file() and not (git.folder / path).is_symlink():
            raise RefusedError(
                f"{git.folder / path} is no file, and the switch adds a file of that name",
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
