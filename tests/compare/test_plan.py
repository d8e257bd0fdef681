"""Options, and what they may not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mto_tools.compare.data import check_data
from mto_tools.compare.plan import ARMS, Options, default_jobs, make_plan
from mto_tools.compare.spec import load_launch
from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home

from .conftest import LAUNCH, fake_plan

SHIPPED = sorted(path.parent.name for path in (find_home() / "patches").glob("*/recipe.toml"))


@pytest.mark.parametrize("upstream", SHIPPED)
def test_shipped_files_are_valid(upstream: str) -> None:
    launch = load_launch(find_home(), upstream)
    plan = make_plan(
        launch,
        Options(seeds=1),
        upstream=upstream,
        checkout=Path("c"),
        out=Path("o"),
        data=Path(),
        images=64,
    )
    assert not any("{" in part for run in plan.runs for part in run.command)


def test_arms_differ_in_nothing_but_mto() -> None:
    plan = fake_plan(Path("/out"), seeds=2)
    assert [(run.arm, run.seed) for run in plan.runs] == [(a, s) for s in (0, 1) for a in ARMS]
    for baseline, mto in zip(plan.runs[::2], plan.runs[1::2], strict=True):
        pairs = zip(baseline.command, mto.command, strict=True)
        differing = [(b, m) for b, m in pairs if b.replace("baseline-", "mto-") != m]
        assert differing == [("observe", "mae")]


def test_preset_and_extra_arguments() -> None:
    options = Options(seeds=1, style="mae", preset="simmim", extra=["--width", "32"])
    plan = make_plan(LAUNCH, options, upstream="fake", checkout=Path(), out=Path(), data=Path())
    baseline, mto = plan.runs
    assert baseline.command[baseline.command.index("--mto_preset") + 1] == "observe"
    assert mto.command[mto.command.index("--mto_preset") + 1] == "simmim"
    assert mto.command[mto.command.index("--style") + 1] == "mae"
    assert baseline.command[-2:] == mto.command[-2:] == ["--width", "32"]


def test_gradients_are_measured_on_steps_that_are_logged() -> None:
    for steps in (2, 7, 100, 900, 1234):
        options = Options(seeds=1, steps=steps)
        plan = make_plan(LAUNCH, options, upstream="fake", checkout=Path(), out=Path(), data=Path())
        assert plan.grad_every % plan.log_every == 0
        assert plan.affinity_steps[0] == 1
        assert plan.affinity_steps[-1] == steps


@pytest.mark.parametrize(
    ("cores", "runs", "jobs"), [(1, 6, 1), (2, 6, 2), (3, 6, 2), (8, 6, 6), (64, 2, 2)]
)
def test_arms_of_a_seed_run_together(cores: int, runs: int, jobs: int) -> None:
    assert default_jobs(cores, runs) == jobs


def test_threads_are_shared_out() -> None:
    assert fake_plan(Path(), jobs=2, cores=8).threads == 4
    assert fake_plan(Path(), jobs=6, cores=2).threads == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"style": "beit"}, "fake has no style 'beit'; it has mae, simmim"),
        ({"seeds": 0}, "--seeds must be at least 1, not 0"),
        ({"steps": 1}, "--steps must be at least 2, not 1"),
        ({"jobs": 0}, "--jobs must be at least 1, not 0"),
    ],
)
def test_wrong_options(options: dict[str, int | str], words: str) -> None:
    with pytest.raises(MtoError, match=words) as caught:
        make_plan(
            LAUNCH,
            Options.model_validate(options),
            upstream="fake",
            checkout=Path(),
            out=Path(),
            data=Path(),
        )
    assert caught.value.hint.startswith("mto compare fake --")


def test_unknown_upstream() -> None:
    for name in ("nosuch", "../mini", "."):
        with pytest.raises(MissingError):
            load_launch(find_home(), name)


def test_data_must_hold_an_image(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="data folder .*/gone does not exist"):
        check_data(tmp_path / "gone", "train", "mini")
    with pytest.raises(MissingError, match="has no subfolder train/"):
        check_data(tmp_path, "train", "mini")
    (tmp_path / "train" / "7").mkdir(parents=True)
    (tmp_path / "train" / "7" / "notes.txt").write_text("no image")
    with pytest.raises(MissingError, match="holds no image") as caught:
        check_data(tmp_path, "train", "mini")
    assert caught.value.exit_code == 3
    assert "mto compare mini" in caught.value.hint
    (tmp_path / "train" / "7" / "1.PNG").write_bytes(b"")
    check_data(tmp_path, "train", "mini")
