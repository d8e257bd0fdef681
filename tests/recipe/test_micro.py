"""Micro batches: one line per step, and none of what an epoch left over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mto_tools import recipe

from .conftest import Tiny, attached, batch, flags, lines


def test_micro_batches_write_one_line_equal_to_that_of_the_whole_batch(tmp_path: Path) -> None:
    x, mask = batch(8)
    records = []
    for parts in (1, 4):
        flags("--mto")
        model = Tiny()
        folder = tmp_path / str(parts)
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
        for xs, masks in zip(x.chunk(parts), mask.chunk(parts), strict=True):
            recipe.add(model(xs, masks), masks, step=1, micro_batches=parts)
        records.append(json.loads((folder / "mto.jsonl").read_text()))
    for name in ("loss", "total", "sparsity", "heterogeneity", "token_norm"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_left_over_from_an_epoch_are_in_no_line(
    tmp_path: Path, micro_batches: int
) -> None:
    """MAE's own step formula, on five micro batches an epoch, against a loader without the rest."""
    x, mask = batch(20)
    epochs = [
        [(xs * s, m) for xs, m in zip(x.chunk(5), mask.chunk(5), strict=True)] for s in (1, 3)
    ]
    whole = 5 // micro_batches
    seen: list[list[object]] = []
    for number, drop_rest in enumerate((False, True)):
        options = f"--mto_affinity_steps={whole + 1}"
        flags("--mto", "--mto_log_every=1", "--mto_grad_every=1", "--mto_balance=0.1", options)
        model = Tiny()
        folder = tmp_path / str(number)
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
        assert recipe._run is not None
        for mto in recipe._run.objectives:
            assert mto.balance is not None
            mto.balance.every = 1
        for epoch, parts in enumerate(epochs):
            for i, (xs, masks) in enumerate(parts):
                if drop_rest and i >= whole * micro_batches:
                    break
                torch.manual_seed(10 * epoch + i)
                step = epoch * whole + i // micro_batches + 1
                recipe.add(model(xs, masks), masks, step=step, micro_batches=micro_batches)
        found = lines(folder, "step_ms")
        assert [line["step"] for line in found] == list(range(1, 2 * whole + 1))
        maps = np.load(folder / f"mto-affinity-{whole + 1:06d}.npz")["affinity"].tolist()
        seen.append([found, maps])
    assert seen[0] == seen[1]


def test_the_balance_that_is_saved_has_no_left_overs(tmp_path: Path) -> None:
    x, mask = batch(12)
    left_over, *parts = zip(x.chunk(3), mask.chunk(3), strict=True)
    found = []
    for name, given in (("rest", [left_over, *parts]), ("none", parts)):
        flags("--mto", "--mto_balance", "0.1")
        model = attached(tmp_path / name)
        for xs, masks in given:
            recipe.add(model(xs, masks), masks, step=10, micro_batches=2)
        found.append((tmp_path / name / "mto-balance.jsonl").read_text())
    assert found[0] == found[1]
    images = torch.tensor(json.loads(found[0])["state"][0]["balance.pending_images"])
    assert images.max() == 8
