"""Replaces several files in one step that can be killed at any moment.

Everything new is written beside the old first, into `.pending.new/`. Renaming that folder to
`.pending/` is the moment of decision: killed before it, the next command removes the leftovers and
nothing has happened; killed after it, the next command carries the plan out to its end. Each action
of the plan can be repeated, so it does not matter how often this is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError
from mto_tools.patchset.build import temporary_index
from mto_tools.patchset.git import Git
from mto_tools.patchset.holding import hold
from mto_tools.patchset.journal import Say, locked
from mto_tools.patchset.lock import sha256
from mto_tools.patchset.switch import BRANCH, read_record, write_record
from mto_tools.patchset.worktree import free_name
from mto_tools.upstreams.upstream import Upstream, load_upstream

NEW, DECIDED, DONE = ".pending.new", ".pending", ".pending.done"
_PLAN = "plan.json"


@dataclass(frozen=True)
class Follow:
    """A checkout that is put where `mto apply` would put it; its files already are as they will be.

    Attributes:
        repo: Top folder of the checkout.
        ref: Branch it is on; "" where HEAD is detached.
        head: Commit it is at. With `ref`, what must still hold: anything else is the user's.
        branch: Commit of the branch mto; "" where there is none.
        new: Commit that branch goes to, and the checkout onto it.
    """

    repo: str
    ref: str
    head: str
    branch: str
    new: str


@contextlib.contextmanager
def exclusive(folder: Path, say: Say) -> Iterator[None]:
    """Hold `folder` for one command, and finish or undo what a killed one left.

    Raises:
        RefusedError: Another command holds the folder, even after some seconds.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        hold(handle, f"another mto command is at work on {folder}")
        _recover(folder, say)
        yield
    finally:
        os.close(handle)


def recover(folder: Path, say: Say) -> None:
    """Finish or undo what a killed command left in `folder`, and say what was finished.

    Costs three `stat` calls where nothing was left, so every command may call it first.
    """
    if any((folder / name).exists() for name in (NEW, DECIDED, DONE)):
        with exclusive(folder, say):
            pass


def open_upstream(home: Path, name: str, say: Say) -> Upstream:
    """Finish or undo what a killed export or upgrade left in `patches/NAME`, then read it."""
    upstream = load_upstream(home, name)  # refuses a name that is a path
    recover(upstream.folder, say)
    return load_upstream(home, name)


def replace(
    folder: Path,
    files: Mapping[str, bytes | None],
    what: str,
    follow: Follow | None = None,
    git: Git | None = None,
) -> None:
    """Replace `files` of `folder` together; the caller is inside `exclusive`.

    Args:
        folder: The folder all of them stand in.
        files: New bytes by name; None removes the file.
        what: Name of the step, for the message after a kill.
        follow: A branch to move along, if any.
        git: Its checkout, held by `journal.locked`.

    Raises:
        OSError: No space, or no right to write; then nothing has changed.
    """
    new = folder / NEW
    entries = []
    try:
        new.mkdir()
        _write(new / ".gitignore", b"*\n")
        for number, (name, data) in enumerate(sorted(files.items())):
            target = folder / name
            before = sha256(target.read_bytes()) if target.exists() else None
            after = None if data is None else sha256(data)
            entries.append({"name": name, "before": before, "after": after, "copy": str(number)})
            if data is not None:
                _write(new / str(number), data)
        plan = {"what": what, "files": entries, "follow": asdict(follow) if follow else None}
        _write(new / _PLAN, json.dumps(plan).encode())
        _sync(new)
        new.rename(folder / DECIDED)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(folder)
    for _ in _finish(folder):
        pass
    if follow and git:
        _move(git, follow)
    _clean(folder)


def _recover(folder: Path, say: Say) -> None:
    for leftover in (folder / NEW, folder / DONE):
        if leftover.exists():
            shutil.rmtree(leftover)
    if not (folder / DECIDED).exists():
        return
    plan = _plan(folder)
    say(f"finished the {plan['what']} that was interrupted in {folder}")
    for note in _finish(folder):
        say(note)
    follow = Follow(**plan["follow"]) if plan["follow"] else None
    if follow and Path(follow.repo).is_dir():
        with locked(Git(follow.repo), say) as git:
            if not _move(git, follow):
                say(f"{follow.repo} was moved meanwhile and stays where it is")
    _clean(folder)


def _plan(folder: Path) -> dict[str, Any]:
    file = folder / DECIDED / _PLAN
    try:
        plan: dict[str, Any] = json.loads(file.read_bytes())
        return {key: plan[key] for key in ("what", "files", "follow")}
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CorruptError(
            f"{file}: not a plan of mto: {error!r}",
            hint=f"git status -- {folder} shows what changed; then remove {file.parent}",
        ) from error


def _finish(folder: Path) -> Iterator[str]:
    for entry in _plan(folder)["files"]:
        yield from _put(folder / entry["name"], folder / DECIDED / entry["copy"], entry)


def _clean(folder: Path) -> None:
    done = folder / DONE
    (folder / DECIDED).rename(done)
    shutil.rmtree(done)


def _put(target: Path, copy: Path, entry: dict[str, str | None]) -> Iterator[str]:
    now = sha256(target.read_bytes()) if target.exists() else None
    if now == entry["after"]:
        return
    if now not in (entry["before"], None):
        yours = free_name(target.with_name(f"{target.name}.yours"))
        target.replace(yours)
        yield f"kept your edit of {target} as {yours.name}"
    if entry["after"] is None:
        target.unlink(missing_ok=True)
        return
    data = copy.read_bytes()
    if sha256(data) != entry["after"]:
        raise CorruptError(f"{copy} is damaged", hint=f"restore {target} with git, remove {copy}")
    part = copy.with_name(f"{copy.name}.part")  # in here, so that no kill leaves it behind
    _write(part, data)
    part.replace(target)


def _move(git: Git, follow: Follow) -> bool:
    """Move HEAD and the branch mto as `commit -a` does: the index learns what the files hold."""
    here = (head_ref(git), git.resolve("HEAD"))
    if here == (BRANCH, follow.new) and follow.head != follow.new:
        return True
    branch = git.resolve(BRANCH)
    if here != (follow.ref, follow.head) or branch not in (follow.branch, follow.new):
        return False
    # Into a copy first, since a git killed at its own work would leave an index.lock behind.
    with temporary_index(git) as away:
        index, copy = git.git_dir() / "index", Path(away.env["GIT_INDEX_FILE"])
        shutil.copy2(index, copy)
        away.run("add", "-u", convert=True)
        copy.replace(index)
    record = read_record(git)
    if follow.ref != BRANCH:
        record.before_ref, record.before_commit = follow.ref, follow.head
    record.branch = record.branch or not follow.branch
    record.ours = [*(oid for oid in record.ours if oid != follow.new), follow.new]
    write_record(git, record)
    if branch != follow.new:
        git.run("update-ref", "-m", "mto export", BRANCH, follow.new, branch or "0" * 40)
    if follow.ref != BRANCH:
        git.run("symbolic-ref", "-m", "mto export", "HEAD", BRANCH)
    return True


def head_ref(git: Git) -> str:
    """Return the branch HEAD is on, "" where it is detached."""
    rc, out, _ = git.try_run("symbolic-ref", "--quiet", "HEAD")
    return out.decode().strip() if rc == 0 else ""


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
