"""A person's edits of a checkout, found by blob OID and mode; the refusal to overwrite them."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.transaction import blocking_parent
from mto_tools.patchset.tree_diff import Change, Version, temporary_index

SYMLINK = "120000"
SUBMODULE = "160000"


def edited_files(git: Git) -> dict[str, str]:
    """Return tracked files that differ from HEAD, each with git's two letters (index, file).

    The user's configuration decides, so CRLF under autocrlf=true is no edit.
    """
    flags = ("--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    raw = git.run("status", *flags, convert=True).decode("utf-8", "surrogateescape")
    return {entry[3:]: entry[:2] for entry in raw.split("\0") if entry}


def untracked(git: Git) -> tuple[str, ...]:
    """Return files git would track but does not."""
    out = git.text("ls-files", "-z", "--others", "--exclude-standard", convert=True)
    return tuple(out.split("\0")[:-1])


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
    # A file that a sparse checkout left out is no edit.
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
            hint=f"{_git(away)} update-index --no-assume-unchanged {shlex.join(hidden)}    # or "
            "--no-skip-worktree: makes them part; git diff then shows them",
        )


def require_unmodified(git: Git, changes: Sequence[Change], verb: str) -> None:
    """Refuse a switch that would overwrite something of the user's.

    Contents are compared by OID as well: git overlooks edits of files marked assume-unchanged.

    Args:
        git: The clone, held.
        changes: Files that the switch replaces.
        verb: The command without `mto`, for messages.

    Raises:
        RefusedError: Names every such file, with the commands that keep the edits.
    """
    paths = [change.path for change in changes]
    _refuse_links(git, paths, verb)
    _refuse_skipped(git, paths, verb)
    modified = modified_files(git, changes)
    if not modified:
        return
    names = ", ".join(f"{path} ({why})" for path, why in sorted(modified.items()))
    raise RefusedError(
        f"mto {verb} would overwrite what you have in {git.folder}: {names}",
        hint=_stash_command(git, sorted(modified)) + f"    # then: mto {verb}",
    )


def modified_files(git: Git, changes: Sequence[Change]) -> dict[str, str]:
    """Return the files a switch would have to overwrite, each with the reason."""
    edited = edited_files(git)
    gone = {change.path for change in changes if change.after is None}
    state = classify_files(git, {change.path: [change.before] for change in changes})
    modified: dict[str, str] = {}
    for change in changes:
        path, letters = change.path, edited.get(change.path, "  ")
        if change.before is None:
            if letters != "  ":
                modified[path] = "staged by you, and the switch adds it"
            elif state[path] < 0 and not _is_emptied(git, path, gone):
                modified[path] = "untracked, and the switch adds it"
        elif letters[0] != " ":
            modified[path] = "staged"
        elif letters[1] != " " or state[path] < 0:
            modified[path] = "edited" if os.path.lexists(git.folder / path) else "deleted"
    return modified


def _is_emptied(git: Git, path: str, gone: set[str]) -> bool:
    """Whether a folder holds only files that the switch removes."""
    folder = git.folder / path
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    return all(str(file.relative_to(git.folder)) in gone for file in files)


def _refuse_links(git: Git, paths: Sequence[str], verb: str) -> None:
    for path in sorted(paths):
        link = blocking_parent(git.folder, path)
        if link and str(link.relative_to(git.folder)) not in paths:
            what = "a link" if link.is_symlink() else "no folder"
            raise RefusedError(
                f"mto {verb} would write {path} through {link}, which is {what}, and not the "
                "clone's",
                hint=f"mv {shlex.quote(str(link))} to another place, then run the command again",
            )


def _refuse_skipped(git: Git, paths: Sequence[str], verb: str) -> None:
    tags = git.text("ls-files", "-t", "-z").split("\0")
    skipped = sorted({tag[2:] for tag in tags if tag.startswith("S ")} & set(paths))
    if skipped:
        sparse = git.text("config", "--type=bool", "core.sparseCheckout", check=False) == "true"
        rest = f"update-index --no-skip-worktree -- {shlex.join(skipped)}"
        raise RefusedError(
            f"mto {verb} needs files of {git.folder} that git is told to pass over "
            f"(skip-worktree, as in a sparse checkout): {', '.join(skipped)}",
            hint=f"{_git(git)} {'sparse-checkout disable' if sparse else rest}",
        )


def _stash_command(git: Git, paths: Sequence[str]) -> str:
    """Return the commands that put the user's edits of `paths` on git's stash."""
    listed = git.text("ls-files", "-z", "-v", "--", *paths).split("\0")[:-1]
    tracked = {entry[2:] for entry in listed}
    hidden = sorted(entry[2:] for entry in listed if entry[0].islower())
    odd = [path for path in paths if not _can_stash(git, path, path in tracked)]
    files = [path for path in paths if path not in odd]
    commands = []
    if hidden:
        commands.append(f"{_git(git)} update-index --no-assume-unchanged -- {shlex.join(hidden)}")
    if files and _differing(git, "--cached") - _differing(git, "HEAD"):
        # git cannot stash by name what is staged and whose file is as in HEAD again.
        commands.append(f"{_git(git)} stash push")
        files = [path for path in files if path not in tracked]
    if files:
        ignored = "" if tracked.issuperset(files) else "--all "
        commands.append(f"{_git(git)} stash push {ignored}-- {shlex.join(files)}")
    commands += [shlex.join(["mv", f"{git.folder / p}", f"{git.folder / p}.mine"]) for p in odd]
    return " && ".join(commands)


def _differing(git: Git, against: str) -> set[str]:
    out = git.text("diff", against, "--name-only", "-z", check=False, convert=True)
    return set(out.split("\0")[:-1])


def _can_stash(git: Git, path: str, tracked: bool) -> bool:
    """Whether git stashes what stands there: no pipe, and no folder in place of a tracked file."""
    file = git.folder / path
    if not os.path.lexists(file) or file.is_symlink() or file.is_file():
        return True
    return file.is_dir() and not tracked and any(file.iterdir())


def _git(git: Git) -> str:
    return f"git -C {shlex.quote(str(git.folder))}"


def classify_files(git: Git, files: Mapping[str, Sequence[Version | None]]) -> dict[str, int]:
    """Say for every path which of some versions stands in the work tree.

    A file matches a version by its bytes, or by the bytes that git would store for it: with
    `core.autocrlf`, filters and attributes. The executable bit counts where `core.fileMode` is on.

    Args:
        git: The clone.
        files: Path to versions; None where the path is absent.

    Returns:
        Path to the index of the first version that matches, -1 where none does.
    """
    exact = git.text("config", "--type=bool", "--default=true", "core.fileMode") == "true"
    found: dict[str, int] = {}
    modes = {path: _mode(git, path) for path in files}
    for path, mode in modes.items():
        file = git.folder / path
        data = b""
        if mode == SYMLINK:
            data = os.fsencode(file.readlink())
        elif mode in ("100644", "100755"):
            data = file.read_bytes()
        found[path] = _first(files[path], _blob_oid(data), mode, exact)
    unsure = [path for path, n in found.items() if n < 0 and modes[path] in ("100644", "100755")]
    if unsure:
        oids = git.text("hash-object", "--", *unsure, convert=True).split()
        for path, oid in zip(unsure, oids, strict=True):
            found[path] = _first(files[path], oid, modes[path], exact)
    return found


def _mode(git: Git, path: str) -> str:
    """Return the mode git would store; "" where the clone has nothing, "other" for a pipe."""
    if blocking_parent(git.folder, path):
        return ""
    try:
        kind = (git.folder / path).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISREG(kind):
        return "100755" if kind & stat.S_IXUSR else "100644"
    return SYMLINK if stat.S_ISLNK(kind) else SUBMODULE if stat.S_ISDIR(kind) else "other"


def _first(versions: Sequence[Version | None], oid: str, mode: str, exact: bool) -> int:
    for number, version in enumerate(versions):
        if version is None or not mode:
            if version is None and not mode:
                return number
        elif version.mode == mode == SUBMODULE:
            return number
        elif version.oid == oid and mode not in (SUBMODULE, "other"):
            # Without symbolic links git writes the target into an ordinary file.
            same = version.mode == mode or mode == SYMLINK or version.mode == SYMLINK
            if same or not exact:
                return number
    return -1


def _blob_oid(data: bytes) -> str:
    """Return the OID git gives `data` as it is; pins and locks are SHA-1."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
