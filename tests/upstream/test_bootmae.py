"""BootMAE, ViT-B: what is promised for every upstream; fine-tuning and linear probe."""

from __future__ import annotations

import pytest
import torch

from .checks import *  # noqa: F403
from .conftest import Runs

RECIPE = "bootmae"


def test_terms_are_in_the_recipes_own_log(runs: Runs) -> None:
    """This recipe has no log.txt and no TensorBoard when it pre-trains; it prints its meters."""
    on, off = (run.out.with_suffix(".log").read_text() for run in (runs.on(), runs.off()))
    last = on[on.rindex("Averaged stats:") :]
    assert all(f"mto_{name}:" in last for name in ("sparsity", "singularity", "ranking", "h02"))
    assert "mto_" not in off[off.index("Start training") :]


def test_both_decoders_are_watched_and_no_momentum_encoder(runs: Runs) -> None:
    seen = runs.captured(1)
    shapes = [[tuple(x.shape) for x in tokens] for tokens in seen["tokens"].values()]
    assert shapes == [[(2, 197, 512)] * 3, [(2, 197, 768)] * 3]
    assert seen["strays"] == []


def test_momentum_encoder_is_saved_as_ever_and_resumes(runs: Runs) -> None:
    made = (runs.off(), runs.on(), runs.resumed())
    off, on, resumed = (runs.saved(run)["model_ema"] for run in made)
    assert list(off) == list(on)
    assert all(torch.equal(on[name], resumed[name]) for name in on)
    assert "With EMA resumed!" in runs.resumed().out.with_suffix(".log").read_text()


@pytest.mark.parametrize("script", ["run_class_finetuning.py", "main_linprobe.py"])
def test_other_scripts_start_from_an_mto_checkpoint(runs: Runs, script: str) -> None:
    text = runs.finetune(script)
    assert "Load state_dict by model_key = model" in text or "missing_keys=" in text
    assert "Max accuracy" in text
