"""Files, branches and the index replaced in one step that can be killed at any moment.

The target files are staged first, in `transaction.new/`, with a redo log that names every file
before and after. Renaming that folder to `transaction/` decides. Killed before it, nothing has
happened, and the next command removes the leftovers. Killed after it, the next command carries the
log out. Each action can be repeated, so it does not matter how often this is interrupted.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from mto_tools.errors import CorruptError
from mto_tools.patchset.clone_state import BranchMove, can_move, move_head
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import SUBMODULE, blocking_parent, file_version
from mto_tools.patchset.locks import (
    PATIENCE,
    Say,
    clear_dead_index_lock,
    deferred_interrupt,
    hold,
    index_lock,
    private,
    write_file,
)
from mto_tools.patchset.series import MODES
from mto_tools.patchset.tree_diff import Version

_NAME = "transaction"
_Files = Mapping[str, tuple[Version | None, Version | None]]  # path to versions (before, after)


@contextmanager
def clone_lock(git: Git, say: Say, *, wait: float = PATIENCE) -> Iterator[Git]:
    """Hold the clone's lock; finish first what a killed command left.

    Yields:
        The clone, with the lock passed on to every git it starts.

    Raises:
        RefusedError: Another mto, or a git it started, is at work in this clone.
    """
    with (private(git) / "lock").open("w") as stream:
        hold(stream.fileno(), f"another mto is at work in {git.folder}", wait=wait)
        held = Git(git.folder, git.env, stream.fileno())
        clear_dead_index_lock(held)
        _recover(private(git) / _NAME, git.folder, say, held)
        yield held


@contextmanager
def series_lock(folder: Path, say: Say) -> Iterator[None]:
    """Hold a patches folder for one command; finish first what a killed command left.

    Raises:
        RefusedError: Another command holds the folder, even after some seconds.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        hold(handle, f"another mto command is at work on {folder}")
        _recover(folder / f".{_NAME}", folder, say)
        yield
    finally:
        os.close(handle)


def recover(folder: Path, say: Say) -> None:
    """Finish or undo what a killed command left in a patches folder, and say what was finished."""
    if any(folder.glob(f".{_NAME}*")):
        with series_lock(folder, say):
            pass


def interrupted(git: Git) -> bool:
    """Whether a killed command left a step in the clone, decided or not."""
    return any((git.git_dir() / "mto").glob(f"{_NAME}*"))


def replace_files(
    folder: Path,
    files: Mapping[str, bytes | None],
    what: str,
    move: BranchMove | None = None,
    git: Git | None = None,
) -> None:
    """Replace `files` of a patches folder together; the caller holds `series_lock`.

    Args:
        folder: The folder all of them stand in.
        files: New bytes by name; None removes the file.
        what: Name of the step, for the message after a kill.
        move: A clone that follows, if any.
        git: That clone, held by `clone_lock`.

    Raises:
        OSError: No space, or no right to write; then nothing has changed.
    """

    def stage(new: Path) -> list[str]:
        written = {name: data for name, data in files.items() if data is not None}
        for name, data in written.items():
            write_file(new / "files" / name, data)
        return list(written)

    before = {name: file_version(folder, name) for name in files}
    replace_staged(folder / f".{_NAME}", folder, what, before, stage, move, git)


def replace_staged(
    place: Path,
    root: Path,
    what: str,
    before: Mapping[str, Version | None],
    stage: Callable[[Path], Collection[str]],
    move: BranchMove | None,
    git: Git | None,
) -> list[str]:
    """Stage files, decide, and put them in place.

    Args:
        place: Where the log is to stand.
        root: Folder that the paths are relative to.
        what: Name of the step.
        before: The files to replace, as they stand.
        stage: Writes the new ones below `files/` of the folder it is given and returns their
            paths; the others are removed.
        move: Move of HEAD and branches, if any.
        git: The clone that moves, held by `clone_lock`.

    Returns:
        Lines for the user: edits that were made meanwhile, and their new names.

    Raises:
        RefusedError: Another git is at work in the clone; nothing has changed.
        OSError: The step is decided but cannot be finished now; the next command does it.
    """
    new = place.with_name(f"{place.name}.new")
    try:
        (new / "files").mkdir(parents=True)
        write_file(new / ".gitignore", b"*\n")
        staged = stage(new)
        files = {
            path: (old, file_version(new / "files", path) if path in staged else None)
            for path, old in before.items()
        }
        for path, (_, after) in files.items():
            if after and after.mode in MODES:
                _sync(new / "files" / path)
        log = {"what": what, "files": files, "move": asdict(move) if move else None}
        write_file(new / "log.json", json.dumps(log).encode())
        with deferred_interrupt():
            with index_lock(git) if move and git else nullcontext():
                _sync(new)
                new.rename(place)
                _sync(place.parent)
                notes = _carry_out(place, root, files, move, git)
            _remove(place)
        return notes
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _carry_out(
    place: Path, root: Path, files: _Files, move: BranchMove | None, git: Git | None
) -> list[str]:
    notes: list[str] = []
    # Removals first: a folder can stand where a link belongs, and a link where a folder does.
    for path, (before, after) in sorted(files.items(), key=lambda item: item[1][1] is not None):
        notes += _put(root, path, place / "files", before, after)
    if move and git:
        move_head(git, move)
    return notes


def _remove(place: Path) -> None:
    done = place.with_name(f"{place.name}.done")
    place.rename(done)
    shutil.rmtree(done)


def _recover(place: Path, root: Path, say: Say, clone: Git | None = None) -> None:
    """Carry out the log in `place`; `clone` is the held clone where the log is a clone's own."""
    for leftover in ("new", "done"):
        shutil.rmtree(place.with_name(f"{place.name}.{leftover}"), ignore_errors=True)
    if not place.exists():
        return
    what, files, move = _read(place)
    with ExitStack() as stack:
        git = clone
        if move and not clone and Path(move.repo).is_dir():
            git = stack.enter_context(clone_lock(Git(move.repo), say))
        if move and git:
            if can_move(git, move):
                stack.enter_context(index_lock(git))
            else:
                say(f"{git.folder}: HEAD was moved since mto {what} was interrupted; it stays")
                move, files = None, {} if clone else files
        notes = _carry_out(place, root, files, move, git)
    _remove(place)
    say(f"finished mto {what}, which was interrupted, in {root}")
    for note in notes:
        say(f"  {note}")


def _read(place: Path) -> tuple[str, _Files, BranchMove | None]:
    file = place / "log.json"
    try:
        log = json.loads(file.read_bytes())
        files = {
            path: (before and Version(*before), after and Version(*after))
            for path, (before, after) in log["files"].items()
        }
        return log["what"], files, log["move"] and BranchMove(**log["move"])
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise CorruptError(
            f"{file}: not a log of mto: {error!r}",
            hint=f"git status shows what changed; then: rm -r {shlex.quote(str(place))}",
        ) from error


def _put(
    root: Path, path: str, staged: Path, before: Version | None, after: Version | None
) -> Iterator[str]:
    """Bring one file to its version after; what a person made of it since is set aside."""
    file, new = root / path, staged / path
    if parent := blocking_parent(root, path):
        yield f"{path} was left out, for {parent} is no folder"
        return
    now = file_version(root, path)
    if now == after or (after and not os.path.lexists(new)):
        return  # in place already, and what differs is newer
    if not after:
        if now == before:
            file.unlink()
            with suppress(OSError):  # the first folder that is not empty
                os.removedirs(file.parent)
        else:
            yield f"{file} stays, for it was changed meanwhile"
        return
    if file_version(staged, path) != after:
        raise CorruptError(
            f"{new} is damaged", hint=f"rm {shlex.quote(str(new))}, then restore {file}"
        )
    if now and (now != before or now.mode == SUBMODULE):
        yours = free_name(file.with_name(f"{file.name}.yours"))
        file.rename(yours)
        yield f"your edit of {file} is in {yours.name}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if after.mode == SUBMODULE:
        file.mkdir()
    else:
        _rename(new, file)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path.2`, `path.3` and so on where nothing stands."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not os.path.lexists(name))


def _rename(staged: Path, file: Path) -> None:
    """Move a staged file into place; by a copy beside it where that is another file system."""
    try:
        staged.replace(file)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = file.with_name(f".{file.name}.mto")
        part.unlink(missing_ok=True)
        shutil.copy2(staged, part, follow_symlinks=False)
        part.replace(file)
        staged.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
