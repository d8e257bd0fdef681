"""Files, branches and the index replaced in one step that can be killed at any moment.

The target files are staged first, in `transaction.new/`, with a redo log that names every file
before and after. Renaming that folder to `transaction/` decides. Killed before it, nothing has
happened, and the next command removes the leftovers. Killed after it, the next command carries the
log out. Each action can be repeated, so it does not matter how often this is interrupted.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mto_tools.errors import CorruptError
from mto_tools.patchset.clone_state import (
    BranchMove,
    CloneState,
    can_move,
    move_head,
    require_free_name,
)
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import SUBMODULE, SYMLINK, blocking_parent, file_version
from mto_tools.patchset.locks import Say, deferred_interrupt, hold, index_lock, private, write_file
from mto_tools.patchset.series import MODES
from mto_tools.patchset.tree_diff import Version

_NAME = "transaction"


@dataclass(frozen=True)
class _Log:
    """A decided step: its name, versions by path (before, after), and the move of a clone."""

    what: str
    files: dict[str, tuple[Version | None, Version | None]]
    move: BranchMove | None


@contextmanager
def clone_lock(git: Git, say: Say) -> Iterator[Git]:
    """Hold the clone's lock; finish first what a killed command left.

    The clone that it gives passes the lock on to every git it starts.

    Raises:
        RefusedError: Another mto, or a git it started, is at work in this clone.
    """
    with (private(git) / "lock").open("w") as stream:
        hold(stream.fileno(), f"another mto is at work in {git.folder}")
        held = Git(git.folder, git.env, stream.fileno())
        if (left := git.git_dir() / "index.lock").is_symlink():  # of a killed mto
            left.unlink()
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
    """Replace `files` of a patches folder together: new bytes by name, None removes the file.

    The caller holds `series_lock`. `what` names the step in the message after a kill. `move`, if
    any, is that of the clone `git`, held by `clone_lock`.

    Raises:
        OSError: No space, or no right to write; then nothing has changed.
    """
    kept = {name: data for name, data in files.items() if data is not None}

    def stage(new: Path) -> None:
        for name, data in kept.items():
            write_file(new / name, data)

    before = {name: file_version(folder, name) for name in files}
    replace_staged(folder / f".{_NAME}", folder, what, before, kept, stage, move, git)


def replace_staged(
    place: Path,
    root: Path,
    what: str,
    before: Mapping[str, Version | None],
    kept: Collection[str],
    stage: Callable[[Path], None],
    move: BranchMove | None,
    git: Git | None,
) -> list[str]:
    """Stage files, decide, and put them in place; return lines for the user.

    The log of the step `what` is to stand in `place`. `before` has the files to replace, as they
    stand, by path in `root`. Those in `kept` get a new version, which `stage` writes below the
    folder it is given; the others are removed. `move`, if any, is that of the clone `git`, held by
    `clone_lock`. The lines name the edits that were made meanwhile, and where they now are.

    Raises:
        RefusedError: Another git is at work in the clone, or a branch takes the name of another;
            nothing has changed.
        OSError: The step is decided but cannot be finished now; the next command does it.
    """
    if move and git:
        require_free_name(git, move)
    new = place.with_name(f"{place.name}.new")
    try:
        (new / "files").mkdir(parents=True)
        write_file(new / ".gitignore", b"*\n")
        stage(new / "files")
        files = {
            path: (old, file_version(new / "files", path) if path in kept else None)
            for path, old in before.items()
        }
        for path, (_, after) in files.items():
            if after and after.mode in MODES:
                _sync(new / "files" / path)
        log = _Log(what, files, move)
        write_file(new / "log.json", json.dumps(asdict(log)).encode())
        with deferred_interrupt():
            with index_lock(git) if move and git else nullcontext():
                _sync(new)
                new.rename(place)
                _sync(place.parent)
                notes = _carry_out(place, root, log, git)
            _remove(place)
        return notes
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _carry_out(place: Path, root: Path, log: _Log, git: Git | None) -> list[str]:
    notes: list[str] = []
    # Removals first: a folder can stand where a link belongs, and a link where a folder does.
    for path, (before, after) in sorted(log.files.items(), key=lambda f: f[1][1] is not None):
        notes += _put(root, path, place / "files", before, after)
    if log.move and git:
        move_head(git, log.move)
    return notes


def _remove(place: Path) -> None:
    """Forget a step that is done; the index lock is free by now, for nothing else tells of it."""
    done = place.with_name(f"{place.name}.done")
    place.rename(done)
    shutil.rmtree(done)


def _recover(place: Path, root: Path, say: Say, clone: Git | None = None) -> None:
    """Carry out the log in `place`; `clone` is the held clone where the log is a clone's own."""
    for leftover in ("new", "done"):
        shutil.rmtree(place.with_name(f"{place.name}.{leftover}"), ignore_errors=True)
    if not place.exists():
        return
    log = _read(place)
    with ExitStack() as stack:
        git = clone
        if log.move and not clone and Path(log.move.repo).is_dir():
            git = stack.enter_context(clone_lock(Git(log.move.repo), say))
        if log.move and git and can_move(git, log.move):
            stack.enter_context(index_lock(git))
        elif log.move and git:
            say(f"{git.folder}: HEAD was moved since mto {log.what} was interrupted; it stays")
            log = replace(log, move=None, files={} if clone else log.files)
        notes = _carry_out(place, root, log, git)
    _remove(place)
    say(f"finished mto {log.what}, which was interrupted, in {root}")
    for note in notes:
        say(f"  {note}")


def _read(place: Path) -> _Log:
    file = place / "log.json"
    try:
        log = json.loads(file.read_bytes())
        for path, versions in log["files"].items():
            log["files"][path] = tuple(version and Version(*version) for version in versions)
        if move := log["move"]:
            move["state"] = move["state"] and CloneState(**move["state"])
            log["move"] = BranchMove(**move)
        return _Log(**log)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
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
    if now and (now != before or now.mode == SUBMODULE):
        yours = free_name(file.with_name(f"{file.name}.yours"))
        file.rename(yours)
        yield f"your edit of {file} is in {yours.name}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if after.mode == SUBMODULE:
        file.mkdir()
    else:
        if after.mode == SYMLINK:
            file.unlink(missing_ok=True)
        shutil.move(new, file)  # a rename, or a copy from another file system


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path.2`, `path.3` and so on where nothing stands."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not os.path.lexists(name))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
