"""`mto inspect mini` as a user runs it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.inspect.images import choose, find_images
from mto_tools.inspect.report import Inspection, labels


def test_inspect(
    recipes: dict[str, Path],
    forked_python: None,
    save: Callable[..., Path],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MTO_HOME", str(recipes["patched"].parents[1]))
    monkeypatch.chdir(tmp_path)
    files = [save("early.pth").name, save("late<1>.pth", seed=1).name]
    command = [
        "inspect",
        "mini",
        *files,
        "--data",
        str(tiny_data),
        "--images",
        "6",
        "--out",
        "seen",
    ]
    done = CliRunner().invoke(app, [*command, "--", "--mask_ratio", "0.5"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stdout == f"{tmp_path / 'seen' / 'inspect.html'}\n"
    found = Inspection.model_validate_json((tmp_path / "seen/inspect.json").read_text())
    assert [one.label for one in found.checkpoints] == files
    assert found.data == str(tiny_data / "val"), "held-out images"
    for one in found.checkpoints:
        [blocks] = one.blocks
        assert (blocks.tokens, blocks.masked) == ([16, 16], [8, 8])
        values = blocks.measures["heterogeneity"]
        assert values.mean == pytest.approx([sum(row) / 6 for row in values.values])
    with (tmp_path / "seen/inspect.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["checkpoint"], row["depth"]) for row in rows] == [
        (name, depth) for name in files for depth in "01"
    ]
    mean = found.checkpoints[1].blocks[0].measures["similarity"].mean
    assert [float(row["similarity_mean"]) for row in rows[2:]] == mean
    page = (tmp_path / "seen/inspect.html").read_text()
    assert "late&lt;1&gt;.pth" in page
    assert "late<1>" not in page
    assert page.count("data:image/png;base64,") == 4
    before = {path: path.read_bytes() for path in (tmp_path / "seen").iterdir()}
    assert len(before) == 3
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, RefusedError)
    assert {path: path.read_bytes() for path in (tmp_path / "seen").iterdir()} == before
    failed = CliRunner().invoke(app, [*command[:-1], "other", "--", "--patch_size", "3"])
    assert isinstance(failed.exception, MtoError)
    assert not (tmp_path / "other").exists()


def test_images_are_found_and_drawn(tiny_data: Path, tmp_path: Path) -> None:
    assert {file.parents[1] for file in find_images(tiny_data)} == {tiny_data / "val"}
    assert len(find_images(tiny_data / "train")) == 30
    found = find_images(tiny_data)
    assert choose(found, 5, 0) == choose(found, 5, 0)
    assert choose(found, 5, 0) != choose(found, 5, 1)
    with pytest.raises(MissingError, match="13 images .* holds 12") as error:
        choose(found, 13, 0)
    assert error.value.hint == "--images 12"
    (tmp_path / "empty/train/class").mkdir(parents=True)
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(MissingError, match=str(folder)):
            find_images(folder)


def test_labels() -> None:
    assert labels([Path("/a/run/x.pth")]) == ["x.pth"]
    assert labels([Path("/a/b/x.pth"), Path("/a/m/x.pth")]) == ["b/x.pth", "m/x.pth"]
    assert labels([Path("/a/x.pth"), Path("/a/x.pth")]) == ["x.pth", "x.pth"]
