"""SIGKILL at random moments of apply and revert: base or result, and the user's files are there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import make_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.status import status
from mto_tools.upstreams.upstream import load_upstream

from .conftest import FILES, SERIES, House, make_house, patch_of, raw_git, write

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="process groups"),
    pytest.mark.timeout(900),
]

BIG = {f"pkg/module_{n:03}.py": "".join(f"x{n} = {i}\n" for i in range(1000)) for n in range(40)}
BIG_SERIES = {
    "0001-compat-all.patch": b"".join(patch_of(path, (7, ["import compat"])) for path in BIG),
    "0002-mto-all.patch": b"".join(
        patch_of(path, (900, ["mto.add()"] * 20)) for path in list(BIG)[::2]
    ),
}
EDITS = {"data.txt": "edited by me\n", "notes/untracked.txt": "mine\n", "out/run.log": "ignored\n"}


def _work(home: Path, verb: str, ready: Any) -> None:
    os.setpgid(0, 0)
    toy = load_upstream(home, "toy")
    ready.send(True)
    if verb == "checkout":
        make_clone(toy, lambda _: None)
    elif verb == "revert":
        revert(toy, lambda _: None)
    else:
        apply(toy, lambda _: None, keep_edits=verb == "keep")


class Killer:
    """Starts commands in a forked process group of their own, and kills them."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["mto_tools.patchset.apply", "git"])

    def start(self, house: House, verb: str) -> multiprocessing.process.BaseProcess:
        mine, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(house.home, verb, theirs))
        process.start()
        assert mine.recv()
        return process

    def run(self, house: House, verb: str) -> float:
        """Let the command run to its end, and return how long that took."""
        process = self.start(house, verb)
        begin = time.perf_counter()
        process.join()
        assert process.exitcode == 0
        return time.perf_counter() - begin

    def kill(
        self, house: House, verb: str, delay: float, *, from_journal: bool, group: bool
    ) -> bool:
        """Kill after `delay` seconds, counted from the start or from the journal's appearing."""
        process = self.start(house, verb)
        journal = house.clone / ".git" / "mto" / "journal"
        while from_journal and process.is_alive() and not journal.exists():
            pass
        time.sleep(delay)
        assert process.pid
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)  # its git runs on
        process.join()
        return process.exitcode == -signal.SIGKILL


def settle_by(house: House, command: str) -> list[str]:
    """Any next command settles; returns what it told the user."""
    said: list[str] = []
    if command == "status":
        status(house.toy, said.append)
    elif command == "apply":
        apply(house.toy, said.append)
    else:
        revert(house.toy, said.append)
    return said


def cut_one(house: House, touched: list[str], seed: int) -> tuple[str, bytes] | None:
    """Cut the end off a file, as a user might while a step is unsettled."""
    present = [path for path in touched if (house.clone / path).exists()]
    path = random.Random(seed).choice(present)
    left = (house.clone / path).read_bytes()[:-1]
    if not left or not (house.clone / ".git" / "mto" / "journal").exists():
        return None
    (house.clone / path).write_bytes(left)
    return path, left


def check(house: House, touched: list[str], may_differ: str | None) -> str:
    """Assert that the clone is at base or result and nothing is lost; return which of the two."""
    git_dir = house.clone / ".git"
    assert not (git_dir / "mto" / "journal").exists()
    assert not list(git_dir.glob("*.lock"))
    assert not list((git_dir / "refs").rglob("*.lock"))
    lock = read_lock(house.toy)
    assert lock
    tree = house.head_tree()
    assert tree in (lock.base_tree, lock.tree)
    expected = {" M data.txt", "A  staged.py", "?? notes/untracked.txt"}
    found = set(raw_git(house.clone, "status", "--porcelain", "-uall").splitlines())
    # A file edited between the kill and the next command stays edited, in either version.
    assert found - expected <= {f" M {may_differ}", f"?? {may_differ}"}, found
    assert expected <= found
    for path, text in EDITS.items():
        assert (house.clone / path).read_text() == text
    tracked = raw_git(house.clone, "ls-files", "--", *touched).split()
    present = [path for path in touched if (house.clone / path).exists()]
    assert set(tracked) ^ set(present) <= {may_differ}
    sound = [path for path in tracked if path != may_differ]
    blobs = raw_git(house.clone, "rev-parse", *(f"HEAD:{path}" for path in sound))
    assert raw_git(house.clone, "hash-object", "--no-filters", *sound) == blobs
    return "base" if tree == lock.base_tree else "result"


@pytest.mark.parametrize(("verb", "size", "kills", "seed"), [
    ("apply", "small", 30, 1),
    ("apply", "big", 34, 2),
    ("revert", "small", 26, 3),
    ("revert", "big", 34, 4),
])  # fmt: skip
def test_killed_at_random(
    tmp_path: Path, verb: str, size: str, kills: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where mto alone was killed its git runs on, on a busy machine for longer than a user waits.
    monkeypatch.setattr("mto_tools.patchset.status.PATIENCE", 60)
    rng = random.Random(seed)
    files, series = (FILES, SERIES) if size == "small" else (FILES | BIG, BIG_SERIES)
    house = make_house(tmp_path, files, series)
    touched = sorted(read_lock(house.toy).touched())  # type: ignore[union-attr]
    killer = Killer()
    killer.run(house, "apply")  # makes the clone, too
    write(house.clone, {**EDITS, "staged.py": "staged\n"})
    raw_git(house.clone, "add", "staged.py")
    lasts = {v: killer.run(house, v) for v in ("revert", "apply")}
    ends = {"base": 0, "result": 0}
    interrupted = caught = 0  # killed at all; killed in between, with a journal left
    cuts = 0
    for number in range(3 * kills):
        if interrupted == kills:
            break
        (revert if verb == "apply" else apply)(house.toy, lambda _: None)
        from_journal = number % 3 != 0
        last = lasts[verb] * (0.15 if from_journal else 0.7)
        group = number % 5 != 4
        delay = rng.uniform(0, last)
        hit = killer.kill(house, verb, delay, from_journal=from_journal, group=group)
        interrupted += hit
        caught += hit and (house.clone / ".git" / "mto" / "journal").exists()
        victim = None
        # Not where its git runs on: git keeps no edit made in the moment it writes the file.
        if hit and group and number % 4 == 3:
            victim = rng.choice(touched[:20])
            file = house.clone / victim
            text = file.read_bytes() if file.exists() else b""
            file.write_bytes(text + b"MINE\n")
        cut = hit and group and number % 4 == 1 and cut_one(house, touched, number)
        told = settle_by(house, "status")
        if cut:
            path, left = cut
            assert any(f"{house.clone / path} (was cut short" in line for line in told)
            copies = (house.clone / ".git" / "mto").glob(f"cut-*/{path}")
            assert left in [copy.read_bytes() for copy in copies]
            cuts += 1
        end = check(house, touched, victim)
        ends[end] += 1
        if victim:
            assert (house.clone / victim).read_bytes().endswith(b"MINE\n")
            if raw_git(house.clone, "ls-files", victim):
                raw_git(house.clone, "checkout", "HEAD", "--", victim)
            else:
                (house.clone / victim).unlink()
        if number % 4 == 3:  # and the command itself still works
            settle_by(house, verb)
            assert check(house, touched, None) == ("result" if verb == "apply" else "base")
    print(f"{verb} {size}: {interrupted} killed in {number}, {caught} in between, {ends}, {lasts}")
    assert interrupted == kills, "the delays miss the command"
    assert cuts
    assert caught >= kills // 4
    assert all(ends.values()), ends
    assert Git(house.clone).ok("fsck", "--connectivity-only", "--no-dangling")


def test_clone_killed_at_random(tmp_path: Path) -> None:
    """There is a whole clone or none, and the next command makes one."""
    rng = random.Random(5)
    house = make_house(tmp_path, FILES, SERIES)
    killer = Killer()
    last = killer.run(house, "checkout")
    absent = 0
    for _ in range(10):
        shutil.rmtree(house.clone)
        killer.kill(house, "checkout", rng.uniform(0, last), from_journal=False, group=True)
        absent += not house.clone.exists()
        make_clone(house.toy, lambda _: None)
        assert raw_git(house.clone, "status", "--porcelain") == ""
        assert raw_git(house.clone, "rev-parse", "HEAD") == house.pin
    assert absent
    apply(house.toy, lambda _: None)


def test_keep_killed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every edit is in its file, or on a branch that the user is told of."""
    monkeypatch.setattr("mto_tools.patchset.status.PATIENCE", 60)
    rng = random.Random(6)
    house = make_house(tmp_path, FILES, SERIES)
    killer = Killer()
    last = killer.run(house, "keep")
    mine = {"engine.py": "my file\n", "main.py": "my stage\n", "ds.json": "my new file\n"}
    places = {"file": 0, "branch": 0}
    for number in range(16):
        revert(house.toy, lambda _: None)
        write(house.clone, mine)
        raw_git(house.clone, "add", "main.py")
        from_journal = number % 2 == 0
        delay = rng.uniform(0, last * (0.3 if from_journal else 1))
        killer.kill(house, "keep", delay, from_journal=from_journal, group=number % 4 != 3)
        settle_by(house, "status")
        assert not list((house.clone / ".git").glob("*.lock"))
        found = raw_git(house.clone, "for-each-ref", "--format=%(refname)", "refs/heads/mto-keep")
        kept = found.split()[-1] if found else ""
        for path, text in mine.items():
            file = house.clone / path
            stands = file.exists() and file.read_text() == text
            source = f"{kept}^3" if path == "ds.json" else kept
            assert stands or raw_git(house.clone, "show", f"{source}:{path}") + "\n" == text
            places["file" if stands else "branch"] += 1
        if kept:
            assert raw_git(house.clone, "show", f"{kept}^2:main.py") == "my stage"
        apply(house.toy, lambda _: None, keep_edits=True)
        assert raw_git(house.clone, "status", "--porcelain", "-uall") == ""
        for ref in raw_git(house.clone, "for-each-ref", "--format=%(refname)").split():
            if ref.startswith("refs/heads/mto-keep/"):
                raw_git(house.clone, "update-ref", "-d", ref)
    print(places)
    assert all(places.values()), places


def test_a_lock_that_a_killed_keep_left_is_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git was killed while it made the branch, and the next try comes within the same second."""
    house = make_house(tmp_path, FILES, SERIES)
    apply(house.toy, lambda _: None)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Stopped:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("mto_tools.patchset.keep.datetime", Stopped)
    folder = house.clone / ".git" / "refs" / "heads" / "mto-keep"
    folder.mkdir(parents=True)
    (folder / "20260102-030405.lock").touch()
    write(house.clone, {"engine.py": "my file\n"})
    revert(house.toy, lambda _: None, keep_edits=True)
    assert raw_git(house.clone, "show", "mto-keep/20260102-030405-2:engine.py") == "my file"
