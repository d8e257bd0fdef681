"""What is the user's in the work tree stays as it is, or stands where the command says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.clone_state import BranchMove
from mto_tools.patchset.git import Git
from mto_tools.patchset.status import status
from mto_tools.patchset.switch import switch
from mto_tools.patchset.transaction import clone_lock, recover, replace_files
from mto_tools.upstreams.upstream import load_upstream

from .conftest import FILES, LINES, Workspace, make_repo, quiet, raw_git, write
from .kill import run_killed


def set_submodule(work: Workspace, commit: str) -> None:
    raw_git(work.origin, "update-index", "--add", "--cacheinfo", f"160000,{commit},module")


def killed_revert(work: Workspace, at: int = 1) -> None:
    """Leave a clone as a revert does that is killed once its step is decided."""
    apply(work.toy, quiet)
    run_killed(lambda: revert(load_upstream(work.home, "toy"), quiet), at, decided=True)
    assert (work.clone / ".git" / "mto" / "transaction").exists()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_nothing_is_written_through_a_linked_folder(
    work: Workspace, tmp_path: Path, verb: str
) -> None:
    (apply if verb == "revert" else ensure_clone)(work.toy, quiet)
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})  # the beginning of upstream's
    shutil.rmtree(work.clone / "sub")
    (work.clone / "sub").symlink_to(outside)
    head = raw_git(work.clone, "rev-parse", "HEAD")
    with pytest.raises(RefusedError, match=r"upstream/toy/sub, which is no folder") as why:
        (apply if verb == "apply" else revert)(work.toy, quiet)
    assert why.value.hint.startswith(f"mv {work.clone / 'sub'} ")
    assert raw_git(work.clone, "rev-parse", "HEAD") == head
    # done what the hint says, and the deleted files restored, it goes on
    (work.clone / "sub").rename(tmp_path / "link")
    raw_git(work.clone, "restore", "sub")
    assert (apply if verb == "apply" else revert)(work.toy, quiet).changed
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}


def test_a_link_that_came_after_the_kill_is_left_alone(
    work: Workspace, tmp_path: Path, said: list[str]
) -> None:
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})
    killed_revert(work)
    shutil.rmtree(work.clone / "sub")
    (work.clone / "sub").symlink_to(outside)
    status(work.toy, said.append)
    assert any("sub/deep.py" in line for line in said)
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin


def test_modes_do_not_count_where_git_ignores_them(work: Workspace) -> None:
    apply(work.toy, quiet)
    raw_git(work.clone, "config", "core.fileMode", "false")
    (work.clone / "engine.py").chmod(0o755)
    assert status(work.toy, quiet).word == "applied"
    assert revert(work.toy, quiet).changed


@pytest.mark.parametrize("edit", ["text", "mode", "folder", "deleted", "new"])
def test_an_edit_between_kill_and_recovery_is_set_aside(
    work: Workspace, edit: str, said: list[str]
) -> None:
    killed_revert(work)
    file = work.clone / "engine.py"
    aside = work.clone / "engine.py.yours"
    if edit == "text":
        file.write_text("mine\n")
    elif edit == "mode":
        file.chmod(0o755)
    elif edit == "new":
        write(work.clone, {"ds.json": "mine\n"})  # which the revert removes
    else:
        file.unlink()
    if edit == "folder":
        write(work.clone, {"engine.py/inside": "mine\n"})
    status(work.toy, said.append)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    assert file.read_text() == FILES["engine.py"]
    if edit == "new":
        assert (work.clone / "ds.json").read_text() == "mine\n"
    elif edit != "deleted":
        assert any("engine.py.yours" in line for line in said)
        mine = aside / "inside" if edit == "folder" else aside
        assert edit == "mode" or mine.read_text() == "mine\n"
    assert raw_git(work.clone, "status", "--porcelain", "--untracked-files=no") == ""


def test_who_moves_head_after_the_kill_is_left_there(work: Workspace, said: list[str]) -> None:
    killed_revert(work)
    (work.clone / ".git" / "index.lock").unlink()
    raw_git(work.clone, "switch", "-q", "-f", "-c", "mine")
    raw_git(work.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = raw_git(work.clone, "rev-parse", "HEAD")
    status(work.toy, said.append)
    assert raw_git(work.clone, "rev-parse", "HEAD") == mine
    assert raw_git(work.clone, "branch", "--show-current") == "mine"
    assert raw_git(work.clone, "status", "--porcelain") == ""


def test_a_damaged_log_is_named(work: Workspace) -> None:
    killed_revert(work)
    log = work.clone / ".git" / "mto" / "transaction" / "log.json"
    log.write_text("{")
    with pytest.raises(CorruptError, match="log.json") as caught:
        revert(work.toy, quiet)
    assert str(log.parent) in caught.value.hint


def test_a_sparse_checkout_stays_sparse(work: Workspace) -> None:
    """It gets every file of the series, and no other one that it leaves out."""
    ensure_clone(work.toy, quiet)
    left_out = ("!/ds.json", "!/engine.py", "!/data.txt")
    raw_git(work.clone, "sparse-checkout", "set", "--no-cone", "/*", *left_out)
    assert not (work.clone / "engine.py").exists()
    for run in (apply, revert):
        assert run(work.toy, quiet).changed
        assert (work.clone / "ds.json").exists() == (run is apply)
        assert ("mto = 1" in (work.clone / "engine.py").read_text()) == (run is apply)
        assert not (work.clone / "data.txt").exists()
        assert raw_git(work.clone, "status", "--porcelain") == ""


def test_an_edit_that_git_passes_over_is_kept(work: Workspace) -> None:
    apply(work.toy, quiet)
    raw_git(work.clone, "update-index", "--skip-worktree", "engine.py")
    write(work.clone, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError, match=r"told to overlook: engine\.py") as why:
        revert(work.toy, quiet)
    assert "--no-skip-worktree" in why.value.hint
    raw_git(work.clone, "update-index", "--no-skip-worktree", "engine.py")
    with pytest.raises(RefusedError, match=r"engine\.py \(M\)"):
        revert(work.toy, quiet)
    assert (work.clone / "engine.py").read_text() == "mine\n"


def test_a_submodule_that_moves_with_the_pin(work: Workspace) -> None:
    set_submodule(work, work.pin)
    work.commit_and_pin({})
    apply(work.toy, quiet)
    set_submodule(work, raw_git(work.origin, "rev-parse", "HEAD"))
    work.commit_and_pin({"later.py": "later\n"})
    apply(work.toy, quiet)
    assert raw_git(work.clone, "status", "--porcelain") == ""
    assert status(work.toy, quiet).word == "applied"


@pytest.mark.parametrize("from_link", [True, False])
def test_a_folder_becomes_a_link_and_back(tmp_path: Path, from_link: bool) -> None:
    """As an upgrade may bring it; killed on the way, and finished by the next command."""
    repo = tmp_path / "repo"
    folder = make_repo(repo, {"sub/deep.py": LINES})
    shutil.rmtree(repo / "sub")
    (repo / "sub").symlink_to("README.md")
    raw_git(repo, "add", "-A")
    raw_git(repo, "commit", "-q", "-m", "third")
    link = raw_git(repo, "rev-parse", "HEAD")
    start, goal = (link, folder) if from_link else (folder, link)
    raw_git(repo, "switch", "-q", "--detach", start)

    def run() -> None:
        with clone_lock(Git(repo), quiet) as git:
            switch(git, BranchMove(str(repo), "", start, "", goal), "apply toy", quiet)

    run_killed(run, 3, decided=True)
    with clone_lock(Git(repo), quiet):
        pass
    if goal == link:
        assert (repo / "sub").readlink() == Path("README.md")
    else:
        assert (repo / "sub" / "deep.py").read_text() == LINES
    assert raw_git(repo, "rev-parse", "HEAD") == goal
    assert raw_git(repo, "status", "--porcelain") == ""


def test_a_second_edit_between_kill_and_recovery_is_kept_beside_the_first(
    tmp_path: Path, said: list[str]
) -> None:
    file, old = tmp_path / "file", tmp_path / "old"
    for text, aside in (("mine", "file.yours"), ("mine again", "file.yours.2")):
        file.write_bytes(b"old")
        old.write_bytes(b"old")
        files = {"file": b"new", "old": None}
        run_killed(lambda files=files: replace_files(tmp_path, files, "test"), 1, decided=True)  # type: ignore[misc]
        assert file.read_bytes() == b"old"
        file.write_text(text)
        recover(tmp_path, said.append)
        assert file.read_bytes() == b"new"
        assert not old.exists()
        assert (tmp_path / aside).read_text() == text
        assert any(aside in line for line in said)
    assert (tmp_path / "file.yours").read_text() == "mine"


def test_a_switch_is_refused_while_another_git_holds_the_index(work: Workspace) -> None:
    apply(work.toy, quiet)
    lock = work.clone / ".git" / "index.lock"
    lock.write_text("a git of the user's")
    with pytest.raises(RefusedError, match="another git is at work") as caught:
        revert(work.toy, quiet)
    assert str(lock) in caught.value.message
    assert lock.read_text() == "a git of the user's"
    lock.unlink()
    revert(work.toy, quiet)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin


def test_git_directory_on_another_file_system(work: Workspace, tmp_path: Path) -> None:
    """As with --separate-git-dir on another disk: a rename into the work tree fails."""
    own, other = tmp_path / "own", Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    git_dir = other / f"mto-test-{os.getpid()}"
    try:
        clone = ("clone", "-q", f"--separate-git-dir={git_dir}")
        raw_git(tmp_path, *clone, str(work.origin), str(own))
        apply(work.toy, quiet, repo=own)
        assert raw_git(own, "status", "--porcelain") == ""
        assert raw_git(own, "branch", "--show-current") == "mto"
        revert(work.toy, quiet, repo=own)
        assert raw_git(own, "status", "--porcelain") == ""
        assert raw_git(own, "branch", "--list", "mto") == ""
    finally:
        shutil.rmtree(git_dir, ignore_errors=True)
