"""Resolving an upgrade: what a person does meanwhile is neither dropped nor overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mto_tools.errors import ConflictError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset import transaction, upgrade
from mto_tools.patchset.export import export
from mto_tools.patchset.lint import lint
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.rehearse import rehearse
from mto_tools.patchset.scratch_repo import open_scratch


def mute(line: str) -> None:
    """Say nothing."""


def accept(work, ref: str) -> None:
    with transaction.series_lock(work.patches, mute), open_scratch(work.toy, mute) as scratch:
        upgrade.upgrade(scratch, rehearse(scratch, ref), mute)


def go_on(work) -> None:
    with transaction.series_lock(work.patches, mute):
        upgrade.proceed(work.toy, mute)


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
def waiting(authored, raw):
    """An upgrade that waits for a person: a line of engine.py has changed beside our hunk."""
    engine = authored.origin / "engine.py"
    engine.write_text(engine.read_text().replace("line 9\n", "line nine, our anchor\n"))
    raw(authored.origin, "commit", "-qam", "moves")
    applying.apply(authored.toy, mute)
    with pytest.raises(ConflictError, match="0003-mto-loss.patch conflicts"):
        accept(authored, "main")
    return authored


def test_an_export_made_meanwhile_is_not_dropped(waiting) -> None:
    file = waiting.clone / "engine.py"
    file.write_text("# new\n" + file.read_text())
    export(waiting.toy, layer="compat")
    folder = upgrade.folder_of(waiting.toy)
    drop_markers(folder / "engine.py")
    with pytest.raises(RefusedError, match="as it was before .*lock changed") as caught:
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


def test_files_that_git_ignores_and_that_tools_leave_are_no_part(waiting, raw) -> None:
    folder = upgrade.folder_of(waiting.toy)
    (folder / "engine.py.orig").write_bytes((folder / "engine.py").read_bytes())
    (folder / "engine.py.rej").write_text("left by a tool\n")
    drop_markers(folder / "engine.py")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/engine.cpython-311.pyc").write_bytes(b"\0")
    (folder / "run.log").write_text("noise\n")
    (folder / "out").mkdir()
    (folder / "out/helper.py").write_text("helps = 1\n")
    raw(folder, "add", "-f", "out/helper.py")
    (folder / "new.py").write_text("new = 1\n")
    done = waiting.mto("upgrade", "toy", "--continue")
    assert done.returncode == 0, done.stderr
    (mto,) = (patch for patch in read_series(waiting.toy) if patch.layer == "mto")
    assert [f.path for f in mto.files] == ["engine.py", "main.py", "new.py", "out/helper.py"]
    assert not folder.exists()
    # An ignored file is the person's all the same: it is kept, and named.
    (kept,) = folder.parent.glob("toy.*")
    assert (kept / "run.log").read_text() == "noise\n"
    assert "run.log" in done.stderr
    assert str(kept) in done.stderr


def test_the_middle_marker_is_one_too(waiting) -> None:
    folder = upgrade.folder_of(waiting.toy)
    drop_markers(folder / "engine.py", middle=False)
    number = (folder / "engine.py").read_text().splitlines().index("=======") + 1
    with pytest.raises(ConflictError, match=rf"markers are left .*engine.py:{number}\n"):
        go_on(waiting)


def test_a_line_of_upstream_is_no_marker(authored, raw) -> None:
    engine = authored.origin / "engine.py"
    text = engine.read_text().replace("line 9\n", "line nine, our anchor\n")
    engine.write_text("Title\n=======\n" + text)
    raw(authored.origin, "commit", "-qam", "moves")
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


def test_no_password_is_shown_or_kept(authored, raw, own_git_configuration) -> None:
    """A source whose URL holds a password; git is told to find it on this machine."""
    secret = "https://user:SECRETTOKEN@somewhere.invalid/toy.git"
    own_git_configuration.write_text(f'[url "file://{authored.origin}"]\n insteadOf = {secret}\n')
    engine = authored.origin / "engine.py"
    engine.write_text("a new first line\n" + engine.read_text())
    raw(authored.origin, "commit", "-qam", "moves")
    clean = raw(authored.origin, "rev-parse", "HEAD")
    engine.write_text(engine.read_text().replace("line 9\n", "line nine, our anchor\n"))
    raw(authored.origin, "commit", "-qam", "moves on")
    applying.apply(authored.toy, mute)
    done = authored.mto("upgrade", "toy", "--to", clean, "--accept", "--source", secret)
    assert done.returncode == 0, done.stderr
    assert "the pin came from https://***@somewhere.invalid/toy.git" in done.stderr
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
