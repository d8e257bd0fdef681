"""A report on what an interrupted or failed comparison left: only on seeds that are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mto_tools.compare.command import redraw
from mto_tools.compare.folder import read
from mto_tools.compare.plan import Plan
from mto_tools.compare.report import Report, build
from mto_tools.compare.run import ENDED


def end(folder: Path, name: str, code: int | None) -> None:
    """Let the run have ended with `code`, or not at all."""
    path = folder / "runs" / name / ENDED
    path.unlink()
    if code is not None:
        path.write_text(json.dumps({"exit_code": code, "seconds": 1.0}))


@pytest.mark.parametrize(
    ("baseline", "mto", "failed", "lost"),
    [
        (0, None, ["mto-1"], 0),
        (None, None, ["baseline-1", "mto-1"], 0),
        (0, 7, ["mto-1"], 1),
        (None, 7, ["baseline-1", "mto-1"], 1),  # stopped because the other arm had failed
        (7, 7, ["baseline-1", "mto-1"], 0),
        (7, 0, ["baseline-1"], 0),
    ],
)
def test_only_whole_seeds_count(
    finished: Path, baseline: int | None, mto: int | None, failed: list[str], lost: int
) -> None:
    """A seed is held against MTO where its arm failed by itself, and its baseline did not."""
    end(finished, "baseline-1", baseline)
    end(finished, "mto-1", mto)
    report = build(read(finished / "plan.json", Plan), finished)
    assert sorted(report.failed) == failed
    assert [record.seed for record in report.records] == [0, 0]
    assert report.verdict.lost == lost
    assert ("left out because the MTO arm failed" in report.sentence) is bool(lost)


def test_report_of_an_unfinished_comparison(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.json").unlink()
    (finished / "report.html").unlink()
    end(finished, "mto-1", None)
    with (finished / "runs/mto-1/mto.jsonl").open("ab") as file:
        file.write('{"step": 180, "µ'.encode()[:-1])  # as a kill leaves it
    assert redraw(finished) == 1
    assert capsys.readouterr().out.splitlines() == [str(finished / "report.html")]
    assert read(finished / "report.json", Report).failed == ["mto-1"]


def test_scores_at_other_steps_are_not_fair(finished: Path) -> None:
    log = finished / "runs/mto-0/log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    again = build(read(finished / "plan.json", Plan), finished)
    wrong = [check for check in again.checks if not check.passed]
    assert [check.name for check in wrong] == ["Scored at the same steps"]
    assert wrong[0].detail.startswith("seed 0: Linear probe accuracy at 9 and 8 steps, the last 1")
