"""What `mto compare` refuses, each with the exit code and the command that mends it.

Over a home of its own that holds the real mini, so that checkout and series are real as well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mto_tools.compare.checkout import ready
from mto_tools.compare.command import compare, default_data
from mto_tools.compare.options import Options
from mto_tools.compare.spec import load_launch
from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.home import find_home

CLONE = find_home()


def untouched(home: Path) -> bool:
    """Whether a refusal left no trace: no clone, no data, no report."""
    return sorted(path.name for path in home.iterdir()) == ["mto_core", "patches", "upstream"] and [
        path.name for path in (home / "upstream").iterdir()
    ] == ["embedded"]


@pytest.mark.parametrize(
    ("name", "options", "words", "code"),
    [
        ("beit", {}, "there is no upstream 'beit'", 3),
        ("mini", {"style": "swin"}, "mini has no style 'swin'; it has mae, simmim", 1),
        ("mini", {"seeds": 0}, "--seeds must be at least 1", 1),
    ],
)
def test_wrong_choice(
    home: Path, name: str, options: dict[str, str | int], words: str, code: int
) -> None:
    with pytest.raises(MtoError, match=words) as caught:
        compare(name, Options.model_validate(options))
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert untouched(home)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "*"])
def test_report_name_stays_in_the_reports_folder(home: Path, name: str) -> None:
    with pytest.raises(MtoError, match="must be a plain folder name"):
        compare("mini", Options(), report_name=name)
    assert untouched(home)


def test_missing_data(home: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="data folder .*/nowhere does not exist") as caught:
        compare("mini", Options(), data=tmp_path / "nowhere")
    assert "mto compare mini" in caught.value.hint
    assert untouched(home)


def test_edited_checkout_is_refused_and_kept(home: Path) -> None:
    mto = [sys.executable, "-m", "mto_tools.cli"]
    subprocess.run([*mto, "apply", "mini"], check=True, capture_output=True)
    script = home / "upstream" / "mini" / "engine.py"
    script.write_text(script.read_text() + "# mine\n")
    done = subprocess.run([*mto, "compare", "mini"], check=False, capture_output=True, text=True)
    assert done.returncode == RefusedError.exit_code
    assert "was edited since the series was applied, edited: engine.py" in done.stderr
    assert "stash" in done.stderr
    assert done.stdout == ""
    assert script.read_text().endswith("# mine\n")
    assert not (home / "reports").exists()
    where, commits = ready(home, "mini", print, allow_edited=True)
    assert where == home / "upstream" / "mini"
    assert commits["mini commit"].endswith(", edited: engine.py")


def test_reports_that_cannot_be_written(home: Path) -> None:
    images = home / "data" / "train" / "7"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"looks like one")
    (home / "reports").write_text("a file of mine")
    with pytest.raises(MissingError, match=r"the reports folder .* cannot be written"):
        compare("mini", Options(), data=home / "data")
    assert (home / "reports").read_text() == "a file of mine"


def test_data_set_that_cannot_be_made(home: Path) -> None:
    """make_digits.py refuses a folder with foreign files; its words and ours reach the user."""
    (home / "data" / "digits").mkdir(parents=True)
    (home / "data" / "digits" / "thesis.tex").write_text("years of work")
    with pytest.raises(MissingError, match="could not be made: .*thesis.tex") as caught:
        default_data(
            home, home / "upstream/embedded/mini", load_launch(home, "mini"), "mini", print
        )
    assert "--data" in caught.value.hint
    assert (home / "data" / "digits" / "thesis.tex").read_text() == "years of work"


def test_data_set_is_made_once(home: Path) -> None:
    where = home / "upstream/embedded/mini"
    launch = load_launch(home, "mini")
    data = default_data(home, where, launch, "mini", print)
    assert data == home / "data" / "digits"
    assert len(list(data.rglob("*.png"))) == 1797
    before = (data / "train").stat().st_mtime_ns
    assert default_data(home, Path("/nowhere"), launch, "mini", print) == data
    assert (data / "train").stat().st_mtime_ns == before
