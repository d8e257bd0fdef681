"""recipe.toml and options turned into the commands of a plan, for every shipped recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mto_tools.errors import MissingError
from mto_tools.home import find_home
from mto_tools.study.plan import ARMS, Plan, whole_epochs

from .conftest import FAKE, fake_plan, plan_of, recipe_of

HOME = find_home()
REAL = ["bootmae", "conmim", "mae", "simmim"]
EVERY = [*REAL, "mini"]


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def differing(plan: Plan) -> list[tuple[str, str]]:
    """Where the commands of the arms differ besides their folder, the same in every seed."""
    found = []
    for baseline, mto in zip(plan.runs[::2], plan.runs[1::2], strict=True):
        pairs = zip(baseline.command, mto.command, strict=True)
        found.append([(b, m) for b, m in pairs if b.replace("baseline-", "mto-") != m])
    assert all(pairs == found[0] for pairs in found)
    return found[0]


def test_every_upstream_can_be_compared() -> None:
    assert set(EVERY) == {path.parent.name for path in HOME.glob("patches/*/upstream.toml")}
    assert all(recipe_of(name).compare for name in EVERY)
    with pytest.raises(MissingError, match="toy cannot be compared") as caught:
        plan_of("toy", FAKE.model_copy(update={"compare": None}))
    assert "patches/toy/recipe.toml" in caught.value.hint


@pytest.mark.parametrize("name", EVERY)
def test_arms_differ_in_nothing_but_mto(name: str) -> None:
    for style in recipe_of(name).styles:
        plan = plan_of(name, style=style, steps=20, seeds=2)
        assert [(run.arm, run.seed) for run in plan.runs] == [(a, s) for s in (0, 1) for a in ARMS]
        assert not any("{" in part for run in plan.runs for part in run.command)
        assert differing(plan) == [("observe", plan.preset)]
        assert plan.moving_target is (name in ("bootmae", "conmim")), "a teacher of each arm's own"


@pytest.mark.parametrize(
    ("name", "shared", "mto"),
    [
        ("mini", [], ["--mto_singularity", "0.5"]),
        ("mini", ["--width", "32"], ["--mto_sparsity=0.1", "--mto_balan", "-1"]),
        ("mini", ["--mto_log_every", "3", "--mto_grad=9"], ["--mto_ranking", "2"]),
        ("simmim", ["TRAIN.BASE_LR", "1e-4"], ["MTO.SINGULARITY", "0.5"]),
        ("simmim", ["MTO.LOG_EVERY", "3"], ["MTO.SPARSITY", "0.7"]),
    ],
)
def test_options_of_mto_belong_to_the_mto_arm(name: str, shared: list[str], mto: list[str]) -> None:
    """Those that only measure go to both, as everything else does; all come last."""
    extra = [*mto, *shared]
    plan = plan_of(name, extra=extra, preset="paper")
    for baseline, other in zip(plan.runs[::2], plan.runs[1::2], strict=True):
        assert baseline.command[len(baseline.command) - len(shared) :] == shared
        assert other.command[len(other.command) - len(extra) :] == [*shared, *mto]
        assert not set(mto) & set(baseline.command)
    assert plan.mto_options == mto


@pytest.mark.parametrize("steps", [2, 7, 100, 275, 900, 1234])
def test_cadence(steps: int) -> None:
    plan = plan_of("fake", FAKE, steps=steps)
    command = plan.runs[0].command
    grad_every = int(after(command, "--mto_grad_every"))
    assert grad_every % plan.log_every == 0, "gradients are measured on logged steps"
    assert after(command, "--mto_affinity_steps") == str(steps)
    assert steps - plan.log_every < plan.last_logged <= steps
    assert plan.last_logged % plan.log_every == 0, "mto.jsonl has no line for a remainder"


def test_cores_are_shared_out() -> None:
    """Arms of a seed run together; options are cores, seeds, and a GPU that two arms share."""
    cases = {(1, 3): (1, 1), (2, 3): (2, 1), (3, 3): (2, 1), (8, 3): (6, 1), (64, 1): (2, 32)}
    for (cores, seeds), expected in cases.items():
        plan = plan_of("fake", FAKE, cores=cores, seeds=seeds)
        assert (plan.jobs, plan.threads) == expected
    gpu = plan_of("fake", FAKE, cores=16, gpu=True)
    assert (gpu.jobs, gpu.threads) == (2, 8)
    assert fake_plan(Path(), jobs=6, cores=2).threads == 1


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("gpu", [False, True])
def test_cpu_only_without_a_gpu(name: str, gpu: bool) -> None:
    script = str(Path("/up") / name / recipe_of(name).pretrain)
    for run in plan_of(name, gpu=gpu).runs:
        starter = run.command[: run.command.index(script)]
        assert starter[0] == sys.executable
        assert ("--cpu" in starter) is not gpu
        assert f"--seed={run.seed}" in starter, "Python's own generator"
        assert ("torch.distributed.run" in starter) is (name == "simmim")


@pytest.mark.parametrize("name", REAL)
def test_seed_batch_and_epochs_reach_the_recipe(name: str) -> None:
    seed, batch, epochs = ("--seed", "--batch_size", "--epochs")
    if name == "simmim":
        seed, batch, epochs = ("SEED", "--batch-size", "TRAIN.EPOCHS")
    plan = plan_of(name, batch=2, steps=33)
    assert (plan.epochs, plan.steps, plan.batch) == (2, 64, 2)
    command = plan.runs[-1].command
    assert [after(command, option) for option in (seed, batch, epochs)] == ["1", "2", "2"]


def test_swin_saves_no_affinity_maps() -> None:
    """Its stages hold different numbers of tokens, which the recipe's glue refuses to draw."""
    styles = {style: plan_of("simmim", style=style).runs[0].command for style in ("vit", "swin")}
    assert after(styles["vit"], "MTO.AFFINITY_STEPS") == "160"
    assert "MTO.AFFINITY_STEPS" not in styles["swin"]
    assert "vit_base" in after(styles["vit"], "--cfg")
    assert "swin_base" in after(styles["swin"], "--cfg")


@given(st.integers(2, 10**6), st.integers(1, 5000), st.integers(1, 2 * 10**6))
def test_whole_epochs_are_the_least_that_hold_the_steps(
    steps: int, batch: int, images: int
) -> None:
    if images < batch:
        with pytest.raises(MissingError, match=f"{images} images, .* one batch of {batch}"):
            whole_epochs(steps, batch, images, "mae")
        return
    epochs = whole_epochs(steps, batch, images, "mae")
    assert epochs * (images // batch) >= steps > (epochs - 1) * (images // batch)
