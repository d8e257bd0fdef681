"""What is the user's in the work tree stays as it is, or stands where the command says."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.branch_move import BranchMove
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.status import status
from mto_tools.patchset.switch import switch
from mto_tools.patchset.transaction import clone_lock, recover, replace_files
from mto_tools.upstreams.upstream import load_upstream

from .conftest import FILES, LINES, House, make_repo, patch_of, raw_git, write
from .kill import run_killed


def quiet(_: str) -> None:
    """Say nothing."""


def move_pin(house: House, message: str) -> None:
    """Pin the commit of what is staged in the origin, with a series of one patch."""
    raw_git(house.origin, "commit", "-q", "-m", message)
    old, house.pin = house.pin, raw_git(house.origin, "rev-parse", "HEAD")
    toml = house.patches / "upstream.toml"
    toml.write_text(toml.read_text().replace(old, house.pin))
    house.write_series({"0001-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]))})


def set_submodule(house: House, commit: str) -> None:
    raw_git(house.origin, "update-index", "--add", "--cacheinfo", f"160000,{commit},module")


def killed_revert(house: House, at: int = 1) -> None:
    """Leave a clone as a revert does that is killed once its step is decided."""
    apply(house.toy, quiet)
    run_killed(lambda: revert(load_upstream(house.home, "toy"), quiet), at, decided=True)
    assert (house.clone / ".git" / "mto" / "transaction").exists()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_nothing_is_written_through_a_linked_folder(
    house: House, tmp_path: Path, verb: str
) -> None:
    (apply if verb == "revert" else ensure_clone)(house.toy, quiet)
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})  # the beginning of upstream's
    shutil.rmtree(house.clone / "sub")
    (house.clone / "sub").symlink_to(outside)
    head = raw_git(house.clone, "rev-parse", "HEAD")
    with pytest.raises(RefusedError, match=r"upstream/toy/sub, which is a link") as why:
        (apply if verb == "apply" else revert)(house.toy, quiet)
    assert why.value.hint.startswith(f"mv {house.clone / 'sub'} ")
    assert raw_git(house.clone, "rev-parse", "HEAD") == head
    # done what the hint says, and the deleted files restored, it goes on
    (house.clone / "sub").rename(tmp_path / "link")
    raw_git(house.clone, "restore", "sub")
    assert (apply if verb == "apply" else revert)(house.toy, quiet).changed
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}


def test_a_link_that_came_after_the_kill_is_left_alone(
    house: House, tmp_path: Path, said: list[str]
) -> None:
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})
    killed_revert(house)
    shutil.rmtree(house.clone / "sub")
    (house.clone / "sub").symlink_to(outside)
    status(house.toy, said.append)
    assert any("sub/deep.py" in line for line in said)
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}
    assert raw_git(house.clone, "rev-parse", "HEAD") == house.pin


def test_modes_do_not_count_where_git_ignores_them(house: House) -> None:
    apply(house.toy, quiet)
    raw_git(house.clone, "config", "core.fileMode", "false")
    (house.clone / "engine.py").chmod(0o755)
    assert status(house.toy, quiet).word == "applied"
    assert revert(house.toy, quiet).changed


@pytest.mark.parametrize("edit", ["text", "mode", "folder", "deleted", "new"])
def test_an_edit_between_kill_and_recovery_is_set_aside(
    house: House, edit: str, said: list[str]
) -> None:
    killed_revert(house)
    file = house.clone / "engine.py"
    aside = house.clone / "engine.py.yours"
    if edit == "text":
        file.write_text("mine\n")
    elif edit == "mode":
        file.chmod(0o755)
    elif edit == "new":
        write(house.clone, {"ds.json": "mine\n"})  # which the revert removes
    else:
        file.unlink()
    if edit == "folder":
        write(house.clone, {"engine.py/inside": "mine\n"})
    status(house.toy, said.append)
    assert raw_git(house.clone, "rev-parse", "HEAD") == house.pin
    assert file.read_text() == FILES["engine.py"]
    if edit == "new":
        assert (house.clone / "ds.json").read_text() == "mine\n"
    elif edit != "deleted":
        assert any("engine.py.yours" in line for line in said)
        mine = aside / "inside" if edit == "folder" else aside
        assert edit == "mode" or mine.read_text() == "mine\n"
    assert raw_git(house.clone, "status", "--porcelain", "--untracked-files=no") == ""


def test_who_moves_head_after_the_kill_is_left_there(house: House, said: list[str]) -> None:
    killed_revert(house)
    (house.clone / ".git" / "index.lock").unlink()
    raw_git(house.clone, "switch", "-q", "-f", "-c", "mine")
    raw_git(house.clone, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = raw_git(house.clone, "rev-parse", "HEAD")
    status(house.toy, said.append)
    assert raw_git(house.clone, "rev-parse", "HEAD") == mine
    assert raw_git(house.clone, "branch", "--show-current") == "mine"
    assert raw_git(house.clone, "status", "--porcelain") == ""


def test_a_damaged_log_is_named(house: House) -> None:
    killed_revert(house)
    log = house.clone / ".git" / "mto" / "transaction" / "log.json"
    log.write_text("{")
    with pytest.raises(CorruptError, match="log.json") as caught:
        revert(house.toy, quiet)
    assert str(log.parent) in caught.value.hint


@pytest.mark.parametrize("sparse", [True, False])
def test_a_file_git_passes_over_is_refused(house: House, sparse: bool) -> None:
    apply(house.toy, quiet)
    if sparse:
        raw_git(house.clone, "sparse-checkout", "set", "--no-cone", "/*", "!/engine.py")
        assert not (house.clone / "engine.py").exists()
    else:
        raw_git(house.clone, "update-index", "--skip-worktree", "engine.py")
    with pytest.raises(RefusedError, match=r"skip-worktree.*: engine\.py") as why:
        revert(house.toy, quiet)
    raw_git(house.clone, *why.value.hint.split()[3:])
    assert revert(house.toy, quiet).changed


def test_a_sparse_checkout_stays_sparse(house: House) -> None:
    """It gets every file of the series, and no other one that it leaves out."""
    ensure_clone(house.toy, quiet)
    raw_git(house.clone, "sparse-checkout", "set", "--no-cone", "/*", "!/ds.json", "!/data.txt")
    for run in (apply, revert):
        assert run(house.toy, quiet).changed
        assert (house.clone / "ds.json").exists() == (run is apply)
        assert not (house.clone / "data.txt").exists()
        assert raw_git(house.clone, "status", "--porcelain") == ""


def test_a_submodule_that_moves_with_the_pin(house: House) -> None:
    set_submodule(house, house.pin)
    move_pin(house, "third")
    apply(house.toy, quiet)
    set_submodule(house, raw_git(house.origin, "rev-parse", "HEAD"))
    write(house.origin, {"later.py": "later\n"})
    raw_git(house.origin, "add", "later.py")
    move_pin(house, "fourth")
    apply(house.toy, quiet)
    assert raw_git(house.clone, "status", "--porcelain") == ""
    assert status(house.toy, quiet).word == "applied"


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("from_link", [True, False])
def test_a_folder_becomes_a_link_and_back(tmp_path: Path, from_link: bool, killed: bool) -> None:
    """As an upgrade may bring it."""
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

    if killed:
        run_killed(run, 3, decided=True)
        with clone_lock(Git(repo), quiet):
            pass
    else:
        run()
    if goal == link:
        assert (repo / "sub").readlink() == Path("README.md")
    else:
        assert (repo / "sub" / "deep.py").read_text() == LINES
    assert raw_git(repo, "rev-parse", "HEAD") == goal
    assert raw_git(repo, "status", "--porcelain") == ""


def test_a_second_edit_between_kill_and_recovery_is_kept_beside_the_first(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("mine", "mine again"):
        file.write_bytes(b"old")
        run_killed(lambda: replace_files(tmp_path, {"file": b"new"}, "test"), 1, decided=True)
        assert file.read_bytes() == b"old"
        file.write_text(text)
        recover(tmp_path, quiet)
        assert file.read_bytes() == b"new"
    assert (tmp_path / "file.yours").read_text() == "mine"
    assert (tmp_path / "file.yours.2").read_text() == "mine again"


def test_a_file_system_without_hard_links(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    apply(house.toy, quiet)
    lock = house.clone / ".git" / "index.lock"
    lock.touch()
    with pytest.raises(RefusedError, match="another git is at work"):
        revert(house.toy, quiet)
    assert lock.exists()
    lock.unlink()
    revert(house.toy, quiet)
    assert raw_git(house.clone, "rev-parse", "HEAD") == house.pin


def test_git_directory_on_another_file_system(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --separate-git-dir on another disk: a rename into the work tree fails."""
    own, other = tmp_path / "own", Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    git_dir = other / f"mto-test-{os.getpid()}"
    try:
        clone = ("clone", "-q", f"--separate-git-dir={git_dir}")
        raw_git(tmp_path, *clone, str(house.origin), str(own))
        apply(house.toy, quiet, repo=own)
        assert raw_git(own, "status", "--porcelain") == ""
        assert raw_git(own, "branch", "--show-current") == "mto"
        revert(house.toy, quiet, repo=own)
        assert raw_git(own, "status", "--porcelain") == ""
        assert raw_git(own, "branch", "--list", "mto") == ""
    finally:
        shutil.rmtree(git_dir, ignore_errors=True)
