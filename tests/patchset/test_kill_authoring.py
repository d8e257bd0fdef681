"""SIGKILL at random moments of export and upgrade: old or new, never between, nothing lost.

A child process runs the real command and kills itself right before a random one of its system
calls that matter (open for writing, rename, unlink, starting git ...), so every such moment is
equally likely, however busy the machine is. The next command then has to bring order.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.patchset import apply as applying
from mto_tools.patchset import pending, upgrade
from mto_tools.patchset.build import build_series
from mto_tools.patchset.export import export
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import read_lock, verify
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.rehearse import rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.upstreams.upstream import load_upstream

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "subprocess.Popen"}


def fork(action: Callable[[], object], at: int) -> int:
    """Run `action` in a child that dies before its `at`-th event; return how many it reached."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
            if event in EVENTS or writes:
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(hook)
        try:
            action()
        finally:
            os.write(write, str(count).encode())
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return int(stream.read() or at)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.is_dir()}


class Ring:
    """One scenario: a template house, the action, and the two states it may end in."""

    def __init__(self, template, root: Path, action: Callable[[Path], object], seed: int) -> None:
        self.template, self.root, self.action = template, root, action
        self.rng = random.Random(seed)
        self.seen: dict[str, int] = {"old": 0, "new": 0}
        self.old = content(template.patches)
        home = self.fresh()
        self.total = fork(lambda: action(home), 0)
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
        fork(lambda: self.action(home), at)
        folder = home / "patches/toy"
        pending.recover(folder, lambda line: None)
        now = content(folder)
        state = "old" if now == self.old else "new" if now == self.new else "between"
        assert state != "between", f"killed before event {at}: {sorted(now)}"
        assert not list(folder.glob(".pending*"))
        self.seen[state] += 1
        toy = load_upstream(home, "toy")
        lock = read_lock(toy)
        assert lock
        verify(lock, toy)
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
def small(house):
    """A house with a small series, applied, and edits of the user's lying about."""
    house.write_series({})
    (house.patches / "lock").unlink()
    applying.ensure_clone(house.toy, print)
    (house.clone / "engine.py").write_text("import mto\n" + (house.clone / "engine.py").read_text())
    export(house.toy, message=("one", "Why."))
    (house.clone / "main.py").write_text("import x\n" + (house.clone / "main.py").read_text())
    (house.clone / "notes.txt").write_text("the user's\n")
    (house.clone / "out").mkdir()
    (house.clone / "out/log.txt").write_text("the user's, ignored\n")
    return house


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
    ring.rounds(50, 4, check)


def new_upstream(house, raw, text: str) -> None:
    (house.origin / "engine.py").write_text(text)
    raw(house.origin, "commit", "-qam", "upstream moves")


def test_killed_upgrade(small, tmp_path, raw) -> None:
    lines = (small.origin / "engine.py").read_text()
    new_upstream(small, raw, lines.replace("line 9\n", "line 9 is other now\n"))

    def action(home: Path) -> None:
        toy = load_upstream(home, "toy")
        with pending.exclusive(toy.folder, print), open_scratch(toy, print) as scratch:
            upgrade.upgrade(scratch, rehearse(scratch, "main"), print)

    def check(home: Path, state: str) -> None:
        toy = load_upstream(home, "toy")
        assert (toy.pin == small.pin) == (state == "old")
        lock, named = applying.load_series(toy)
        assert build_series(Git(small.origin), toy.pin, named) == lock
        if state == "old":
            ring.again(home)

    ring = Ring(small, tmp_path, action, seed=2)
    ring.rounds(40, 4, check)


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
        with pending.exclusive(toy.folder, print):
            upgrade.proceed(toy, lambda line: None)

    def check(home: Path, state: str) -> None:
        folder = upgrade.folder_of(load_upstream(home, "toy"))
        if state == "old":
            assert (folder / "engine.py").read_text() == resolved
            ring.again(home)

    ring = Ring(small, tmp_path, action, seed=3)
    ring.rounds(20, 2, check)


def test_a_full_disk_changes_nothing(small) -> None:
    """No file may grow beyond 60 bytes, so writing fails half-way, as on a full disk."""
    before = content(small.patches)

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
        pending.replace(small.patches, {"a": b"short", "lock": b"x" * 61}, "test")

    status = os.waitstatus_to_exitcode(waited(action))
    assert status == 1, "the error must reach the caller"
    assert content(small.patches) == before
    assert not list(small.patches.glob(".pending*"))


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
        pending.replace(small.patches, {"one": b"1 new", "two": None}, "test")

    events = fork(lambda: None, 0)
    assert events == 0
    for at in range(1, 40):  # the first kill after the decision
        fork(action, at)
        if (small.patches / pending.DECIDED).exists():
            break
    assert content(small.patches)["one"] == b"1"
    (small.patches / "one").write_bytes(b"mine")
    said: list[str] = []
    pending.recover(small.patches, said.append)
    assert (small.patches / "one").read_bytes() == b"1 new"
    assert (small.patches / "one.yours").read_bytes() == b"mine"
    assert not (small.patches / "two").exists()
    assert any("kept your edit" in line for line in said), said
    assert file.read_bytes() == other
