"""Tensors of the DeepSpeed glue lie where the parameters do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

WORKER = Path(__file__).with_name("elsewhere.py")


def test_tensors_lie_where_the_parameters_do(
    tmp_path: Path, run_ranks: Callable[..., None]
) -> None:
    run_ranks(tmp_path, [[WORKER, rank, 2, tmp_path] for rank in range(2)])
    for here, elsewhere in torch.load(tmp_path / "0.pt", weights_only=False):
        torch.testing.assert_close(elsewhere["model"], here["model"], rtol=0, atol=0)
        assert elsewhere["losses"] == here["losses"]
        assert elsewhere["scales"] == here["scales"]
