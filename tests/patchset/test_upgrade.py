"""Upgrade: what is reported, what is written, and how a conflict is resolved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mto_tools.errors import ConflictError, MissingError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset import transaction, upgrade
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import lint
from mto_tools.patchset.merge import require_merge_tree
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.rehearse import Rehearsal, rehearse
from mto_tools.patchset.scratch_repo import open_scratch
from mto_tools.patchset.tree_diff import NotAdditiveError
from mto_tools.upstreams.upstream import load_upstream


def mute(line: str) -> None:
    """Say nothing."""


def verdicts(rehearsal: Rehearsal) -> dict[str, str]:
    """Verdict by patch, file and line."""
    return {
        f"{step.patch.name[:4]} {hunk.path}:{hunk.after}": hunk.verdict
        for step in rehearsal.steps
        for hunk in step.hunks
    }


def run(house, ref: str, source: str | None = None) -> Rehearsal:
    with open_scratch(house.toy, mute, source) as scratch:
        return rehearse(scratch, ref)


def accept(house, ref: str, source: str | None = None) -> None:
    with (
        transaction.series_lock(house.patches, mute),
        open_scratch(house.toy, mute, source) as scratch,
    ):
        upgrade.upgrade(scratch, rehearse(scratch, ref), mute)


@pytest.fixture
def moved(authored, raw):
    """The upstream goes on, commit by commit, each with a tag."""
    origin: Path = authored.origin

    def commit(tag: str) -> str:
        raw(origin, "add", "-A")
        raw(origin, "commit", "-qm", f"subject of {tag}")
        raw(origin, "tag", tag)
        return raw(origin, "rev-parse", "HEAD")

    engine = origin / "engine.py"
    text = engine.read_text()
    commits = {"v0": authored.pin}
    raw(origin, "tag", "v0")
    engine.write_text("a new first line\nand one\nand one\nand one\n" + text)
    commits["v1"] = commit("v1")
    raw(origin, "mv", "sub", "lib")
    (origin / "LICENSE").write_text("Some licence\n")
    commits["v2"] = commit("v2")
    engine.write_text(engine.read_text().replace("line 9\n", "line nine, our anchor\n"))
    raw(origin, "rm", "-q", "crlf.py")
    (origin / "LICENSE").write_text("Some other licence\n")
    commits["v3"] = commit("v3")
    return authored, commits


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_verdicts_and_nothing_is_touched(moved) -> None:
    house, commits = moved
    applying.apply(house.toy, mute)
    before = snapshot(house.home), snapshot(house.origin)
    one = run(house, "v1")
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
    assert hunks[2].around == ["+ and one"]
    two = run(house, "v2")
    assert two.ok
    assert verdicts(two)["0002 sub/deep.py:5"] == "renamed"
    assert two.steps[1].hunks[0].now == ("lib/deep.py", 5)
    assert two.steps[1].hunks[0].note.startswith(f"removed by {commits['v2']}")
    assert [(c.path, c.what) for c in two.licence] == [("LICENSE", "added")]
    three = run(house, "v3")
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
    assert "licence" not in json.dumps(three.as_dict()["licence"][0]["what"])
    assert before == (snapshot(house.home), snapshot(house.origin))


def test_any_branch_tag_commit_fork_or_bundle(moved, raw, tmp_path) -> None:
    house, commits = moved
    for ref in ("v1", commits["v1"], commits["v1"][:10], "main~2"):
        assert run(house, ref).target == commits["v1"], ref
    older = run(house, "v0~1")
    assert (older.ahead, older.behind) == (0, 1)
    assert {"gone"} == {v for k, v in verdicts(older).items() if "ds.json" not in k}
    assert f"not there yet, added by {house.pin}" in older.steps[0].hunks[0].note
    with pytest.raises(MissingError, match="no branch, tag or commit 'nonsense'"):
        run(house, "nonsense")
    fork = tmp_path / "fork"
    shutil.copytree(house.origin, fork)
    raw(fork, "checkout", "-q", "-b", "theirs", "v1")
    raw(fork, "commit", "-q", "--allow-empty", "-m", "fork")
    assert run(house, "theirs", str(fork)).ok
    raw(fork, "bundle", "create", "-q", str(tmp_path / "fork.bundle"), "--all")
    assert run(house, "theirs", str(tmp_path / "fork.bundle")).ok
    assert run(house, "theirs", fork.as_uri()).ok


def test_accept_writes_pin_series_and_lock(moved, raw) -> None:
    house, commits = moved
    applying.apply(house.toy, mute)
    toml = house.patches / "upstream.toml"
    toml.write_text("# ours\n" + toml.read_text() + "# kept\n")
    (house.clone / "engine.py").write_text((house.clone / "engine.py").read_text() + "# mine\n")
    accept(house, "v2")
    text = toml.read_text()
    assert text.startswith("# ours\n")
    assert text.endswith("# kept\n")
    assert house.toy.pin == commits["v2"]
    assert [patch.name for patch in read_series(house.toy)] == [
        "0001-compat-import.patch",
        "0002-compat-shim.patch",
        "0003-mto-loss.patch",
        "0004-deepspeed-engine.patch",
    ]
    assert lint(house.home, "toy").problems == []
    assert (house.clone / "engine.py").read_text().endswith("# mine\n")
    assert json.loads(house.mto("status", "toy", "--json").stdout) != {}
    raw(house.clone, "checkout", "-q", "--", "engine.py")
    shutil.rmtree(house.origin)  # the accepted commit is in the clone already
    done = house.mto("apply", "toy")
    assert done.returncode == 0, done.stderr
    assert "shim = 1" in (house.clone / "lib/deep.py").read_text()


def test_accept_to_where_it_is_changes_nothing(authored) -> None:
    before = snapshot(authored.patches)
    accept(authored, authored.pin)
    assert snapshot(authored.patches) == before


def resolve_engine(folder: Path) -> None:
    """Do what a person does: take upstream's side, insert our lines."""
    file, lines = folder / "engine.py", []
    side = ""
    for line in file.read_text().splitlines():
        mark = line[:7]
        if mark in ("<<<<<<<", "|||||||", "=======", ">>>>>>>"):
            side = mark if mark != ">>>>>>>" else ""
            lines += ["mto.add()", "mto.log()"] if mark == ">>>>>>>" else []
        elif side in ("", "<<<<<<<"):
            lines.append(line)
    file.write_text("\n".join(lines) + "\n")


def test_a_conflict_is_resolved_by_a_person(moved, capsys) -> None:
    house, commits = moved
    before = snapshot(house.patches)
    folder = upgrade.folder_of(house.toy)
    with pytest.raises(ConflictError, match=r"0001-compat-import.patch conflicts") as caught:
        accept(house, "v3")
    assert "crlf.py is gone (removed by " + commits["v3"] in caught.value.message
    assert "+compat = 1" in caught.value.message
    assert not (folder / "crlf.py").exists()
    assert "import compat" in (folder / "main.py").read_text()
    with pytest.raises(RefusedError, match="is under way"):
        accept(house, "v1")
    go_on = lambda: upgrade.proceed(house.toy, mute)  # noqa: E731
    with pytest.raises(ConflictError, match=r"0003-mto-loss.patch conflicts"):
        go_on()
    text = (folder / "engine.py").read_text()
    assert "|||||||" in text, "zdiff3 shows what it was"
    with pytest.raises(ConflictError, match=r"markers are left .*engine.py:\d+"):
        go_on()
    resolve_engine(folder)
    good = (folder / "engine.py").read_text()
    (folder / "engine.py").write_text(good.replace("line nine, our anchor", "line 9"))
    with pytest.raises(NotAdditiveError, match=r"engine.py:13: upstream line 13 changed"):
        go_on()
    assert snapshot(house.patches) == before
    (folder / "engine.py").write_text(good)
    with transaction.series_lock(house.patches, mute):
        lock = go_on()
    assert house.toy.pin == lock.base_commit == commits["v3"]
    assert not folder.exists()
    assert lint(house.home, "toy").problems == []
    # The same again: rerere remembers what the person did.
    for name, data in before.items():
        Path(name).write_bytes(data)
    with pytest.raises(ConflictError):
        accept(house, "v3")
    with pytest.raises(ConflictError, match="0003"):
        go_on()
    assert (folder / "engine.py").read_text() == good
    with transaction.series_lock(house.patches, mute):
        assert go_on() == lock


def test_abort_forgets_and_nothing_else_changed(moved) -> None:
    house, _ = moved
    before = snapshot(house.patches)
    with pytest.raises(MissingError, match="no upgrade of toy is under way"):
        upgrade.abort(house.toy)
    with pytest.raises(ConflictError):
        accept(house, "v3")
    upgrade.abort(house.toy)
    assert snapshot(house.patches) == before
    with pytest.raises(MissingError, match="no upgrade of toy is under way"):
        upgrade.proceed(house.toy, mute)


def test_a_deleted_upstream_file_cannot_be_brought_back(moved, raw) -> None:
    house, _ = moved
    text = "a line of upstream that is long enough\n" * 3
    (house.origin / "crlf.py").write_text(text)
    raw(house.origin, "add", "-A")
    raw(house.origin, "commit", "-qm", "brings it back under another text")
    with pytest.raises(ConflictError):
        accept(house, "main")
    folder = upgrade.folder_of(house.toy)
    (folder / "crlf.py").write_text(text)
    (folder / "copy.py").write_text(text)
    for _ in range(2):  # refused as long as it is so
        with pytest.raises(RefusedError, match=r"would hold upstream text:\n  copy.py: a line"):
            upgrade.proceed(house.toy, mute)
    (folder / "copy.py").unlink()
    with pytest.raises(ConflictError, match="0003"):
        upgrade.proceed(house.toy, mute)
    assert house.toy.pin == house.pin


def test_embedded_recipe_goes_along_with_its_folder(authored, raw) -> None:
    """Edit the recipe, then `--to embedded`; the old pin is found in our own history."""
    home = authored.home
    recipe = home / "upstream/embedded/own"
    shutil.copytree(authored.origin, recipe, ignore=shutil.ignore_patterns(".git"))
    raw(home, "init", "-q", ".")
    raw(home, "add", "-f", "upstream/embedded")
    raw(home, "commit", "-qm", "recipe")
    from mto_tools.patchset.embedded import embedded_commit

    folder = home / "patches/own"
    folder.mkdir()
    text = (
        'name = "own"\nsource = "embedded"\npath = "upstream/embedded/own"\npin_date = "2024-01-01"'
        '\nlicence = { spdx = "MIT" }\npin = "'
    )
    (folder / "upstream.toml").write_text(text + "0" * 40 + '"\n')
    pin = embedded_commit(home, load_upstream(home, "own"), Git(home))
    (folder / "upstream.toml").write_text(text + pin + '"\n')
    for file in authored.patches.glob("*.patch"):
        shutil.copy(file, folder)
    own = load_upstream(home, "own")
    named = [(file.name, file.read_bytes()) for file in own.patch_files()]
    from mto_tools.patchset.build import build_series
    from mto_tools.patchset.lock import format_lock

    (folder / "lock").write_bytes(format_lock(build_series(Git(home), pin, named)))
    raw(home, "commit", "-qm", "x", "--allow-empty")
    (recipe / "engine.py").write_text("# new\n" + (recipe / "engine.py").read_text())
    raw(home, "commit", "-qam", "recipe moves")
    subprocess_env = {"MTO_HOME": str(home)}
    done = authored.mto("upgrade", "own", "--to", "embedded", "--accept", **subprocess_env)
    assert done.returncode == 0, done.stderr
    new = load_upstream(home, "own")
    assert new.pin == embedded_commit(home, new, Git(home)) != pin
    applied = authored.mto("apply", "own", **subprocess_env)
    assert applied.returncode == 0, applied.stderr
    assert (home / "upstream/own/engine.py").read_text().startswith("# new\nline 1\n")


def test_an_old_git_is_named(tmp_path, monkeypatch) -> None:
    """A git that says it is 2.30 in front of the real one."""
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    real = shutil.which("git")
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *version) echo git version 2.30.1;; *) exec {real} "$@";; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(
        MissingError, match=r"git 2.30.1 is too old: mto upgrade needs 2.38"
    ) as caught:
        require_merge_tree(Git(tmp_path))
    assert caught.value.hint.endswith("the rest of mto works with 2.31")


def test_command_line(moved) -> None:
    house, commits = moved
    ok = house.mto("upgrade", "toy", "--to", "v1", "--json")
    assert ok.returncode == 0, ok.stderr
    assert json.loads(ok.stdout)["counts"]["moved"] == 1
    bad = house.mto("upgrade", "toy", "--to", "v3")
    assert bad.returncode == ConflictError.exit_code
    assert "file renamed" in bad.stdout
    assert commits["v3"] in bad.stderr


@pytest.mark.parametrize("ref", ["HEAD", "@", "mto", "refs/heads/mto", "mto~1"])
def test_a_commit_of_the_series_is_no_upstream_commit(authored, ref: str) -> None:
    """The checkout itself as the source, whose HEAD would leave no patch in the series."""
    applying.apply(authored.toy, mute)
    before = snapshot(authored.patches)
    with pytest.raises(RefusedError, match="which mto made of a patch") as caught:
        accept(authored, ref, str(authored.clone))
    assert authored.pin in caught.value.hint
    assert snapshot(authored.patches) == before


def test_a_point_as_the_source_is_the_checkout(authored, raw, monkeypatch) -> None:
    """A commit of one's own, from the clone of mto and from the checkout; the URL stays."""
    applying.apply(authored.toy, mute)
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
