"""The plan: what it keeps, that it fits, that it is the largest that does, and how it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import EVERY, UPSTREAMS, plan

from mto_tools.errors import MissingError, RefusedError
from mto_tools.plan.memory import GIB, bucket_size, zero_memory
from mto_tools.plan.planner import FEW_IMAGES, Plan, Request, make_plan

# Images per step and peak learning rate of the recipes, as their papers and READMEs have them.
TOTALS = {
    "mae_vit_base_patch16": (4096, 2.4e-3),
    "mae_vit_large_patch16": (4096, 2.4e-3),
    "mae_vit_huge_patch14": (4096, 2.4e-3),
    "vit_base": (2048, 4e-4),
    "swin_base": (2048, 8e-4),
    "swin_large": (2048, 4e-4),
    "bootmae_base": (4096, 2.4e-3),
    "bootmae_large": (2048, 1.2e-3),
    "conmim_small_patch16_224": (2048, 7.5e-4),
    "conmim_base_patch16_224": (2048, 7.5e-4),
    "conmim_large_patch16_224": (2048, 7.5e-4),
    "mae": (64, 2e-3),
    "simmim": (64, 2e-3),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Request]:
    name, model = draw(st.sampled_from(EVERY))
    return name, Request(
        model=model,
        gpus=draw(st.integers(1, 16)),
        nodes=draw(st.integers(1, 9)),
        gpu_mem=draw(st.floats(1, 200)),
        stage=draw(st.sampled_from([None, 1, 2])),
        batch=draw(st.one_of(st.none(), st.integers(1, 5000))),
    )


def attempt(name: str, request: Request) -> Plan | RefusedError:
    try:
        return make_plan(UPSTREAMS[name], request)
    except RefusedError as error:
        return error


def need(plan: Plan, micro: int, stage: int) -> int:
    return zero_memory(
        plan.counts,
        world=plan.request.world,
        micro=micro,
        accumulation=plan.total // plan.request.world // micro,
        stage=stage,
        bucket=bucket_size(plan.counts.trainable),
        precision=plan.precision,
        limit=plan.memory.limit,
        beside=plan.facts.bytes_beside,
    ).total


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_total_and_learning_rate_are_the_recipe_s(name: str, model: str) -> None:
    found = plan(name, model=model, gpu_mem=80)
    total, rate = TOTALS[model]
    assert found.micro * found.accumulation * 8 == found.total == total
    assert found.learning_rate == pytest.approx(rate, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(requests())
def test_a_plan_fits_and_no_larger_micro_batch_would(asked: tuple[str, Request]) -> None:
    (_, request), plan = asked, attempt(*asked)
    if isinstance(plan, RefusedError):
        return
    assert plan.micro * plan.accumulation * request.world == plan.total
    assert plan.memory.total == need(plan, plan.micro, plan.stage) <= request.gpu_mem * GIB
    assert request.stage in (None, plan.stage)
    share = plan.total // request.world
    for micro in (m for m in range(plan.micro + 1, share + 1) if share % m == 0):
        if micro <= (plan.facts.largest_micro_batch or share):
            assert need(plan, micro, request.stage or 1) > plan.memory.limit
            if request.stage is None and micro <= FEW_IMAGES:
                assert need(plan, micro, 2) > plan.memory.limit
    if request.stage is None and plan.stage == 2:
        assert plan.micro <= FEW_IMAGES
        assert need(plan, plan.micro, 1) > plan.memory.limit


@settings(max_examples=100, deadline=None)
@given(requests(), st.floats(0, 100))
def test_more_memory_never_gives_a_smaller_micro_batch(
    asked: tuple[str, Request], more: float
) -> None:
    name, request = asked
    small = attempt(name, request)
    large = attempt(name, dataclasses.replace(request, gpu_mem=request.gpu_mem + more))
    if isinstance(small, Plan):
        assert isinstance(large, Plan)
        assert large.micro >= small.micro


@settings(max_examples=100, deadline=None)
@given(requests())
def test_refusals_name_a_machine_that_would_work(asked: tuple[str, Request]) -> None:
    (name, request), error = asked, attempt(*asked)
    if isinstance(error, Plan):
        return
    total = request.batch or TOTALS[request.model or ""][0]
    if total % request.world:
        numbers = [int(number) for number in re.findall(r"\d+", error.hint)]
        fitting = [count for count in range(1, 10_000) if total % count == 0]
        below = max(count for count in fitting if count < request.world)
        assert numbers == [below, *[c for c in fitting if c > request.world][:1]]
    else:
        (card,) = re.findall(r"cards of (\d+) GB", error.hint)
        assert ("--zero 2" in error.hint) == (request.stage == 1)
        better = dataclasses.replace(request, stage=request.stage or 2, gpu_mem=float(card))
        assert isinstance(attempt(name, better), Plan)
        assert float(card) > request.gpu_mem


def test_zero_2_where_only_its_smaller_gradients_fit() -> None:
    huge = [Request(model="mae_vit_huge_patch14", gpu_mem=memory / 4) for memory in range(20, 96)]
    plans = [found for found in (attempt("mae", one) for one in huge) if isinstance(found, Plan)]
    assert {plan.stage for plan in plans} == {1, 2}
    assert plans[-1].stage == 1
    assert all(plan.micro <= FEW_IMAGES for plan in plans if plan.stage == 2)


def test_conmim_normalises_by_no_more_images_than_upstream() -> None:
    for gpus, gpu_mem in ((1, 80), (8, 200)):
        found = plan("conmim", model="conmim_small_patch16_224", gpus=gpus, gpu_mem=gpu_mem)
        assert (found.micro, found.accumulation) == (64, 32 // gpus)
        assert not any("normalises" in note for note in found.notes)
    found = plan("conmim", gpus=8, nodes=8, gpu_mem=80)
    assert found.micro == 32
    assert any("normalises" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "batch", "rate"), [("bootmae", 2048, 1.2e-3), ("conmim", 1024, 7.5e-4)]
)
def test_another_total_is_planned_with_a_warning(name: str, batch: int, rate: float) -> None:
    found = plan(name, batch=batch)
    assert found.micro * found.accumulation * 8 == batch
    assert found.learning_rate == pytest.approx(rate)
    assert any(f"{batch} images" in note for note in found.notes)


def test_micro_batches_that_fill_no_step_are_told() -> None:
    # 1,281,167 / 8 = 160,145.9: each GPU draws 160,146, that is 625 batches of 256: 312 x 2 + 1.
    found = plan("bootmae", gpu_mem=24)
    assert (found.micro, found.accumulation, found.left_over) == (256, 2, 1)
    assert any("IndexError" in note for note in found.notes)
    assert plan("bootmae", gpu_mem=80).left_over == 0  # no accumulation
    assert plan("mini").left_over == 0  # it counts steps


def test_precisions() -> None:
    with pytest.raises(MissingError, match="bf16"):
        plan("mae", precision="bf16")
    mixed, full = (
        plan("mini", gpu_mem=2.5, batch=2**16, precision=precision)
        for precision in ("bf16", "float32")
    )
    assert full.micro < mixed.micro
    parts = {part.name: part.bytes for part in full.memory.parts}
    assert "weights in 16 bit" not in parts
    assert parts["activations"] == full.micro * full.counts.saved_float32
