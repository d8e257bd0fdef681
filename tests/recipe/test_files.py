"""The files of a run: resumed, killed, gone on with other settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mto_tools import recipe
from mto_tools.recipe.files import JsonLines, RunFiles, save_affinity
from mto_tools.recipe.settings import settle

from .conftest import Tiny, batch, flags


def test_balance_resumes_exactly(tmp_path: Path) -> None:
    x, mask = batch()

    def steps(folder: Path, first: int, last: int) -> list[float]:
        flags("--mto", "--mto_balance", "0.1")
        model = Tiny()
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
        return [float(recipe.add(model(x * s, mask), mask, step=s)) for s in range(first, last + 1)]

    whole = steps(tmp_path / "whole", 1, 45)
    steps(tmp_path / "cut", 1, 33)
    assert steps(tmp_path / "cut", 26, 45) == whole[25:]
    assert len(set(whole[25:])) > 1
    both = [(tmp_path / name / "mto.jsonl").read_text() for name in ("whole", "cut")]
    strip = [[{**json.loads(r), "rng": ""} for r in text.splitlines()] for text in both]
    assert strip[0] == strip[1]


def test_other_settings_on_resume_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, mask = batch()
    for weight, step in (("0.1", 1), ("0.2", 2)):
        flags("--mto", "--mto_sparsity", weight)
        model = Tiny()
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
        recipe.add(model(x, mask), mask, step=step)
    assert "resumed at step 2 with other settings than before: sparsity 0.1 -> 0.2" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("left", ["", '{"on": tr', "[1]", None])
def test_a_kill_while_the_settings_were_written_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str | None
) -> None:
    x, mask = batch()
    for step in (1, 2):
        flags("--mto")
        model = Tiny()
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
        recipe.add(model(x, mask), mask, step=step)
        config = tmp_path / "mto-config.json"
        assert json.loads(config.read_text())["on"] is True
        config.unlink() if left is None else config.write_text(left)
    assert "other settings" not in capsys.readouterr().err


def test_the_settings_are_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(tmp_path)
    files.start(1, settle(None, None))
    before = (tmp_path / "mto-config.json").read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.start(2, dataclasses.replace(settle(None, None), log_every=7))
    assert (tmp_path / "mto-config.json").read_text() == before


def test_a_second_line_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "mto.jsonl")
    for step, value in ((1, 0), (2, 10), (2, 1), (2, 22), (3, 3)):
        lines.write({"step": step, "value": value})
    found = [json.loads(line)["value"] for line in lines.path.read_text().splitlines()]
    assert found == [0, 22, 3]


def test_json_lines_are_cut_at_the_resumed_step_and_never_lost(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "mto.jsonl")
    assert lines.start(1) is None
    for step in (10, 20, 30):
        lines.write({"step": step})
    with lines.path.open("a") as file:
        file.write('{"step": 40, "los')
    assert lines.start(25) == {"step": 20}
    assert lines.path.read_text() == '{"step": 10}\n{"step": 20}\n'
    lines.start(1)
    assert not lines.path.exists()
    assert (tmp_path / "mto.1.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_hierarchical_affinity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same number of tokens at every depth"):
        save_affinity(
            tmp_path / "x.npz",
            [torch.zeros(1, 4, 8), torch.zeros(1, 1, 8)],
            torch.ones(1, 4, dtype=torch.bool),
        )
