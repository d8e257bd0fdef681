"""SIGKILL at counted events of export and upgrade: old or new, never between, nothing lost."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.patchset import apply as applying
from mto_tools.patchset import transaction, upgrade
from mto_tools.patchset.build import build_series
from mto_tools.patchset.export import export
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import load_series, read_lock
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.rehearse import rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.upstreams.upstream import load_upstream

from .kill import run_killed


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.is_dir()}


class Ring:
    """One scenario: a template workspace, the action, and the two states it may end in."""

    def __init__(self, template, root: Path, action: Callable[[Path], object], seed: int) -> None:
        self.template, self.root, self.action = template, root, action
        self.rng = random.Random(seed)
        self.seen: dict[str, int] = {"old": 0, "new": 0}
        self.old = content(template.patches)
        home = self.fresh()
        self.total = run_killed(lambda: action(home), 0)
        self.new = content(home / "patches/toy")
        assert self.new != self.old
        assert self.total > 20
        shutil.rmtree(home)

    def fresh(self) -> Path:
        home = self.root / "again"
        shutil.copytree(self.template.home, home, symlinks=True)
        return home

    def rounds(self, number: int, least: int, check: Callable[[Path, str], None]) -> None:
        """Kill `number` times; each of the two states must come up at `least` so often."""
        for _ in range(number):
            self.round(check)
        assert min(self.seen.values()) >= least, self.seen

    def again(self, home: Path) -> None:
        """The command can simply be given again; tried in some rounds, for it takes long."""
        if self.rng.random() < 0.2:
            self.action(home)
            assert content(home / "patches/toy") == self.new

    def round(self, check: Callable[[Path, str], None]) -> None:
        rng, home = self.rng, self.fresh()
        # The last events are those that decide: half of the kills fall there.
        first = 1 if rng.random() < 0.5 else max(1, self.total - 40)
        at = rng.randint(first, self.total)
        edits = user_files(home)
        run_killed(lambda: self.action(home), at)
        folder = home / "patches/toy"
        transaction.recover(folder, lambda line: None)
        now = content(folder)
        state = "old" if now == self.old else "new" if now == self.new else "between"
        assert state != "between", f"killed before event {at}: {sorted(now)}"
        assert not list(folder.glob(".transaction*"))
        self.seen[state] += 1
        toy = load_upstream(home, "toy")
        load_series(toy)
        read_series(toy)
        assert user_files(home) == edits
        check(home, state)
        shutil.rmtree(home)


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
        export(load_upstream(home, "toy"), layer="mto", say=lambda line: None)

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
        ring.again(home)

    ring = Ring(small, tmp_path, action, seed=1)
    ring.rounds(25, 2, check)


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
        if state == "old":
            ring.again(home)

    ring = Ring(small, tmp_path, action, seed=2)
    ring.rounds(16, 2, check)


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
            upgrade.proceed(toy, lambda line: None)

    def check(home: Path, state: str) -> None:
        folder = upgrade.folder_of(load_upstream(home, "toy"))
        if state == "old":
            assert (folder / "engine.py").read_text() == resolved
            ring.again(home)

    ring = Ring(small, tmp_path, action, seed=3)
    ring.rounds(10, 1, check)


def test_a_full_disk_changes_nothing(small) -> None:
    """No file may grow beyond 60 bytes, so writing fails half-way, as on a full disk."""
    before = content(small.patches)

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
        transaction.replace_files(small.patches, {"a": b"short", "lock": b"x" * 61}, "test")

    status = os.waitstatus_to_exitcode(waited(action))
    assert status == 1, "the error must reach the caller"
    assert content(small.patches) == before
    assert not list(small.patches.glob(".transaction*"))


def waited(action: Callable[[], object]) -> int:
    """Run `action` in a child; its status is 1 where it raises OSError."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_an_edit_between_kill_and_recovery_is_kept(small, tmp_path) -> None:
    """The plan is decided, then the user edits a file it replaces: both versions are there."""
    file = small.patches / "0001-mto-one.patch"
    other = file.read_bytes()
    before = {"one": b"1", "two": b"2"}
    for name, data in before.items():
        (small.patches / name).write_bytes(data)

    def action() -> None:
        transaction.replace_files(small.patches, {"one": b"1 new", "two": None}, "test")

    run_killed(action, 1, decided=True)
    assert content(small.patches)["one"] == b"1"
    (small.patches / "one").write_bytes(b"mine")
    said: list[str] = []
    transaction.recover(small.patches, said.append)
    assert (small.patches / "one").read_bytes() == b"1 new"
    assert (small.patches / "one.yours").read_bytes() == b"mine"
    assert not (small.patches / "two").exists()
    assert any("one.yours" in line for line in said), said
    assert file.read_bytes() == other
