"""Lint: every promise about a series, broken once; and this repository's own patches."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from mto_tools.errors import CorruptError
from mto_tools.home import find_home
from mto_tools.patchset import apply as applying
from mto_tools.patchset.export import regenerate
from mto_tools.patchset.lint import lint

from .conftest import quiet, replace_in


def replaced(name: str, old: str, new: str):
    return lambda folder: replace_in(folder / name, old, new)


MTO = "0003-mto-loss.patch"


@pytest.mark.parametrize(
    ("do", "found"),
    [
        (replaced(MTO, "+mto = 1", "+mto = 2"), r"lock:1: .*not the patch that was locked"),
        (replaced(MTO, "@@ -2,0 +3 @@", "@@ -2,0 +3 @@ class A"), rf"{MTO}:\d+: .*text behind @@"),
        (replaced(MTO, "So that it does.\n", ""), rf"{MTO}:2: the message does not say why"),
        (replaced("lock", '"layer": "mto"', '"layer": "other"'), "lock:1: .*layer"),
        (replaced("lock", "\n", "\r\n"), "lock:1: .*one byte form"),
        (
            replaced("upstream.toml", 'pin = "', 'pin = "main"\nx = "'),
            "toml:1: .*full OID",
        ),
        (replaced("upstream.toml", "MIT", 'MIT"'), "upstream.toml:1: .*not TOML"),
        (lambda f: (f / "lock").unlink(), "lock:1: .*is missing"),
        (lambda f: (f / MTO).unlink(), "toml:1: .*expected number 0003"),
        (lambda f: (f / MTO).rename(f / "0003-other.patch"), "toml:1: .*is named 000N-"),
        (
            lambda f: (f / "0001-compat-import.patch").rename(f / "0001-mto-import.patch"),
            "must come before",
        ),
    ],
)
def test_every_broken_promise_has_its_place(authored, do, found) -> None:
    assert lint(authored.home, "toy").problems == []
    do(authored.patches)
    problems = [str(problem) for problem in lint(authored.home, "toy").problems]
    assert any(re.search(found, problem) for problem in problems), problems
    assert all(problem.startswith("patches/toy/") for problem in problems)


def test_without_a_clone_it_says_what_it_did_not_check(authored) -> None:
    linted = lint(authored.home, "toy")
    assert (linted.patches, linted.inserted) == (4, 9)
    assert any("no clone" in what for what in linted.unchecked)
    applying.ensure_clone(authored.toy, quiet)
    before = {path: path.lstat().st_mtime_ns for path in authored.clone.rglob("*")}
    linted = lint(authored.home, "toy")
    assert (linted.problems, linted.unchecked) == ([], [])
    assert before == {path: path.lstat().st_mtime_ns for path in authored.clone.rglob("*")}
    # A lock that agrees with itself alone needs the clone to be found.
    text = (authored.patches / "lock").read_text()
    (authored.patches / "lock").write_text(text.replace(json.loads(text)["tree"], "1" * 40))
    (problem,) = lint(authored.home, "toy").problems
    assert "0004-deepspeed-engine.patch: tree: expected 1111" in problem.reason


def test_upstream_text_and_rebuild_with_a_clone(authored) -> None:
    long = "def upstreams_own_function(argument):"
    text = (authored.origin / "engine.py").read_text()
    series = {file.name: file.read_bytes() for file in authored.toy.patch_files()}
    authored.commit_and_pin({"engine.py": f"    {long}\n{text}"}, series)
    applying.ensure_clone(authored.toy, quiet)
    regenerate(authored.toy, quiet)
    assert lint(authored.home, "toy").problems == []
    # The same words with other white space are upstream's, too.
    replaced(MTO, "+mto = 1", "+" + long)(authored.patches)
    regenerate(authored.toy, quiet)
    (problem,) = lint(authored.home, "toy").problems
    line = (authored.patches / MTO).read_text().splitlines()[problem.line - 1]
    assert line == "+" + long
    assert "upstream has this line too" in problem.reason
    # 20 characters decide: shorter lines are nobody's.
    replaced(MTO, "+" + long, "+line 3")(authored.patches)
    regenerate(authored.toy, quiet)
    assert lint(authored.home, "toy").problems == []


def test_regenerate_takes_patches_edited_by_hand(authored) -> None:
    applying.ensure_clone(authored.toy, quiet)
    replaced(MTO, "+mto = 1\n", "+mto = 11\n")(authored.patches)
    assert lint(authored.home, "toy").problems
    assert MTO in regenerate(authored.toy, quiet).written
    assert lint(authored.home, "toy").problems == []
    applying.apply(authored.toy, quiet)
    assert "mto = 11" in (authored.clone / "engine.py").read_text()
    replaced(MTO, "+mto = 11\n", "-line 3\n+mto = 11\n")(authored.patches)
    with pytest.raises(CorruptError, match="does not apply"):
        regenerate(authored.toy, quiet)


def test_command_line(authored) -> None:
    shutil.copytree(authored.patches, authored.home / "patches/other")
    toml = authored.home / "patches/other/upstream.toml"
    toml.write_text(toml.read_text().replace('name = "toy"', 'name = "other"'))
    good = authored.mto("lint")
    assert good.returncode == 0
    assert "not checked: upstream text" in good.stderr
    assert "upstreams: 2, patches: 8, inserted lines: 18; what could be checked" in good.stderr
    replaced(MTO, "+mto = 1\n", "+mto = 1\n line 3\n")(authored.patches)
    run = authored.mto("lint", "--json")
    assert run.returncode == 1
    table = json.loads(run.stdout)
    assert [one["ok"] for one in table["upstreams"]] == [True, False]
    text = authored.mto("lint", "toy", str(authored.origin))
    assert text.returncode == 1
    assert re.search(rf"^patches/toy/{MTO}:\d+: context", text.stdout, re.MULTILINE)
    assert f"there is no upstream '{authored.origin}'" in text.stdout
    assert "Traceback" not in text.stderr


def test_this_repository() -> None:
    """What `make test` must never let through; against the clones where there are some."""
    home = find_home()
    names = [path.parent.name for path in (home / "patches").glob("*/upstream.toml")]
    assert names
    problems = [str(p) for name in names for p in lint(home, name).problems]
    assert problems == []
