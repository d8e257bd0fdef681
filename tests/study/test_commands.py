"""recipe.toml and a study turned into commands, for every shipped recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.study.builtin import Asked, ablation, compare, paper
from mto_tools.study.schedule import steps_per_epoch
from mto_tools.study.session import How, make_launcher
from mto_tools.study.spec import FineTuning
from mto_tools.study.tasks import Task

from .conftest import CLONE, FAKE, Session, fake_session, inputs_of, recipe_of, tasks_of

REAL = ["bootmae", "conmim", "mae", "simmim"]
EVERY = [*REAL, "mini"]


def compared(name: str, *, gpu: bool = False, images: int = 64, **options: object) -> list[Task]:
    """The tasks of `mto compare NAME` over two seeds."""
    recipe = FAKE if name == "fake" else recipe_of(name)
    asked = Asked(**{"seeds": 2, **options})
    return tasks_of(compare(name, recipe, asked), gpu=gpu, images=images)


def after(command: tuple[str, ...], option: str) -> str:
    """The last value of an option, which wins."""
    return command[len(command) - command[::-1].index(option)]


def test_every_upstream_can_be_compared() -> None:
    assert set(EVERY) == {path.parent.name for path in CLONE.glob("patches/*/upstream.toml")}
    assert all(recipe_of(name).compare for name in EVERY)
    session = fake_session(Path("/out"))
    other = Session(session.study, session.folder, FAKE.model_copy(update={"compare": None}))
    with pytest.raises(MissingError, match="fake cannot be compared") as caught:
        other.maker(inputs_of("fake"), gpu=False).tasks()
    assert "patches/fake/recipe.toml" in caught.value.hint


@pytest.mark.parametrize("name", EVERY)
def test_arms_differ_in_nothing_but_mto(name: str) -> None:
    for style, facts in recipe_of(name).styles.items():
        tasks = compared(name, style=style, steps=20)
        assert [task.run for task in tasks] == ["baseline-0", "mto-0", "baseline-1", "mto-1"]
        assert not any("{" in word for task in tasks for word in task.command)
        for baseline, mto in zip(tasks[::2], tasks[1::2], strict=True):
            pairs = zip(baseline.command, mto.command, strict=True)
            differing = [(b, m) for b, m in pairs if b.replace("baseline-", "mto-") != m]
            assert differing == [("observe", facts.preset)]


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
    tasks = compared(name, extra=extra, preset="paper")
    for baseline, other in zip(tasks[::2], tasks[1::2], strict=True):
        assert [*baseline.command[len(baseline.command) - len(shared) :]] == shared
        assert [*other.command[len(other.command) - len(extra) :]] == [*shared, *mto]
        assert not set(mto) & set(baseline.command)


@pytest.mark.parametrize("steps", [2, 7, 100, 275, 900, 1234])
def test_cadence(steps: int) -> None:
    maker = fake_session(Path("/out"), steps=steps).maker(inputs_of("fake"), gpu=False)
    command, schedule = maker.tasks()[0].command, maker.schedule
    grad_every = int(after(command, "--mto_grad_every"))
    assert grad_every % schedule.log_every == 0, "gradients are measured on logged steps"
    assert after(command, "--mto_affinity_steps") == str(steps)
    assert steps - schedule.log_every < schedule.last_logged <= steps


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms of a seed run together; options are cores, seeds, and a GPU that two arms share."""

    def share(cores: int, seeds: int, gpus: int = 0, nproc: int = 1) -> tuple[int, int]:
        monkeypatch.setattr("mto_tools.study.session.usable_cores", lambda: cores)
        study = fake_session(Path("/out"), seeds=seeds, nproc=nproc).study
        found = make_launcher(Path("/out"), study, How(), [str(i) for i in range(gpus)])
        return found.jobs, found.threads

    cases = {(1, 3): (1, 1), (2, 3): (2, 1), (3, 3): (2, 1), (8, 3): (6, 1), (64, 1): (2, 32)}
    assert {case: share(*case) for case in cases} == cases
    assert share(16, 3, gpus=1) == (2, 8)
    assert share(16, 3, gpus=8) == (8, 2)
    assert share(16, 3, gpus=8, nproc=4) == (2, 2)
    with pytest.raises(MissingError, match="3 GPUs"):
        share(16, 3, gpus=2, nproc=3)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("gpu", [False, True])
def test_cpu_only_without_a_gpu(name: str, gpu: bool) -> None:
    script = str(Path("/up") / name / recipe_of(name).pretrain)
    for task in compared(name, gpu=gpu):
        starter = task.command[: task.command.index(script)]
        assert starter[0] == sys.executable
        assert ("--cpu" in starter) is not gpu
        assert f"--seed={task.seed}" in starter, "Python's own generator"
        assert ("torch.distributed.run" in starter) is (name == "simmim")


@pytest.mark.parametrize("name", REAL)
def test_seed_batch_and_epochs_reach_the_recipe(name: str) -> None:
    seed, batch, epochs = ("--seed", "--batch_size", "--epochs")
    if name == "simmim":
        seed, batch, epochs = ("SEED", "--batch-size", "TRAIN.EPOCHS")
    task = compared(name, batch=2, steps=33)[-1]
    assert task.steps == 64
    assert [after(task.command, option) for option in (seed, batch, epochs)] == ["1", "2", "2"]


def test_swin_saves_no_affinity_maps() -> None:
    """Its stages hold different numbers of tokens, which the recipe's glue refuses to draw."""
    styles = {style: compared("simmim", style=style)[0].command for style in ("vit", "swin")}
    assert after(styles["vit"], "MTO.AFFINITY_STEPS") == "160"
    assert "MTO.AFFINITY_STEPS" not in styles["swin"]


@given(st.integers(1, 5000), st.integers(1, 2 * 10**6))
def test_an_epoch_drops_the_images_that_fill_no_batch(batch: int, images: int) -> None:
    if images < batch:
        with pytest.raises(MissingError, match=f"{images} images, .* one batch of {batch}"):
            steps_per_epoch(images, batch)
        return
    steps = steps_per_epoch(images, batch)
    assert steps * batch <= images < (steps + 1) * batch


def test_ablation_has_every_combination_of_the_terms() -> None:
    study = ablation("fake", FAKE, Asked())
    names = {"sparsity", "singularity", "ranking"}
    on = []
    for arm in study.arms.values():
        off = {name for name in names if arm.mto.get(name) == 0}
        on.append(frozenset() if arm.mto["preset"] == "observe" else frozenset(names - off))
    assert next(iter(study.arms)) == "baseline"
    assert len(set(on)) == len(on) == 8
    with pytest.raises(MtoError, match="ranking"):  # the preset weighs one term alone
        ablation("fake", FAKE, Asked(preset="simmim"))
    with pytest.raises(MtoError, match="--mto_sparsity"):
        ablation("fake", FAKE, Asked(extra=["--mto_sparsity", "1"]))


@pytest.mark.parametrize("name", REAL)
def test_paper_has_the_total_batch_and_the_points_of_the_recipe(name: str) -> None:
    """The documented commands of docs/recipes.md: images of a step, and length of fine-tuning."""
    recipe = recipe_of(name)
    study = paper(name, recipe, Asked(nproc=8))
    assert study.finetune_at == (100, 200, 300, 400, 800)
    tasks = tasks_of(study, images=1_281_167, gpu=True)
    assert [task.kind for task in tasks] == ["pretrain"] * 2 + ["finetune"] * 10
    options = recipe.options
    totals = {"bootmae": 4096, "conmim": 2048, "mae": 4096, "simmim": 2048}
    words = tasks[0].command
    accumulation = int(after(words, options.accumulation)) if options.accumulation else 1
    assert int(after(words, options.batch)) * accumulation * 8 == totals[name]
    assert not any("deepspeed" in word.lower() or "{" in word for word in words)
    assert after(words, options.seed) == "0"
    tuned = {"bootmae": 2048, "conmim": 1024, "mae": 1024, "simmim": 2048}
    words = tasks[-1].command
    more = {"conmim": "--update_freq"}.get(name, options.accumulation)
    assert int(after(words, options.batch)) * int(after(words, more)) * 8 == tuned[name]
    assert "{checkpoint}" in words, "found when the task starts"


@pytest.mark.parametrize("name", REAL)
def test_a_short_trial_of_the_paper(name: str) -> None:
    asked = Asked(epochs=2, batch=8, finetune=FineTuning(epochs=1, batch=8))
    study = paper(name, recipe_of(name), asked)
    assert study.finetune_at == (1, 2)
    tasks = tasks_of(study)
    assert tasks[0].steps == 16
    options = ("--epochs", "--warmup_epochs")
    if name == "simmim":
        options = ("TRAIN.EPOCHS", "TRAIN.WARMUP_EPOCHS")
        assert (
            options[0]
            not in tasks_of(paper(name, recipe_of(name), Asked()), images=9999)[0].command
        )
    for task, epochs in ((tasks[0], "2"), (tasks[-1], "1")):
        assert [after(task.command, option) for option in options] == [epochs, "0"]


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(RefusedError, match="4096"):
        tasks_of(paper("mae", recipe_of("mae"), Asked(nproc=3)), images=10**6)
    with pytest.raises(RefusedError, match="cannot accumulate"):
        tasks_of(paper("conmim", recipe_of("conmim"), Asked(nproc=4)), images=10**6)
