"""SimMIM, ViT-B and Swin-B: what is promised for every upstream; fine-tuning."""

from __future__ import annotations

import re

import pytest

from .checks import *  # noqa: F403
from .conftest import Runs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of this module runs for both models."""
    metafunc.parametrize("runs", ["simmim", "simmim_swin"], indirect=True, scope="module")


def test_finetuning_starts_from_an_mto_checkpoint(runs: Runs) -> None:
    text = runs.finetune("main_finetune.py")
    assert "Detect pre-trained model, remove [encoder.] prefix." in text
    assert "Max accuracy" in text
    # At every step a group's rate is the schedule's, once times its layer's scale.
    rates = re.findall(r"Current learning rate for different parameter groups: \[(.*)\]", text)
    assert rates


def test_terms_are_in_the_recipes_own_log(runs: Runs) -> None:
    log = (runs.recipe.log(runs.on().out).parent / "log_rank0.txt").read_text()
    assert len(re.findall(r"mto_sparsity \S+\tmto_singularity \S+\tmto_ranking", log)) == 8
    off = (runs.recipe.log(runs.off().out).parent / "log_rank0.txt").read_text()
    assert "mto_sparsity" not in off
