"""What is the user's in the work tree stays as it is, or stands where the command says."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from mto_tools.errors import RefusedError
from mto_tools.patchset import pending
from mto_tools.patchset.apply import apply, revert
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.journal import Journal, begin, index_digest, settle
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.status import status
from mto_tools.patchset.worktree import changes

from .conftest import LINES, House, make_repo, patch_of, raw_git, write


def quiet(_: str) -> None:
    """Say nothing."""


def kept_branches(house: House) -> list[str]:
    return raw_git(
        house.clone, "for-each-ref", "--format=%(refname)", "refs/heads/mto-keep"
    ).split()


def move_pin(house: House, message: str) -> None:
    """Pin the commit of what is staged in the origin, with a series of one patch."""
    raw_git(house.origin, "commit", "-q", "-m", message)
    old, house.pin = house.pin, raw_git(house.origin, "rev-parse", "HEAD")
    toml = house.patches / "upstream.toml"
    toml.write_text(toml.read_text().replace(old, house.pin))
    house.write_series({"0001-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]))})


def set_submodule(house: House, commit: str) -> None:
    raw_git(house.origin, "update-index", "--add", "--cacheinfo", f"160000,{commit},module")


@pytest.mark.parametrize("keep_edits", [False, True])
@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_nothing_is_written_through_a_linked_folder(
    house: House, tmp_path: Path, verb: str, keep_edits: bool
) -> None:
    (apply if verb == "revert" else ensure_clone)(house.toy, quiet)
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})  # the beginning of upstream's
    shutil.rmtree(house.clone / "sub")
    (house.clone / "sub").symlink_to(outside)
    head = raw_git(house.clone, "rev-parse", "HEAD")
    with pytest.raises(RefusedError, match=r"through \S+/upstream/toy/sub, which is a link") as why:
        (apply if verb == "apply" else revert)(house.toy, quiet, keep_edits=keep_edits)
    assert why.value.hint.startswith(f"mv {house.clone / 'sub'} ")
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}
    assert raw_git(house.clone, "rev-parse", "HEAD") == head
    assert not kept_branches(house)
    # done what the hint says, it goes on
    (house.clone / "sub").rename(tmp_path / "link")
    assert (apply if verb == "apply" else revert)(house.toy, quiet, keep_edits=True).kept
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}


def test_settling_leaves_a_linked_folder_alone(
    house: House, tmp_path: Path, said: list[str]
) -> None:
    """The link came after the kill: the step is settled around it."""
    outside = tmp_path / "outside"
    write(outside, {"deep.py": LINES[:40]})
    killed_after_journal(house)
    shutil.rmtree(house.clone / "sub")
    (house.clone / "sub").symlink_to(outside)
    status(house.toy, said.append)
    assert "  kept as you left them: sub/deep.py" in said
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"deep.py": LINES[:40]}
    assert not (house.clone / ".git" / "mto" / "journal").exists()


@pytest.mark.parametrize("in_the_way", [True, False])
def test_a_folder_where_a_file_belongs_is_refused_before_a_branch_is_made(
    house: House, in_the_way: bool
) -> None:
    apply(house.toy, quiet)
    name = "engine.py" if in_the_way else "data.txt"
    (house.clone / name).unlink()
    write(house.clone, {f"{name}/inside": "mine\n"})
    with pytest.raises(RefusedError, match=f"{name} is no file, and the clone has a file"):
        revert(house.toy, quiet, keep_edits=True)
    assert not kept_branches(house)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_mode_is_kept_and_taken_back(house: House, hidden: bool) -> None:
    apply(house.toy, quiet)
    if hidden:
        raw_git(house.clone, "update-index", "--assume-unchanged", "engine.py")
    (house.clone / "engine.py").chmod(0o755)
    with pytest.raises(RefusedError, match=r"engine\.py \(edited\)"):
        revert(house.toy, quiet)
    kept = revert(house.toy, quiet, keep_edits=True).kept
    assert raw_git(house.clone, "ls-tree", kept, "engine.py").startswith("100755")
    assert not (house.clone / "engine.py").stat().st_mode & 0o111
    assert raw_git(house.clone, "status", "--porcelain") == ""
    assert kept_branches(house) == [f"refs/heads/{kept}"]


def test_modes_do_not_count_where_git_ignores_them(house: House) -> None:
    apply(house.toy, quiet)
    raw_git(house.clone, "config", "core.fileMode", "false")
    (house.clone / "engine.py").chmod(0o755)
    assert status(house.toy, quiet).word == "applied"
    assert revert(house.toy, quiet).changed


def test_a_mode_changed_after_the_kill_is_the_users(house: House, said: list[str]) -> None:
    killed_after_journal(house)
    (house.clone / "engine.py").chmod(0o755)
    status(house.toy, said.append)
    assert "  kept as you left them: engine.py" in said
    assert (house.clone / "engine.py").stat().st_mode & 0o100


@pytest.mark.parametrize("sparse", [True, False])
def test_a_file_git_passes_over_is_refused_before_a_branch_is_made(
    house: House, sparse: bool
) -> None:
    apply(house.toy, quiet)
    if sparse:
        raw_git(house.clone, "sparse-checkout", "set", "--no-cone", "/*", "!/engine.py")
        assert not (house.clone / "engine.py").exists()
    else:
        raw_git(house.clone, "update-index", "--skip-worktree", "engine.py")
        write(house.clone, {"engine.py": "mine\n"})
    for keep_edits in (False, True, True):
        with pytest.raises(RefusedError, match=r"skip-worktree.*: engine\.py") as why:
            revert(house.toy, quiet, keep_edits=keep_edits)
    assert not kept_branches(house)
    command = why.value.hint.split()
    raw_git(house.clone, *command[3:])
    assert bool(revert(house.toy, quiet, keep_edits=True).kept) is not sparse


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


def test_a_submodule_folder_that_is_gone_is_nothing_to_keep(house: House) -> None:
    set_submodule(house, house.pin)
    move_pin(house, "third")
    apply(house.toy, quiet)
    (house.clone / "module").rmdir()
    write(house.clone, {"engine.py": "mine\n"})
    assert revert(house.toy, quiet, keep_edits=True).kept
    assert apply(house.toy, quiet, keep_edits=True).kept == ""
    assert len(kept_branches(house)) == 1
    assert not (house.clone / ".git" / "index.lock").exists()


def killed_after_journal(house: House) -> Journal:
    """Leave a clone as a revert does that is killed when its journal stands; return that."""
    apply(house.toy, quiet)
    lock = read_lock(house.toy)
    assert lock
    git = ensure_clone(house.toy, quiet)
    files = changes(git, "HEAD", house.pin)
    journal = Journal("revert toy", lock.commit, house.pin, files, index_digest(git))
    begin(git, journal)
    return journal


def test_what_was_cut_short_after_a_kill_is_set_aside(house: House, said: list[str]) -> None:
    journal = killed_after_journal(house)
    whole = (house.clone / "engine.py").read_bytes()
    (house.clone / "engine.py").write_bytes(whole[:-30])
    (house.clone / "main.py").unlink()
    status(house.toy, said.append)
    assert raw_git(house.clone, "status", "--porcelain") == ""
    copy = house.clone / ".git" / "mto" / f"cut-{journal.nonce[:8]}" / "engine.py"
    assert copy.read_bytes() == whole[:-30]
    where = house.clone / "engine.py"
    assert f"  written anew: {where} (was cut short; what it held is in {copy})" in said
    assert f"  written anew: {house.clone / 'main.py'} (was missing)" in said
    apply(house.toy, quiet)
    assert copy.exists(), "later commands leave it alone"


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("from_link", [True, False])
def test_a_folder_that_becomes_a_link_is_settled(
    tmp_path: Path, forward: bool, from_link: bool
) -> None:
    """As an upgrade may bring it; killed before git wrote a file, or when it had written all."""
    repo = tmp_path / "repo"
    folder = make_repo(repo, {"sub/deep.py": LINES})
    shutil.rmtree(repo / "sub")
    (repo / "sub").symlink_to("README.md")
    raw_git(repo, "add", "-A")
    raw_git(repo, "commit", "-q", "-m", "third")
    link = raw_git(repo, "rev-parse", "HEAD")
    start, goal = (link, folder) if from_link else (folder, link)
    raw_git(repo, "switch", "-q", "--detach", start if forward else goal)
    git = Git(repo)
    journal = Journal("apply toy", start, goal, changes(git, start, goal), index_digest(git))
    begin(git, journal)
    raw_git(repo, "update-ref", "--no-deref", "HEAD", goal if forward else start)
    settled = settle(git, journal)
    assert not settled.kept
    if (goal if forward else start) == link:
        assert (repo / "sub").readlink() == Path("README.md")
    else:
        assert (repo / "sub" / "deep.py").read_text() == LINES


def test_a_second_edit_between_kill_and_recovery_is_kept_beside_the_first(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("mine", "mine again"):
        file.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pending, "_finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pending.replace(tmp_path, {"file": b"new"}, "test")
        file.write_text(text)
        pending.recover(tmp_path, quiet)
        assert file.read_bytes() == b"new"
    assert (tmp_path / "file.yours").read_text() == "mine"
    assert (tmp_path / "file.yours.2").read_text() == "mine again"


def interrupt(_: Path) -> None:
    raise KeyboardInterrupt


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
    assert not (house.clone / ".git" / "mto" / "journal").exists()
