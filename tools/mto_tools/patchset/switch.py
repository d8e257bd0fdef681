"""Move a clone from one commit to another; refuse where that would cost the user an edit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mto_tools.errors import MtoError, RefusedError
from mto_tools.patchset.clone_state import BranchMove, index_copy, require_free_name
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import (
    SUBMODULE,
    blocking_parent,
    edited_files,
    file_version,
)
from mto_tools.patchset.locks import Say, private
from mto_tools.patchset.transaction import replace_staged
from mto_tools.patchset.tree_diff import Change, changes


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
    require_free_name(git, move)
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
        if away.text("ls-files", "--unmerged"):
            raise RefusedError(
                f"mto {verb}: {git.folder} is in the middle of a merge",
                hint=f"{git.command('merge', '--abort')}, or finish it first",
            )
        away.run("read-tree", "-i", "-m", move.head, move.goal)
        paths = "\0".join(kept).encode("utf-8", "surrogateescape")
        prefix = f"--prefix={folder}/"
        away.run("checkout-index", "--quiet", prefix, "-z", "--stdin", input=paths, convert=True)

    place = private(git) / "transaction"
    for note in replace_staged(place, git.folder, verb, before, kept, stage, move, git):
        say(note)


def _require_writable(git: Git, files: Sequence[Change]) -> None:
    folders = {(git.folder / change.path).parent for change in files}
    for folder in sorted({*folders, git.git_dir(), git.common_dir() / "refs" / "heads"}):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise MtoError(
                f"cannot write in {folder}; nothing was changed",
                hint="see that it is yours and not read-only, then run the command again",
            )


def _require_unmodified(git: Git, changes: Sequence[Change], verb: str) -> None:
    """Refuse a switch that would overwrite something of the user's, with commands to keep it."""
    paths = sorted(change.path for change in changes)
    for path in paths:
        link = blocking_parent(git.folder, path)
        if link and str(link.relative_to(git.folder)) not in paths:
            what = "a link" if link.is_symlink() else "no folder"
            raise RefusedError(
                f"mto {verb} would write {path} through {link}, which is {what}, and not the "
                "clone's",
                hint=f"mv {shlex.quote(str(link))} to another place, then run the command again",
            )
    _refuse_skipped(git, paths, verb)
    if modified := _modified_files(git, changes):
        names = ", ".join(f"{path} ({why})" for path, why in sorted(modified.items()))
        raise RefusedError(
            f"mto {verb} would overwrite what you have in {git.folder}: {names}",
            hint=_aside_command(git, modified) + f"    # then: mto {verb}",
        )


def _modified_files(git: Git, changes: Sequence[Change]) -> dict[str, str]:
    """Return the files a switch would have to overwrite, each with the reason."""
    edited = edited_files(git)
    gone = {change.path for change in changes if change.after is None}
    modified: dict[str, str] = {}
    for change in changes:
        path, letters = change.path, edited.get(change.path, "  ")
        if change.before is None and letters != "  ":
            modified[path] = "staged by you, and the switch adds it"
        elif change.before is None:
            if file_version(git.folder, path) and not _is_emptied(git, path, gone):
                modified[path] = "untracked, and the switch adds it"
        elif letters[0] != " ":
            modified[path] = "staged" if letters[1] == " " else "staged, and edited since"
        elif letters[1] != " ":
            modified[path] = "edited" if os.path.lexists(git.folder / path) else "deleted"
    return modified


def _is_emptied(git: Git, path: str, gone: set[str]) -> bool:
    """Whether a folder holds only files that the switch removes."""
    folder = git.folder / path
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    return all(str(file.relative_to(git.folder)) in gone for file in files)


def _refuse_skipped(git: Git, paths: Sequence[str], verb: str) -> None:
    tags = git.text("ls-files", "-t", "-z").split("\0")
    skipped = sorted({tag[2:] for tag in tags if tag.startswith("S ")} & set(paths))
    if skipped:
        sparse = git.text("config", "--type=bool", "core.sparseCheckout", check=False) == "true"
        mend = ["update-index", "--no-skip-worktree", "--", *skipped]
        raise RefusedError(
            f"mto {verb} needs files of {git.folder} that git is told to pass over "
            f"(skip-worktree, as in a sparse checkout): {', '.join(skipped)}",
            hint=git.command(*(["sparse-checkout", "disable"] if sparse else mend)),
        )


def _aside_command(git: Git, modified: Mapping[str, str]) -> str:
    """Return the commands that put tracked files on git's stash, and rename the others."""
    listed = git.text("ls-files", "-z", "-v", "--", *modified).split("\0")[:-1]
    hidden = sorted(entry[2:] for entry in listed if entry[0].islower())
    # git stashes no folder in place of a file.
    files = sorted(p[2:] for p in listed if not (git.folder / p[2:]).is_dir())
    commands = []
    if hidden:
        commands.append(git.command("update-index", "--no-assume-unchanged", "--", *hidden))
    if any(why.startswith("staged") for why in modified.values()):
        commands.append(git.command("stash", "push"))  # by name, git fails on what is as in HEAD
    elif files:
        commands.append(git.command("stash", "push", "--", *files))
    for other in sorted(modified.keys() - set(files)):
        if os.path.lexists(file := str(git.folder / other)):
            commands.append(shlex.join(["mv", file, f"{file}.mine"]))
    return " && ".join(commands)
