"""What a search refuses, and where it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.study.builtin import BASELINE
from mto_tools.study.spec import Arm
from mto_tools.study.tasks import read_states
from mto_tools.tune.cli import limit_of, own_rates, seconds
from mto_tools.tune.runs import Limit

from ..study.conftest import recipe_of
from .conftest import search


def test_a_folder_of_another_search_or_of_other_files(tmp_path: Path) -> None:
    search(tmp_path).claim()
    before = (tmp_path / "study.toml").read_bytes()
    rates = {"rate0": Arm(mto=BASELINE, arguments=("--lr", "0.5"))}
    for change in ({"steps": 90}, {"seeds": (0, 1, 2)}, {"arms": rates}):
        with pytest.raises(RefusedError, match=next(iter(change))):
            search(tmp_path, **change).claim()
    search(tmp_path).claim()
    assert (tmp_path / "study.toml").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RefusedError, match="other"):
        search(tmp_path / "other").claim()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "mto_tools.tune.search", raising=False)
    done = CliRunner().invoke(app, ["tune", "mini", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, MissingError)
    assert "[tune]" in done.exception.hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bootmae", "conmim"])
def test_a_loss_whose_target_moves(name: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = CliRunner().invoke(app, ["tune", name, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, MissingError)
    assert "cannot be compared" in done.exception.message
    assert not any(tmp_path.iterdir())


def test_lengths_of_time() -> None:
    assert [seconds(text) for text in ("90s", "15m", "1.5h")] == [90, 900, 5400]
    for text in ("15", "m", "-1m", "0s", "15 m"):
        with pytest.raises(MtoError, match="length of time"):
            seconds(text)


def test_runs_at_the_same_time_count_once() -> None:
    assert limit_of(None, "", 1) == Limit(seconds=900)
    assert limit_of(None, "1h", 4) == Limit(seconds=4 * 3600)
    assert limit_of(7, "", 4) == Limit(trials=7)
    assert limit_of(7, "90s", 2) == Limit(trials=7, seconds=180)


def test_a_limit_keeps_time_for_the_interval() -> None:
    limit = Limit(seconds=100)
    assert limit.allows(begun=0, spent=99, trial=10, interval=10), "the first trial always begins"
    assert limit.allows(begun=1, spent=80, trial=10, interval=10)
    assert not limit.allows(begun=1, spent=81, trial=10, interval=10)
    assert not Limit(trials=2).allows(begun=2, spent=0, trial=1, interval=1)


@pytest.mark.parametrize(
    ("name", "extra", "rate"),
    [("mae", (), 1e-2), ("mini", (), 2e-3), ("mini", ("--lr", "4e-3"), 4e-3), ("simmim", (), 1e-2)],
)
def test_learning_rates_lie_around_the_recipes_own(
    name: str, extra: tuple[str, ...], rate: float
) -> None:
    recipe = recipe_of(name)
    assert own_rates(recipe, next(iter(recipe.styles)), extra) == (rate / 2, rate, 2 * rate)


def test_a_baseline_that_always_fails(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from mto_tools.tune.search import tune

    with pytest.raises(MissingError, match="baseline failed"):
        tune(search(tmp_path, arguments=("--no_such",)), Limit(trials=1))
    assert {state.exit_code for state in read_states(tmp_path).values()} == {2}
