"""A report on what an interrupted or failed comparison left: only on seeds that are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.compare.command import build, redraw
from mto_tools.compare.report import read_report
from mto_tools.compare.run import FAILED


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write reports without their page, which takes seconds to draw."""
    monkeypatch.setattr("mto_tools.compare.page.render", lambda report: "")


def edit(path: Path, keep: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(keep(path.read_text().splitlines(keepends=True))))


def test_report_of_an_unfinished_comparison(finished: Path) -> None:
    """The seeds whose runs are whole are enough for a report."""
    (finished / "report.json").unlink()
    log = finished / "runs/mto-1/log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:20]))
    assert redraw(finished) == 1
    again = read_report(finished)
    assert again.failed == ["mto-1"]
    assert [record.seed for record in again.records] == [0, 0]
    assert "left out" not in again.sentence, "it was interrupted, it did not fail"


@pytest.mark.usefixtures("undrawn")
def test_interrupted_before_the_last_score(finished: Path) -> None:
    """The loss of the last step is logged before its scores: both must be there."""
    (finished / "report.json").unlink()
    edit(finished / "runs/baseline-1/log.jsonl", lambda lines: lines[:-1])
    assert '"loss"' in (finished / "runs/baseline-1/log.jsonl").read_text().splitlines()[-1]
    assert redraw(finished) == 1
    again = read_report(finished)
    assert again.failed == ["baseline-1"]
    assert [record.seed for record in again.records] == [0, 0]


def test_scores_at_other_steps_are_not_fair(finished: Path) -> None:
    edit(finished / "runs/mto-0/log.jsonl", lambda lines: lines[:-1])
    plan = read_report(finished).plan
    again = build(plan, finished, finished, "fake", {}, [])
    wrong = [check for check in again.checks if not check.passed]
    assert [check.name for check in wrong] == ["Scored at the same steps"]
    assert wrong[0].detail.startswith("seed 0: Linear probe accuracy at 9 and 8 steps, the last 1")


@pytest.mark.usefixtures("undrawn")
def test_scores_that_no_run_logged_are_not_waited_for(finished: Path) -> None:
    (finished / "report.json").unlink()
    for log in finished.glob("runs/*/log.jsonl"):
        edit(log, lambda lines: [line for line in lines if '"probe"' not in line])
    redraw(finished)
    assert read_report(finished).failed == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("log", ["log.jsonl", "mto.jsonl"])
@pytest.mark.parametrize("tear", [b'{"step": 180, "lo', '{"step": 180, "µ'.encode()[:-1]])
def test_a_torn_line_is_an_unfinished_run(finished: Path, log: str, tear: bytes) -> None:
    """What a full disk or a kill leaves behind; the hint of both is `mto report`."""
    (finished / "report.json").unlink()
    with (finished / "runs/mto-0" / log).open("ab") as file:
        file.write(tear)
    assert redraw(finished) == 1
    assert read_report(finished).failed == ["mto-0"]


@pytest.mark.usefixtures("undrawn")
def test_a_failed_mto_arm_stays_known(finished: Path) -> None:
    """Also in a report made later, and when its baseline was stopped for it, not failed."""
    for name in ("report.json", "runs/baseline-1/log.jsonl", "runs/mto-1/log.jsonl"):
        (finished / name).unlink()
    (finished / "runs/mto-1" / FAILED).write_text("7\n")
    redraw(finished)
    assert "; 1 of 2 seeds is left out because the MTO" in read_report(finished).sentence
    (finished / "report.json").unlink()
    (finished / "runs/baseline-1" / FAILED).write_text("7\n")
    redraw(finished)
    assert "left out" not in read_report(finished).sentence
