"""How the four upstreams are compared: epochs, batches, data layouts and the worker."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mto_tools.compare import summary
from mto_tools.compare.command import default_data
from mto_tools.compare.data import count_images, start_folder
from mto_tools.compare.plan import Options, Plan, make_plan, whole_epochs, with_defaults
from mto_tools.compare.spec import load_launch
from mto_tools.compare.verdict import LOSS, StepsToBaseline
from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home

HOME = find_home()
REAL = ["bootmae", "conmim", "mae", "simmim"]


def plan_of(name: str, *, images: int = 64, gpu: bool = False, **options: object) -> Plan:
    return make_plan(
        load_launch(HOME, name),
        Options.model_validate({"seeds": 2, **options}),
        upstream=name,
        checkout=Path("/up") / name,
        out=Path("/out"),
        data=Path("/data"),
        images=images,
        gpu=gpu,
    )


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_every_upstream_can_be_compared() -> None:
    known = {path.parent.name for path in (HOME / "patches").glob("*/upstream.toml")}
    assert {*REAL, "mini"} <= known
    assert known == {path.parent.name for path in (HOME / "patches").glob("*/recipe.toml")}


@pytest.mark.parametrize("name", REAL)
def test_plan(name: str) -> None:
    for style in load_launch(HOME, name).styles:
        plan = plan_of(name, style=style, steps=20, batch=4)
        assert (plan.epochs, plan.steps, plan.batch) == (2, 32, 4)
        assert len(plan.runs) == 4
        for baseline, mto in zip(plan.runs[::2], plan.runs[1::2], strict=True):
            assert not any("{" in part for part in mto.command)
            pairs = zip(baseline.command, mto.command, strict=True)
            differing = [(b, m) for b, m in pairs if b.replace("baseline-", "mto-") != m]
            assert differing == [("observe", plan.preset)]


@pytest.mark.parametrize("name", REAL)
def test_cpu_only_without_a_gpu(name: str) -> None:
    script = str(Path("/up") / name / load_launch(HOME, name).recipe.pretrain)
    for gpu in (False, True):
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
    command = plan_of(name, batch=2, steps=33).runs[-1].command
    assert [after(command, option) for option in (seed, batch, epochs)] == ["1", "2", "2"]


@pytest.mark.parametrize("name", [*REAL, "mini"])
def test_recipes_with_a_teacher_of_their_own_say_so(name: str) -> None:
    """Their L_ss depends on how each arm's own teacher moved, and cannot decide."""
    plan = make_plan(
        load_launch(HOME, name),
        Options(seeds=1),
        upstream=name,
        checkout=Path(),
        out=Path(),
        data=Path(),
        images=64,
    )
    assert plan.moving_target is (name in ("bootmae", "conmim"))


def test_extra_arguments_come_last() -> None:
    command = plan_of("simmim", extra=["TRAIN.BASE_LR", "1e-4"]).runs[0].command
    pairs = command[command.index("--opts") + 1 :]
    assert pairs[-2:] == ["TRAIN.BASE_LR", "1e-4"]
    assert not any(part.startswith("--") for part in pairs)


def test_swin_saves_no_affinity_maps() -> None:
    """Its stages hold different numbers of tokens, which the recipe's glue refuses to draw."""
    styles = {style: plan_of("simmim", style=style).runs[0].command for style in ("vit", "swin")}
    assert after(styles["vit"], "MTO.AFFINITY_STEPS") == "1,80,160"
    assert "MTO.AFFINITY_STEPS" not in styles["swin"]
    assert "vit_base" in after(styles["vit"], "--cfg")
    assert "swin_base" in after(styles["swin"], "--cfg")


@given(st.integers(2, 10**6), st.integers(1, 5000), st.integers(1, 2 * 10**6))
def test_whole_epochs_are_the_least_that_hold_the_steps(
    steps: int, batch: int, images: int
) -> None:
    options = Options(steps=steps, batch=batch)
    if images < batch:
        with pytest.raises(MissingError, match=f"{images} images, .* one batch of {batch}"):
            whole_epochs(options, images, "mae")
        return
    epochs, real = whole_epochs(options, images, "mae")
    assert epochs is not None
    per_epoch = (images - images % batch) // batch
    assert real == epochs * per_epoch >= steps > (epochs - 1) * per_epoch
    again = options.model_copy(update={"steps": real})
    assert whole_epochs(again, images, "mae") == (epochs, real)


def test_a_recipe_that_counts_steps() -> None:
    assert whole_epochs(Options(steps=7), 0, "mini") == (None, 7)
    with pytest.raises(MtoError, match="mini counts steps"):
        with_defaults(Options(batch=4), load_launch(HOME, "mini"), "mini", 2)
    with pytest.raises(MtoError, match="--batch must be at least 1, not 0"):
        with_defaults(Options(batch=0), load_launch(HOME, "mae"), "mae", 2)


def test_last_logged_step() -> None:
    """mto.jsonl has a line every `log_every` steps, and none for what remains."""
    plan = plan_of("mae", images=8 * 275)
    assert (plan.steps, plan.log_every, plan.last_logged) == (275, 3, 273)
    assert make_plan(
        load_launch(HOME, "mini"),
        Options(seeds=1, steps=275),
        upstream="mini",
        checkout=Path(),
        out=Path(),
        data=Path(),
    ).last_logged == 275  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_built_in_data(tmp_path: Path, name: str) -> None:
    from torchvision.datasets import ImageFolder

    launch = load_launch(HOME, name)
    made = default_data(tmp_path, Path("/up"), launch, name, print)
    cwd = start_folder(launch.data, made, Path("/up"))
    assert cwd == (made.parent if name == "bootmae" else Path("/up"))
    images = count_images(launch.data, made, cwd, name)
    assert images == len(ImageFolder(str(made / "train"))) == 8 * launch.data.per_class
    (made / "train" / "digit0" / "more.png").write_bytes(b"")
    assert default_data(tmp_path, Path("/up"), launch, name, print) == made
    listed = name in ("bootmae", "conmim")
    assert count_images(launch.data, made, cwd, name) == images + (not listed)
    shutil.rmtree(made)
    assert default_data(tmp_path, Path("/up"), launch, name, print) == made
    assert count_images(launch.data, made, cwd, name) == images


@pytest.mark.parametrize("name", ["bootmae", "conmim"])
def test_a_list_that_is_missing(tmp_path: Path, name: str) -> None:
    spec = load_launch(HOME, name).data
    checkout, data = tmp_path / "up", tmp_path / "sets" / "images"
    with pytest.raises(MissingError, match="a line for each image of .* is not there") as caught:
        count_images(spec, data, start_folder(spec, data, checkout), name)
    listing = spec.listing.format(data=data, phase="train")
    path = checkout / listing  # joined to an absolute one: that
    assert str(path) in str(caught.value)
    path.parent.mkdir(parents=True)
    path.write_text("a/1.png 0\na/2.png 0\n\n")
    assert count_images(spec, data, start_folder(spec, data, checkout), name) == 2


@pytest.mark.parametrize(("key", "noun"), [(LOSS.key, "loss"), ("knn", "score")])
def test_the_loss_is_not_called_a_score(key: str, noun: str) -> None:
    reach = StepsToBaseline(key=key, label="label", shares=[0.5])
    assert f"final {noun} in 50 %" in summary.speed(reach)
