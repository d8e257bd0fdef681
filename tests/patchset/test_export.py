"""Export: an edited checkout becomes a series, or is refused with the place and the way out."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset.export import export, regenerate
from mto_tools.patchset.lint import lint
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.series import insert, read_series, split_lines
from mto_tools.patchset.tree_diff import NotAdditiveError, Range, additive_hunks, subsequence

from .conftest import IDENTITY, raw_git, replace_in

MESSAGE = ("add the loss", "Because the paper does.")


def put(file, after: int, *lines: str) -> None:
    """Insert lines behind line `after` of a file."""
    text = file.read_bytes().decode().splitlines(keepends=True)
    text[after:after] = [f"{line}\n" for line in lines]
    file.write_bytes("".join(text).encode())


def on_disk(work) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in work.patches.iterdir() if p.name != "upstream.toml"}


@pytest.fixture
def applied(authored):
    """The whole series applied to a clone."""
    applying.apply(authored.toy, print)
    return authored


def patches(work) -> dict[str, dict[str, list[str]]]:
    """Inserted lines by patch and file."""
    return {
        patch.name: {
            file.path: [line.decode() for hunk in file.hunks for line in hunk.lines]
            for file in patch.files
        }
        for patch in read_series(work.toy)
    }


def test_first_export_makes_a_series_and_leaves_the_checkout_applied(work, raw) -> None:
    work.write_series({})
    (work.patches / "lock").unlink()
    applying.ensure_clone(work.toy, print)
    put(work.clone / "engine.py", 4, "loss = mto.add(loss)")
    (work.clone / "extra.py").write_text("new = 1\n")
    raw(work.clone, "add", "extra.py")
    with pytest.raises(RefusedError, match="needs a message"):
        export(work.toy)
    assert on_disk(work) == {}
    done = export(work.toy, message=MESSAGE)
    assert done.written == ("0001-mto-add-the-loss.patch",)
    assert patches(work) == {
        "0001-mto-add-the-loss.patch": {
            "engine.py": ["loss = mto.add(loss)"],
            "extra.py": ["new = 1"],
        }
    }
    assert raw(work.clone, "status", "--porcelain") == ""
    assert raw(work.clone, "symbolic-ref", "HEAD") == "refs/heads/mto"
    assert raw(work.clone, "rev-parse", "HEAD") == done.commit
    status = work.mto("status", "toy", "--json")
    assert status.returncode == 0, status.stdout + status.stderr
    assert work.mto("revert", "toy").returncode == 0
    assert work.mto("apply", "toy").returncode == 0
    assert (work.clone / "extra.py").read_text() == "new = 1\n"


def test_new_lines_go_to_the_named_layer_and_old_ones_stay(applied) -> None:
    put(applied.clone / "engine.py", 1, "# by compat")
    put(applied.clone / "main.py", 2, "# in the middle of a block")
    export(applied.toy, layer="compat")
    found = patches(applied)
    assert found["0002-compat-shim.patch"]["engine.py"] == ["# by compat"]
    assert found["0002-compat-shim.patch"]["main.py"] == ["# in the middle of a block"]
    assert found["0001-compat-import.patch"]["main.py"] == ["import compat"]
    assert found["0003-mto-loss.patch"]["engine.py"] == ["mto = 1", "mto.add()", "mto.log()"]
    assert export(applied.toy).written == ()


def test_a_reworded_line_stays_in_its_patch_and_crlf_in_its_file(applied) -> None:
    replace_in(applied.clone / "engine.py", "mto.add()", "mto.add(loss)")
    replace_in(applied.clone / "crlf.py", "compat = 1\r\n", "compat = 1\r\nmore = 2\r\n")
    export(applied.toy, layer="deepspeed")
    assert patches(applied)["0003-mto-loss.patch"]["engine.py"][1] == "mto.add(loss)"
    last = patches(applied)["0004-deepspeed-engine.patch"]
    assert list(last) == ["crlf.py", "ds.json", "main.py"]
    assert last["crlf.py"] == ["more = 2\r"]


def test_a_double_of_an_upstream_line_comes_and_goes(applied) -> None:
    """Whichever of two equal lines git takes for the removed one, upstream's stays upstream's."""
    file = applied.clone / "sub/deep.py"
    before = file.read_bytes()
    put(file, 6, "line 6")
    export(applied.toy, layer="mto")
    assert patches(applied)["0003-mto-loss.patch"]["sub/deep.py"] == ["line 6"]
    file.write_bytes(before)
    put(file, 12, "another")
    export(applied.toy, layer="mto")
    assert patches(applied)["0003-mto-loss.patch"]["sub/deep.py"] == ["another"]
    assert patches(applied)["0002-compat-shim.patch"]["sub/deep.py"] == ["shim = 1"]


def test_a_patch_that_inserts_nothing_any_more_is_removed(applied) -> None:
    replace_in(applied.clone / "sub/deep.py", "shim = 1\n", "")
    done = export(applied.toy)
    assert done.removed == (
        "0002-compat-shim.patch",
        "0003-mto-loss.patch",
        "0004-deepspeed-engine.patch",
    )
    assert list(patches(applied)) == [
        "0001-compat-import.patch",
        "0002-mto-loss.patch",
        "0003-deepspeed-engine.patch",
    ]
    assert applied.mto("status", "toy").returncode == 0


def test_commits_on_the_branch_are_exported_like_edits(applied, raw, said) -> None:
    put(applied.clone / "engine.py", 1, "# committed")
    raw(applied.clone, "commit", "-qam", "mine")
    mine = raw(applied.clone, "rev-parse", "HEAD")
    done = export(applied.toy, layer="mto", say=said.append)
    assert patches(applied)["0003-mto-loss.patch"]["engine.py"][0] == "# committed"
    assert raw(applied.clone, "rev-parse", "HEAD") == done.commit
    assert mine in said[-1]
    assert mine in raw(applied.clone, "reflog", "--no-abbrev", "mto")


def edit(path: str, change):
    def do(clone) -> None:
        (clone / path).write_bytes(change((clone / path).read_bytes()))

    return do


def add_link(clone) -> None:
    (clone / "link").symlink_to("main.py")
    raw_git(clone, "add", "link")


@pytest.mark.parametrize(
    ("do", "place"),
    [
        (
            edit("sub/deep.py", lambda b: b.replace(b"line 3\n", b"LINE 3\n")),
            "sub/deep.py:3: .*changed",
        ),
        (edit("sub/deep.py", lambda b: b.replace(b"line 7\n", b"")), "sub/deep.py:7: .*deleted"),
        (
            edit("sub/deep.py", lambda b: b.replace(b"line 7\nline 8\n", b"line 8\nline 7\n")),
            "sub/deep.py:[78]",
        ),
        (edit("no_newline.py", lambda b: b + b"\nx\n"), "no_newline.py:21: .*insert before it"),
        (edit("engine.py", lambda b: b + b"x"), "engine.py:24: .*does not end with a line feed"),
        (edit("crlf.py", lambda b: b.replace(b"\r\n", b"\n")), "crlf.py:1: upstream lines 1 to"),
        (edit("engine.py", lambda b: b + b"\0\n"), "engine.py:1: binary"),
        (lambda clone: (clone / "run.sh").chmod(0o644), "run.sh:1: mode changed from 100755"),
        (
            lambda clone: (clone / "data.txt").rename(clone / "moved.txt"),
            "data.txt:1: upstream file",
        ),
        (add_link, "link:1: mode 120000"),
    ],
)
def test_what_is_not_additive_is_refused_with_its_place(applied, do, place) -> None:
    before = on_disk(applied)
    do(applied.clone)
    with pytest.raises(NotAdditiveError) as caught:
        export(applied.toy)
    assert re.search(place, caught.value.message), caught.value.message
    assert "insert one that replaces its effect" in caught.value.hint
    assert on_disk(applied) == before


def test_starting_points_that_would_lose_patches_are_refused(applied, raw) -> None:
    before = on_disk(applied)
    raw(applied.clone, "checkout", "-q", "--detach", applied.pin)
    put(applied.clone / "engine.py", 1, "# x")
    with pytest.raises(RefusedError, match="holds 0 of 4 patches: an export from here would lose"):
        export(applied.toy)
    raw(applied.clone, "checkout", "-q", "-f", "--orphan", "other")
    raw(applied.clone, "commit", "-qm", "other")
    with pytest.raises(RefusedError, match="descends neither from the pin"):
        export(applied.toy)
    assert on_disk(applied) == before


def test_user_configuration_does_not_leak_upstream_lines(applied, own_git_configuration) -> None:
    put(applied.clone / "engine.py", 1, "# a")
    put(applied.clone / "engine.py", 4, "# b")
    expected = applied.patches / "0004-deepspeed-engine.patch"
    before = expected.read_bytes()
    export(applied.toy)
    clean = expected.read_bytes()
    assert clean != before
    own_git_configuration.write_text(
        "[diff]\n interHunkContext = 10\n context = 9\n noprefix = true\n algorithm = patience\n"
        " mnemonicPrefix = true\n indentHeuristic = false\n renames = copies\n external = false\n"
        " suppressBlankEmpty = true\n[core]\n quotePath = true\n abbrev = 5\n"
        "[color]\n ui = always\n"
        '[apply]\n whitespace = fix\n ignoreWhitespace = change\n[diff "py"]\n xfuncname = line.*\n'
        "[i18n]\n commitEncoding = latin1\n[commit]\n gpgSign = true\n"
    )
    (applied.clone / ".git/info").mkdir(exist_ok=True)
    (applied.clone / ".git/info/attributes").write_text("*.py diff=py -text\n*.json binary\n")
    replace_in(applied.clone / "engine.py", "# b\n", "")
    export(applied.toy)
    put(applied.clone / "engine.py", 4, "# b")
    export(applied.toy)
    assert expected.read_bytes() == clean
    assert b"line " not in clean


def test_a_clone_elsewhere_with_autocrlf(authored, raw, own_git_configuration, tmp_path) -> None:
    """The user's own clone holds CRLF where the blobs hold LF; patches are made of blobs."""
    own_git_configuration.write_text("[core]\n autocrlf = true\n")
    mine = tmp_path / "mine"
    raw(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(authored.origin), str(mine))
    assert authored.mto("apply", "toy", "--repo", str(mine)).returncode == 0
    before = on_disk(authored)
    assert export(authored.toy, mine).written == ()
    assert on_disk(authored) == before
    replace_in(mine / "engine.py", "mto = 1\r\n", "mto = 1\r\nmore = 2\r\n")
    export(authored.toy, mine, layer="mto")
    assert b"+more = 2\n" in (authored.patches / "0003-mto-loss.patch").read_bytes()
    assert raw(mine, "status", "--porcelain") == ""
    assert (mine / "engine.py").read_bytes().count(b"\r\n") == 24


def test_message_replaces_and_says_why(applied) -> None:
    export(applied.toy, layer="mto", message=("new subject", "First.", "Second."))
    patch = next(p for p in read_series(applied.toy) if p.layer == "mto")
    assert (patch.subject, patch.body) == ("new subject", "First.\n\nSecond.")
    assert patch.name == "0003-mto-loss.patch"
    with pytest.raises(RefusedError, match="start of a diff"):
        export(applied.toy, layer="mto", message=("subject", "--- a/file"))
    with pytest.raises(RefusedError, match="no layer 'other'"):
        export(applied.toy, layer="other")


def test_git_shows_a_deletion_where_insertions_suffice() -> None:
    """Found by search: git's minimal diff of some additive edits has deletions."""
    old, new = b"a\nb\na\n", b"a\nb\nx\na\na\n"
    wrong = [Range(1, 1, 1, 2), Range(3, 0, 4, 1)]  # as if git had replaced b
    hunks = additive_hunks(old, new, wrong)
    assert hunks is not None
    assert insert(old, hunks) == new
    assert additive_hunks(b"a\nb\n", b"b\na\n", [Range(0, 1, 0, 0), Range(2, 0, 1, 1)]) is None


@given(st.lists(st.sampled_from("ab\n"), max_size=8), st.lists(st.sampled_from("ab\n"), max_size=8))
def test_subsequence_is_exact(old, new) -> None:
    """Against the definition: try every choice of lines."""
    a, b = [x.encode() for x in old], [x.encode() for x in new]
    exists = len(a) <= len(b) and any(list(c) == a for c in itertools.combinations(b, len(a)))
    found = subsequence(a, b)
    assert (found is not None) == exists
    if found is not None:
        kept = [
            line for n, line in enumerate(b) if not any(r.new <= n < r.new + r.added for r in found)
        ]
        assert kept == a


def test_random_edits_split_into_layers_and_come_back(applied, raw) -> None:
    """Any edit that only inserts is exported; the series gives it back, and nobody loses a line."""
    rng = random.Random(0)
    for _ in range(8):
        before = patches(applied)
        for name in rng.sample(["engine.py", "main.py", "sub/deep.py"], 2):
            lines = split_lines((applied.clone / name).read_bytes())
            for _ in range(rng.randint(1, 3)):
                text = rng.choice(
                    [b"\n", b"line 3\n", b"mto.add()\n", b"new %d\n" % rng.getrandbits(40)]
                )
                lines.insert(rng.randint(0, len(lines)), text)
            (applied.clone / name).write_bytes(b"".join(lines))
        edited = {name: (applied.clone / name).read_bytes() for name in before_files(before)}
        done = export(applied.toy, layer=rng.choice(["compat", "mto", "deepspeed"]))
        assert raw(applied.clone, "rev-parse", "HEAD^{tree}") == done.tree
        assert raw(applied.clone, "status", "--porcelain") == ""
        assert edited == {name: (applied.clone / name).read_bytes() for name in edited}
        after = patches(applied)
        for name, files in before.items():
            for path, old in files.items():
                # Equal lines may change places; those of which there is one only may not.
                one = [line for line in old if line.startswith("new ")]
                assert [line for line in after[name][path] if line in one] == one
    assert export(applied.toy).written == ()


def before_files(series: dict[str, dict[str, list[str]]]) -> set[str]:
    return {path for files in series.values() for path in files}


def test_command_line(applied) -> None:
    put(applied.clone / "engine.py", 1, "# x")
    (applied.clone / "notes.txt").write_text("mine\n")
    run = applied.mto("export", "toy", "--layer", "mto")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == "patches/toy/0003-mto-loss.patch"
    assert "notes.txt" in run.stderr
    assert json.loads(applied.mto("export", "toy", "--json").stdout)["written"] == []
    edit("engine.py", lambda b: b.replace(b"line 5\n", b""))(applied.clone)
    bad = applied.mto("export", "toy")
    assert bad.returncode == RefusedError.exit_code
    assert "engine.py:5: upstream line 5 deleted" in bad.stderr


def test_an_amended_commit_dissolves_no_patch(applied, raw) -> None:
    before = on_disk(applied)
    put(applied.clone / "engine.py", 0, "# amended")
    raw(applied.clone, "commit", "-qa", "--amend", "-m", "mine")
    with pytest.raises(RefusedError, match="holds 3 of 4 patches") as caught:
        export(applied.toy)
    assert on_disk(applied) == before
    # The hint holds: what was applied stays in its patches, and an edit goes where it belongs.
    commit = applied.lock.commit
    assert f"git -C {applied.clone} reset --soft {commit} " in caught.value.hint
    raw(applied.clone, "reset", "-q", "--soft", commit)
    done = export(applied.toy)
    assert (done.removed, done.written) == ((), ("0004-deepspeed-engine.patch",))
    assert lint(applied.home, "toy").problems == []


def test_an_edit_of_a_part_of_the_series_moves_on_to_the_whole(authored, raw) -> None:
    applying.apply(authored.toy, print, through="compat")
    put(authored.clone / "engine.py", 0, "# ported")
    raw(authored.clone, "commit", "-qam", "mine")
    before = on_disk(authored)
    with pytest.raises(RefusedError, match="holds 2 of 4 patches") as caught:
        export(authored.toy)
    assert on_disk(authored) == before
    # The hint holds, as a person would type it.
    commands = caught.value.hint.rpartition("if not: ")[2]
    mto = f"{sys.executable} -m mto_tools.cli"
    script = commands.replace("mto apply", f"MTO_HOME={authored.home} {mto} apply")
    subprocess.run(["bash", "-ec", script], env={**os.environ, **IDENTITY}, check=True)
    assert export(authored.toy, layer="compat").removed == ()
    assert b"+# ported\n" in (authored.patches / "0002-compat-shim.patch").read_bytes()
    assert lint(authored.home, "toy").problems == []


@pytest.mark.parametrize("flag", ["assume-unchanged", "skip-worktree"])
def test_an_edit_that_git_overlooks_is_named(applied, raw, flag) -> None:
    raw(applied.clone, "update-index", f"--{flag}", "engine.py", "main.py")
    assert export(applied.toy).written == ()
    put(applied.clone / "engine.py", 0, "# overlooked")
    with pytest.raises(RefusedError, match="told to overlook: engine.py\n"):
        export(applied.toy)
    raw(applied.clone, "update-index", f"--no-{flag}", "engine.py")
    # A file that a sparse checkout leaves out is no edit.
    raw(applied.clone, "update-index", "--skip-worktree", "data.txt")
    (applied.clone / "data.txt").unlink()
    assert export(applied.toy).written == ("0004-deepspeed-engine.patch",)


def test_hint_where_pin_and_lock_differ(authored, raw) -> None:
    applying.ensure_clone(authored.toy, print)
    raw(authored.origin, "commit", "-q", "--allow-empty", "-m", "goes on")
    old, new = authored.pin, raw(authored.origin, "rev-parse", "HEAD")
    toml = authored.patches / "upstream.toml"
    text = toml.read_text()
    toml.write_text(text.replace(old, new))
    with pytest.raises(CorruptError, match="but upstream.toml pins") as caught:
        read_lock(authored.toy)
    assert f"set it to {old} again and let mto upgrade toy --to {new} --accept write" in str(
        caught.value
    )
    toml.write_text(text)
    assert authored.mto("upgrade", "toy", "--to", new, "--accept").returncode == 0
    assert authored.toy.pin == new
    assert lint(authored.home, "toy").problems == []


def not_canonical(work) -> None:
    named = [(file.name, file.read_bytes()) for file in work.toy.patch_files()]
    work.write_series(
        {name: re.sub(rb"(@@ -1,0 \+2) @@", rb"\1 @@ class A:", data) for name, data in named}
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda work: (work.patches / "0004-deepspeed-engine.patch").unlink(), "different patches"),
        (
            lambda work: replace_in(work.patches / "lock", '"format": 1', '"format": 9'),
            "should be 1",
        ),
        (lambda work: replace_in(work.patches / "lock", "100644", "100755"), "expected 100755"),
        (not_canonical, "text behind @@"),
    ],
)
def test_hints_that_say_from_patches(applied, spoil, words) -> None:
    spoil(applied)
    spoilt = on_disk(applied)
    with pytest.raises(CorruptError, match=words) as caught:
        export(applied.toy)
    assert on_disk(applied) == spoilt
    assert re.search("mto export (toy|NAME) --from-patches", caught.value.hint)
    regenerate(applied.toy, print)
    assert lint(applied.home, "toy").problems == []
    applying.apply(applied.toy, print)
