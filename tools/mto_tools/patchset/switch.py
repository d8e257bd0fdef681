"""Move a clone from one commit to another; refuse where that would cost the user an edit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mto_tools.errors import MtoError, RefusedError
from mto_tools.patchset.clone_state import BranchMove, index_copy
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import (
    SUBMODULE,
    blocking_parent,
    edited_files,
    file_version,
    require_visible,
)
from mto_tools.patchset.locks import Say, private
from mto_tools.patchset.transaction import replace_staged
from mto_tools.patchset.tree_diff import Change, changes


def switch(git: Git, move: BranchMove, verb: str, say: Say) -> None:
    """Bring work tree, index, branches and HEAD to `move.goal`, in one step.

    `git` is held by `clone_lock`; `verb` is the command without `mto`. An edit that was made
    meanwhile is set aside, and `say` told of it.

    Raises:
        RefusedError: Local edits are in the way, or another git is at work.
        MtoError: git could not write the target files; nothing has changed.
    """
    files = [
        change
        for change in changes(git, move.head, move.goal)
        # A submodule is a repository of its own. git makes its folder, and leaves it alone then.
        if not change.before or SUBMODULE not in {v.mode for v in change[1:] if v}
    ]
    before = {change.path: file_version(git.folder, change.path) for change in files}
    kept = [change.path for change in files if change.after]
    _require_unmodified(git, files, verb)
    _require_writable(git, files)

    def stage(folder: Path) -> None:
        """Write the target files as git would check them out."""
        away = index_copy(git, folder.with_name("index")).with_env(GIT_ATTR_SOURCE=move.goal)
        away.run("read-tree", "-i", "-m", move.head, move.goal)  # fails in the middle of a merge
        away.run("read-tree", move.goal)  # files that a sparse checkout leaves out, too
        paths = "\0".join(kept).encode("utf-8", "surrogateescape")
        prefix = f"--prefix={folder}/"
        away.run("checkout-index", "--quiet", prefix, "-z", "--stdin", input=paths, convert=True)

    place = private(git) / "transaction"
    for note in replace_staged(place, git.folder, verb, before, kept, stage, move, git):
        say(note)


def _require_writable(git: Git, files: Sequence[Change]) -> None:
    """Refuse a read-only folder: a rename fails there, and a copy into the file can be killed."""
    folders = {(git.folder / change.path).parent for change in files}
    for folder in sorted({*folders, git.git_dir(), git.common_dir() / "refs" / "heads"}):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise MtoError(
                f"cannot write in {folder}; nothing was changed",
                hint="see that it is yours and not read-only, then run the command again",
            )


def _require_unmodified(git: Git, files: Sequence[Change], verb: str) -> None:
    """Refuse a switch that would overwrite something of the user's, with commands to keep it."""
    paths = [change.path for change in files]
    for path in paths:
        link = blocking_parent(git.folder, path)
        if link and str(link.relative_to(git.folder)) not in paths:
            raise RefusedError(
                f"mto {verb} would write {path} through {link}, which is no folder of the clone",
                hint=f"mv {shlex.quote(str(link))} to another place, then run the command again",
            )
    require_visible(git, paths)
    edited = {path: letters for path, letters in edited_files(git).items() if path in paths}
    for path, old, _ in files:
        new = not old and path not in edited and os.path.lexists(git.folder / path)
        if new and git.run("ls-files", "--others", "--", path):
            edited[path] = "??"
    if edited:
        names = ", ".join(f"{path} ({edited[path].strip()})" for path in sorted(edited))
        raise RefusedError(
            f"mto {verb} would overwrite what you have in {git.folder}: {names}",
            hint=_aside_command(git, edited) + f"    # then: mto {verb}",
        )


def _aside_command(git: Git, edited: Mapping[str, str]) -> str:
    """Return the commands that put tracked files on git's stash, and rename the others."""
    files = {path: str(git.folder / path) for path in sorted(edited)}
    # git stashes no folder in place of a file.
    others = [path for path in files if edited[path] == "??" or (git.folder / path).is_dir()]
    tracked = [path for path in files if path not in others]
    stash = ["stash", "push"]
    if all(edited[path][0] == " " for path in tracked):
        stash += ["--", *tracked]  # by name, git fails on what is staged and as in HEAD
    commands = [git.command(*stash)] if tracked else []
    commands += [shlex.join(["mv", files[path], f"{files[path]}.mine"]) for path in others]
    return " && ".join(commands)
