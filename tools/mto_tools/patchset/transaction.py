"""Files, branches and the index replaced in one step that can be killed at any moment.

The target files are staged first, in `transaction.new/`, with a redo log that names every file
before and after. Renaming that folder to `transaction/` decides. Killed before it, nothing has
happened, and the next command removes the leftovers. Killed after it, the next command carries the
log out. Each action can be repeated, so it does not matter how often this is interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from mto_tools.errors import CorruptError
from mto_tools.patchset.branch_move import BranchMove, can_move, move_head
from mto_tools.patchset.git import Git
from mto_tools.patchset.locks import (
    PATIENCE,
    Say,
    clear_dead_index_lock,
    clear_stale_ref_locks,
    deferred_interrupt,
    hold,
    index_lock,
    private,
    write_file,
)

_NAME = "transaction"
Files = Mapping[str, tuple[str, str]]  # path to fingerprints (before, after)


def fingerprint(file: Path) -> str:
    """Return kind, executable bit and digest of what stands at `file`; "" for nothing."""
    try:
        kind = file.lstat().st_mode
        if stat.S_ISLNK(kind):
            return f"link {hashlib.sha256(os.fsencode(file.readlink())).hexdigest()}"
        if stat.S_ISREG(kind):
            executable = "x" if kind & stat.S_IXUSR else "-"
            return f"file {executable} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        return "folder" if stat.S_ISDIR(kind) else "other"
    except (FileNotFoundError, NotADirectoryError):
        return ""


def blocking_parent(folder: Path, path: str) -> Path | None:
    """Return the first thing on the way to `path` that is no folder, such as a link elsewhere.

    Nothing behind it belongs to `folder`, whatever `open` would find there.
    """
    here = folder
    for part in Path(path).parts[:-1]:
        here /= part
        if here.is_symlink() or (here.exists() and not here.is_dir()):
            return here
    return None


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
    place = folder / f".{_NAME}"
    with staging(place) as new:
        for name, data in files.items():
            if data is not None:
                write_file(new / "files" / name, data)
        decided = {
            name: (fingerprint(folder / name), fingerprint(new / "files" / name)) for name in files
        }
        commit_staged(place, folder, what, decided, move, git)


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """Give a folder whose `files/` is to be filled before `commit_staged`, else it is removed."""
    new = place.with_name(f"{place.name}.new")
    try:
        (new / "files").mkdir(parents=True)
        write_file(new / ".gitignore", b"*\n")
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def commit_staged(
    place: Path,
    root: Path,
    what: str,
    files: Files,
    move: BranchMove | None,
    git: Git | None,
) -> list[str]:
    """Decide the staged step and carry it out.

    Args:
        place: Where the log stands; `staging` has filled `place.new`.
        root: Folder that the paths are relative to.
        what: Name of the step.
        files: Path to fingerprints (before, after).
        move: Move of HEAD and branches, if any.
        git: The clone that moves, held by `clone_lock`.

    Returns:
        Lines for the user: edits that were made meanwhile and where they are.

    Raises:
        RefusedError: Another git is at work in the clone; nothing has changed.
        OSError: The step is decided but cannot be finished now; the next command does it.
    """
    new = place.with_name(f"{place.name}.new")
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


def _carry_out(
    place: Path, root: Path, files: Files, move: BranchMove | None, git: Git | None
) -> list[str]:
    notes: list[str] = []
    # Removals first: a folder can stand where a link belongs, and a link where a folder does.
    for path, (before, after) in sorted(files.items(), key=lambda item: bool(item[1][1])):
        notes += _put(root, path, place / "files" / path, before, after)
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
            clear_stale_ref_locks(git, [ref for ref, _, _ in move.refs])
            if not can_move(git, move):
                say(f"{git.folder}: HEAD was moved since mto {what} was interrupted; it stays")
                move, files = None, {} if clone else files
            else:
                stack.enter_context(index_lock(git))
        notes = _carry_out(place, root, files, move, git)
    _remove(place)
    say(f"finished mto {what}, which was interrupted, in {root}")
    for note in notes:
        say(f"  {note}")


def _read(place: Path) -> tuple[str, Files, BranchMove | None]:
    file = place / "log.json"
    try:
        log = json.loads(file.read_bytes())
        files = {path: (before, after) for path, (before, after) in log["files"].items()}
        move = log["move"]
        if move:
            move = BranchMove(**{**move, "refs": tuple(tuple(ref) for ref in move["refs"])})
        return log["what"], files, move
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise CorruptError(
            f"{file}: not a log of mto: {error!r}",
            hint=f"git status shows what changed; then: rm -r {shlex.quote(str(place))}",
        ) from error


def _put(root: Path, path: str, staged: Path, before: str, after: str) -> Iterator[str]:
    """Bring one file to its version after; what a person made of it since is set aside."""
    file = root / path
    if parent := blocking_parent(root, path):
        yield f"{path} was left out, for {parent} is no folder"
        return
    now = fingerprint(file)
    if now == after or (after and not os.path.lexists(staged)):
        return  # in place already, and what differs is newer
    if not after:
        if now == before:
            _unlink(root, file)
        else:
            yield f"{file} stays, for it was changed meanwhile"
        return
    if fingerprint(staged) != after:
        raise CorruptError(
            f"{staged} is damaged", hint=f"rm {shlex.quote(str(staged))}, then restore {file}"
        )
    if now not in ("", before) or now == "folder":
        yours = free_name(file.with_name(f"{file.name}.yours"))
        file.rename(yours)
        yield f"your edit of {file} is in {yours.name}"
    file.parent.mkdir(parents=True, exist_ok=True)
    _rename(staged, file)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path.2`, `path.3` and so on where nothing stands."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not os.path.lexists(name))


def _unlink(root: Path, file: Path) -> None:
    file.unlink(missing_ok=True)
    for parent in itertools.takewhile(lambda parent: parent != root, file.parents):
        try:
            parent.rmdir()
        except OSError:  # not empty, or gone
            break


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
