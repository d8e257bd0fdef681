"""A clone the user made: its history, its branches and its HEAD stay the user's."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mto_tools.errors import MtoError, RefusedError
from mto_tools.patchset.apply import apply, revert, verify
from mto_tools.patchset.status import status

from .conftest import ONE_PATCH, Workspace, make_repo, quiet, raw_git, write


@pytest.fixture
def no_compat(work: Workspace) -> Workspace:
    """A series whose layer compat holds no patch, as that of mini."""
    work.write_series(ONE_PATCH)
    return work


def where(repo: Path) -> str:
    """HEAD, its commit, all branches, and the state of the files."""
    head = (repo / ".git" / "HEAD").read_text()
    refs = raw_git(repo, "for-each-ref", "refs/heads")
    return f"{head} {raw_git(repo, 'rev-parse', 'HEAD')}\n{refs}\n{raw_git(repo, 'status')}"


def go_on(work: Workspace, own: Path) -> None:
    """Pin a commit two further on, which the clone lacks, and commit something in the clone."""
    for message in ("third", "fourth"):
        work.commit_and_pin({"big.bin": message})
    raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")


@pytest.mark.parametrize("kind", ["url", "path", "shallow", "incomplete"])
def test_a_full_clone_stays_whole(work: Workspace, own: Path, tmp_path: Path, kind: str) -> None:
    """It lacks the pin and has a commit of its own: refused, and the pin can still be merged."""
    go_on(work, own)
    source = str(work.origin)
    if kind == "url":
        source = f"file://{work.origin}"
    elif kind == "shallow":
        source = str(tmp_path / "shallow")
        raw_git(tmp_path, "clone", "-q", "--depth=2", f"file://{work.origin}", source)
    elif kind == "incomplete":
        blob = raw_git(work.origin, "rev-parse", "HEAD:big.bin")
        (work.origin / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RefusedError, match="expected the pin"):
        apply(work.toy, quiet, repo=own, source=source)
    assert raw_git(own, "rev-parse", "--is-shallow-repository") == "false"
    assert raw_git(own, "rev-list", "--count", work.pin) == "4"
    if kind != "incomplete":
        raw_git(own, "merge", "-q", "-m", "merged", work.pin)


def test_a_source_whose_history_is_cut(work: Workspace, own: Path, tmp_path: Path) -> None:
    """Its end is marked, and what the clone had stays whole."""
    raw_git(own, "remote", "remove", "origin")
    raw_git(own, "reset", "-q", "--hard", "HEAD~")
    raw_git(own, "reflog", "expire", "--expire=now", "--all")
    raw_git(own, "gc", "-q", "--prune=now")
    go_on(work, own)
    source = str(tmp_path / "shallow")
    raw_git(tmp_path, "clone", "-q", "--depth=1", f"file://{work.origin}", source)
    with pytest.raises(RefusedError, match="expected the pin"):
        apply(work.toy, quiet, repo=own, source=source)
    assert raw_git(own, "rev-list", "--count", work.pin) == "1"
    assert raw_git(own, "rev-list", "--count", "HEAD") == "2"


def test_revert_where_no_patch_was_applied(no_compat: Workspace, own: Path) -> None:
    """start and goal are one commit, and the branch to delete is the one HEAD is on."""
    raw_git(own, "switch", "-q", "--detach")
    before = where(own)
    apply(no_compat.toy, quiet, repo=own, through="compat")
    assert raw_git(own, "branch", "--show-current") == "mto"
    assert revert(no_compat.toy, quiet, repo=own).changed
    assert where(own) == before
    assert not revert(no_compat.toy, quiet, repo=own).changed


@pytest.mark.parametrize(
    ("commits", "on", "refused"),
    [(0, "mto", False), (1, "mto", False), (1, "main", False), (1, "mto", True)],
)
def test_a_branch_mto_that_mto_did_not_make(
    work: Workspace, own: Path, commits: int, on: str, refused: bool
) -> None:
    """Also one made after an apply that was refused."""
    if refused:
        write(own, {"engine.py": "mine\n"})
        with pytest.raises(RefusedError, match="would overwrite"):
            apply(work.toy, quiet, repo=own)
    raw_git(own, "switch", "-q", "-c", "mto")
    for _ in range(commits):
        raw_git(own, "commit", "-q", "-a", "--allow-empty", "-m", "mine")
    raw_git(own, "switch", "-q", on)
    before = where(own)
    with pytest.raises(RefusedError, match="branch mto|expected the pin"):
        apply(work.toy, quiet, repo=own)
    if commits and on == "mto":
        with pytest.raises(RefusedError, match="expected the pin"):
            revert(work.toy, quiet, repo=own)
    else:
        assert not revert(work.toy, quiet, repo=own).changed
    assert where(own) == before


@pytest.mark.parametrize("through", ["compat", None])
def test_commits_on_top_stay_on_the_branch(
    no_compat: Workspace, own: Path, said: list[str], through: str | None
) -> None:
    apply(no_compat.toy, quiet, repo=own, through=through)
    raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = raw_git(own, "rev-parse", "HEAD")
    with pytest.raises(RefusedError, match="expected the pin" if through else "commits of yours"):
        apply(no_compat.toy, quiet, repo=own)
    revert(no_compat.toy, said.append, repo=own)
    assert raw_git(own, "branch", "--show-current") == "main"
    assert raw_git(own, "rev-parse", "mto") == mine
    assert f"toy: your commits stay on branch mto, {mine}" in said
    with pytest.raises(RefusedError, match="branch mto in .* no commit of the series") as caught:
        apply(no_compat.toy, quiet, repo=own)
    if through:
        raw_git(own, "switch", "-q", "mto")  # the user's now: another revert leaves it alone
        with pytest.raises(RefusedError, match="expected the pin"):
            revert(no_compat.toy, quiet, repo=own)
        assert raw_git(own, "rev-parse", "mto") == mine
    else:
        raw_git(own, *shlex.split(caught.value.hint)[3:])
        apply(no_compat.toy, quiet, repo=own)


def test_hints_act_on_the_same_clone(work: Workspace, own: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my clone"
    own.rename(spaced)
    write(spaced, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError) as caught:
        apply(work.toy, quiet, repo=spaced, through="mto")
    assert caught.value.hint.endswith(f"mto apply toy --repo '{spaced}' --through mto")
    stash = shlex.split(caught.value.hint, comments=True)
    raw_git(spaced, *stash[3:])
    apply(work.toy, quiet, repo=spaced, through="mto")
    assert status(work.toy, quiet, repo=spaced).through == "mto"
    write(spaced, {"engine.py": "mine\n"})
    with pytest.raises(RefusedError) as caught:
        revert(work.toy, quiet, repo=spaced)
    assert caught.value.hint.endswith(f"mto revert toy --repo '{spaced}'")
    with pytest.raises(MtoError) as edited:
        verify(work.toy, quiet, repo=spaced)
    assert f"mto diff toy --repo '{spaced}'" in edited.value.hint


@pytest.mark.parametrize("kind", ["branch", "detached", "submodule", "separate-git-dir", "linked"])
def test_every_kind_of_clone_goes_back_to_where_it_was(
    work: Workspace, tmp_path: Path, kind: str, said: list[str]
) -> None:
    """The branch mto is made, used, and removed again."""
    repo = tmp_path / "super" / "dep"
    if kind == "submodule":
        make_repo(tmp_path / "super", {"main.py": "print()\n"})
        add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
        raw_git(tmp_path / "super", *add, str(work.origin), "dep")
    else:
        main = tmp_path / "main" if kind == "linked" else repo
        more = [f"--separate-git-dir={tmp_path / 'git-dir'}"] if "separate" in kind else []
        raw_git(tmp_path, "clone", "-q", *more, str(work.origin), str(main))
        if kind == "linked":
            raw_git(main, "worktree", "add", "-q", "--detach", str(repo), work.pin)
        elif kind in ("branch", "detached"):
            raw_git(repo, "switch", "-q", "--detach" if kind == "detached" else "-cexperiment")
    before = raw_git(repo, "for-each-ref"), raw_git(repo, "rev-parse", "--abbrev-ref", "HEAD")
    assert apply(work.toy, said.append, repo=repo).changed
    assert raw_git(repo, "branch", "--show-current") == "mto"
    assert not apply(work.toy, said.append, repo=repo).changed
    assert status(work.toy, quiet, repo=repo).word == "applied"
    assert revert(work.toy, said.append, repo=repo).changed
    after = raw_git(repo, "for-each-ref"), raw_git(repo, "rev-parse", "--abbrev-ref", "HEAD")
    assert after == before
    assert not said
    assert not work.clone.exists()


def test_a_partial_sparse_clone_lacks_nothing(no_compat: Workspace, tmp_path: Path) -> None:
    for key in ("allowFilter", "allowAnySHA1InWant"):
        raw_git(no_compat.origin, "config", f"uploadpack.{key}", "true")
    own = tmp_path / "own"
    partial = ("clone", "-q", "--filter=blob:none", "--sparse")
    raw_git(tmp_path, *partial, f"file://{no_compat.origin}", str(own))
    apply(no_compat.toy, quiet, repo=own)
    verify(no_compat.toy, quiet, repo=own)
    assert status(no_compat.toy, quiet, repo=own).word == "applied"
