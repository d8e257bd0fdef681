"""The plan: what it keeps, that it fits, that it is the largest that does, and how it refuses."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mto_tools.errors import RefusedError
from mto_tools.plan.config import Start
from mto_tools.plan.memory import GIB
from mto_tools.plan.planner import FEW_IMAGES, Plan, Request, make_plan
from mto_tools.plan.report import notes

from .conftest import EVERY, UPSTREAMS, plan

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


def told(plan: Plan) -> str:
    return " | ".join(notes(plan, Start("up", "main.py", "c.json")))


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_total_and_learning_rate_are_the_recipe_s(name: str, model: str) -> None:
    found = plan(name, model=model, gpu_mem=80)
    total, rate = TOTALS[model]
    assert found.micro * found.accumulation * 8 == found.total == total
    assert found.learning_rate == pytest.approx(rate, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(requests(), st.floats(0, 100))
def test_a_plan_fits_no_larger_one_would_and_a_refusal_names_one_that_does(
    asked: tuple[str, Request], more: float
) -> None:
    (name, request), found = asked, attempt(*asked)
    if isinstance(found, RefusedError):
        return names_a_machine_that_would_work(name, request, found)
    limit, share = request.gpu_mem * GIB, found.total // request.world

    def need(micro: int, stage: int) -> int:
        return replace(found, micro=micro, stage=stage).memory.sum()

    assert found.micro * found.accumulation * request.world == found.total
    assert found.memory.sum() <= limit
    assert request.stage in (None, found.stage)
    for micro in (m for m in range(found.micro + 1, share + 1) if share % m == 0):
        if micro <= (found.facts.largest_micro_batch or share):
            assert need(micro, request.stage or 1) > limit
            assert request.stage or micro > FEW_IMAGES or need(micro, 2) > limit
    if request.stage is None and found.stage == 2:
        assert found.micro <= FEW_IMAGES
        assert need(found.micro, 1) > limit
    larger = attempt(name, replace(request, gpu_mem=request.gpu_mem + more))
    assert isinstance(larger, Plan)
    assert larger.micro >= found.micro


def names_a_machine_that_would_work(name: str, request: Request, error: RefusedError) -> None:
    total = request.batch or TOTALS[request.model or ""][0]
    if total % request.world:
        numbers = [int(number) for number in re.findall(r"\d+", error.hint)]
        fitting = [count for count in range(1, 10_000) if total % count == 0]
        below = max(count for count in fitting if count < request.world)
        assert numbers == [below, *[c for c in fitting if c > request.world][:1]]
        return
    (card,) = re.findall(r"cards of (\d+) GB", error.hint)
    assert ("--zero 2" in error.hint) == (request.stage == 1)
    better = replace(request, stage=request.stage or 2, gpu_mem=float(card))
    assert isinstance(attempt(name, better), Plan)
    assert float(card) > request.gpu_mem


def test_zero_2_where_only_its_smaller_gradients_fit() -> None:
    huge = [Request(model="mae_vit_huge_patch14", gpu_mem=memory / 4) for memory in range(20, 96)]
    plans = [found for found in (attempt("mae", one) for one in huge) if isinstance(found, Plan)]
    assert {plan.stage for plan in plans} == {1, 2}
    assert plans[-1].stage == 1


def test_conmim_normalises_by_no_more_images_than_upstream() -> None:
    for gpus, gpu_mem in ((1, 80), (8, 200)):
        found = plan("conmim", model="conmim_small_patch16_224", gpus=gpus, gpu_mem=gpu_mem)
        assert (found.micro, found.accumulation) == (64, 32 // gpus)
        assert "normalises" not in told(found)
    found = plan("conmim", gpus=8, nodes=8, gpu_mem=80)
    assert found.micro == 32
    assert "normalises" in told(found)


@pytest.mark.parametrize(
    ("name", "batch", "rate"), [("bootmae", 2048, 1.2e-3), ("conmim", 1024, 7.5e-4)]
)
def test_another_total_is_planned_with_a_warning(name: str, batch: int, rate: float) -> None:
    found = plan(name, batch=batch)
    assert found.micro * found.accumulation * 8 == batch
    assert found.learning_rate == pytest.approx(rate)
    assert f"{batch} images" in told(found)


@pytest.mark.parametrize("installed", [True, False])
def test_deepspeed_that_is_absent_is_told(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    found = plan("mae")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    assert ("pip install -e '.[deepspeed]'" in told(found)) is not installed


def test_micro_batches_that_fill_no_step_are_told() -> None:
    # 1,281,167 / 8 = 160,145.9: each GPU draws 160,146, that is 625 batches of 256: 312 x 2 + 1.
    found = plan("bootmae", gpu_mem=24)
    assert (found.micro, found.accumulation, found.left_over) == (256, 2, 1)
    assert "IndexError" in told(found)
    assert plan("bootmae", gpu_mem=80).left_over == 0  # no accumulation
    assert plan("mini").left_over == 0  # it counts steps
