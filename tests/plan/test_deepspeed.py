"""DeepSpeed itself: it reads the committed configurations, and ZeRO holds what is estimated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mto_tools.ds.config import read_config
from mto_tools.plan import memory

from ..forkserver import ForkServer
from .conftest import FACTS, HOME

FILES = sorted(HOME.glob("patches/*/deepspeed/*.json"))
# By hand from the upstreams' commands: largest gradient norm.
CLIPPING = {"mae": 0.0, "simmim": 5.0, "bootmae": 0.0, "conmim": 1.0, "mini": 0.0}


@pytest.fixture(scope="module")
def rank_of_eight(
    tmp_path_factory: pytest.TempPathFactory, rank_server: ForkServer
) -> dict[str, Any]:
    """DeepSpeed's reading of all committed configurations, and ZeRO's memory."""
    pytest.importorskip("deepspeed")
    script, log = Path(__file__).with_name("rank_of_eight.py"), tmp_path_factory.mktemp("r") / "log"
    code = rank_server.start(script, *FILES, out=log, env={"LOCAL_RANK": "3"}).wait()
    assert code == 0, log.read_text()
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_file_is_accepted(file: Path, rank_of_eight: dict[str, Any]) -> None:
    name, content = file.parts[-3], json.loads(file.read_text())
    parsed = rank_of_eight["parsed"][str(file)]
    zero = content.pop("zero_optimization")
    assert all(isinstance(value, bool | int | float) for value in zero.values())
    assert parsed.items() <= (content | zero).items()
    assert (zero["overlap_comm"], zero["reduce_bucket_size"] <= 50_000_000) == (False, True)
    read_config(file).agree(
        batch_size=parsed["train_micro_batch_size_per_gpu"],
        accumulation=parsed["gradient_accumulation_steps"],
        clip_grad=CLIPPING[name],
        world_size=8,
    )


@pytest.mark.parametrize(("stage", "accumulation"), [(1, 1), (2, 2)])
def test_state_is_what_deepspeed_holds(
    rank_of_eight: dict[str, Any], monkeypatch: pytest.MonkeyPatch, stage: int, accumulation: int
) -> None:
    count = rank_of_eight["trainable"]
    model = FACTS["mini"].memory["mae"]
    monkeypatch.setattr(memory, "BUCKET", rank_of_eight["bucket"])
    state = memory.estimate(
        model.model_copy(update={"parameters": count, "trainable": count}),
        **{"stage": stage, "micro": 1, "beside": 0, "world": 8, "accumulation": accumulation},
    ).sum("state")
    state -= 2 * count  # there is no autocast
    peak = rank_of_eight["peak"][f"{stage} {accumulation}"]
    assert 0.95 * state <= peak <= 1.01 * state
