"""MAE, ViT-B: what is promised for every upstream; fine-tuning and linear probe."""

from __future__ import annotations

import json

import pytest

from .checks import *  # noqa: F403
from .conftest import Runs

RECIPE = "mae"


@pytest.mark.parametrize("script", ["main_finetune.py", "main_linprobe.py"])
def test_other_scripts_start_from_an_mto_checkpoint(runs: Runs, script: str) -> None:
    text = runs.finetune(script)
    assert "<All keys matched" in text or "missing_keys=" in text
    assert "Max accuracy" in text


def test_terms_are_in_the_recipes_own_logs(runs: Runs) -> None:
    lines = (runs.on().out / "log.txt").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert len(epochs) == 2
    assert {"train_mto_sparsity", "train_mto_singularity", "train_mto_h08"} <= set(epochs[0])
    assert not any("mto" in key for key in (runs.off().out / "log.txt").read_text().split('"'))
    board = next(runs.on().out.glob("events.out.tfevents.*")).read_bytes()
    assert b"mto_ranking" in board
    assert b"mto_h00" in board


def test_micro_batches_left_over_from_an_epoch_are_in_no_line(runs: Runs) -> None:
    """Four micro batches an epoch, three a step."""
    options = {"preset": "observe", "log_every": 1}
    run = runs.run("leftovers", [*runs.mto(options), "--accum_iter=3"])
    divided = [float.fromhex(loss) for loss in run.loss]
    assert len(divided) == 8
    assert [line["step"] for line in runs.log(run)] == [1, 2]
    means = [sum(divided[:3]), sum(divided[4:7])]
    assert [line["loss"] for line in runs.log(run)] == pytest.approx(means, rel=1e-6)
    assert means[1] != pytest.approx(sum(divided[3:6]), rel=1e-4)
