"""One word per upstream, for every state a clone can be in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mto_tools.errors import RefusedError
from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.status import WORDS, Status, inserted_lines, status
from mto_tools.upstreams.upstream import load_upstream

from .conftest import SERIES, House, raw_git, write
from .kill import run_killed


def quiet(_: str) -> None:
    """Say nothing."""


def word(house: House, repo: Path | None = None) -> str:
    return status(house.toy, quiet, repo=repo).word


def test_absent_pristine_applied(house: House) -> None:
    assert word(house) == "absent"
    house.clone.mkdir(parents=True)
    assert word(house) == "absent"
    ensure_clone(house.toy, quiet)
    assert word(house) == "pristine"
    for layer in ("compat", "mto", "deepspeed"):
        apply(house.toy, quiet, through=layer)
        found = status(house.toy, quiet)
        assert (found.word, found.through, found.good) == ("applied", layer, True)
    revert(house.toy, quiet)
    assert word(house) == "pristine"


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_edited_since(house: House, applied: bool, hidden: bool) -> None:
    ensure_clone(house.toy, quiet)
    if applied:
        apply(house.toy, quiet)
    write(house.clone, {"untracked.txt": "a run's output is no edit\n"})
    assert status(house.toy, quiet).good
    if hidden:
        raw_git(house.clone, "update-index", "--assume-unchanged", "main.py")
    write(house.clone, {"main.py": "mine\n"})
    found = status(house.toy, quiet)
    assert (found.word, found.edited, found.good) == ("edited since", ["main.py"], False)


def test_edits_of_mode_and_deletions_count(house: House) -> None:
    apply(house.toy, quiet)
    (house.clone / "data.txt").unlink()
    (house.clone / "main.py").chmod(0o755)
    assert status(house.toy, quiet).edited == ["data.txt", "main.py"]


def test_commits_on_top(house: House) -> None:
    apply(house.toy, quiet)
    raw_git(house.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    found = status(house.toy, quiet)
    assert (found.word, found.through) == ("edited since", "deepspeed")
    assert "1 commits of yours" in found.detail


def test_partly_applied_by_commit_and_by_file(house: House) -> None:
    apply(house.toy, quiet)
    lock = read_lock(house.toy)
    assert lock
    raw_git(house.clone, "switch", "-q", "--detach", lock.patches[0].commit)
    found = status(house.toy, quiet)
    assert (found.word, found.detail) == ("partly applied", "1 of 4 patches")
    raw_git(house.clone, "switch", "-q", "mto")
    raw_git(house.clone, "restore", "--source", house.pin, "engine.py")
    found = status(house.toy, quiet)
    assert (found.word, found.edited) == ("partly applied", ["engine.py"])
    revert_by_hand = ("switch", "-q", "-f", "base")
    raw_git(house.clone, *revert_by_hand)
    raw_git(house.clone, "restore", "--source", "mto", "engine.py")
    assert word(house) == "partly applied"


def test_killed_step_is_finished_by_status(
    house: House, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mto_tools.patchset.status.PATIENCE", 0.1)
    apply(house.toy, quiet)
    run_killed(lambda: revert(load_upstream(house.home, "toy"), quiet), 3, decided=True)
    assert (house.clone / ".git" / "index.lock").exists()
    with locked_by_another(house):
        found = status(house.toy, said.append)
        assert found.word == "partly applied"
        assert "another mto is at work" in found.detail
    assert not said
    assert status(house.toy, said.append).word == "pristine"
    assert any("revert toy" in line for line in said)
    assert raw_git(house.clone, "status", "--porcelain") == ""
    assert not (house.clone / ".git" / "index.lock").exists()


@contextlib.contextmanager
def locked_by_another(house: House) -> Iterator[None]:
    """Hold the clone's lock as another process would: flock is per open file."""
    with (house.clone / ".git" / "mto" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_wrong_base(house: House) -> None:
    ensure_clone(house.toy, quiet)
    raw_git(house.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    found = status(house.toy, quiet)
    assert found.word == "wrong base"
    assert house.pin in found.detail


def test_former_series(house: House) -> None:
    apply(house.toy, quiet)
    house.write_series({"0001-compat-import.patch": SERIES["0002-compat-shim.patch"]})
    found = status(house.toy, quiet)
    assert found.word == "wrong base"
    assert "mto apply moves on" in found.detail


def test_incomplete_clones(house: House, tmp_path: Path) -> None:
    house.clone.mkdir(parents=True)
    write(house.clone, {"main.py": "no repository\n"})
    assert word(house) == "incomplete clone"
    raw_git(house.home, "init", "-q", ".")  # now inside another repository
    found = status(house.toy, quiet)
    assert found.word == "incomplete clone"
    assert "not a clone of its own" in found.detail
    raw_git(house.clone, "init", "-q", ".")
    found = status(house.toy, quiet)
    assert (found.word, found.detail) == ("incomplete clone", "no commit is checked out")
    shutil.rmtree(house.clone)
    ensure_clone(house.toy, quiet)
    for pack in list((house.clone / ".git" / "objects").rglob("*.pack")):
        moved = pack.rename(tmp_path / pack.name)
        with moved.open("rb") as stream:
            command = ["git", "-C", str(house.clone), "unpack-objects", "-q"]
            subprocess.run(command, stdin=stream, check=True)
    oid = raw_git(house.clone, "rev-parse", "HEAD:data.txt")
    (house.clone / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    found = status(house.toy, quiet)
    assert (found.word, found.detail) == ("incomplete clone", "objects are missing: data.txt")


def test_damaged_series_is_said_and_the_clone_still_judged(house: House) -> None:
    apply(house.toy, quiet)
    with (house.patches / "0001-compat-import.patch").open("ab") as stream:
        stream.write(b"\n")
    found = status(house.toy, quiet)
    assert found.word == "applied"
    assert "not the patch that was locked" in found.series
    assert not found.good


def test_inserted_lines_are_counted_by_hunk_headers() -> None:
    head = b"Subject: x\n+++ no\n---\n--- a/f\n+++ b/f\n"
    assert inserted_lines(head + b"@@ -1,0 +2,2 @@\n++++ tricky\n+x\n@@ -5,0 +8 @@\n+y\n") == 3
    assert inserted_lines(SERIES["0003-mto-loss.patch"]) == 4


def test_command_line(house: House) -> None:
    run = house.mto("status", "--json")
    assert run.returncode == 0
    (state,) = json.loads(run.stdout)
    assert (state["name"], state["word"]) == ("toy", "absent")
    assert state["inserted"] == {"compat": 3, "mto": 4, "deepspeed": 2}
    assert house.mto("status", "toy", "--expect", "applied").returncode == 1
    assert house.mto("apply", "toy").returncode == 0
    run = house.mto("status", "toy", "--expect", "applied")
    assert run.returncode == 0
    assert "off until" in run.stdout  # "deepspeed" names code that is there, not what is on
    assert house.mto("status", "--expect", "pristine").returncode == 1
    assert house.mto("status", "--expect", "fine").returncode == 2
    write(house.clone, {"main.py": "mine\n"})
    run = house.mto("status")
    assert run.returncode == 1
    assert "edited since" in run.stdout
    run = house.mto("status", "--verbose")
    assert "compat 3, mto 4, deepspeed 2" in run.stdout
    assert house.pin in run.stdout


def test_seven_words() -> None:
    assert len(WORDS) == 7
    assert [Status("n", w, "r", "p").good for w in WORDS] == [True] * 3 + [False] * 4


def test_a_switch_is_refused_while_another_git_holds_the_index(house: House) -> None:
    ensure_clone(house.toy, quiet)
    lock = house.clone / ".git" / "index.lock"
    lock.write_text("a git of the user's")
    with pytest.raises(RefusedError, match="another git is at work") as caught:
        apply(house.toy, quiet)
    assert str(lock) in caught.value.message
    assert lock.read_text() == "a git of the user's"
    lock.unlink()
    assert status(house.toy, quiet).word == "pristine"
    assert apply(house.toy, quiet).changed
