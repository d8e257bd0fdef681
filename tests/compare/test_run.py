"""Runs as real processes: watched, told apart when they fail, and always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.compare.command import train
from mto_tools.compare.run import environment, execute
from mto_tools.errors import MissingError, MtoError
from mto_tools.launch import guard

from .conftest import fake_plan, quiet

# What a shell starts in the background ignores SIGINT, and so would the driver.
DRIVER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import conftest
work = Path(sys.argv[2])
conftest.execute(conftest.fake_plan(work, *sys.argv[3:], seeds=1), work, conftest.quiet())
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


def test_all_runs_end_and_leave_their_output(work: Path) -> None:
    outcomes = execute(fake_plan(work, seeds=2), work, quiet())
    assert [(o.run.name, o.exit_code) for o in sorted(outcomes, key=lambda o: o.run.name)] == [
        (name, 0) for name in ("baseline-0", "baseline-1", "mto-0", "mto-1")
    ]
    assert (work / "runs/mto-1/output.txt").read_text() == f"mto with {work / 'data'}\n"


def test_failure_shows_last_words_and_stops_the_other_arm(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "90", "--only", "mto", seeds=2)
    with pytest.raises(MtoError) as caught:
        execute(plan, work, quiet())
    assert "seed 0 mto ended with exit status 7 at step " in caught.value.message
    assert "  | RuntimeError: the fake recipe was told to fail" in caught.value.message
    assert str(work / "runs/mto-0/output.txt") in caught.value.message
    assert str(work) in caught.value.hint
    assert not (work / "runs/mto-1").exists(), "later seeds do not start"


def test_death_by_memory_is_told_apart(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "20", "--fail_signal", "9", seeds=1)
    with pytest.raises(MtoError, match="seed 0 mto ended by signal 9 at step ") as caught:
        execute(plan, work, quiet())
    assert "--jobs 1" in caught.value.hint


def test_keep_going_reports_on_the_seeds_that_are_whole(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "90", "--fail_seed", "0", seeds=3)
    report = train(plan, work, work, "fake", quiet(), keep_going=True)
    assert report.failed == ["mto-0"]
    assert {record.seed for record in report.records} == {1, 2}
    assert report.sentence.startswith("MTO may have helped, but 2 seeds do not prove it")
    assert report.sentence.endswith(
        "; 1 of 3 seeds is left out because the MTO arm failed, so nothing is proven."
    )
    page = (work / "report.html").read_text()
    assert "Runs that failed, and whose seeds are left out:<ul><li>mto-0</li>" in page


def test_nothing_to_report_when_every_seed_failed(work: Path) -> None:
    plan = fake_plan(work, "--fail_at", "2", seeds=1)
    with pytest.raises(MissingError, match="no seed has both arms complete"):
        train(plan, work, work, "fake", quiet(), keep_going=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_comparison(work: Path, number: signal.Signals) -> None:
    """One arm hangs, with a helper of its own; then the parent is interrupted or killed."""
    hang = ["--sleep_at", "3", "--only", "mto", "--helper"]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(work), *hang],
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


def test_a_run_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(guard.__file__), sys.executable, "-c", stubborn],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    assert process.stdin is not None
    process.stdin.close()
    process.wait(guard.GRACE + 20)
    wait_for(lambda: not alive(int(pid.read_text())))


def guarded(folder: Path, code: str) -> int:
    """Run Python code under the guard with the pipe held open; return the exit status."""
    reader, writer = os.pipe()
    try:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(guard.__file__), sys.executable, "-c", code],
            cwd=folder,
            stdin=reader,
            start_new_session=True,
            check=False,
        ).returncode
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("code", "status"),
    [("exit(0)", 0), ("exit(9)", 9), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)
def test_guard_passes_the_exit_status_on(tmp_path: Path, code: str, status: int) -> None:
    assert guarded(tmp_path, code) == status


def test_guard_ends_what_a_finished_run_left_behind(tmp_path: Path) -> None:
    leave = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(600)']); open('pid', 'w').write(str(p.pid))"
    )
    assert guarded(tmp_path, leave) == 0
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


TORCHRUN = """
import os, pathlib, signal, subprocess, sys, time
worker = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: open('told', 'w')); \\
open('pid.part', 'w').write(str(os.getpid())); os.rename('pid.part', 'pid'); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
while not pathlib.Path("pid").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["time.sleep(600)", "os.kill(os.getpid(), 9)", "exit(0)"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the group is ended")
def test_guard_ends_workers_with_sessions_of_their_own(tmp_path: Path, end: str) -> None:
    """As torchrun starts them: by the pipe's end, the agent's death, and the agent's own end."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(guard.__file__), sys.executable, "-c", TORCHRUN + end],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    pid = tmp_path / "pid"
    wait_for(pid.exists)
    worker = int(pid.read_text())
    assert process.stdin is not None
    try:
        assert os.getpgid(worker) != process.pid
        if "sleep" in end:
            process.stdin.close()
        process.wait(guard.GRACE + 20)
        assert (tmp_path / "told").exists(), "by SIGTERM, which it does not obey"
        assert not alive(worker), "nothing outlives the guard"
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_arms_get_the_same_threads_and_leave_the_checkout_clean() -> None:
    env = environment(3)
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"


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
