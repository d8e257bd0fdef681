"""Export: what must not be lost or misplaced, and hints that hold."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset.export import export, regenerate
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import lint
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.transaction import clone_lock


def mute(line: str) -> None:
    """Say nothing."""


def on_disk(work) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in work.patches.iterdir()}


def add_line(work, path: str, line: str) -> None:
    file = work.clone / path
    file.write_text(f"{line}\n{file.read_text()}")


@pytest.fixture
def applied(authored):
    """The whole series applied to a clone."""
    applying.apply(authored.toy, mute)
    return authored


@pytest.mark.parametrize("edit", [False, True])
def test_an_amended_commit_dissolves_no_patch(applied, raw, edit) -> None:
    before = on_disk(applied)
    lock = read_lock(applied.toy)
    assert lock
    if edit:
        add_line(applied, "engine.py", "# amended")
    raw(applied.clone, "commit", "-qa", "--amend", "-m", "mine")
    with pytest.raises(RefusedError, match="on top of 3 of 4 patches; it may hold") as caught:
        export(applied.toy)
    assert on_disk(applied) == before
    # The hint holds: what was applied stays in its patches, and an edit goes where it belongs.
    assert f"git -C {applied.clone} reset --soft COMMIT" in caught.value.hint
    assert caught.value.hint.endswith(f"0004-deepspeed-engine.patch {lock.commit}")
    raw(applied.clone, "reset", "-q", "--soft", lock.commit)
    done = export(applied.toy)
    assert done.removed == ()
    assert done.written == (("0004-deepspeed-engine.patch",) if edit else ())
    assert lint(applied.home, "toy").problems == []


def test_a_series_squashed_into_one_commit(applied, raw) -> None:
    raw(applied.clone, "reset", "-q", "--soft", applied.pin)
    raw(applied.clone, "commit", "-qm", "mine")
    with pytest.raises(RefusedError, match="on top of 0 of 4 patches") as caught:
        export(applied.toy)
    assert "mto apply toy" in caught.value.hint


def test_a_commit_on_a_part_of_the_series(authored, raw) -> None:
    applying.apply(authored.toy, mute, through="compat")
    part = raw(authored.clone, "rev-parse", "HEAD")
    add_line(authored, "engine.py", "# ported")
    raw(authored.clone, "commit", "-qam", "mine")
    with pytest.raises(RefusedError, match="on top of 2 of 4 patches") as caught:
        export(authored.toy)
    assert f"0002-compat-shim.patch {part}" in caught.value.hint
    raw(authored.clone, "reset", "-q", "--soft", part)
    assert export(authored.toy).removed == ()
    assert b"+# ported\n" in (authored.patches / "0002-compat-shim.patch").read_bytes()
    assert lint(authored.home, "toy").problems == []


@pytest.mark.parametrize("flag", ["assume-unchanged", "skip-worktree"])
def test_an_edit_that_git_overlooks_is_named(applied, raw, flag) -> None:
    raw(applied.clone, "update-index", f"--{flag}", "engine.py", "main.py")
    assert export(applied.toy).written == ()
    add_line(applied, "engine.py", "# overlooked")
    with pytest.raises(RefusedError, match="told to overlook: engine.py\n"):
        export(applied.toy)
    raw(applied.clone, "update-index", f"--no-{flag}", "engine.py")
    assert export(applied.toy).written == ("0004-deepspeed-engine.patch",)


def test_what_a_sparse_checkout_leaves_out_is_no_edit(applied, raw) -> None:
    raw(applied.clone, "update-index", "--skip-worktree", "data.txt")
    (applied.clone / "data.txt").unlink()
    assert export(applied.toy).written == ()


def test_a_patch_that_only_gets_another_number_is_not_called_empty(applied) -> None:
    file = applied.clone / "sub/deep.py"
    file.write_text(file.read_text().replace("shim = 1\n", ""))
    said = applied.mto("export", "toy").stderr
    assert "0002-compat-shim.patch is removed" in said
    assert "0003-mto-loss.patch is now 0002-mto-loss.patch\n" in said
    assert said.count("is removed") == 1


def test_from_patches_writes_a_patch_whose_result_is_the_same(authored) -> None:
    """Only the text is not canonical: the lock's objects are those it already names."""
    applying.ensure_clone(authored.toy, mute)
    file = authored.patches / "0001-compat-import.patch"
    before = on_disk(authored)
    file.write_bytes(re.sub(rb"(@@ -1,0 \+2) @@", rb"\1,1 @@", file.read_bytes()))
    assert on_disk(authored) != before
    assert regenerate(authored.toy, mute).written == (file.name,)
    assert on_disk(authored) == before


def test_hint_where_pin_and_lock_differ(authored, raw) -> None:
    applying.ensure_clone(authored.toy, mute)
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


def drop_the_last_patch(folder: Path) -> None:
    (folder / "0004-deepspeed-engine.patch").unlink()


def another_format(folder: Path) -> None:
    lock = folder / "lock"
    lock.write_text(lock.read_text().replace('"format": 1', '"format": 9'))


def another_tree(folder: Path) -> None:
    lock = folder / "lock"
    lock.write_text(lock.read_text().replace(json.loads(lock.read_text())["tree"], "1" * 40))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_the_last_patch, "name different patches"),
        (another_format, "format 9, this mto reads 1"),
        (another_tree, "expected 1111"),
    ],
)
def test_hints_that_say_from_patches(applied, spoil, words) -> None:
    spoil(applied.patches)
    failed = applied.mto("apply", "toy")
    assert (failed.returncode, words in failed.stderr) == (CorruptError.exit_code, True)
    assert "mto export toy --from-patches" in failed.stderr
    mended = applied.mto("export", "toy", "--from-patches")
    assert mended.returncode == 0, mended.stderr
    assert lint(applied.home, "toy").problems == []
    assert applied.mto("apply", "toy").returncode == 0


def test_hint_where_a_locked_patch_is_not_canonical(authored) -> None:
    applying.apply(authored.toy, mute)
    named = [(file.name, file.read_bytes()) for file in authored.toy.patch_files()]
    odd = [(name, re.sub(rb"(@@ -1,0 \+2) @@", rb"\1 @@ class A:", data)) for name, data in named]
    authored.write_series(dict(odd))
    failed = authored.mto("export", "toy")
    assert (failed.returncode, "text behind @@" in failed.stderr) == (CorruptError.exit_code, True)
    assert "mto export NAME --from-patches" in failed.stderr
    assert authored.mto("export", "toy", "--from-patches").returncode == 0
    assert [(file.name, file.read_bytes()) for file in authored.toy.patch_files()] == named


def test_lint_beside_another_command(applied) -> None:
    """Lint takes no lock, and whoever takes it removes what killed commands left in the clone."""
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            with clone_lock(Git(applied.clone), mute):
                pass

    other = threading.Thread(target=others)
    other.start()
    try:
        found = [lint(applied.home, "toy").problems for _ in range(5)]
    finally:
        stop.set()
        other.join()
    assert found == [[]] * 5
