"""Move a clone from one commit to another; refuse where that would cost the user an edit."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mto_tools.errors import MtoError, RefusedError
from mto_tools.patchset.branch_move import STATE, BranchMove
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import SUBMODULE, require_unmodified
from mto_tools.patchset.locks import Say, private, write_file
from mto_tools.patchset.transaction import commit_staged, fingerprint, staging
from mto_tools.patchset.tree_diff import Change, changes

BRANCH = "refs/heads/mto"
BASE = "refs/heads/base"  # only in clones that mto made


@dataclass
class CloneState:
    """The facts about a clone that are kept between commands, in `.git/mto/state`.

    Attributes:
        created_by_mto: mto made this clone; its branch `base` is ours to move.
        original_ref: Branch the user was on before apply; "" for a detached HEAD.
        original_commit: Commit the user was at.
        owns_branch: mto made the branch `mto`, and may delete it.
        commits: Commits that mto put there: pins of clones it made, and commits of series.
        missing: Path to OID of files the source lacked.
    """

    created_by_mto: bool = False
    original_ref: str = ""
    original_commit: str = ""
    owns_branch: bool = False
    commits: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def read_state(git: Git) -> CloneState:
    """Return the facts kept about the clone; a fresh record where there are none."""
    try:
        return CloneState(**json.loads((git.git_dir() / "mto" / STATE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return CloneState()


def write_state(git: Git, state: CloneState) -> None:
    """Keep the facts about the clone."""
    write_file(private(git) / STATE, json.dumps(asdict(state), indent=1).encode())


def checked_out_elsewhere(git: Git, ref: str) -> bool:
    """Whether another work tree of the same repository has `ref` checked out."""
    common = git.common_dir()
    for folder in [common, *(common / "worktrees").glob("*")]:
        if folder.resolve() != git.git_dir().resolve():
            there = git.with_env(GIT_DIR=str(folder))
            if there.text("symbolic-ref", "--quiet", "HEAD", check=False) == ref:
                return True
    return False


def switch(git: Git, move: BranchMove, verb: str, say: Say) -> None:
    """Bring work tree, index, branches and HEAD to `move.goal`, in one step.

    Args:
        git: The clone, held by `clone_lock`.
        move: From where to where.
        verb: The command without `mto`, for messages.
        say: Told of an edit that was made meanwhile and was set aside.

    Raises:
        RefusedError: Local edits are in the way, or another git is at work.
        MtoError: git could not write the target files; nothing has changed.
    """
    _require_free_name(git, move)
    files = [
        change
        for change in changes(git, move.head, move.goal)
        # A submodule is a repository of its own. git makes its folder, and leaves it alone then.
        if SUBMODULE not in (change.old_mode, change.new_mode) or change.before is None
    ]
    before = {change.path: fingerprint(git.folder / change.path) for change in files}
    require_unmodified(git, files, verb)
    _require_writable(git, files)
    place = private(git) / "transaction"
    with staging(place) as new:
        _stage(git, new, move, files, verb)
        steps = {path: (old, fingerprint(new / "files" / path)) for path, old in before.items()}
        steps = {path: step for path, step in steps.items() if any(step)}
        for note in commit_staged(place, git.folder, verb, steps, move, git):
            say(note)


def _stage(git: Git, new: Path, move: BranchMove, files: list[Change], verb: str) -> None:
    """Write the target files into `new/files`, as git would check them out."""
    index, real = new / "index", git.git_dir() / "index"
    if real.exists():
        shutil.copyfile(real, index)
    away = git.with_env(GIT_INDEX_FILE=str(index), GIT_ATTR_SOURCE=move.goal)
    rc, _, words = away.try_run("read-tree", "-i", "-m", move.head, move.goal)
    if rc:
        raise RefusedError(
            f"mto {verb} cannot change the index of {git.folder}: {' '.join(words.split())}",
            hint=f"git -C {shlex.quote(str(git.folder))} status; finish or abort the merge there",
        )
    listed = away.text("ls-files", "-t", "-z").split("\0")
    left_out = {entry[2:] for entry in listed if entry.startswith("S ")}
    wanted = [c.path for c in files if c.after and c.path not in left_out]
    paths = "".join(f"{path}\0" for path in wanted).encode("utf-8", "surrogateescape")
    prefix = f"--prefix={new / 'files'}/"
    away.run("checkout-index", "--quiet", prefix, "-z", "--stdin", input=paths, convert=True)


def _require_free_name(git: Git, move: BranchMove) -> None:
    for ref, new, old in move.refs:
        below = git.text("for-each-ref", "--format=%(refname:short)", f"{ref}/").split("\n")
        if new and not old and below[0]:
            raise RefusedError(
                f"{git.folder} has the branch {below[0]}, so git cannot make the branch "
                f"{ref.removeprefix('refs/heads/')}",
                hint=f"git -C {shlex.quote(str(git.folder))} branch -m "
                f"{shlex.join([below[0], f'my-{below[0]}'])}",
            )


def _require_writable(git: Git, files: list[Change]) -> None:
    folders = {(git.folder / change.path).parent for change in files}
    for folder in sorted({*folders, git.git_dir(), git.common_dir() / "refs" / "heads"}):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise MtoError(
                f"cannot write in {folder}; nothing was changed",
                hint="see that it is yours and not read-only, then run the command again",
            )
