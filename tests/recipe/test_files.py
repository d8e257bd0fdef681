"""The files of a run: resumed, killed, gone on with other settings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mto_tools import recipe
from mto_tools.errors import RefusedError
from mto_tools.recipe.files import JsonLines

from .conftest import begin, lines


def test_balance_resumes_exactly(tmp_path: Path) -> None:
    def steps(folder: Path, first: int, last: int) -> list[float]:
        model, x, mask = begin("--mto", "--mto_balance", "0.1", folder=folder)
        steps = range(first, last + 1)
        return [recipe.add(model(x * s, mask), mask, step=s).item() for s in steps]

    whole = steps(tmp_path / "whole", 1, 45)
    steps(tmp_path / "cut", 1, 33)
    assert steps(tmp_path / "cut", 26, 45) == whole[25:]
    assert len(set(whole[25:])) > 1
    whole_lines, cut_lines = (lines(tmp_path / n, "rng", "step_ms") for n in ("whole", "cut"))
    assert whole_lines == cut_lines


def test_other_settings_on_resume_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weight, step in (("0.1", 1), ("0.2", 2)):
        model, x, mask = begin("--mto", "--mto_sparsity", weight, folder=tmp_path)
        recipe.add(model(x, mask), mask, step=step)
    assert "sparsity 0.1 -> 0.2" in capsys.readouterr().err


def test_a_kill_leaves_the_old_lines_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = JsonLines(tmp_path / "mto.jsonl")
    for step in (1, 2):
        written.write({"step": step})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        written.start(2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_second_line_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    written = JsonLines(tmp_path / "mto.jsonl")
    for step, value in ((1, 0), (2, 10), (2, 1), (2, 22), (3, 3)):
        written.write({"step": step, "value": value})
    assert [line["value"] for line in lines(tmp_path)] == [0, 22, 3]


def test_lines_from_the_resumed_step_on_move_and_are_never_lost(tmp_path: Path) -> None:
    written = JsonLines(tmp_path / "mto.jsonl")
    assert written.start(1) is None
    for step in (10, 20, 30):
        written.write({"step": step, "loss": float("nan")})
    with written.path.open("a") as file:
        file.write('{"step": 40, "los')
    first, second, third = ({"step": step, "loss": None} for step in (10, 20, 30))
    assert written.start(25) == second
    assert lines(tmp_path) == [first, second]
    assert lines(tmp_path, name="mto.replaced.jsonl") == [third]
    written.start(1)
    assert not written.path.exists()
    assert lines(tmp_path, name="mto.1.jsonl") == [first, second]


def run_epochs(folder: Path, epochs: range, batches: int, micro: int = 1, **options: str) -> None:
    """Epochs as the recipes count them: steps of an epoch times the epoch's number."""
    given = (f"--mto_{name}={value}" for name, value in options.items())
    model, x, mask = begin("--mto", *given, folder=folder)
    for epoch in epochs:
        for number in range(batches // micro * micro):
            step = epoch * (batches // micro) + number // micro + 1
            loss = model(x, mask)
            recipe.add(loss, mask, step=step, micro_batches=micro, batches_per_epoch=batches)


def test_history_and_warm_up_go_on_when_steps_per_epoch_change(tmp_path: Path) -> None:
    """Each resume has another batch or accumulation; log lines are rarer than resumes."""
    plan = [(range(2), 24, 1), (range(2, 3), 12, 1), (range(3, 5), 24, 4), (range(5, 6), 96, 1)]
    for epochs, batches, micro in plan:
        run_epochs(tmp_path, epochs, batches, micro, log_every="20", warmup_steps="240")
    found = lines(tmp_path)
    # 48 steps, then 12 (49-60), then 2 x 6 (61-72), then 96 (73-168)
    assert [line["step"] for line in found] == [1, 20, 40, 49, 60, 61, 73, 80, 100, 120, 140, 160]
    assert [line["epoch"] for line in found] == sorted(line["epoch"] for line in found)
    assert found[-1]["epoch"] == pytest.approx(5 + 88 / 96)
    for line in found:
        assert line["weights"]["sparsity"] == pytest.approx(0.1 * line["step"] / 240)
    assert not (tmp_path / "mto.replaced.jsonl").exists()


def test_a_resume_from_an_older_checkpoint_keeps_what_the_newer_one_contains(
    tmp_path: Path,
) -> None:
    run_epochs(tmp_path, range(4), 10, log_every="5")
    before = lines(tmp_path, "step_ms", "rng")
    run_epochs(tmp_path, range(2, 3), 5, log_every="5")
    assert lines(tmp_path, "step_ms", "rng")[:5] == before[:5]
    assert [line["step"] for line in lines(tmp_path)] == [1, 5, 10, 15, 20, 21, 25]
    assert lines(tmp_path, "step_ms", "rng", name="mto.replaced.jsonl") == before[5:]


def test_accumulation_that_cannot_be_is_refused() -> None:
    model, x, mask = begin("--mto")
    loss = model(x, mask)
    with pytest.raises(RefusedError, match="8 micro batches.* 5"):
        recipe.add(loss, mask, step=1, micro_batches=8, batches_per_epoch=5)
    with pytest.raises(ValueError, match="micro_batches"):
        recipe.add(loss, mask, step=1, micro_batches=0)


def test_step_ms_is_the_mean_between_logged_lines(tmp_path: Path) -> None:
    start = time.perf_counter()
    run_epochs(tmp_path, range(1), 9, log_every="4")
    took = 1000 * (time.perf_counter() - start)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 4, 8]
    assert "step_ms" not in found[0]
    assert all(line["step_ms"] > 0 for line in found[1:])
    assert 3 * found[1]["step_ms"] + 4 * found[2]["step_ms"] < took, "both lie within the run"
