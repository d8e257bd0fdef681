"""The arithmetic, against DeepSpeed's own tensors and against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mto_tools.plan.activations import Footprint
from mto_tools.plan.estimate import GIB, bucket_size, memory, pace, traffic


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_state_is_what_deepspeed_holds(
    rank_of_eight: dict[str, Any], stage: int, accumulation: int
) -> None:
    count = rank_of_eight["trainable"]
    parts = memory(
        Footprint("", "", count, count, 0, 0, 0, 0, 0, 0),
        world=8,
        micro=1,
        accumulation=accumulation,
        stage=stage,
        bucket=rank_of_eight["bucket"],
        precision="float32",
        limit=GIB,
    ).parts
    estimate = sum(part.bytes for part in parts if part.kind == "state")
    peak = rank_of_eight["two steps"][f"{stage} {accumulation}"]["peak"]
    assert 0.95 * estimate <= peak <= 1.01 * estimate


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_traffic_is_what_deepspeed_exchanges(
    rank_of_eight: dict[str, Any], stage: int, accumulation: int
) -> None:
    count = rank_of_eight["trainable"]
    step = traffic(count, world=8, accumulation=accumulation, stage=stage)
    found = rank_of_eight["two steps"][f"{stage} {accumulation}"]["exchanged"]
    assert set(found) == {"allreduce_", "_allgather_base_"}
    assert found["allreduce_"] == 2 * step.reductions * count
    assert found["_allgather_base_"] == 2 * count
    assert step.reduced == 2 * step.gathered == 2 * 4 * count * 7 // 8


def test_bucket_is_no_larger_than_the_model() -> None:
    assert bucket_size(111_000_000) == 50_000_000
    assert bucket_size(330_561) == 400_000
    assert bucket_size(1) == 100_000


def test_traffic_of_rings() -> None:
    # 4 GPUs, 100 parameters = 400 bytes: a ring sends 3/4 of them to scatter, and to gather.
    first = traffic(100, world=4, accumulation=5, stage=1)
    assert (first.reductions, first.reduced, first.gathered, first.total) == (1, 600, 300, 900)
    second = traffic(100, world=4, accumulation=5, stage=2)
    assert (second.reductions, second.total) == (5, 5 * 600 + 300)
    assert traffic(100, world=1, accumulation=1, stage=1).total == 0


def test_an_epoch_over_imagenet() -> None:
    # 1,281,167 / 8 = 160,145.9: each GPU draws 160,146, that is 2502 batches of 64, 312 x 8 + 6.
    found = pace(world=8, micro=64, accumulation=8, sent=10**9, rate=100.0, bandwidth=10.0)
    assert (found.steps, found.left_over) == (312, 6)
    assert found.computing == pytest.approx(1601.46, abs=0.01)
    assert found.sending == pytest.approx(31.2)
    assert found.epoch == pytest.approx(1632.66, abs=0.01)
    unknown = pace(world=8, micro=64, accumulation=8, sent=10**9, rate=None, bandwidth=None)
    assert (unknown.computing, unknown.sending, unknown.epoch) == (None, None, None)
