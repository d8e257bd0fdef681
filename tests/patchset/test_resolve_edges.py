"""Resolving an upgrade: what a person does meanwhile is neither dropped nor overlooked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mto_tools.errors import ConflictError, RefusedError
from mto_tools.patchset import apply as applying
from mto_tools.patchset import authoring_cli, pending, resolve
from mto_tools.patchset.export import export
from mto_tools.patchset.lint import lint
from mto_tools.patchset.parser import read_series


def mute(line: str) -> None:
    """Say nothing."""


def go_on(house) -> None:
    with pending.exclusive(house.patches, mute):
        resolve.proceed(house.toy, mute)


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
        authoring_cli._upgrade(authored.toy, "main", True, None, None, False)
    return authored


def test_an_export_made_meanwhile_is_not_dropped(waiting) -> None:
    file = waiting.clone / "engine.py"
    file.write_text("# new\n" + file.read_text())
    export(waiting.toy, layer="compat")
    folder = resolve.folder_of(waiting.toy)
    drop_markers(folder / "engine.py")
    with pytest.raises(RefusedError, match="as it was before .*lock changed") as caught:
        go_on(waiting)
    assert "mto upgrade toy --abort" in caught.value.hint
    # The hint holds: abort, start again, and the new line goes along.
    target = caught.value.hint.split("--to ")[1].split(" ")[0]
    resolve.abort(waiting.toy)
    with pytest.raises(ConflictError):
        authoring_cli._upgrade(waiting.toy, target, True, None, None, False)
    drop_markers(folder / "engine.py")
    go_on(waiting)
    assert waiting.toy.pin == target
    assert any(b"+# new\n" in file.read_bytes() for file in waiting.toy.patch_files())
    assert lint(waiting.home, "toy").problems == []


def test_a_new_file_that_git_ignores_is_named(waiting, raw) -> None:
    folder = resolve.folder_of(waiting.toy)
    drop_markers(folder / "engine.py")
    (folder / "out").mkdir()
    (folder / "out/helper.py").write_text("helps = 1\n")
    (folder / "run.log").write_text("noise\n")
    with pytest.raises(RefusedError, match=r"they would be lost: out/, run.log\n") as caught:
        go_on(waiting)
    assert f"git -C {folder} add -f" in caught.value.hint
    assert (folder / "out/helper.py").exists()
    raw(folder, "add", "-f", "out/helper.py")
    with pytest.raises(RefusedError, match=r"lost: run.log\n"):
        go_on(waiting)
    (folder / "run.log").unlink()
    go_on(waiting)
    (mto,) = (patch for patch in read_series(waiting.toy) if patch.layer == "mto")
    assert "out/helper.py" in [file.path for file in mto.files]


def test_the_middle_marker_is_one_too(waiting) -> None:
    folder = resolve.folder_of(waiting.toy)
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
        authoring_cli._upgrade(authored.toy, "main", True, None, None, False)
    file = resolve.folder_of(authored.toy) / "engine.py"
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
    folder = resolve.folder_of(authored.toy)
    state = (folder / ".git/mto-upgrade.json").read_text()
    assert json.loads(state)["source"] == "https://***@somewhere.invalid/toy.git"
    drop_markers(folder / "engine.py")
    gone = authored.mto("upgrade", "toy", "--continue")
    assert gone.returncode == 0, gone.stderr
    assert authored.mto("apply", "toy").returncode == 0
    nobody = "https://user:SECRETTOKEN@127.0.0.1:1/x.git"
    failed = authored.mto("upgrade", "toy", "--to", "main", "--source", nobody)
    assert failed.returncode == 3, failed.stderr
    for run in (done, stopped, gone, failed):
        assert "SECRETTOKEN" not in run.stdout + run.stderr
