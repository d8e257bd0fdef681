"""SIGKILL at counted events of export and upgrade: old or new, never between, nothing lost."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.patchset import apply as applying
from mto_tools.patchset import transaction, upgrade
from mto_tools.patchset.export import export
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import build_series, load_series, read_lock
from mto_tools.patchset.rehearse import rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.patchset.series import read_series
from mto_tools.upstreams.upstream import load_upstream

from .conftest import quiet
from .kill import run_killed


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.is_dir()}


def kill_and_check(
    work, root: Path, action: Callable[[Path], object], check: Callable[[Path, str], None]
) -> None:
    """Kill `action` at counted events: the folder is at one of two states, nothing is lost.

    Args:
        work: A workspace; the rounds are played in copies of it.
        root: Where the copies are made.
        action: The work, given the copy.
        check: Further checks, given the copy and "old" or "new".
    """

    def fresh() -> Path:
        shutil.rmtree(root / "again", ignore_errors=True)
        shutil.copytree(work.home, root / "again", symlinks=True)
        return root / "again"

    states = {"old": content(work.patches)}
    home = fresh()
    total = run_killed(lambda: action(home), 0)
    states["new"] = content(home / "patches/toy")
    assert states["new"] != states["old"]
    assert total > 40
    seen = set()
    # The last events are those that decide: most of the kills fall there.
    for number, at in enumerate([*range(1, total - 40, total // 6), *range(total - 40, total, 4)]):
        home = fresh()
        folder, edits = home / "patches/toy", user_files(home)
        run_killed(lambda home=home: action(home), at)  # type: ignore[misc]
        transaction.recover(folder, quiet)
        now = content(folder)
        state = next((name for name, files in states.items() if files == now), "between")
        assert state != "between", f"killed before event {at}: {sorted(now)}"
        assert not list(folder.glob(".transaction*"))
        seen.add(state)
        toy = load_upstream(home, "toy")
        load_series(toy)
        read_series(toy)
        assert user_files(home) == edits
        check(home, state)
        if state == "old" and number % 5 == 0:  # the command can simply be given again
            action(home)
            assert content(folder) == states["new"]
    assert seen == {"old", "new"}


def user_files(home: Path) -> dict[str, bytes]:
    clone = home / "upstream/toy"
    return {
        str(path.relative_to(clone)): path.read_bytes()
        for path in clone.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


@pytest.fixture
def small(work):
    """A workspace with a small series, applied, and edits of the user's lying about."""
    work.write_series({})
    (work.patches / "lock").unlink()
    applying.ensure_clone(work.toy, print)
    (work.clone / "engine.py").write_text("import mto\n" + (work.clone / "engine.py").read_text())
    export(work.toy, message=("one", "Why."))
    (work.clone / "main.py").write_text("import x\n" + (work.clone / "main.py").read_text())
    (work.clone / "notes.txt").write_text("the user's\n")
    (work.clone / "out").mkdir()
    (work.clone / "out/log.txt").write_text("the user's, ignored\n")
    return work


def test_killed_export(small, tmp_path, raw) -> None:
    def action(home: Path) -> None:
        export(load_upstream(home, "toy"), layer="mto", say=quiet)

    def check(home: Path, state: str) -> None:
        clone = home / "upstream/toy"
        lock = read_lock(load_upstream(home, "toy"))
        assert lock
        head = raw(clone, "rev-parse", "HEAD")
        # The branch moves last, and the next command sees to it; here that was `recover`.
        assert head == lock.commit, state
        assert raw(clone, "symbolic-ref", "HEAD") == "refs/heads/mto"
        status = raw(clone, "status", "--porcelain", "--untracked-files=no")
        assert status == ("" if state == "new" else " M main.py")

    kill_and_check(small, tmp_path, action, check)


def new_upstream(work, raw, text: str) -> None:
    (work.origin / "engine.py").write_text(text)
    raw(work.origin, "commit", "-qam", "upstream moves")


def test_killed_upgrade(small, tmp_path, raw) -> None:
    lines = (small.origin / "engine.py").read_text()
    new_upstream(small, raw, lines.replace("line 9\n", "line 9 is other now\n"))

    def action(home: Path) -> None:
        toy = load_upstream(home, "toy")
        with transaction.series_lock(toy.folder, print), open_scratch(toy, print) as scratch:
            upgrade.upgrade(scratch, rehearse(scratch, "main"), print)

    def check(home: Path, state: str) -> None:
        toy = load_upstream(home, "toy")
        assert (toy.pin == small.pin) == (state == "old")
        series = load_series(toy)
        assert build_series(Git(small.origin), toy.pin, series.files) == series.lock

    kill_and_check(small, tmp_path, action, check)


def test_killed_continue(small, tmp_path, raw) -> None:
    """What the person resolved is still there, or already accepted."""
    lines = (small.origin / "engine.py").read_text()
    new_upstream(small, raw, "other first line\n" + lines)
    run = small.mto("upgrade", "toy", "--to", "main", "--accept")
    assert run.returncode == 6, run.stderr
    resolved = "other first line\nimport mto\n" + lines
    (small.home / "upstream/.resolve/toy/engine.py").write_text(resolved)

    def action(home: Path) -> None:
        toy = load_upstream(home, "toy")
        with transaction.series_lock(toy.folder, print):
            upgrade.proceed(toy, quiet)

    def check(home: Path, state: str) -> None:
        folder = upgrade.folder_of(load_upstream(home, "toy"))
        if state == "old":
            assert (folder / "engine.py").read_text() == resolved

    kill_and_check(small, tmp_path, action, check)


def test_a_full_disk_changes_nothing(small) -> None:
    """No file may grow beyond 60 bytes, so writing fails half-way, as on a full disk."""
    before = content(small.patches)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            transaction.replace_files(small.patches, {"a": b"short", "lock": b"x" * 61}, "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(small.patches) == before
    assert not list(small.patches.glob(".transaction*"))
