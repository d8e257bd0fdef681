"""SIGKILL at counted events of apply and revert: base or result, and the user's files are there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import make_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock, load_series
from mto_tools.patchset.status import status
from mto_tools.upstreams.upstream import load_upstream

from .conftest import Workspace, quiet, raw_git, write
from .kill import run_killed

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL"),
    pytest.mark.timeout(900),
]
EDITS = {"data.txt": "edited by me\n", "notes/untracked.txt": "mine\n", "out/run.log": "ignored\n"}
Verb = Callable[[Path], object]


def run_apply(home: Path) -> object:
    return apply(load_upstream(home, "toy"), quiet)


def run_revert(home: Path) -> object:
    return revert(load_upstream(home, "toy"), quiet)


def copy_of(work: Workspace, root: Path) -> Workspace:
    """Return a copy of the workspace in which a round can be played."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(work.home, root, symlinks=True)
    return Workspace(root, work.origin, work.pin)


def check(work: Workspace, lock: Lock) -> str:
    """Assert that the clone is at base or result and nothing is lost; return which of the two."""
    git_dir = work.clone / ".git"
    left = [*git_dir.glob("*.lock"), *(git_dir / "refs").rglob("*.lock")]
    assert not [*left, *(git_dir / "mto").glob("transaction*")]
    tree = work.head_tree()
    assert tree in (lock.base_tree, lock.tree)
    expected = {" M data.txt", "A  staged.py", "?? notes/untracked.txt"}
    found = raw_git(work.clone, "status", "--porcelain", "-uall").splitlines()
    assert set(found) == expected
    for path, text in EDITS.items():
        assert (work.clone / path).read_text() == text
    tracked = raw_git(work.clone, "ls-files", "--", *lock.touched()).split()
    blobs = raw_git(work.clone, "rev-parse", *(f"HEAD:{path}" for path in tracked))
    assert raw_git(work.clone, "hash-object", "--no-filters", *tracked) == blobs
    on = raw_git(work.clone, "symbolic-ref", "HEAD")
    assert on == ("refs/heads/base" if tree == lock.base_tree else "refs/heads/mto")
    return "base" if tree == lock.base_tree else "result"


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_killed_at_every_kind_of_moment(work: Workspace, tmp_path: Path, verb: str) -> None:
    run, end = (run_apply, "result") if verb == "apply" else (run_revert, "base")
    start = "base" if verb == "apply" else "result"
    lock = load_series(work.toy).lock
    run_apply(work.home)  # makes the clone, too
    if verb == "apply":
        run_revert(work.home)
    write(work.clone, {**EDITS, "staged.py": "staged\n"})
    raw_git(work.clone, "add", "staged.py")
    again = copy_of(work, tmp_path / "again")
    total = run_killed(lambda: run(again.home), 0)
    again = copy_of(work, tmp_path / "again")
    after = run_killed(lambda: run(again.home), 0, decided=True)
    assert 10 < after < total
    # Before the decision nothing may happen; after it everything must.
    before = total - after
    rounds = [(at, False, start) for at in range(2, before, before // 4)]
    rounds += [(at, True, end) for at in range(1 + (verb == "apply"), after + 1, 3)]
    for at, decided, expected in rounds:
        again = copy_of(work, tmp_path / "again")
        run_killed(lambda again=again: run(again.home), at, decided=decided)  # type: ignore[misc]
        status(again.toy, quiet)
        assert check(again, lock) == expected, (at, decided)
    run(again.home)  # and the command itself still works
    assert check(again, lock) == end
    assert Git(again.clone).ok("fsck", "--connectivity-only", "--no-dangling")


def test_killed_recovery(work: Workspace, tmp_path: Path) -> None:
    """The recovery is killed again and again, one event later each time."""
    lock = load_series(work.toy).lock
    run_apply(work.home)
    write(work.clone, {**EDITS, "staged.py": "staged\n"})
    raw_git(work.clone, "add", "staged.py")
    run_killed(lambda: run_revert(work.home), 1, decided=True)
    for at in range(2, 30, 4):
        run_killed(lambda: status(load_upstream(work.home, "toy"), quiet), at)
    status(work.toy, quiet)
    assert check(work, lock) == "base"


def test_killed_checkout(work: Workspace) -> None:
    """There is a whole clone or none, and the next command makes one."""

    def run() -> None:
        make_clone(load_upstream(work.home, "toy"), quiet)

    total = run_killed(run, 0)
    for at in range(1, total + 1, max(1, total // 5)):
        shutil.rmtree(work.clone, ignore_errors=True)
        run_killed(run, at)
        make_clone(work.toy, quiet)
        assert raw_git(work.clone, "status", "--porcelain") == ""
        assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    apply(work.toy, quiet)
