"""The glue on an accelerator, without one: where its tensors lie, and where a step waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mto_tools import recipe

from ..devices import Elsewhere, Syncs
from .conftest import begin, lines

COUNTS = "inputs.py:split_mask"  # one wait for each objective; see tests/mto_core/test_devices.py
OPTIONS = [[], ["--mto_preset=observe"], ["--mto_balance=0.1"], ["--mto_warmup_steps=9"]]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "".join(o) or "preset")
def test_tensors_lie_where_the_model_does(options: list[str], tmp_path: Path) -> None:
    records = []
    for where in ("here", "elsewhere"):
        folder = tmp_path / where
        model, x, mask = begin("--mto", "--mto_log_every=2", *options, folder=folder)

        def steps(model=model, x=x, mask=mask) -> None:  # type: ignore[no-untyped-def]
            for step in range(1, 5):
                for _ in range(2):
                    loss = recipe.add(model(x, mask), mask, step=step, micro_batches=2)
                    loss.backward()
                recipe.log()

        if where == "elsewhere":
            with Elsewhere():
                steps()
        else:
            steps()
        records.append(lines(folder, "step_ms"))
    assert records[0] == records[1]
    assert len(records[0]) == 3  # steps 1, 2 and 4


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "".join(o) or "preset")
def test_an_unlogged_step_waits_for_the_counts_of_the_mask_only(
    options: list[str], tmp_path: Path
) -> None:
    """Of steps 1 to 7, balance measures 1, 2 and 4; the log wants step 1."""
    model, x, mask = begin("--mto", *options, folder=tmp_path)
    for step in range(1, 8):
        with Syncs() as syncs:
            recipe.add(model(x, mask), mask, step=step).backward()
    assert set(syncs.places) <= {COUNTS}
    assert len(syncs.places) <= 1


def test_a_logged_step_reads_its_row_at_once(tmp_path: Path) -> None:
    model, x, mask = begin("--mto", "--mto_log_every=1", folder=tmp_path)
    for step in range(1, 3):
        with Syncs() as syncs:
            recipe.add(model(x, mask), mask, step=step).backward()
    assert syncs.places.count("rows.py:plain") == 1


def test_the_modes_see_the_recipe(tmp_path: Path) -> None:
    """The first step starts the run: it reads the run's number of that step."""
    model, x, mask = begin("--mto", folder=tmp_path)
    with Syncs() as syncs:
        recipe.add(model(x, mask), mask, step=1)
    assert "run.py:_start" in syncs.places
    assert torch.zeros(1).device.type == "cpu"
