"""Micro batches: one line per step, and none of what an epoch left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mto_tools import recipe

from .conftest import batch, begin, lines


def test_micro_batches_write_one_line_equal_to_that_of_the_whole_batch(tmp_path: Path) -> None:
    x, mask = batch(8)
    records = []
    for parts in (1, 4):
        model, _, _ = begin("--mto", folder=tmp_path / str(parts))
        for xs, masks in zip(x.chunk(parts), mask.chunk(parts), strict=True):
            recipe.add(model(xs, masks), masks, step=1, micro_batches=parts)
        records += lines(tmp_path / str(parts))
    assert len(records) == 2
    for name in ("loss", "total", "sparsity", "heterogeneity", "token_norm"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5)


@pytest.mark.parametrize(("in_epoch", "micro_batches"), [(7, 2), (5, 3)])
def test_micro_batches_left_over_from_an_epoch_are_in_no_file(
    tmp_path: Path, in_epoch: int, micro_batches: int
) -> None:
    """MAE's own step formula, against a loader without the rest.

    Step 10, at which the balance is measured, is the first of an epoch.
    """
    x, mask = batch(4 * in_epoch)
    parts = list(zip(x.chunk(in_epoch), mask.chunk(in_epoch), strict=True))
    whole = in_epoch // micro_batches
    seen: list[list[Any]] = []
    for name, kept in (("rest", in_epoch), ("none", whole * micro_batches)):
        folder = tmp_path / name
        options = ("--mto_log_every=1", "--mto_grad_every=1", "--mto_balance=0.1")
        model, _, _ = begin("--mto", *options, f"--mto_affinity_steps={whole + 1}", folder=folder)
        for epoch in range(12 // whole):
            for i, (xs, masks) in enumerate(parts[:kept]):
                torch.manual_seed(10 * epoch + i)
                step = epoch * whole + i // micro_batches + 1
                loss = model(xs * (epoch + 1), masks)
                recipe.add(loss, masks, step=step, micro_batches=micro_batches)
        found = lines(folder, "step_ms")
        assert [line["step"] for line in found] == list(range(1, 13))
        assert found[-1]["weights"]["sparsity"] > 0, "the balance has measured"
        maps = np.load(folder / f"mto-affinity-{whole + 1:06d}.npz")["affinity"].tolist()
        seen.append([found, maps, lines(folder, name="mto-balance.jsonl")])
    assert seen[0] == seen[1]
