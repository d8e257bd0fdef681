"""Refusals of `mto compare`, `study` and `report`: exit code, object and mending command.

Over a home of its own that holds the real mini, so that checkout and series are real as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.inputs import ready
from mto_tools.study.session import How, make_launcher

from .conftest import fake_session


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, what was said, and the hint of `mto WORDS`."""
    done = CliRunner().invoke(app, list(words))
    if isinstance(done.exception, MtoError):
        return done.exception.exit_code, done.exception.message, done.exception.hint
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output, ""


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("beit", 3, "beit"),
        ("mini --style swin", 1, "swin"),
        ("mini --preset mea", 1, "mea"),
        ("mini --seeds 0", 2, "--seeds"),
        ("mini --steps 1", 2, "--steps"),
        ("mini --jobs 0", 2, "--jobs"),
        ("mini --batch 8", 1, "--batch"),
        ("mini -- --mto_preset mae", 1, "--mto_preset"),
        ("mini -- --mto_pres=mae", 1, "--mto_pres"),
    ],
)
def test_refused_before_anything_is_written(home: Path, words: str, code: int, named: str) -> None:
    before = sorted(home.rglob("*"))
    found, message, hint = run("compare", *words.split())
    assert found == code
    assert named in message
    assert hint or code == 2
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("nothing.toml", 3, "nothing.toml"),
        ("compare", 2, "NAME"),
        ("compare beit", 3, "beit"),
        ("compare mini --launcher pbs", 1, "pbs"),
        ("compare mini --slurm partition", 1, "partition"),
        ("ablation mini --preset simmim", 1, "ranking"),
        ("status /nowhere", 3, "/nowhere"),
    ],
)
def test_a_study_is_refused_before_anything_is_written(
    home: Path, words: str, code: int, named: str
) -> None:
    before = sorted(home.rglob("*"))
    found, message, hint = run("study", *words.split())
    assert found == code
    assert named in message
    assert hint or code == 2
    assert sorted(home.rglob("*")) == before


def test_slurm_that_is_not_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr("mto_tools.study.launchers.shutil.which", lambda _: None)
    with pytest.raises(MissingError, match="SLURM is not here"):
        make_launcher(tmp_path, fake_session(tmp_path).study, How("slurm"), [])


def test_missing_data_are_refused_before_a_run_starts(home: Path) -> None:
    code, message, hint = run("compare", "mini", "--data", "/nowhere")
    assert code == 3
    assert "/nowhere" in message
    assert "--data" in hint
    assert not (home / "reports").exists()


def test_edited_checkout_is_refused_and_kept(home: Path) -> None:
    assert run("apply", "mini")[0] == 0
    script = home / "upstream" / "mini" / "engine.py"
    script.write_text(script.read_text() + "# mine\n")
    code, message, hint = run("compare", "mini")
    assert code == RefusedError.exit_code
    assert "engine.py" in message
    assert "stash push -- engine.py" in hint
    assert script.read_text().endswith("# mine\n")
    assert not (home / "reports").exists()
    where, commits = ready(home, "mini", print, allow_edited=True)
    assert where == home / "upstream" / "mini"
    assert commits["mini commit"].endswith(", edited: engine.py")


@pytest.mark.parametrize(
    ("text", "code"), [(None, 3), ("{}", 5), ("not json", 5), ('{"schema_version": 1}', 5)]
)
def test_report_of_something_else(tmp_path: Path, text: str | None, code: int) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    found, message, hint = run("report", str(tmp_path))
    assert found == code
    assert str(tmp_path / "report.json") in message
    assert hint
    assert not (tmp_path / "report.html").exists()
