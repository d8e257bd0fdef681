"""ConMIM, ViT-S: what is promised for every upstream; fine-tuning, which it has from ViT-B on."""

from __future__ import annotations

import json

import torch

from .checks import *  # noqa: F403
from .conftest import OPTIONS, Runs

RECIPE = "conmim"


def test_terms_are_in_the_recipes_own_logs(runs: Runs) -> None:
    lines = (runs.on().out / "log.txt").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert len(epochs) == 2
    assert {"train_mto_sparsity", "train_mto_singularity", "train_mto_h12"} <= set(epochs[0])
    assert "mto" not in (runs.off().out / "log.txt").read_text()
    board = next(runs.on().out.glob("events.out.tfevents.*")).read_bytes()
    assert b"mto/mto_ranking" in board
    assert b"mto/mto_h00" in board


def test_teacher_is_not_watched(runs: Runs) -> None:
    assert runs.captured(1)["strays"] == []


def test_teacher_is_saved_as_ever_and_resumes(runs: Runs) -> None:
    made = (runs.off(), runs.on(), runs.resumed())
    files = [run.out / "checkpoint_copy-1.pth" for run in made]
    off, on, resumed = (torch.load(f, weights_only=False)["model"] for f in files)
    assert list(off) == list(on)
    assert all(torch.equal(on[name], resumed[name]) for name in on)


def test_finetuning_starts_from_an_mto_checkpoint(runs: Runs) -> None:
    arguments = [*runs.mto(OPTIONS), "--model=conmim_base_patch16_224"]
    teacher = runs.run("base", arguments, epochs=1).out / "checkpoint_copy-0.pth"  # as in README
    text = runs.finetune("run_class_finetuning.py", teacher)
    assert "Expand the shared relative position embedding" in text
    assert "Weights of VisionTransformer not initialized from pretrained model: ['fc_norm" in text
    assert "Max accuracy" in text
