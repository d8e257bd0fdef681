"""GPU hours of tasks, from what was measured in the study's folder."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from mto_tools.study.session import Session
from mto_tools.study.status import hours, table
from mto_tools.study.tasks import read_states

from .conftest import FAKE, fake_session, inputs_of, run


def hours_of(session: Session) -> dict[str, float | None]:
    tasks = session.maker(inputs_of("fake"), gpu=False).tasks()
    states, nproc = read_states(session.folder), session.study.nproc
    return {task.id: hours(task, tasks, states, session.folder, FAKE, nproc) for task in tasks}


def test_tasks_that_were_done_tell_what_others_of_their_kind_take(work: Path) -> None:
    at = {"finetune_at": (60, 180)}
    session = fake_session(work, seeds=1, **at)
    assert set(hours_of(session).values()) == {None}
    run(session)
    grown = hours_of(fake_session(work, seeds=2, **at))
    states = read_states(work)
    for id, state in states.items():
        assert grown[id] == pytest.approx(state.seconds / 3600)
    for kind in ("pretrain", "finetune"):
        took = median(state.seconds for id, state in states.items() if id.startswith(kind))
        new = [cost for id, cost in grown.items() if id.startswith(kind) and id not in states]
        assert new == pytest.approx([took / 3600] * len(new))
    assert len(grown) == 12
    rows = table([], states, work, FAKE, 1).columns
    assert rows[-1].header == "GPU hours"


def test_step_times_tell_where_no_run_has_ended_in_one_attempt(finished: Path) -> None:
    for file in (finished / "tasks").glob("*.json"):
        text = json.loads(file.read_text()) | {"attempts": 2}
        file.write_text(json.dumps(text))
    log = (finished / "runs/mto-1/mto.jsonl").read_text().splitlines()
    times = [line["step_ms"] for line in map(json.loads, log) if "step_ms" in line]
    found = hours_of(fake_session(finished, nproc=4))
    assert found["pretrain-mto-1"] == pytest.approx(median(times) * 180 * 4 / 3.6e6)
