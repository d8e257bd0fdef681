"""Runs as real processes: watched, told apart when they fail, and always ended."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.errors import MissingError, MtoError
from mto_tools.launch import guard
from mto_tools.study.cli import train
from mto_tools.study.plan import Plan
from mto_tools.study.run import environment, execute, read_end
from mto_tools.study.verdict import Finding

from .conftest import fake_plan, quiet

# What a shell starts in the background ignores SIGINT, and so would the driver.
DRIVER = """
import signal, sys
from pathlib import Path
from rich.console import Console
from mto_tools.study.plan import Plan
from mto_tools.study.run import execute
signal.signal(signal.SIGINT, signal.default_int_handler)
work = Path(sys.argv[1])
execute(Plan.load(work / "plan.json"), work, Console(stderr=True))
"""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_all_runs_end_and_leave_their_output(finished: Path) -> None:
    plan = Plan.load(finished / "plan.json")
    ends = {run.name: read_end(run, finished) for run in plan.runs}
    assert sorted(ends) == ["baseline-0", "baseline-1", "mto-0", "mto-1"]
    assert all(end and end.exit_code == 0 and end.seconds > 0 for end in ends.values())
    assert (finished / "runs/mto-1/output.txt").read_text() == f"mto with {plan.data}\n"


def test_failure_shows_last_words_and_stops_the_other_arm(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "90")
    with pytest.raises(MtoError, match="exit status 7") as caught:
        execute(plan, work, quiet())
    assert "RuntimeError: the fake recipe was told to fail [/red]" in caught.value.message
    assert str(work / "runs/mto-0/output.txt") in caught.value.message
    assert not (work / "runs/mto-1").exists(), "later seeds do not start"


def test_death_by_memory_is_told_apart(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "20", "--fail_signal", "9", seeds=1)
    with pytest.raises(MtoError, match="signal 9") as caught:
        execute(plan, work, quiet())
    assert "--jobs 1" in caught.value.hint


def test_keep_going_reports_on_the_seeds_that_are_whole(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "90", "--fail_seed", "0", seeds=3)
    report = train(plan, work, quiet(), keep_going=True)
    assert report.failed == ["mto-0"]
    assert {record.seed for record in report.records} == {1, 2}
    assert report.verdict.finding is Finding.LEANS_BETTER, "a failed seed leaves nothing proven"
    assert "<li>mto-0</li>" in (work / "report.html").read_text()


def test_nothing_to_report_when_every_seed_failed(work: Path) -> None:
    console = quiet()
    with pytest.raises(MissingError) as caught:
        train(fake_plan(work, "--fail_at", "2", seeds=1), work, console, keep_going=True)
    assert str(work / "runs/baseline-0/output.txt") in caught.value.hint
    assert isinstance(console.file, io.StringIO)
    assert f"mto report {work}" in console.file.getvalue().replace("\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_comparison(work: Path, number: signal.Signals) -> None:
    """One arm hangs, with a helper of its own; then the parent is interrupted or killed."""
    fake_plan(work, "--sleep_at", "3", "--helper", seeds=1).save(work / "plan.json")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(work)],
        env=environment(1),
        stderr=subprocess.DEVNULL,
    )
    try:
        helper = work / "runs/mto-0/helper.pid"
        wait_for(lambda: helper.exists() and helper.read_text())
        wait_for(lambda: len(list(work.glob("runs/mto-0/mto.jsonl"))) == 1)
        pids = [int(helper.read_text()), *_descendants(driver.pid)]
        hanging = set(filter(alive, pids))  # the other arm may have ended meanwhile
        assert int(helper.read_text()) in hanging
        assert len(hanging) >= 3  # helper, guard, run
        driver.send_signal(number)
        driver.wait(30)
        wait_for(lambda: not any(map(alive, pids)), guard.GRACE + 20)
    finally:
        driver.kill()
        driver.wait()


def _descendants(pid: int) -> list[int]:
    """The guard and the run of the arm that hangs: all that still lives below `pid`."""
    found: list[int] = []
    todo = [pid]
    while todo:
        for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            children = [int(child) for child in path.read_text().split()]
            found += children
            todo += children
    return found


def test_runs_get_equal_threads_and_nothing_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTO_SETTINGS", "{}")
    env = environment(3)
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert "MTO_SETTINGS" not in env
