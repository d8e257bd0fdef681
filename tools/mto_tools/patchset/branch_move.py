"""HEAD, branches and index of a clone moved to a commit whose files are in place already."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

from mto_tools.patchset.git import Git
from mto_tools.patchset.locks import private, write_file

STATE = "state"  # file in the clone's `.git/mto` that keeps what is known about it


@dataclass(frozen=True)
class BranchMove:
    """A clone whose HEAD moves.

    Attributes:
        repo: Top folder of the clone.
        ref: Branch HEAD is on before; "" for a detached HEAD.
        head: Commit HEAD is at before. With `ref`, what must still hold: else it is the user's.
        attach: Branch HEAD is on afterwards; "" for a detached HEAD.
        goal: Commit HEAD is at afterwards.
        refs: (ref, new OID or "" to delete it, old OID or "" for none).
        state: New content of the clone's state file; None leaves it.
        commit_all: The index takes what the tracked files hold, as `git commit -a` does.
    """

    repo: str
    ref: str
    head: str
    attach: str
    goal: str
    refs: tuple[tuple[str, str, str], ...] = ()
    state: dict[str, Any] | None = None
    commit_all: bool = False


def can_move(git: Git, move: BranchMove) -> bool:
    """Whether HEAD is where it was before the move, or where a beginning of it has put it."""
    return git.head() in ((move.ref, move.head), (move.attach, move.goal), ("", move.goal))


def move_head(git: Git, move: BranchMove) -> None:
    """Move branches, HEAD and index; each of them only where the user has not moved it since.

    Repeating it does no harm.
    """
    first = [ref for ref in move.refs if ref[0] == move.attach]
    for ref, new, old in first:
        _move_ref(git, ref, new, old)
    if git.head() != (move.attach, move.goal):
        if move.attach and git.resolve(move.attach) == move.goal:
            git.run("symbolic-ref", "-m", "mto", "HEAD", move.attach)
        else:
            git.run("update-ref", "--no-deref", "-m", "mto", "HEAD", move.goal)
    for ref, new, old in move.refs:
        if (ref, new, old) not in first:
            _move_ref(git, ref, new, old)
    if move.state is not None:
        write_file(private(git) / STATE, json.dumps(move.state, indent=1).encode())
    _move_index(git, move)


def _move_ref(git: Git, ref: str, new: str, old: str) -> None:
    if git.resolve(ref) != old or new == old:
        return
    if new:
        git.run("update-ref", "-m", "mto", ref, new, old or "0" * len(new))
    else:
        git.run("update-ref", "-d", ref, old)


def _move_index(git: Git, move: BranchMove) -> None:
    """Carry the index from `head` to `goal`, so that what the user staged stays staged."""
    index, copy = git.git_dir() / "index", private(git) / "index"
    for left in (copy, copy.with_name("index.lock")):
        left.unlink(missing_ok=True)
    if index.exists():
        shutil.copyfile(index, copy)
    away = git.with_env(GIT_INDEX_FILE=str(copy))
    if away.try_run("read-tree", "-i", "-m", move.head, move.goal)[0]:
        if not move.commit_all:
            return  # staged since the step was decided
        away.run("add", "-u", convert=True)
    away.try_run("update-index", "-q", "--refresh", convert=True)
    copy.replace(index)
