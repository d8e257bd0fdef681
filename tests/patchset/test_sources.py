"""Fetching the pin from every kind of source, and saying what is wrong with one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, MissingError, RefusedError
from mto_tools.patchset.apply import apply
from mto_tools.patchset.checkout import embedded_commit, ensure_clone, make_clone
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.sources import find_source, hide
from mto_tools.patchset.status import status
from mto_tools.upstreams.upstream import Upstream, load_upstream

from .conftest import Workspace, quiet, raw_git, write


def clone_is_whole(work: Workspace) -> bool:
    raw_git(work.clone, "fsck", "--full", "--no-dangling")
    return (
        raw_git(work.clone, "rev-parse", "HEAD") == work.pin
        and raw_git(work.clone, "status", "--porcelain") == ""
    )


def lose_object(repo: Path, revision: str) -> str:
    """Remove one loose object from a repository."""
    oid = raw_git(repo, "rev-parse", revision)
    (repo / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    return oid


def test_order_of_sources(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = work.toy
    assert find_source(toy).value == str(work.origin)
    monkeypatch.setenv("MTO_UPSTREAM_URL", "https://mirror/{owner}/{repo}-{name}.git")
    assert find_source(toy).value == "https://mirror/some/toy-toy.git"
    with pytest.raises(MissingError, match="neither a URL nor an existing path"):
        find_source(toy, "/no/such")
    monkeypatch.setenv("MTO_UPSTREAM_URL_TOY", "git@host:{owner}/{repo}")
    assert find_source(toy).value == "git@host:some/toy"
    assert find_source(toy).kind == "url"
    assert find_source(toy, "ssh://option/x").origin == "--source"
    forms = "host:x.git me+ci@host:x.git [::1]:x.git [me@host:22]:x ssh://h/x ext::prog"
    assert {find_source(toy, form).kind for form in forms.split()} == {"url"}


def test_a_password_is_never_shown(work: Workspace) -> None:
    for word in ("secret", "se@cret", "se:c@ret"):
        shown = find_source(work.toy, f"https://me:{word}@host/some/toy.git").shown
        assert shown == "https://***@host/some/toy.git"
    assert "secret" not in hide("fatal: unable to access 'https://me:sec@secret@host/x'")


def test_a_source_of_another_user_is_told_as_such(work: Workspace, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give files away")
    mirror = tmp_path / "my mirror.git"
    raw_git(tmp_path, "clone", "-q", "--mirror", str(work.origin), str(mirror))
    for file in [mirror, *mirror.rglob("*")]:
        os.chown(file, 12345, 12345)
    for source in (str(mirror), f"file://{mirror}"):
        with pytest.raises(MissingError, match="ownership") as caught:
            make_clone(work.toy, quiet, source)
        assert f"safe.directory '{mirror}'" in caught.value.message
    write(work.home / "upstream" / "embedded" / "small", RECIPE)
    raw_git(work.home, "init", "-q", ".")
    os.chown(work.home, 12345, 12345)
    with pytest.raises(GitError, match="ownership"):
        embedded_commit(embedded(work.home), Git(work.origin))


@pytest.mark.parametrize("kind", ["url", "bare", "shallow", "bundle", "shallow bundle"])
def test_every_kind_of_source(
    work: Workspace, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare mirror also where the user has safe.bareRepository = explicit."""
    repo, url = tmp_path / "some" / "toy.git", f"file://{work.origin}"
    more = ["--depth=1"] if "shallow" in kind else ["--mirror"]
    raw_git(tmp_path, "clone", "-q", *more, url, str(repo))
    (tmp_path / "gitconfig").write_text("[safe]\n\tbareRepository = explicit\n")
    source = url if kind == "url" else str(tmp_path / "{owner}" / "{repo}.git")
    if "bundle" in kind:
        source = str(tmp_path / "{name}.bundle")
        there = ("-c", "safe.bareRepository=all", "bundle", "create", "-q")
        raw_git(repo, *there, str(tmp_path / "toy.bundle"), "--all")
    monkeypatch.setenv("MTO_UPSTREAM_URL", source)
    make_clone(work.toy, quiet)
    assert clone_is_whole(work)
    assert raw_git(work.clone, "config", "remote.origin.url") == str(work.origin)
    deep = kind == "bundle"
    assert (raw_git(work.clone, "rev-list", "--count", "HEAD") == "1") != deep


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("plain folder", "not appear to be a git repository"),
        ("other repository", "PIN"),
        ("other url", "PIN"),
        ("cut bundle", "cannot be used as a bundle"),
        ("lost engine.py", "engine.py, blob [0-9a-f]{40}"),  # which the series patches
        ("lost sub", "PIN|sub"),
    ],
)
def test_a_source_that_does_not_serve(
    work: Workspace, tmp_path: Path, kind: str, words: str
) -> None:
    how, what = kind.split()
    source = work.origin if how == "lost" else tmp_path / "source"
    if how == "lost":
        lose_object(work.origin, f"HEAD:{what}")
    elif how == "cut":
        raw_git(work.origin, "bundle", "create", "-q", str(source), "--all")
        source.write_bytes(source.read_bytes()[:-100])
    else:
        source.mkdir()
    if how == "other":
        raw_git(source, "init", "-q", ".")
        raw_git(source, "commit", "-q", "--allow-empty", "-m", "another")
    with pytest.raises((MissingError, CorruptError), match=words.replace("PIN", work.pin)) as why:
        make_clone(work.toy, quiet, f"file://{source}" if what == "url" else str(source))
    assert "git bundle create" in why.value.hint or how == "lost"
    assert not work.clone.exists()


def test_lost_blob_that_no_patch_touches(work: Workspace, said: list[str]) -> None:
    oid = lose_object(work.origin, "HEAD:data.txt")
    apply(work.toy, said.append)
    assert any("data.txt" in line and oid in line for line in said)
    assert not (work.clone / "data.txt").exists()
    assert raw_git(work.clone, "status", "--porcelain") == ""
    found = status(work.toy, said.append)
    assert (found.word, found.missing) == ("applied", ["data.txt"])
    assert "data.txt" in found.detail
    # layers get along with the hole
    apply(work.toy, said.append, through="compat")
    assert raw_git(work.clone, "status", "--porcelain") == ""
    assert status(work.toy, said.append).word == "applied"


def test_no_network(work: Workspace) -> None:
    run = work.mto("checkout", "toy", "--source", "http://me:secret@127.0.0.1:9/toy.git")
    assert run.returncode == 3
    assert "secret" not in run.stderr
    assert "cannot fetch toy" in run.stderr
    assert work.pin in run.stderr
    for way in ("URL", "mirror", "bundle"):
        assert way in run.stderr
    assert not work.clone.exists()


def embedded(home: Path, pin: str = "0" * 40) -> Upstream:
    folder = home / "patches" / "small"
    folder.mkdir(exist_ok=True)
    (folder / "upstream.toml").write_text(
        f'name = "small"\nsource = "embedded"\npath = "upstream/embedded/small"\npin = "{pin}"\n'
        'pin_date = "2024-01-01"\nlicence = { spdx = "MIT" }\n'
    )
    return load_upstream(home, "small")


RECIPE = {"main.py": "print()\n", "run.sh": "#!/bin/sh\n", "sub/a.py": "a\n", "sub-b.py": "b\n"}


def test_embedded_commit_depends_on_content_only(work: Workspace, tmp_path: Path) -> None:
    """Not on umask, times, litter, the user's autocrlf, or mto being a git clone."""
    folder = work.home / "upstream" / "embedded" / "small"
    write(folder, RECIPE)
    small = embedded(work.home)
    objects = Git(work.origin)
    oid = embedded_commit(small, objects)
    assert raw_git(work.origin, "ls-tree", "-r", "--name-only", oid).split("\n") == sorted(RECIPE)
    assert raw_git(work.origin, "ls-tree", oid, "run.sh").startswith("100755")

    for file in folder.rglob("*.*"):
        file.chmod(0o700)
    write(folder, {"__pycache__/main.pyc": "x", "sub/.pytest_cache/v": "x"})
    (tmp_path / "gitconfig").write_text("[core]\n\tautocrlf = true\n")
    assert embedded_commit(small, objects) == oid

    raw_git(work.home, "init", "-q", ".")
    names = [f"upstream/embedded/small/{name}" for name in RECIPE]
    raw_git(work.home, "-c", "core.autocrlf=false", "add", "-f", *names)
    write(folder, {"output.txt": "a run left this here"})
    assert embedded_commit(small, objects) == oid

    write(folder, {"main.py": "print(1)\n"})
    assert embedded_commit(small, objects) != oid


def test_embedded_upstream_is_a_repository_of_its_own(work: Workspace) -> None:
    with pytest.raises(MissingError, match="no file in"):
        ensure_clone(embedded(work.home), quiet)
    folder = work.home / "upstream" / "embedded" / "small"
    write(folder, RECIPE)
    pin = embedded_commit(embedded(work.home), Git(work.origin))
    write(folder, {"main.py": "changed\n"})
    found = embedded_commit(embedded(work.home), Git(work.origin))
    with pytest.raises(CorruptError, match=f"expected commit {pin}, found {found}") as caught:
        ensure_clone(embedded(work.home, pin), quiet)
    assert "mto upgrade small --to embedded --accept" in caught.value.hint
    assert not (work.home / "upstream" / "small").exists()
    write(folder, RECIPE)
    git = ensure_clone(embedded(work.home, pin), quiet)
    assert raw_git(git.folder, "rev-parse", "HEAD") == pin
    assert (git.folder / "sub-b.py").read_text() == "b\n"
    assert raw_git(git.folder, "status", "--porcelain") == ""


def test_another_mto_is_cloning(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mto_tools.patchset.locks.PATIENCE", 0.1)
    write(work.home / "upstream", {".mto/toy.lock": ""})
    with (work.home / "upstream" / ".mto" / "toy.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="another mto is checking out toy"):
            make_clone(work.toy, quiet)
