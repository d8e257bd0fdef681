"""Whoever asks and however their machine is set up: the same trees, and nothing of theirs lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mto_tools.patchset.apply import apply, revert, verify
from mto_tools.patchset.git import Git, GitError
from mto_tools.patchset.status import status

from .conftest import FILES, SERIES, Workspace, make_repo, make_workspace, quiet, raw_git, write

HOSTILE = """
apply.whitespace=fix apply.ignoreWhitespace=change core.hooksPath={hooks} core.quotePath=true
core.fsmonitor={hooks}/post-checkout core.attributesFile={hooks}/attributes diff.noprefix=true
diff.mnemonicPrefix=true diff.external=/bin/false diff.interHunkContext=9 diff.context=9
diff.renames=copies diff.algorithm=patience diff.orderFile={hooks}/attributes color.ui=always
commit.gpgSign=true gpg.program=/bin/false merge.conflictStyle=diff3 status.short=true
status.showUntrackedFiles=all status.branch=true log.showSignature=true init.templateDir={hooks}
init.defaultBranch=trunk init.defaultObjectFormat=sha256 user.useConfigOnly=true
submodule.recurse=true checkout.guess=true
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's configuration that changes whatever can be changed; returns the hooks' trace."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    trace = tmp_path / "hook-ran"
    for name in ("post-checkout", "post-commit", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (hooks / name).chmod(0o755)
    (hooks / "attributes").write_text("*.py diff=x text eol=crlf\nmain.py\n")
    lines = [setting.format(hooks=hooks).partition(".") for setting in HOSTILE.split()]
    text = "".join(f"[{section}]\n\t{setting}\n" for section, _, setting in lines)
    (tmp_path / "gitconfig").write_text(text)
    return trace


def test_hostile_configuration(work: Workspace, hostile: Path) -> None:
    lock = work.lock
    apply(work.toy, quiet)
    assert work.head_tree() == lock.tree
    verify(work.toy, quiet)
    assert status(work.toy, quiet).word == "applied"
    write(work.clone, {"data.txt": "mine\n"})
    stand_in = ("replace", f"{work.pin}:engine.py", f"{work.pin}:main.py")
    raw_git(work.clone, "-c", f"core.hooksPath={os.devnull}", *stand_in)
    revert(work.toy, quiet)
    assert (work.clone / "engine.py").read_text() == FILES["engine.py"]
    assert status(work.toy, quiet).edited == ["data.txt"]
    assert not hostile.exists(), "a hook ran"


def test_redirecting_variables(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inside a git hook or an alias of some other repository; credentials are the user's."""
    lock, other = work.lock, tmp_path / "other"
    make_repo(other, {"other.txt": "other\n"})
    refs, strange = raw_git(other, "for-each-ref"), other / ".git" / "strange-index"
    variables = f"""
        GIT_DIR={other}/.git GIT_COMMON_DIR={other}/.git GIT_WORK_TREE={other} GIT_NAMESPACE=x
        GIT_OBJECT_DIRECTORY={other}/.git/objects GIT_INDEX_FILE={strange}
        GIT_EXTERNAL_DIFF=/bin/false GIT_CONFIG_PARAMETERS='core.bare=true' GIT_CONFIG_COUNT=1
        GIT_CONFIG_KEY_0=core.autocrlf GIT_CONFIG_VALUE_0=false GIT_LITERAL_PATHSPECS=1
        GIT_AUTHOR_DATE=2001-01-01T00:00:00Z GIT_CEILING_DIRECTORIES=/ GIT_COMMITTER_NAME=other
        GIT_TOKEN=kept GIT_ASKPASS=kept GIT_LFS_SKIP_SMUDGE=kept
        GIT_DEFAULT_HASH=sha256 LANG=de_DE.UTF-8 LC_ALL=de_DE.UTF-8 LANGUAGE=de
        """
    with monkeypatch.context() as patch:
        for variable in variables.split():
            patch.setenv(*variable.split("=", 1))
        run = work.mto("apply", "toy")
        assert run.returncode == 0, run.stderr
        assert status(work.toy, quiet).word == "applied"
        git = Git(work.clone)
        git.run("config", "alias.show-environment", "!env")
        seen = git.text("show-environment")
        assert os.environ["GIT_NAMESPACE"] == "x"  # hidden from git only
    assert seen.count("=kept") == 3
    hidden = {"GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_NAMESPACE", "GIT_COMMITTER_NAME"}
    assert not hidden.intersection(line.partition("=")[0] for line in seen.split("\n"))
    assert work.head_tree() == lock.tree
    assert raw_git(other, "for-each-ref") == refs
    assert not (other / "main.py").exists()
    assert not strange.exists()


def test_clone_of_a_user_with_autocrlf(work: Workspace, tmp_path: Path) -> None:
    """CRLF stands in the files and LF in the blobs: that is no edit, and stays so."""
    (tmp_path / "gitconfig").write_text("[core]\n\tautocrlf = true\n")
    own = tmp_path / "own"
    raw_git(tmp_path, "clone", "-q", str(work.origin), str(own))
    assert (own / "engine.py").read_bytes().startswith(b"line 1\r\n")
    apply(work.toy, quiet, repo=own)
    assert (own / "engine.py").read_bytes().count(b"\r\n") == 23
    assert raw_git(own, "status", "--porcelain") == ""
    assert status(work.toy, quiet, repo=own).word == "applied"
    verify(work.toy, quiet, repo=own)
    with (own / "engine.py").open("ab") as stream:
        stream.write(b"mine\r\n")
    assert status(work.toy, quiet, repo=own).edited == ["engine.py"]
    raw_git(own, "stash", "-q")
    revert(work.toy, quiet, repo=own)
    assert raw_git(own, "status", "--porcelain") == ""
    assert (own / "engine.py").read_bytes() == FILES["engine.py"].replace("\n", "\r\n").encode()
    apply(work.toy, quiet)  # a clone of ours holds what was pinned
    assert b"\r" not in (work.clone / "run.sh").read_bytes()
    assert (work.clone / "crlf.py").read_bytes().count(b"\r\n") == 21
    assert raw_git(work.clone, "status", "--porcelain") == ""


def test_upstream_with_attributes_and_odd_names(tmp_path: Path) -> None:
    files = FILES | {
        ".gitattributes": "*.bat text eol=crlf\n* text=auto\n",
        "run.bat": "one\ntwo\n",
        "ä file.py": "one\ntwo\n",
        'a"quote\t.py': "one\n",
    }
    patch = (
        b'diff --git "a/\\303\\244 file.py" "b/\\303\\244 file.py"\n'
        b'--- "a/\\303\\244 file.py"\n+++ "b/\\303\\244 file.py"\n@@ -1,0 +2 @@\n+mto\n'
        b"diff --git a/run.bat b/run.bat\n--- a/run.bat\n+++ b/run.bat\n@@ -1,0 +2 @@\n+mto\n"
    )
    work = make_workspace(tmp_path, files, {"0001-mto-odd.patch": patch})
    apply(work.toy, quiet)
    assert (work.clone / "ä file.py").read_text() == "one\nmto\ntwo\n"
    assert (work.clone / "run.bat").read_bytes() == b"one\r\nmto\r\ntwo\r\n"
    assert status(work.toy, quiet).word == "applied"
    verify(work.toy, quiet)
    write(work.clone, {'a"quote\t.py': "mine\n", "ä file.py": "mine\n"})
    assert status(work.toy, quiet).edited == ['a"quote\t.py', "ä file.py"]
    raw_git(work.clone, "restore", ".")
    revert(work.toy, quiet)
    assert raw_git(work.clone, "status", "--porcelain") == ""


def test_file_name_that_is_not_utf8(work: Workspace) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    work.commit_and_pin({name: "one\n"}, SERIES)
    apply(work.toy, quiet)
    write(work.clone, {name: "mine\n"})
    assert status(work.toy, quiet).edited == [name]
    run = work.mto("status")
    assert run.returncode == 1
    assert "caf" in run.stdout
    assert "Traceback" not in run.stderr
    revert(work.toy, quiet)
    assert (work.clone / name).read_text() == "mine\n"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for a while, also for root where the file system can."""
    on, off = (["chmod", "555"], ["chmod", "755"])
    if not os.geteuid():
        on, off = (["chattr", "+i"], ["chattr", "-i"])
    if subprocess.run([*on, str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root here, and no chattr +i on this file system")
    try:
        yield
    finally:
        subprocess.run([*off, str(folder)], check=True)


@pytest.mark.parametrize("where", [".", ".git", ".git/mto", "sub"])
def test_read_only_folder(work: Workspace, where: str) -> None:
    apply(work.toy, quiet)
    revert(work.toy, quiet)
    with read_only(work.clone / where):
        run = work.mto("apply", "toy")
        assert run.returncode not in (0, 2)
        assert "Traceback" not in run.stderr
        assert "hint:" in run.stderr
    assert status(work.toy, quiet).word in ("pristine", "applied")
    assert raw_git(work.clone, "status", "--porcelain") == ""
    apply(work.toy, quiet)
    verify(work.toy, quiet)


def test_full_disk(tmp_path: Path) -> None:
    """A small tmpfs that fills up between clone and apply; with room again all is well."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        work = make_workspace(tmp_path / "rest", FILES, SERIES)
        own = disk / "own"
        raw_git(tmp_path, "clone", "-q", str(work.origin), str(own))
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free))
        run = work.mto("apply", "toy", "--repo", str(own))
        (disk / "filler").unlink()
        assert run.returncode == 3
        assert "space" in run.stderr
        assert "Traceback" not in run.stderr
        assert status(work.toy, quiet, repo=own).word == "pristine"
        apply(work.toy, quiet, repo=own)
        verify(work.toy, quiet, repo=own)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_at_once(work: Workspace) -> None:
    """Both end well: the second waits for the first."""
    apply(work.toy, quiet)
    revert(work.toy, quiet)
    command = [sys.executable, "-m", "mto_tools.cli", "apply", "toy"]
    env = {**os.environ, **work.env}
    runs = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    verify(work.toy, quiet)


@pytest.mark.parametrize(
    ("event", "word", "branch"),
    [("subprocess.Popen", "checkout-index", "mto"), ("os.rename", "/main.py", "base")],
)
def test_interrupt(work: Workspace, event: str, word: str, branch: str) -> None:
    """Ctrl-C while files are staged: nothing has happened; once it is decided: the step is done."""
    apply(work.toy, quiet)
    program = (
        "import os, signal, sys\n"
        # A shell's background job, such as pytest itself, ignores the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def hook(event, args):\n"
        f"    if event == {event!r} and {word!r} in str(args):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(hook)\n"
        "from mto_tools.cli import main\n"
        "main()\n"
    )
    env = {**os.environ, **work.env}
    command = [sys.executable, "-c", program, "revert", "toy"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 130, run.stderr
    assert raw_git(work.clone, "branch", "--show-current") == branch
    assert raw_git(work.clone, "status", "--porcelain") == ""
    assert not list((work.clone / ".git").glob("*.lock"))
    assert not list((work.clone / ".git" / "mto").glob("transaction*"))


def test_git_s_own_reason_is_told(work: Workspace) -> None:
    """A clone that git cannot read is no missing clone."""
    apply(work.toy, quiet)
    raw_git(work.clone, "config", "core.repositoryformatversion", "1")
    raw_git(work.clone, "config", "extensions.notYetKnown", "true")
    assert "notyetknown" in status(work.toy, quiet).detail.lower()
    for run in (apply, verify):
        with pytest.raises(GitError, match="(?i)notyetknown"):
            run(work.toy, quiet)


@pytest.mark.parametrize("stub", ["", "echo 'xcrun: error: no developer tools' >&2; exit 1"])
def test_no_git_or_one_that_does_not_start(work: Workspace, tmp_path: Path, stub: str) -> None:
    write(work.clone, FILES)
    path = tmp_path / "bin"
    path.mkdir()
    if stub:
        write(path, {"git": f"#!/bin/sh\n{stub}\n"})
    for command in ("apply", "status"):
        run = work.mto(command, "toy", PATH=str(path))
        assert run.returncode == 3
        assert ("xcrun" if stub else "there is no git on PATH") in run.stderr
        assert "Traceback" not in run.stderr
