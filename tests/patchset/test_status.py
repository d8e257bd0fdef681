"""One word per upstream, for every state a clone can be in."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.errors import MtoError
from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.status import status
from mto_tools.upstreams.upstream import load_upstream

from .conftest import FILES, SERIES, Workspace, quiet, raw_git, write
from .kill import run_killed


def word(work: Workspace, repo: Path | None = None) -> str:
    return status(work.toy, quiet, repo=repo).word


def test_absent_pristine_applied(work: Workspace) -> None:
    assert word(work) == "absent"
    work.clone.mkdir(parents=True)
    assert word(work) == "absent"
    ensure_clone(work.toy, quiet)
    assert word(work) == "pristine"
    for layer in ("compat", "mto", "deepspeed"):
        apply(work.toy, quiet, through=layer)
        found = status(work.toy, quiet)
        assert (found.word, found.through, found.good) == ("applied", layer, True)
    revert(work.toy, quiet)
    assert word(work) == "pristine"


@pytest.mark.parametrize("run", [ensure_clone, apply])
@pytest.mark.parametrize("edit", ["text", "hidden", "mode", "deleted"])
def test_edited_since(work: Workspace, run: Callable[..., object], edit: str) -> None:
    run(work.toy, quiet)
    write(work.clone, {"untracked.txt": "a run's output is no edit\n"})
    assert status(work.toy, quiet).good
    if edit == "hidden":
        raw_git(work.clone, "update-index", "--assume-unchanged", "main.py")
    if edit == "mode":
        (work.clone / "main.py").chmod(0o755)
    elif edit == "deleted":
        (work.clone / "main.py").unlink()
    else:
        write(work.clone, {"main.py": "mine\n"})
    found = status(work.toy, quiet)
    assert (found.word, found.edited, found.good) == ("edited since", ["main.py"], False)


def test_commits_on_top(work: Workspace) -> None:
    apply(work.toy, quiet)
    raw_git(work.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    found = status(work.toy, quiet)
    assert (found.word, found.through) == ("edited since", "deepspeed")
    assert "1 commits of yours" in found.detail
    raw_git(work.clone, "reset", "-q", "--hard", work.lock.commits[2])
    raw_git(work.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    assert (word(work), status(work.toy, quiet).through) == ("edited since", "compat")
    raw_git(work.clone, "reset", "-q", "--hard", work.pin)
    raw_git(work.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    found = status(work.toy, quiet)
    assert (found.word, work.pin in found.detail) == ("wrong base", True)


def test_partly_applied_and_former_series(work: Workspace) -> None:
    apply(work.toy, quiet)
    raw_git(work.clone, "switch", "-q", "--detach", work.lock.patches[0].commit)
    found = status(work.toy, quiet)
    assert (found.word, found.detail) == ("partly applied", "1 of 4 patches")
    work.write_series({"0001-compat-import.patch": SERIES["0002-compat-shim.patch"]})
    found = status(work.toy, quiet)
    assert found.word == "wrong base"
    assert "mto apply moves on" in found.detail


def test_killed_step_is_finished_by_status(
    work: Workspace, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mto_tools.patchset.locks.PATIENCE", 0.1)
    apply(work.toy, quiet)
    run_killed(lambda: revert(load_upstream(work.home, "toy"), quiet), 3, decided=True)
    assert (work.clone / ".git" / "index.lock").is_symlink()
    # as another process would hold the clone's lock: flock is per open file
    with (work.clone / ".git" / "mto" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        found = status(work.toy, said.append)
        assert found.word == "partly applied"
        assert "another mto is at work" in found.detail
    assert not said
    assert status(work.toy, said.append).word == "pristine"
    assert any("revert toy" in line for line in said)
    assert raw_git(work.clone, "status", "--porcelain") == ""
    assert not (work.clone / ".git" / "index.lock").is_symlink()


def test_incomplete_clones(work: Workspace, tmp_path: Path) -> None:
    write(work.clone, FILES)
    for folder, more, words in (
        (work.home, ["--bare", str(work.clone)], "a bare repository"),
        (tmp_path, ["elsewhere"], "not a git clone"),
        (work.home, ["."], "not a clone of its own but a folder inside"),
        (work.clone, ["."], "no commit is checked out"),
    ):
        raw_git(folder, "init", "-q", *more)
        found = status(work.toy, quiet)
        assert found.word == "incomplete clone"
        assert words in found.detail
        with pytest.raises(MtoError, match="expected the pin" if folder == work.clone else words):
            apply(work.toy, quiet)
        if "--bare" in more:
            shutil.rmtree(work.clone)
            write(work.clone, FILES)
    assert (work.clone / "main.py").read_text() == FILES["main.py"]
    shutil.rmtree(work.clone)
    ensure_clone(work.toy, quiet)
    for pack in list((work.clone / ".git" / "objects").rglob("*.pack")):
        moved = pack.rename(tmp_path / pack.name)
        with moved.open("rb") as stream:
            command = ["git", "-C", str(work.clone), "unpack-objects", "-q"]
            subprocess.run(command, stdin=stream, check=True)
    oid = raw_git(work.clone, "rev-parse", "HEAD:data.txt")
    (work.clone / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    found = status(work.toy, quiet)
    assert (found.word, found.detail) == ("incomplete clone", "objects are missing: data.txt")


def test_damaged_series_is_said_and_the_clone_still_judged(work: Workspace) -> None:
    apply(work.toy, quiet)
    with (work.patches / "0001-compat-import.patch").open("ab") as stream:
        stream.write(b"\n")
    found = status(work.toy, quiet)
    assert found.word == "applied"
    assert "not the patch that was locked" in found.series
    assert not found.good


def test_command_line(work: Workspace) -> None:
    run = work.mto("status", "--json")
    assert run.returncode == 0
    (state,) = json.loads(run.stdout)
    assert (state["name"], state["word"]) == ("toy", "absent")
    apply(work.toy, quiet)
    run = work.mto("status", "toy", "--expect", "applied")
    assert run.returncode == 0
    assert "off until" in run.stdout  # "deepspeed" names code that is there, not what is on
    assert work.mto("status", "--expect", "pristine").returncode == 1
    assert work.mto("status", "--expect", "fine").returncode == 2
    write(work.clone, {"main.py": "mine\n"})
    run = work.mto("status")
    assert run.returncode == 1
    assert "edited since" in run.stdout
