"""The plan: what it keeps, that it fits, that it is the largest that does, and how it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mto_tools.errors import MissingError, RefusedError
from mto_tools.plan.activations import footprint, models
from mto_tools.plan.config import Place, commands
from mto_tools.plan.estimate import GIB, bucket_size, memory
from mto_tools.plan.planner import FEW_IMAGES, Plan, Request, make_plan
from mto_tools.plan.recipes import RECIPES

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
EVERY = [(recipe.name, model) for recipe in RECIPES.values() for model in recipe.models]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    name, model = draw(st.sampled_from(EVERY))
    return Request(
        name,
        model=model,
        gpus=draw(st.integers(1, 16)),
        nodes=draw(st.integers(1, 9)),
        gpu_mem=draw(st.floats(1, 200)),
        stage=draw(st.sampled_from([None, 1, 2])),
        batch=draw(st.one_of(st.none(), st.integers(1, 5000))),
    )


def attempt(request: Request) -> Plan | RefusedError:
    try:
        return make_plan(request)
    except RefusedError as error:
        return error


def need(plan: Plan, micro: int, stage: int) -> int:
    request = plan.request
    return memory(
        plan.footprint,
        world=request.world,
        micro=micro,
        accumulation=plan.size.total // request.world // micro,
        stage=stage,
        bucket=bucket_size(plan.footprint.trainable),
        precision=plan.precision,
        limit=plan.memory.limit,
    ).total


def test_footprints_and_recipes_name_the_same_models() -> None:
    for recipe in RECIPES.values():
        assert sorted(models(recipe.name)) == sorted(recipe.models)
    assert sorted(model for _, model in EVERY) == sorted(TOTALS)


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_total_and_learning_rate_are_the_recipe_s(name: str, model: str) -> None:
    plan = make_plan(Request(name, model=model, gpu_mem=80))
    total, rate = TOTALS[model]
    assert plan.micro * plan.accumulation * 8 == plan.size.total == total
    assert plan.learning_rate == pytest.approx(rate, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(requests())
def test_a_plan_fits_and_no_larger_micro_batch_would(request: Request) -> None:
    plan = attempt(request)
    if isinstance(plan, RefusedError):
        return
    assert plan.micro * plan.accumulation * request.world == plan.size.total
    assert plan.memory.total <= request.gpu_mem * GIB
    assert plan.memory.total == need(plan, plan.micro, plan.stage)
    assert request.stage in (None, plan.stage)
    share = plan.size.total // request.world
    for micro in range(1, share + 1):
        if share % micro:
            continue
        first = request.stage or 1
        if plan.micro < micro <= (plan.recipe.largest_micro or share):
            assert need(plan, micro, first) > plan.memory.limit
            if request.stage is None and micro <= FEW_IMAGES:
                assert need(plan, micro, 2) > plan.memory.limit
    if request.stage is None and plan.stage == 2:
        assert plan.micro <= FEW_IMAGES
        assert need(plan, plan.micro, 1) > plan.memory.limit


@settings(max_examples=150, deadline=None)
@given(requests(), st.floats(0, 100))
def test_more_memory_never_gives_a_smaller_micro_batch(request: Request, more: float) -> None:
    small = attempt(request)
    large = attempt(dataclasses.replace(request, gpu_mem=request.gpu_mem + more))
    if isinstance(small, Plan):
        assert isinstance(large, Plan)
        assert large.micro >= small.micro


@settings(max_examples=150, deadline=None)
@given(requests())
def test_refusals_name_what_would_work(request: Request) -> None:
    error = attempt(request)
    if isinstance(error, Plan):
        return
    total = request.batch or TOTALS[request.model or ""][0]
    numbers = [int(number) for number in re.findall(r"\d+", error.hint)]
    if total % request.world:
        fitting = [count for count in range(1, 10_000) if total % count == 0]
        nearest = [max(c for c in fitting if c < request.world)]
        nearest += [c for c in fitting if c > request.world][:1]
        assert numbers == nearest
        assert str(total) in error.message
    else:
        (card,) = re.findall(r"cards of (\d+) GB", error.hint)
        stage = request.stage or 2
        assert f"ZeRO {stage}" in error.message
        wanted = dataclasses.replace(request, stage=stage)
        assert isinstance(attempt(dataclasses.replace(wanted, gpu_mem=float(card))), Plan)
        assert float(card) > request.gpu_mem


def test_a_model_too_large_is_refused_with_what_dominates_and_what_helps() -> None:
    request = Request("mae", model="mae_vit_huge_patch14", gpu_mem=8, stage=1)
    error = attempt(request)
    assert isinstance(error, RefusedError)
    assert error.exit_code == 4
    assert "the largest part is" in error.message
    assert "--zero 2" in error.hint
    assert "more GPUs" in error.hint


def test_zero_2_where_only_its_smaller_gradients_fit() -> None:
    plans = [
        attempt(Request("mae", model="mae_vit_huge_patch14", gpu_mem=memory / 4))
        for memory in range(20, 96)
    ]
    stages = [plan.stage for plan in plans if isinstance(plan, Plan)]
    assert 2 in stages
    assert stages[-1] == 1
    assert all(p.micro <= FEW_IMAGES for p in plans if isinstance(p, Plan) and p.stage == 2)


def test_conmim_normalises_by_no_more_images_than_upstream() -> None:
    model = "conmim_small_patch16_224"
    for gpus, gpu_mem in ((1, 80), (8, 200)):
        plan = make_plan(Request("conmim", model=model, gpus=gpus, gpu_mem=gpu_mem))
        assert (plan.micro, plan.accumulation) == (64, 32 // gpus)
        assert not any("normalises" in note for note in plan.notes)
    plan = make_plan(Request("conmim", model=model, gpus=8, nodes=8, gpu_mem=80))
    assert plan.micro == 32
    assert "32 images here, 64 on upstream's GPUs" in plan.notes[0]


def test_another_total_is_planned_with_a_warning() -> None:
    plan = make_plan(Request("bootmae", batch=2048))
    assert plan.micro * plan.accumulation * 8 == 2048
    assert plan.learning_rate == pytest.approx(1.2e-3)
    assert "not the recipe's 4096: upstream scales the learning rate" in plan.notes[0]
    plan = make_plan(Request("conmim", batch=1024))
    assert plan.learning_rate == pytest.approx(7.5e-4)
    assert "the learning rate stays 7.5e-4" in plan.notes[0]


def test_schedules_are_upstream_s() -> None:
    assert make_plan(Request("simmim", model="swin_base")).size.epochs == 100
    plan = make_plan(Request("simmim", model="swin_base", epochs=800))
    assert plan.learning_rate == pytest.approx(4e-4)
    assert "swin_base__800ep" in plan.size.flags
    with pytest.raises(MissingError, match="no schedule of 300 epochs") as caught:
        make_plan(Request("simmim", model="swin_base", epochs=300))
    assert caught.value.hint == "--epochs 100 | 800"
    assert make_plan(Request("mae", epochs=1600)).size.epochs == 1600
    with pytest.raises(MissingError, match="mini"):
        make_plan(Request("mini", epochs=3))


@pytest.mark.parametrize(("name", "warmup"), [("mae", 40), ("bootmae", 40), ("conmim", 10)])
def test_a_schedule_that_ends_within_its_warm_up_is_refused(name: str, warmup: int) -> None:
    """MAE never reaches its rate then, and `cosine_scheduler` of the others stops in an assert."""
    for epochs in (1, warmup // 2, warmup):
        with pytest.raises(
            RefusedError, match=f"{epochs} epochs end within .* {warmup}:"
        ) as caught:
            make_plan(Request(name, epochs=epochs))
        assert f"--epochs {warmup + 1} or more" in caught.value.hint
        assert "--warmup_epochs" in caught.value.hint
    plan = make_plan(Request(name, epochs=warmup + 1))
    for command in commands(plan, Place("up", "main.py", "c.json"), mto=False).values():
        assert f"--epochs {warmup + 1} " in command
        assert f"--warmup_epochs {warmup} " in command


def test_bootmae_s_note_names_the_last_checkpoint_and_how_to_keep_the_wanted_one() -> None:
    def note(epochs: int | None) -> str:
        plan = make_plan(Request("bootmae", epochs=epochs))
        assert plan.pace is not None
        assert plan.pace.left_over
        (found,) = [note for note in plan.notes if "IndexError" in note]
        return found

    assert note(None).endswith("is then checkpoint-799.pth")
    assert note(800).endswith("checkpoint-779.pth: --epochs 801 keeps checkpoint-799.pth as well")
    assert note(50).endswith("is then checkpoint-39.pth")
    whole = make_plan(Request("bootmae", gpu_mem=80.0))  # no accumulation, nothing left over
    assert not any("IndexError" in note for note in whole.notes)


def test_unknown_names() -> None:
    with pytest.raises(MissingError, match="no recipe 'beit'") as caught:
        make_plan(Request("beit"))
    assert "mae" in caught.value.hint
    with pytest.raises(MissingError, match="no model 'vit_tiny'") as caught:
        make_plan(Request("mae", model="vit_tiny"))
    assert "mae_vit_base_patch16" in caught.value.hint
    with pytest.raises(MissingError, match="fp16: upstream has no option for bf16"):
        make_plan(Request("mae", precision="bf16"))


def test_float32_needs_more_than_mixed_precision() -> None:
    tight = Request("mini", gpu_mem=2.5, batch=2**16)
    mixed = make_plan(dataclasses.replace(tight, precision="bf16"))
    full = make_plan(dataclasses.replace(tight, precision="float32"))
    assert full.micro < mixed.micro
    assert "weights in 16 bit" not in [part.name for part in full.memory.parts]
    activations = {part.name: part.bytes for part in full.memory.parts}["activations"]
    assert activations == full.micro * footprint("mini", "mae").activations_float32
