"""Tasks as real processes: watched, told apart when they fail, stopped and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch import guard
from mto_tools.study.folder import locked
from mto_tools.study.launchers import End, environment
from mto_tools.study.report import Report
from mto_tools.study.resume import check_model
from mto_tools.study.session import Session
from mto_tools.study.tasks import read_states

from ..forkserver import ForkServer
from .conftest import FAKE, HERE, fake_session, recipe_of, run

# What a shell starts in the background ignores SIGINT, and so would the driver.
DRIVER = """
import signal, sys
from pathlib import Path
from rich.console import Console
from mto_tools.launch.inputs import Inputs
from mto_tools.study.session import How, Session
from mto_tools.study.spec import load_study
from mto_tools.upstreams.recipe import Recipe
signal.signal(signal.SIGINT, signal.default_int_handler)
asked, folder, recipe, here, launcher, jobs = sys.argv[1:]
session = Session(load_study(Path(asked)), Path(folder), Recipe.model_validate_json(recipe))
inputs = Inputs(Path(here), Path("/data"), 64, cwd=Path(here), versions={})
session.run(inputs, How(launcher, jobs=int(jobs)), Console(stderr=True))
"""


@pytest.fixture(scope="session")
def server(fork_server: Callable[..., ForkServer]) -> ForkServer:
    return fork_server("mto_tools.study.session", "mto_tools.recipe.settings")


@pytest.fixture
def drive(server: ForkServer, tmp_path: Path) -> Callable[..., int]:
    """Run a study in a process of its own, which may be killed; its exit code."""

    def drive(session: Session, file_size: int = 0) -> int:  # one task at a time: a kill an event
        asked = tmp_path / "asked.toml"
        session.study.save_as(asked)
        words = [asked, session.folder, FAKE.model_dump_json(), HERE, "local", 1]
        out = tmp_path / "driver.txt"
        process = server.start("-c", DRIVER, *map(str, words), out=out, file_size=file_size)
        try:
            return process.wait()
        finally:
            process.kill()

    return drive


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


def test_all_tasks_end_and_leave_their_output(finished: Path) -> None:
    states = read_states(finished)
    names = ["baseline-0", "baseline-1", "mto-0", "mto-1"]
    assert sorted(states) == [f"pretrain-{name}" for name in names]
    assert all(s.status == "done" and s.exit_code == 0 and s.attempts == 1 for s in states.values())
    assert (finished / "tasks/pretrain-mto-1.txt").read_text() == "mto with /data\n"


# Ten events: run, step of the fake recipe, and whether the checkpoint is left cut.
KILLS = [
    *("baseline-0-1", "baseline-0-50", "mto-0-50", "mto-0-77-cut", "mto-0-180"),
    *("baseline-1-19", "baseline-1-20-cut", "baseline-1-21", "mto-1-111", "mto-1-179"),
]


def test_killed_ten_times_it_gives_the_same_report(
    finished: Path, tmp_path: Path, drive: Callable[..., int]
) -> None:
    events = tmp_path / "kill"
    events.mkdir()
    for name in KILLS:
        (events / name).touch()
    session = fake_session(tmp_path / "study", "--kill", str(events))
    codes = [drive(session) for _ in range(len(KILLS) + 1)]
    assert codes[-1] == 0, (tmp_path / "driver.txt").read_text()
    assert all(codes[:-1]), "each was killed"
    assert not any(events.iterdir())
    assert same(Report.load(session.folder / "report.json"), Report.load(finished / "report.json"))
    assert max(state.attempts for state in read_states(session.folder).values()) >= 4


def test_on_a_full_disk_nothing_is_lost(
    finished: Path, tmp_path: Path, drive: Callable[..., int]
) -> None:
    """First it cannot write its own files, then a run's log, then the report."""
    session = fake_session(tmp_path / "study")
    attempts = []
    for limit in (300, 20_000, 60_000):
        assert drive(session, limit) != 0
        assert "File too large" in (tmp_path / "driver.txt").read_text()[-limit:]
        assert not (session.folder / "report.json").exists()
        attempts.append(sum(s.attempts for s in read_states(session.folder).values()))
        (tmp_path / "driver.txt").unlink()
    assert attempts == [0, 1, 5]
    assert drive(session) == 0
    assert same(Report.load(session.folder / "report.json"), Report.load(finished / "report.json"))


def same(one: Report, other: Report) -> bool:
    """Whether two reports say the same, but for when and where they were made."""
    plain = []
    for report in (one, other):
        found = report.model_dump(exclude={"made", "made_by", "facts", "commands", "notes"})
        for record in found["records"]:
            record |= {"seconds": None, "bytes": None, "notes": None}  # with paths
        plain.append(repr(found))  # NaN is equal to itself there
    return plain[0] == plain[1]


def test_seeds_and_arms_added_later_run_alone(finished: Path) -> None:
    before = read_states(finished)
    grown = fake_session(finished, seeds=3)
    arms = {**grown.study.arms, "half": grown.study.arms["mto"]}
    grown = Session(grown.study.model_copy(update={"arms": arms}), finished, FAKE)
    report = run(grown)
    states = read_states(finished)
    assert {id: states[id] for id in before} == before, "none of them was started again"
    assert len(states) == 9
    assert report.arms == ["baseline", "mto", "half"]
    fewer = run(fake_session(finished, seeds=1))
    assert {record.seed for record in fewer.records} == {0}
    assert read_states(finished) == states, "what the study no longer names stays"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"extra": ["--gain", "0.2"]}, "arguments"),
        ({"steps": 90}, "steps"),
        ({"extra": ["--mto_sparsity", "3"]}, "arms.mto"),
    ],
)
def test_other_settings_are_refused_by_name(finished: Path, change: dict, key: str) -> None:
    page = (finished / "report.html").read_bytes()
    session = fake_session(finished, *change.pop("extra", ()), **change)
    with pytest.raises(RefusedError, match=key):
        run(session)
    session.study.save_as(finished / "study.toml")  # as an editor would
    with pytest.raises(RefusedError, match=key):
        run(session)
    assert (finished / "report.html").read_bytes() == page


def test_fine_tuning_begins_with_the_checkpoint_of_its_step(work: Path) -> None:
    session = fake_session(work, seeds=1, finetune_at=(60, 180))
    report = run(session)
    states = read_states(work)
    assert len(states) == 6
    for step in (60, 180):
        command = states[f"finetune-mto-0-{step}"].command
        assert str(work / f"runs/mto-0/checkpoint-{step:06d}.pth") in command
    curves = [record.scores["finetuned"] for record in report.records]
    assert [curve.at for curve in curves] == [[60, 180], [60, 180]]
    gains = [b - a for a, b in zip(curves[0].values, curves[1].values, strict=True)]
    assert gains == pytest.approx([0.03, 0.03]) or gains == pytest.approx([3, 3])


def test_fine_tuning_of_another_model_is_refused(tmp_path: Path) -> None:
    """SimMIM's settings say it, and its script would load what fits and leave the rest random."""
    file = tmp_path / "ckpt_epoch_0.pth"
    weights = {"model": {"x": torch.zeros(1)}}
    for kind in ("vit", "swin"):
        sizes = {"TYPE": kind, kind.upper(): {"EMBED_DIM": 768}}
        torch.save({**weights, "config": {"MODEL": sizes}}, file)
        with pytest.raises(MissingError, match="ckpt") if kind == "swin" else nullcontext():
            check_model(recipe_of("simmim"), file)


def test_failure_shows_last_words_and_stops_the_other_arm(work: Path) -> None:
    session = fake_session(work, "--fail_at", "90")
    with pytest.raises(MtoError, match="exit status 7") as caught:
        run(session)
    assert "RuntimeError: the fake recipe was told to fail [/red]" in caught.value.message
    assert str(work / "tasks/pretrain-mto-0.txt") in caught.value.message
    assert not (work / "runs/mto-1").exists(), "later seeds do not start"


def test_death_by_memory_is_told_apart(work: Path) -> None:
    session = fake_session(work, "--fail_at", "20", "--fail_signal", "9", seeds=1)
    with pytest.raises(MtoError, match="signal 9") as caught:
        run(session)
    assert "--jobs 1" in caught.value.hint


def test_keep_going_reports_on_the_seeds_that_are_whole(work: Path) -> None:
    session = fake_session(work, "--fail_at", "90", "--fail_seed", "0", seeds=3)
    report = run(session, keep_going=True)
    assert report.failed == ["mto-0"]
    assert {record.seed for record in report.records} == {1, 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_study(
    server: ForkServer, tmp_path: Path, number: signal.Signals
) -> None:
    """One arm hangs, with a helper of its own; then the driver is interrupted or killed."""
    session = fake_session(tmp_path / "study", "--sleep_at", "3", "--helper", seeds=1)
    session.study.save_as(tmp_path / "asked.toml")
    words = [tmp_path / "asked.toml", session.folder, FAKE.model_dump_json(), HERE, "local", 2]
    driver = server.start("-c", DRIVER, *map(str, words), out=tmp_path / "driver.txt")
    try:
        helper = session.folder / "runs/mto-0/helper.pid"
        wait_for(lambda: helper.exists() and helper.read_text())
        pid = int((session.folder / ".lock").read_text().split()[1])
        pids = [int(helper.read_text()), *_descendants(pid)]
        hanging = set(filter(alive, pids))  # the other arm may have ended meanwhile
        assert len(hanging) >= 3  # helper, guard, run
        with pytest.raises(RefusedError, match=f"process {pid}"), locked(session.folder):
            pass
        os.kill(pid, number)
        driver.wait()
        with locked(session.folder, patience=guard.GRACE + 20):
            assert not any(map(alive, pids)), "the lock is free when all are gone, and not before"
    finally:
        driver.kill()


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


def test_jobs_of_submitit_outlive_the_driver(finished: Path, tmp_path: Path) -> None:
    """Its local executor: real jobs. The driver is killed, and the next one finds the jobs."""
    pytest.importorskip("submitit")
    events = tmp_path / "kill"
    events.mkdir()
    (events / "mto-0-50").touch()
    session = fake_session(tmp_path / "study", "--kill", str(events), "--immortal")
    session.study.save_as(tmp_path / "asked.toml")
    words = [tmp_path / "asked.toml", session.folder, FAKE.model_dump_json(), HERE]
    command = [sys.executable, "-c", DRIVER, *map(str, words), "submitit-local", "2"]
    # In a session of its own: the server would end the jobs together with their driver.
    codes = [subprocess.run(command, start_new_session=True).returncode for _ in range(2)]
    assert codes == [-signal.SIGKILL, 0]
    assert same(Report.load(session.folder / "report.json"), Report.load(finished / "report.json"))
    for id, state in read_states(session.folder).items():
        end = End.load(session.folder / "tasks" / "slurm" / f"{id}.end")
        assert (state.attempts, state.seconds) == (1, end.seconds), "no time in the queue counts"


def test_runs_get_equal_threads_and_nothing_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTO_SETTINGS", "{}")
    env = environment(3)
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert "MTO_SETTINGS" not in env
