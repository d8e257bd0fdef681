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
    # Before the first step each group's rate is the peak times its layer's decay, once.
    rates = re.search(r"Current learning rate for different parameter groups: \[(.*)\]", text)
    found = [float(rate) for rate in rates[1].split(", ")]
    decay, layers = (0.65, 12) if runs.name == "simmim" else (0.9, 24)
    assert max(found) == pytest.approx(1.25e-3 * 4 / 512)
    assert min(found) == pytest.approx(max(found) * decay ** (layers + 1))


def test_terms_are_in_the_recipes_own_log(runs: Runs) -> None:
    log = (runs.log_file(runs.on().out).parent / "log_rank0.txt").read_text()
    assert len(re.findall(r"mto_sparsity \S+\tmto_singularity \S+\tmto_ranking", log)) == 8
    off = (runs.log_file(runs.off().out).parent / "log_rank0.txt").read_text()
    assert "mto_sparsity" not in off
