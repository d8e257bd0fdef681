"""The facts kept about a clone, and the move of its HEAD, branches and index to a commit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.locks import private, write_file
from mto_tools.patchset.series import ZERO

BRANCH = "refs/heads/mto"
BASE = "refs/heads/base"  # only in clones that mto made


@dataclass
class CloneState:
    """The facts about a clone that are kept between commands, in `.git/mto/state`."""

    created_by_mto: bool = False  # then its branch `base` is ours to move
    original_ref: str = ""  # branch the user was on before apply; "" for a detached HEAD
    original_commit: str = ""  # commit the user was at
    owns_branch: bool = False  # mto made the branch `mto`, and may delete it
    commits: list[str] = field(default_factory=list)  # pins of clones mto made, and of series
    missing: dict[str, str] = field(default_factory=dict)  # path to OID the source lacked


def read_state(git: Git) -> CloneState:
    """Return the facts kept about the clone; a fresh record where there are none."""
    try:
        return CloneState(**json.loads((git.git_dir() / "mto" / "state").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return CloneState()


def write_state(git: Git, state: CloneState) -> None:
    """Keep the facts about the clone."""
    write_file(private(git) / "state", json.dumps(asdict(state), indent=1).encode())


@dataclass(frozen=True)
class BranchMove:
    """A clone whose HEAD moves; where it is not at `ref` and `head` any more, it is left alone."""

    repo: str  # top folder of the clone
    ref: str  # branch HEAD is on before; "" for a detached HEAD
    head: str  # commit HEAD is at before
    attach: str  # branch HEAD is on afterwards; "" for a detached HEAD
    goal: str  # commit HEAD is at afterwards
    refs: Sequence[Sequence[str]] = ()  # (ref, new OID or "" to delete it, old OID or "" for none)
    state: CloneState | None = None  # new facts about the clone; None leaves them
    commit_all: bool = False  # the index takes the tracked files, as `git commit -a` does


def require_free_name(git: Git, move: BranchMove) -> None:
    """Raise RefusedError where a branch to be made has its name taken by another, as `mto/x`."""
    for ref, new, old in move.refs:
        below = git.text("for-each-ref", "--format=%(refname:short)", f"{ref}/").split("\n")
        if new and not old and below[0]:
            raise RefusedError(
                f"{git.folder} has the branch {below[0]}, so git cannot make the branch "
                f"{ref.removeprefix('refs/heads/')}",
                hint=git.command("branch", "-m", below[0], f"my-{below[0]}"),
            )


def find_base(git: Git, commits: Collection[str]) -> tuple[str, int]:
    """Return the latest of `commits` that HEAD builds on, and how many commits lie in between.

    ("", 0) where HEAD builds on none of them.
    """
    history = ("rev-list", "--first-parent", "--max-count=1000", "HEAD")
    listed = git.text(*history, check=False).split()
    return next(((oid, ahead) for ahead, oid in enumerate(listed) if oid in commits), ("", 0))


def checked_out_elsewhere(git: Git, ref: str) -> bool:
    """Whether another work tree of the same repository has `ref` checked out."""
    listed = git.text("for-each-ref", "--format=%(refname) %(worktreepath)", ref)
    return listed.startswith(f"{ref} /") and git.head()[0] != ref


def can_move(git: Git, move: BranchMove) -> bool:
    """Whether HEAD is where it was before the move, or where a beginning of it has put it."""
    return git.head() in ((move.ref, move.head), (move.attach, move.goal), ("", move.goal))


def move_head(git: Git, move: BranchMove) -> None:
    """Move branches, HEAD and index; each of them only where the user has not moved it since.

    Repeating it does no harm.
    """
    if git.head() != (move.attach, move.goal):
        git.run("update-ref", "--no-deref", "-m", "mto", "HEAD", move.goal)
    lines = [
        f"update {ref} {new or ZERO} {old or ZERO}\n"
        for ref, new, old in move.refs
        if git.resolve(ref) == old != new
    ]
    git.run("update-ref", "-m", "mto", "--stdin", input="".join(lines).encode())
    if move.attach and git.resolve(move.attach) == move.goal:
        git.run("symbolic-ref", "-m", "mto", "HEAD", move.attach)
    if move.state is not None:
        write_state(git, move.state)
    _move_index(git, move)


def _move_index(git: Git, move: BranchMove) -> None:
    """Carry the index from `head` to `goal`, so that what the user staged stays staged."""
    copy = private(git) / "index"
    for left in (copy, copy.with_name("index.lock")):
        left.unlink(missing_ok=True)
    away = index_copy(git, copy)
    if away.try_run("read-tree", "-i", "-m", move.head, move.goal)[0]:
        if not move.commit_all:
            return  # staged since the step was decided
        away.run("add", "-u", convert=True)
    away.try_run("update-index", "-q", "--refresh", convert=True)
    copy.replace(git.git_dir() / "index")


def index_copy(git: Git, copy: Path) -> Git:
    """Copy the index, if there is one, to `copy`; return the same repository with that one."""
    index = git.git_dir() / "index"
    if index.exists():
        shutil.copy2(index, copy)  # git compares its time with that of files
    return git.with_env(GIT_INDEX_FILE=str(copy))
