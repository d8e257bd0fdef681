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
from mto_tools.patchset.lock import build_series, load_series
from mto_tools.patchset.rehearse import rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.patchset.series import read_series
from mto_tools.upstreams.upstream import Upstream, load_upstream

from .conftest import LINES, quiet, replace_in, write
from .kill import run_killed


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.is_dir()}


def kill_and_check(
    work, root: Path, action: Callable[[Upstream], object], check: Callable[[Upstream, str], None]
) -> None:
    """Kill `action` at counted events: the folder is at one of two states, nothing is lost.

    Args:
        work: A workspace; the rounds are played in copies of it.
        root: Where the copies are made.
        action: The work, given the copy's upstream.
        check: Further checks, given the same and "old" or "new".
    """

    def fresh() -> Upstream:
        shutil.rmtree(root / "again", ignore_errors=True)
        shutil.copytree(work.home, root / "again", symlinks=True)
        return load_upstream(root / "again", "toy")

    toy = fresh()
    total = run_killed(lambda: action(toy), 0)
    states = {"old": content(work.patches), "new": content(toy.folder)}
    assert states["new"] != states["old"]
    assert total > 40
    seen = set()
    # The last events are those that decide: most of the kills fall there.
    for number, at in enumerate([*range(1, total - 40, total // 6), *range(total - 40, total, 4)]):
        toy = fresh()
        edits = user_files(toy.checkout)
        run_killed(lambda toy=toy: action(toy), at)  # type: ignore[misc]
        transaction.recover(toy.folder, quiet)
        now = content(toy.folder)
        state = next((name for name, files in states.items() if files == now), "between")
        assert state != "between", f"killed before event {at}: {sorted(now)}"
        assert not list(toy.folder.glob(".transaction*"))
        seen.add(state)
        toy = load_upstream(toy.home, "toy")
        load_series(toy)
        read_series(toy)
        assert user_files(toy.checkout) == edits
        check(toy, state)
        if state == "old" and number % 5 == 0:  # the command can simply be given again
            action(toy)
            assert content(toy.folder) == states["new"]
    assert seen == {"old", "new"}


def user_files(clone: Path) -> dict[Path, bytes]:
    files = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def small(work):
    """A workspace with a small series, applied, and edits of the user's lying about."""
    work.write_series({})
    (work.patches / "lock").unlink()
    applying.ensure_clone(work.toy, print)
    replace_in(work.clone / "engine.py", "line 1\n", "import mto\nline 1\n")
    export(work.toy, message=("one", "Why."))
    replace_in(work.clone / "main.py", "import sys\n", "import x\nimport sys\n")
    write(work.clone, {"notes.txt": "the user's\n", "out/log.txt": "the user's, ignored\n"})
    return work


def test_killed_export(small, tmp_path, raw) -> None:
    def check(toy: Upstream, state: str) -> None:
        # The branch moves last, and the next command sees to it; here that was `recover`.
        assert raw(toy.checkout, "rev-parse", "HEAD") == load_series(toy).lock.commit
        assert raw(toy.checkout, "symbolic-ref", "HEAD") == "refs/heads/mto"
        status = raw(toy.checkout, "status", "--porcelain", "--untracked-files=no")
        assert status == ("" if state == "new" else " M main.py")

    kill_and_check(small, tmp_path, lambda toy: export(toy, layer="mto", say=quiet), check)


def upstream_moves(work, raw, old: str, new: str) -> None:
    replace_in(work.origin / "engine.py", old, new)
    raw(work.origin, "commit", "-qam", "upstream moves")


def test_killed_upgrade(small, tmp_path, raw) -> None:
    upstream_moves(small, raw, "line 9\n", "line 9 is other now\n")

    def action(toy: Upstream) -> None:
        with transaction.series_lock(toy.folder, print), open_scratch(toy, print) as scratch:
            upgrade.upgrade(scratch, rehearse(scratch, "main"), print)

    def check(toy: Upstream, state: str) -> None:
        assert (toy.pin == small.pin) == (state == "old")
        series = load_series(toy)
        assert build_series(Git(small.origin), toy.pin, series.files) == series.lock

    kill_and_check(small, tmp_path, action, check)


def test_killed_continue(small, tmp_path, raw) -> None:
    """What the person resolved is still there, or already accepted."""
    upstream_moves(small, raw, "line 1\n", "other first line\nline 1\n")
    run = small.mto("upgrade", "toy", "--to", "main", "--accept")
    assert run.returncode == 6, run.stderr
    resolved = f"other first line\nimport mto\n{LINES}"
    (upgrade.folder_of(small.toy) / "engine.py").write_text(resolved)

    def action(toy: Upstream) -> None:
        with transaction.series_lock(toy.folder, print):
            upgrade.proceed(toy, quiet)

    def check(toy: Upstream, state: str) -> None:
        if state == "old":
            assert (upgrade.folder_of(toy) / "engine.py").read_text() == resolved

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
