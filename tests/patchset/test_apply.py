"""apply, revert, verify, diff on real repositories; the truth is what git itself says."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, MissingError, RefusedError
from mto_tools.patchset.apply import apply, diff, revert, verify
from mto_tools.patchset.checkout import ensure_clone

from .conftest import FILES, IDENTITY, LINES, Workspace, patch_of, quiet, raw_git, write


def read(work: Workspace, path: str) -> str:
    return (work.clone / path).read_bytes().decode()


def test_every_line_is_where_it_belongs(work: Workspace) -> None:
    apply(work.toy, quiet)
    lines = LINES.splitlines()
    assert (
        read(work, "main.py").splitlines()
        == [
            *("import sys", "import compat", "import mto"),  # mto's patch sees compat's line
            *([*lines[:7], "engine = deepspeed", *lines[7:]]),
        ]
    )
    assert read(work, "engine.py").splitlines() == [
        *([*lines[:2], "mto = 1", *lines[2:9], "mto.add()", "mto.log()", *lines[9:]])
    ]
    assert read(work, "crlf.py") == "\r\n".join([*lines[:3], "compat = 1", *lines[3:]]) + "\r\n"
    assert read(work, "no_newline.py") == FILES["no_newline.py"]
    assert read(work, "ds.json") == '{"zero": 1}\n'
    assert raw_git(work.clone, "status", "--porcelain") == ""
    assert raw_git(work.clone, "symbolic-ref", "HEAD") == "refs/heads/mto"


def test_series_is_four_reproducible_commits(work: Workspace, tmp_path: Path) -> None:
    apply(work.toy, quiet)
    lock = work.lock
    listed = raw_git(work.clone, "rev-list", "--reverse", f"{work.pin}..mto").split()
    assert listed == [patch.commit for patch in lock.patches]
    assert raw_git(work.clone, "log", "-1", "--format=%s", listed[0]) == "0001-compat-import"
    # another clone, a deep one, gives the same
    other = tmp_path / "other"
    raw_git(tmp_path, "clone", "-q", str(work.origin), str(other))
    assert apply(work.toy, quiet, repo=other).commit == lock.commit


def test_message_of_a_patch_becomes_that_of_its_commit(work: Workspace) -> None:
    head = b"From 0 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] mto: add the loss\n\nBecause.\n---\n"
    work.write_series({"0001-mto-loss.patch": head + patch_of("engine.py", (2, ["mto = 1"]))})
    apply(work.toy, quiet)
    assert raw_git(work.clone, "log", "-1", "--format=%B") == "mto: add the loss\n\nBecause.\n"


def test_apply_and_revert_are_idempotent(work: Workspace) -> None:
    base = raw_git(work.origin, "rev-parse", "HEAD^{tree}")
    assert apply(work.toy, quiet).changed
    before = (work.clone / "main.py").stat().st_mtime_ns
    assert not apply(work.toy, quiet).changed
    assert (work.clone / "main.py").stat().st_mtime_ns == before
    assert revert(work.toy, quiet).changed
    assert work.head_tree() == base
    assert not revert(work.toy, quiet).changed
    assert raw_git(work.clone, "symbolic-ref", "HEAD") == "refs/heads/base"
    assert raw_git(work.clone, "for-each-ref", "--format=%(refname)") == "refs/heads/base"
    assert not (work.clone / "ds.json").exists()


def test_layers_in_any_order(work: Workspace) -> None:
    lock = work.lock
    ends = {"compat": 1, "mto": 2, "deepspeed": 3}
    for layer in ("mto", "compat", "deepspeed", "compat", "mto"):
        apply(work.toy, quiet, through=layer)
        assert work.head_tree() == lock.patches[ends[layer]].tree
        assert raw_git(work.clone, "status", "--porcelain") == ""
        assert verify(work.toy, quiet).commit == lock.patches[ends[layer]].commit
    revert(work.toy, quiet)
    assert work.head_tree() == lock.base_tree


def test_linked_work_trees(work: Workspace, tmp_path: Path, said: list[str]) -> None:
    own, linked = tmp_path / "own", tmp_path / "linked"
    raw_git(tmp_path, "clone", "-q", str(work.origin), str(own))
    raw_git(own, "worktree", "add", "-q", "--detach", str(linked), work.pin)
    one = apply(work.toy, said.append, repo=linked)
    assert raw_git(linked, "branch", "--show-current") == "mto"
    assert raw_git(own, "rev-parse", "HEAD") == work.pin
    two = apply(work.toy, said.append, repo=own)  # the branch is taken
    assert any("in use in another work tree" in line for line in said)
    assert raw_git(own, "rev-parse", "HEAD") == one.commit == two.commit
    revert(work.toy, quiet, repo=own)
    assert raw_git(own, "branch", "--show-current") == "main"
    assert raw_git(linked, "rev-parse", "HEAD") == one.commit
    revert(work.toy, quiet, repo=linked)
    assert raw_git(linked, "rev-parse", "HEAD") == work.pin


IN_THE_WAY = {
    **dict.fromkeys(("edited", "deleted", "staged", "assume-unchanged", "mode"), "engine.py"),
    **dict.fromkeys(("staged, then restored", "folder for a file"), "engine.py"),
    **dict.fromkeys(("untracked", "ignored", "added", "folder"), "ds.json"),
}


def put_in_the_way(target: Path, way: str) -> None:
    """Make the edit that `way` names."""
    clone, original = target.parent, target.read_bytes() if target.exists() else b""
    if way == "assume-unchanged":
        raw_git(clone, "update-index", "--assume-unchanged", target.name)
    if way in ("deleted", "folder for a file"):
        target.unlink()
    if way == "mode":
        target.chmod(0o755)
    elif "folder" in way:
        write(clone, {f"{target.name}/inside": "mine\n"})
    elif way != "deleted":
        target.write_text("mine\n")
    if way in ("staged", "staged, then restored", "added"):
        raw_git(clone, "add", target.name)
    if way == "staged, then restored":
        target.write_bytes(original)
    if way == "ignored":
        write(clone / ".git", {"info/exclude": "ds.json\n"})


@pytest.mark.parametrize(
    ("verb", "way"), [*(("apply", way) for way in IN_THE_WAY), ("revert", "staged")]
)
def test_edits_in_the_way_are_refused_and_the_hint_puts_them_aside(
    work: Workspace, verb: str, way: str
) -> None:
    run, back = (apply, revert) if verb == "apply" else (revert, apply)
    (ensure_clone if verb == "apply" else apply)(work.toy, quiet)
    target = work.clone / IN_THE_WAY[way]
    put_in_the_way(target, way)
    seen = raw_git(work.clone, "status", "--porcelain", "-uall")
    head = raw_git(work.clone, "rev-parse", "HEAD")
    # an edit that git was told to overlook has to be shown to git first
    for _ in range(1 + (way == "assume-unchanged")):
        with pytest.raises(RefusedError, match=target.name) as caught:
            run(work.toy, quiet)
        assert raw_git(work.clone, "status", "--porcelain", "-uall") == seen
        assert raw_git(work.clone, "rev-parse", "HEAD") == head
        assert not list((work.clone / ".git").glob("*.lock"))
        hint = ["bash", "-c", caught.value.hint]
        subprocess.run(hint, env={**os.environ, **IDENTITY}, check=True)
        if way == "assume-unchanged":
            seen = " M engine.py"
    if way == "folder for a file":
        raw_git(work.clone, "restore", target.name)
    assert run(work.toy, quiet).changed
    # back to where the user was, and their edits come back as they were
    back(work.toy, quiet)
    if "folder" in way or way in ("untracked", "ignored"):
        assert target.with_name(f"{target.name}.mine").exists()
    else:
        raw_git(work.clone, "stash", "pop", "--index")
        assert raw_git(work.clone, "status", "--porcelain", "-uall") == seen


def test_nothing_of_a_refused_apply_stays(work: Workspace) -> None:
    """A branch below `mto` keeps git from making that branch: told before a file is written."""
    git = ensure_clone(work.toy, quiet)
    raw_git(work.clone, "branch", "mto/experiment")
    with pytest.raises(RefusedError, match="mto/experiment") as caught:
        apply(work.toy, quiet)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    assert not revert(work.toy, quiet).changed
    raw_git(git.folder, *shlex.split(caught.value.hint)[3:])
    assert apply(work.toy, quiet).changed


def test_new_series_and_new_pin_over_an_old_one(work: Workspace) -> None:
    """After `git pull` of mto the lock is new and the clone holds the old series."""
    apply(work.toy, quiet)
    work.write_series({"0001-mto-loss.patch": patch_of("engine.py", (4, ["mto = 2"]))})
    write(work.clone, {"data.txt": "mine\n"})
    apply(work.toy, quiet)
    assert read(work, "engine.py").splitlines()[4] == "mto = 2"
    assert read(work, "main.py") == FILES["main.py"]
    assert raw_git(work.clone, "status", "--porcelain") == " M data.txt"
    revert(work.toy, quiet)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    # and where its pin is new
    raw_git(work.clone, "restore", "data.txt")
    work.commit_and_pin({"engine.py": f"new first line\n{LINES}"})
    apply(work.toy, quiet)
    assert read(work, "engine.py").splitlines()[:3] == ["new first line", "line 1", "mto = 1"]
    revert(work.toy, quiet)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    assert raw_git(work.clone, "branch", "--show-current") == "base"


def test_wrong_base(work: Workspace, own: Path) -> None:
    raw_git(own, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = raw_git(own, "rev-parse", "HEAD")
    with pytest.raises(MissingError, match="no clone") as none:
        revert(work.toy, quiet)
    assert none.value.hint == "mto checkout toy"
    for run in (apply, revert, verify):
        with pytest.raises(RefusedError, match=f"at {mine}; expected the pin {work.pin}") as error:
            run(work.toy, quiet, repo=own)
        assert f"switch --detach {work.pin}" in error.value.hint
    assert raw_git(own, "rev-parse", "HEAD") == mine


def test_diff_is_our_lines(work: Workspace) -> None:
    apply(work.toy, quiet)
    text = diff(work.toy, color=False).decode()
    assert "5 files changed, 9 insertions(+)" in text
    assert "+mto.add()" in text
    assert not [line for line in text.splitlines() if line.startswith("-") and line[:3] != "---"]


def test_damaged_lock_does_not_hinder_revert_and_none_is_told(work: Workspace) -> None:
    apply(work.toy, quiet)
    (work.patches / "lock").write_text("{")
    with pytest.raises(CorruptError):
        apply(work.toy, quiet)
    revert(work.toy, quiet)
    assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
    for file in work.patches.glob("[0l]*"):
        file.unlink()
    with pytest.raises(MissingError, match="no series for toy yet"):
        apply(work.toy, quiet)


def test_command_line(work: Workspace) -> None:
    run = work.mto("apply", "toy", "--through", "mto")
    assert (run.returncode, run.stdout) == (0, "")
    assert str(work.clone) in run.stderr  # every command names the folder it worked on
    assert work.head_tree() == work.lock.patches[2].tree
    assert work.mto("status", "TOY", "--expect", "applied").returncode == 0
    run = work.mto("verify", "toy")
    assert (run.returncode, run.stdout) == (0, "")
    assert str(work.clone) in run.stderr
    assert work.mto("apply", "toy", "--through", "moon").returncode == 2
    run = work.mto("diff", "moon")
    assert run.returncode == 3
    assert "known: toy" in run.stderr
