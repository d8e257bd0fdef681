"""The checksum of the random numbers that a run has met."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mto_tools import recipe
from mto_tools.recipe.rng import checksum

from .conftest import attached, batch, flags


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_the_checksum_tells_any_generator_s_draws_and_makes_none(draw: Callable[[], Any]) -> None:
    before = checksum()
    assert checksum() == before
    draw()
    assert checksum() != before


def test_the_checksum_reads_cuda_s_generator_only_where_it_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for in_use, state in ((False, 1), (False, 2), (True, 1), (True, 2)):
        states = torch.tensor([state], dtype=torch.uint8)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=in_use: used)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda states=states: states)
        found.append(checksum())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_line_s_checksum_is_of_the_mask_too(tmp_path: Path) -> None:
    x, mask = batch()
    found = []
    for number, given in enumerate((mask, mask, mask.flip(0))):
        flags("--mto", "--mto_preset", "observe")
        model = attached(tmp_path / str(number))
        loss = model(x, mask)
        random.seed(0)
        torch.manual_seed(0)
        recipe.add(loss, given, step=1)
        found.append(json.loads((tmp_path / str(number) / "mto.jsonl").read_text())["rng"])
    assert found[0] == found[1] != found[2]
