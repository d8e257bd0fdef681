"""A clone the user made: its history, its branches and its HEAD stay the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mto_tools.errors import RefusedError
from mto_tools.patchset.apply import apply, revert, verify
from mto_tools.patchset.status import status

from .conftest import House, patch_of, raw_git, write


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture
def own(house: House, tmp_path: Path) -> Path:
    """A full clone at the pin, its branch main checked out."""
    raw_git(tmp_path, "clone", "-q", f"file://{house.origin}", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def no_compat(house: House) -> House:
    """A series whose layer compat holds no patch, as that of mini."""
    house.write_series({"0001-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]))})
    return house


def where(repo: Path) -> str:
    """HEAD, its commit, all branches, and the state of the files."""
    head = (repo / ".git" / "HEAD").read_text()
    refs = raw_git(repo, "for-each-ref", "refs/heads")
    return f"{head} {raw_git(repo, 'rev-parse', 'HEAD')}\n{refs}\n{raw_git(repo, 'status')}"


def go_on(house: House, own: Path) -> None:
    """Pin a commit two further on, which the clone lacks, and commit something in the clone."""
    for message in ("third", "fourth"):
        write(house.origin, {"big.bin": message})
        raw_git(house.origin, "add", "-A")
        raw_git(house.origin, "commit", "-q", "-m", message)
    old, house.pin = house.pin, raw_git(house.origin, "rev-parse", "HEAD")
    toml = house.patches / "upstream.toml"
    toml.write_text(toml.read_text().replace(old, house.pin))
    house.write_series({"0001-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]))})
    raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")


@pytest.mark.parametrize("kind", ["url", "path", "shallow", "incomplete"])
def test_a_full_clone_stays_whole(house: House, own: Path, tmp_path: Path, kind: str) -> None:
    """It lacks the pin and has a commit of its own: refused, and the pin can still be merged."""
    go_on(house, own)
    source = str(house.origin)
    if kind == "url":
        source = f"file://{house.origin}"
    elif kind == "shallow":
        source = str(tmp_path / "shallow")
        raw_git(tmp_path, "clone", "-q", "--depth=2", f"file://{house.origin}", source)
    elif kind == "incomplete":
        blob = raw_git(house.origin, "rev-parse", "HEAD:big.bin")
        (house.origin / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RefusedError, match="expected the pin"):
        apply(house.toy, quiet, repo=own, source=source)
    assert raw_git(own, "rev-parse", "--is-shallow-repository") == "false"
    assert raw_git(own, "rev-list", "--count", house.pin) == "4"
    if kind != "incomplete":
        raw_git(own, "merge", "-q", "-m", "merged", house.pin)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_source_whose_history_is_cut(house: House, own: Path, tmp_path: Path, depth: int) -> None:
    """Its end is marked, and what the clone had stays whole."""
    raw_git(own, "reset", "-q", "--hard", "HEAD~")
    raw_git(own, "update-ref", "-d", "refs/remotes/origin/HEAD")
    raw_git(own, "update-ref", "-d", "refs/remotes/origin/main")
    raw_git(own, "reflog", "expire", "--expire=now", "--all")
    raw_git(own, "gc", "-q", "--prune=now")
    go_on(house, own)
    source = str(tmp_path / "shallow")
    raw_git(tmp_path, "clone", "-q", f"--depth={depth}", f"file://{house.origin}", source)
    with pytest.raises(RefusedError, match="expected the pin"):
        apply(house.toy, quiet, repo=own, source=source)
    assert raw_git(own, "rev-list", "--count", house.pin) == "1"
    assert raw_git(own, "rev-list", "--count", "HEAD") == "2"


def test_revert_where_no_patch_was_applied(no_compat: House, own: Path) -> None:
    """start and goal are one commit, and the branch to delete is the one HEAD is on."""
    raw_git(own, "switch", "-q", "--detach")
    before = where(own)
    apply(no_compat.toy, quiet, repo=own, through="compat")
    assert raw_git(own, "branch", "--show-current") == "mto"
    assert revert(no_compat.toy, quiet, repo=own).changed
    assert where(own) == before
    assert not revert(no_compat.toy, quiet, repo=own).changed


@pytest.mark.parametrize("commits", [0, 1])
def test_a_branch_mto_that_mto_did_not_make(house: House, own: Path, commits: int) -> None:
    raw_git(own, "switch", "-q", "-c", "mto")
    for _ in range(commits):
        raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")
    before = where(own)
    with pytest.raises(RefusedError, match="branch mto|expected the pin"):
        apply(house.toy, quiet, repo=own)
    if commits:
        with pytest.raises(RefusedError, match="expected the pin"):
            revert(house.toy, quiet, repo=own)
    else:
        assert not revert(house.toy, quiet, repo=own).changed
    assert where(own) == before


def test_a_branch_mto_made_after_apply_was_refused(house: House, own: Path) -> None:
    write(own, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError, match="would overwrite"):
        apply(house.toy, quiet, repo=own)
    raw_git(own, "switch", "-q", "-c", "mto")
    raw_git(own, "commit", "-q", "-a", "-m", "mine")
    before = where(own)
    with pytest.raises(RefusedError, match="expected the pin"):
        revert(house.toy, quiet, repo=own)
    assert where(own) == before


def test_own_commits_on_an_empty_layer_stay_on_the_branch(
    no_compat: House, own: Path, said: list[str]
) -> None:
    apply(no_compat.toy, quiet, repo=own, through="compat")
    raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = raw_git(own, "rev-parse", "HEAD")
    revert(no_compat.toy, said.append, repo=own)
    assert raw_git(own, "branch", "--show-current") == "main"
    assert raw_git(own, "rev-parse", "mto") == mine
    assert f"toy: your commits stay on branch mto, {mine}" in said
    raw_git(own, "switch", "-q", "mto")  # the user's now: another revert leaves it alone
    with pytest.raises(RefusedError, match="expected the pin"):
        revert(no_compat.toy, quiet, repo=own)
    assert raw_git(own, "rev-parse", "mto") == mine


def test_records_of_older_versions(house: House, own: Path) -> None:
    apply(house.toy, quiet, repo=own)
    state = own / ".git" / "mto" / "state"
    state.write_text(state.read_text().replace(' "branch": true,\n', ""))
    assert '"branch"' not in state.read_text()
    revert(house.toy, quiet, repo=own)
    assert raw_git(own, "branch", "--list", "mto") == ""


def test_hints_act_on_the_same_clone(house: House, own: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my clone"
    own.rename(spaced)
    write(spaced, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError) as caught:
        apply(house.toy, quiet, repo=spaced, through="mto")
    same = f"apply toy --repo '{spaced}' --through mto --keep"
    assert caught.value.hint.endswith(f"first: mto {same}")
    apply(house.toy, quiet, repo=spaced, through="mto", keep_edits=True)
    assert status(house.toy, quiet, repo=spaced).through == "mto"
    write(spaced, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError) as caught:
        revert(house.toy, quiet, repo=spaced)
    assert caught.value.hint.endswith(f"first: mto revert toy --repo '{spaced}' --keep")
    with pytest.raises(Exception, match="edited since") as edited:
        verify(house.toy, quiet, repo=spaced)
    assert f"mto diff toy --repo '{spaced}' shows" in edited.value.hint
