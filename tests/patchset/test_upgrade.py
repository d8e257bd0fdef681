"""Upgrade: what is reported, what is written, and how a conflict is resolved."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset import transaction, upgrade
from mto_tools.patchset.checkout import embedded_commit
from mto_tools.patchset.export import export
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import lint
from mto_tools.patchset.lock import Lock, build_series, format_lock
from mto_tools.patchset.rehearse import Rehearsal, rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.patchset.series import read_series
from mto_tools.patchset.tree_diff import NotAdditiveError
from mto_tools.upstreams.upstream import load_upstream

from .conftest import quiet, raw_git, replace_in

ANCHOR = ("line 9\n", "line nine, our anchor\n")


def goes_on(work, old: str, new: str, tag: str = "") -> str:
    """Replace text of engine.py in the upstream; commit all that has changed there."""
    replace_in(work.origin / "engine.py", old, new)
    raw_git(work.origin, "add", "-A")
    raw_git(work.origin, "commit", "-qm", f"subject of {tag}")
    if tag:
        raw_git(work.origin, "tag", tag)
    return raw_git(work.origin, "rev-parse", "HEAD")


def verdicts(rehearsal: Rehearsal) -> dict[str, str]:
    """Verdict by patch, file and line."""
    return {
        f"{step.patch.name[:4]} {hunk.path}:{hunk.after}": hunk.verdict
        for step in rehearsal.steps
        for hunk in step.hunks
    }


def run(work, ref: str, source: str | None = None) -> Rehearsal:
    with open_scratch(work.toy, quiet, source) as scratch:
        return rehearse(scratch, ref)


def accept(work, ref: str, source: str | None = None) -> None:
    with (
        transaction.series_lock(work.patches, quiet),
        open_scratch(work.toy, quiet, source) as scratch,
    ):
        upgrade.upgrade(scratch, rehearse(scratch, ref), quiet)


def go_on(work) -> Lock:
    with transaction.series_lock(work.patches, quiet):
        return upgrade.proceed(work.toy, quiet)


def drop_markers(file: Path, *, middle: bool = True) -> None:
    """Keep upstream's side and our lines, as a person does."""
    kept, side = [], ""
    for line in file.read_text().splitlines():
        mark = line[:7] if line[:7] in ("<<<<<<<", "|||||||", "=======", ">>>>>>>") else ""
        side = mark or side
        keep = side in ("", "<<<<<<<", ">>>>>>>") or (side == "=======" and "mto." in line)
        if (not mark and keep) or (mark == "=======" and not middle):
            kept.append(line)
    file.write_text("\n".join(kept) + "\n")


@pytest.fixture
def moved(authored, raw):
    """The upstream goes on, commit by commit, each with a tag."""
    origin: Path = authored.origin
    raw(origin, "tag", "v0")
    first = "a new first line\nand one\nand one\nand one\nline 1\n"
    commits = {"v0": authored.pin, "v1": goes_on(authored, "line 1\n", first, "v1")}
    raw(origin, "mv", "sub", "lib")
    (origin / "LICENSE").write_text("Some licence\n")
    commits["v2"] = goes_on(authored, "", "", "v2")
    raw(origin, "rm", "-q", "crlf.py")
    (origin / "LICENSE").write_text("Some other licence\n")
    commits["v3"] = goes_on(authored, *ANCHOR, "v3")
    return authored, commits


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_verdicts_and_nothing_is_touched(moved) -> None:
    work, commits = moved
    applying.apply(work.toy, quiet)
    before = snapshot(work.home), snapshot(work.origin)
    one = run(work, "v1")
    assert one.ok
    assert (one.ahead, one.behind) == (1, 0)
    assert verdicts(one) == {
        "0001 crlf.py:3": "clean",
        "0001 main.py:1": "clean",
        "0002 sub/deep.py:5": "clean",
        "0003 engine.py:2": "clean",  # its surroundings have a new line
        "0003 engine.py:9": "moved",
        "0003 main.py:2": "clean",
        "0004 ds.json:0": "clean",
        "0004 main.py:10": "clean",
    }
    hunks = {hunk.after: hunk for hunk in one.steps[2].hunks if hunk.path == "engine.py"}
    assert hunks[9].now == ("engine.py", 13)
    assert (hunks[2].changed_around, hunks[9].changed_around) == (True, False)
    two = run(work, "v2")
    assert two.ok
    assert verdicts(two)["0002 sub/deep.py:5"] == "renamed"
    assert two.steps[1].hunks[0].now == ("lib/deep.py", 5)
    assert two.steps[1].hunks[0].note.startswith(f"removed by {commits['v2']}")
    assert "+Some licence" in two.licence["LICENSE"]
    three = run(work, "v3")
    assert not three.ok
    bad = {place: verdict for place, verdict in verdicts(three).items() if verdict != "clean"}
    assert bad == {
        "0001 crlf.py:3": "gone",
        "0002 sub/deep.py:5": "renamed",
        "0003 engine.py:9": "conflict",
    }
    assert commits["v3"] in three.steps[0].hunks[0].note
    sides = "\n".join(three.steps[2].sides["engine.py"])
    assert "line nine, our anchor" in sides
    assert "mto.add()" in sides
    assert "line nine" not in json.dumps(three.as_dict()), "upstream text would be stored"
    assert three.as_dict()["licence"] == ["LICENSE"]
    assert before == (snapshot(work.home), snapshot(work.origin))


def test_any_branch_tag_commit_fork_or_bundle(moved, raw, tmp_path) -> None:
    work, commits = moved
    for ref in ("v1", commits["v1"], commits["v1"][:10], "main~2"):
        assert run(work, ref).target == commits["v1"], ref
    older = run(work, "v0~1")
    assert (older.ahead, older.behind) == (0, 1)
    assert {"gone"} == {v for k, v in verdicts(older).items() if "ds.json" not in k}
    with pytest.raises(MissingError, match="no branch, tag or commit 'nonsense'"):
        run(work, "nonsense")
    fork = tmp_path / "fork"
    shutil.copytree(work.origin, fork)
    raw(fork, "checkout", "-q", "-b", "theirs", "v1")
    raw(fork, "commit", "-q", "--allow-empty", "-m", "fork")
    assert run(work, "theirs", str(fork)).ok
    raw(fork, "bundle", "create", "-q", str(tmp_path / "fork.bundle"), "--all")
    assert run(work, "theirs", str(tmp_path / "fork.bundle")).ok
    assert run(work, "theirs", fork.as_uri()).ok


def test_accept_writes_pin_series_and_lock(moved, raw) -> None:
    work, commits = moved
    applying.apply(work.toy, quiet)
    toml = work.patches / "upstream.toml"
    toml.write_text("# ours\n" + toml.read_text() + "# kept\n")
    (work.clone / "engine.py").write_text((work.clone / "engine.py").read_text() + "# mine\n")
    names = [patch.file for patch in work.lock.patches]
    accept(work, "v2")
    assert re.fullmatch("# ours\n.*# kept\n", toml.read_text(), re.DOTALL)
    assert work.toy.pin == commits["v2"]
    assert [patch.file for patch in work.lock.patches] == names
    assert lint(work.home, "toy").problems == []
    before = snapshot(work.patches)
    accept(work, "v2")  # where it is already
    assert snapshot(work.patches) == before
    assert (work.clone / "engine.py").read_text().endswith("# mine\n")
    raw(work.clone, "checkout", "-q", "--", "engine.py")
    shutil.rmtree(work.origin)  # the accepted commit is in the clone already
    done = work.mto("apply", "toy")
    assert done.returncode == 0, done.stderr
    assert "shim = 1" in (work.clone / "lib/deep.py").read_text()


def test_a_conflict_is_resolved_by_a_person(moved) -> None:
    work, commits = moved
    before = snapshot(work.patches)
    folder = upgrade.folder_of(work.toy)
    with pytest.raises(ConflictError, match=r"0001-compat-import.patch conflicts") as caught:
        accept(work, "v3")
    assert "crlf.py is gone" in caught.value.message
    assert not (folder / "crlf.py").exists()
    assert "import compat" in (folder / "main.py").read_text()
    with pytest.raises(RefusedError, match="is under way"):
        accept(work, "v1")
    with pytest.raises(ConflictError, match=r"0003-mto-loss.patch conflicts"):
        go_on(work)
    text = (folder / "engine.py").read_text()
    assert "|||||||" in text, "zdiff3 shows what it was"
    drop_markers(folder / "engine.py", middle=False)
    number = (folder / "engine.py").read_text().splitlines().index("=======") + 1
    with pytest.raises(ConflictError, match=rf"markers are left .*engine.py:{number}\n"):
        go_on(work)
    (folder / "engine.py").write_text(text)
    drop_markers(folder / "engine.py")
    good = (folder / "engine.py").read_text()
    replace_in(folder / "engine.py", "line nine, our anchor", "line 9")
    with pytest.raises(NotAdditiveError, match=r"engine.py:13: upstream line 13 changed"):
        go_on(work)
    assert snapshot(work.patches) == before
    (folder / "engine.py").write_text(good)
    lock = go_on(work)
    assert work.toy.pin == lock.base_commit == commits["v3"]
    assert not folder.exists()
    assert lint(work.home, "toy").problems == []
    # The same again: rerere remembers what the person did.
    for name, data in before.items():
        Path(name).write_bytes(data)
    with pytest.raises(ConflictError):
        accept(work, "v3")
    with pytest.raises(ConflictError, match="0003"):
        go_on(work)
    assert (folder / "engine.py").read_text() == good
    assert go_on(work) == lock


def test_a_deleted_upstream_file_cannot_be_brought_back(moved, raw) -> None:
    work, _ = moved
    text = "a line of upstream that is long enough\n" * 3
    (work.origin / "crlf.py").write_text(text)
    goes_on(work, "", "")
    with pytest.raises(ConflictError):
        accept(work, "main")
    folder = upgrade.folder_of(work.toy)
    (folder / "crlf.py").write_text(text)
    (folder / "copy.py").write_text(text)
    raw(folder, "add", "copy.py")
    for _ in range(2):  # refused as long as it is so
        with pytest.raises(RefusedError, match=r"would hold upstream text:\n  copy.py: a line"):
            go_on(work)
    (folder / "copy.py").unlink()
    with pytest.raises(ConflictError, match="0003"):
        go_on(work)
    assert work.toy.pin == work.pin


def test_embedded_recipe_goes_along_with_its_folder(authored, raw) -> None:
    """Edit the recipe, then `--to embedded`; the old pin is found in our own history."""
    home = authored.home
    recipe, folder = home / "upstream/embedded/own", home / "patches/own"
    shutil.copytree(authored.origin, recipe, ignore=shutil.ignore_patterns(".git"))
    raw(home, "init", "-q", ".")
    raw(home, "add", "-f", "upstream/embedded")
    raw(home, "commit", "-qm", "recipe")
    shutil.copytree(authored.patches, folder)
    text = 'name = "own"\nsource = "embedded"\npath = "upstream/embedded/own"\npin = "'
    (folder / "upstream.toml").write_text(text + "0" * 40 + '"\n')
    pin = embedded_commit(load_upstream(home, "own"), Git(home))
    (folder / "upstream.toml").write_text(text + pin + '"\n')
    named = [(file.name, file.read_bytes()) for file in load_upstream(home, "own").patch_files()]
    (folder / "lock").write_bytes(format_lock(build_series(Git(home), pin, named)))
    (recipe / "engine.py").write_text("# new\n" + (recipe / "engine.py").read_text())
    raw(home, "commit", "-qam", "recipe moves")
    done = authored.mto("upgrade", "own", "--to", "embedded", "--accept")
    assert done.returncode == 0, done.stderr
    new = load_upstream(home, "own")
    assert new.pin == embedded_commit(new, Git(home)) != pin
    applying.apply(new, quiet)
    assert (home / "upstream/own/engine.py").read_text().startswith("# new\nline 1\n")


def test_an_old_git_is_named(authored, tmp_path, monkeypatch) -> None:
    """A git that does not know `merge-tree --write-tree`, as before 2.38, in front of the real."""
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    real = shutil.which("git")
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *merge-tree*) exit 129;; *) exec {real} "$@";; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(MissingError, match="git is too old: mto upgrade needs 2.38") as caught:
        run(authored, "main")
    assert caught.value.hint.endswith("the rest of mto works with 2.31")


def test_command_line(moved) -> None:
    work, commits = moved
    ok = work.mto("upgrade", "toy", "--to", "v1", "--json")
    assert ok.returncode == 0, ok.stderr
    assert json.loads(ok.stdout)["counts"]["moved"] == 1
    assert work.mto("upgrade", "toy", "--to", "v1", "--accept", "--json").returncode == 2
    bad = work.mto("upgrade", "toy", "--to", "v3")
    assert bad.returncode == ConflictError.exit_code
    assert "file renamed" in bad.stdout
    assert commits["v3"] in bad.stderr


@pytest.fixture
def waiting(authored):
    """An upgrade that waits for a person: a line of engine.py has changed beside our hunk."""
    goes_on(authored, *ANCHOR)
    applying.apply(authored.toy, quiet)
    with pytest.raises(ConflictError, match="0003-mto-loss.patch conflicts"):
        accept(authored, "main")
    return authored


def test_an_export_made_meanwhile_is_not_dropped(waiting) -> None:
    replace_in(waiting.clone / "engine.py", "line 1\n", "# new\nline 1\n")
    export(waiting.toy, layer="compat")
    folder = upgrade.folder_of(waiting.toy)
    drop_markers(folder / "engine.py")
    with pytest.raises(RefusedError, match="as it was before .* changed") as caught:
        go_on(waiting)
    assert "mto upgrade toy --abort" in caught.value.hint
    # The hint holds: abort, start again, and the new line goes along.
    target = caught.value.hint.split("--to ")[1].split(" ")[0]
    upgrade.abort(waiting.toy)
    with pytest.raises(ConflictError):
        accept(waiting, target)
    drop_markers(folder / "engine.py")
    go_on(waiting)
    assert waiting.toy.pin == target
    assert any(b"+# new\n" in file.read_bytes() for file in waiting.toy.patch_files())
    assert lint(waiting.home, "toy").problems == []


def test_a_file_that_was_not_added_is_no_part_and_not_lost(waiting, raw) -> None:
    folder = upgrade.folder_of(waiting.toy)
    (folder / "engine.py.orig").write_bytes((folder / "engine.py").read_bytes())
    drop_markers(folder / "engine.py")
    (folder / "run.log").write_text("noise\n")
    (folder / "out").mkdir()
    (folder / "out/helper.py").write_text("helps = 1\n")
    (folder / "new.py").write_text("new = 1\n")
    raw(folder, "add", "-f", "out/helper.py", "new.py")
    done = waiting.mto("upgrade", "toy", "--continue")
    assert done.returncode == 0, done.stderr
    (mto,) = (patch for patch in read_series(waiting.toy) if patch.layer == "mto")
    assert [f.path for f in mto.files] == ["engine.py", "main.py", "new.py", "out/helper.py"]
    assert not folder.exists()
    (kept,) = folder.parent.glob("toy.*")
    assert (kept / "run.log").read_text() == "noise\n"
    assert "engine.py.orig, run.log" in done.stderr
    assert str(kept) in done.stderr


def test_abort_forgets_and_an_aborted_rebase_takes_nothing_along(waiting, raw) -> None:
    before = snapshot(waiting.patches)
    raw(upgrade.folder_of(waiting.toy), "rebase", "--abort")
    with pytest.raises(RefusedError, match="the rebase was aborted"):
        go_on(waiting)
    upgrade.abort(waiting.toy)
    for command in (upgrade.abort, lambda toy: upgrade.proceed(toy, quiet)):
        with pytest.raises(MissingError, match="no upgrade of toy is under way"):
            command(waiting.toy)
    assert snapshot(waiting.patches) == before


def test_a_line_of_upstream_is_no_marker(authored) -> None:
    goes_on(authored, "line 1\n", "Title\n=======\nline 1\n")
    goes_on(authored, *ANCHOR)
    with pytest.raises(ConflictError):
        accept(authored, "main")
    file = upgrade.folder_of(authored.toy) / "engine.py"
    title, _, rest = file.read_text().partition("line 1\n")
    assert title == "Title\n=======\n"
    file.write_text("line 1\n" + rest)
    drop_markers(file)
    file.write_text(title + file.read_text())
    go_on(authored)
    assert lint(authored.home, "toy").problems == []


def test_no_password_is_shown_or_kept(authored, own_git_configuration) -> None:
    """A source whose URL holds a password; git is told to find it on this machine."""
    secret = "https://user:SECRETTOKEN@somewhere.invalid/toy.git"
    own_git_configuration.write_text(f'[url "file://{authored.origin}"]\n insteadOf = {secret}\n')
    clean = goes_on(authored, "line 1\n", "a new first line\nline 1\n")
    goes_on(authored, *ANCHOR)
    applying.apply(authored.toy, quiet)
    done = authored.mto("upgrade", "toy", "--to", clean, "--accept", "--source", secret)
    assert done.returncode == 0, done.stderr
    assert "the pin comes from https://***@somewhere.invalid/toy.git" in done.stderr
    stopped = authored.mto("upgrade", "toy", "--to", "main", "--accept", "--source", secret)
    assert stopped.returncode == 6, stopped.stderr
    folder = upgrade.folder_of(authored.toy)
    kept = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(b"SECRETTOKEN" in data for data in kept)
    drop_markers(folder / "engine.py")
    gone = authored.mto("upgrade", "toy", "--continue")
    assert gone.returncode == 0, gone.stderr
    assert authored.mto("apply", "toy").returncode == 0
    nobody = "https://user:SECRETTOKEN@127.0.0.1:1/x.git"
    failed = authored.mto("upgrade", "toy", "--to", "main", "--source", nobody)
    assert failed.returncode == 3, failed.stderr
    for run in (done, stopped, gone, failed):
        assert "SECRETTOKEN" not in run.stdout + run.stderr


@pytest.mark.parametrize("ref", ["HEAD", "@", "mto", "refs/heads/mto", "mto~1"])
def test_a_commit_of_the_series_is_no_upstream_commit(authored, ref: str) -> None:
    """The checkout itself as the source, whose HEAD would leave no patch in the series."""
    applying.apply(authored.toy, quiet)
    before = snapshot(authored.patches)
    with pytest.raises(RefusedError, match="which mto made of a patch") as caught:
        accept(authored, ref, str(authored.clone))
    assert authored.pin in caught.value.hint
    assert snapshot(authored.patches) == before


def test_a_point_as_the_source_is_the_checkout(authored, raw, monkeypatch) -> None:
    """A commit of one's own, from the clone of mto and from the checkout; the URL stays."""
    applying.apply(authored.toy, quiet)
    raw(authored.clone, "checkout", "-q", "-b", "own", authored.pin)
    (authored.clone / "own.py").write_text("own = 1\n")
    raw(authored.clone, "add", "own.py")
    raw(authored.clone, "commit", "-qm", "own")
    own = raw(authored.clone, "rev-parse", "own")
    for folder in (authored.home, authored.clone):
        monkeypatch.chdir(folder)
        assert run(authored, own, ".").ok
    url = authored.toy.url
    accept(authored, own, ".")
    assert (authored.toy.pin, authored.toy.url) == (own, url)
