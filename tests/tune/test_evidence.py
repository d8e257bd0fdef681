"""The studies of `make evidence`, and the figures of its page."""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mto_tools.home import find_home
from mto_tools.study.measures import paired
from mto_tools.study.record import Curve, Record
from mto_tools.study.tasks import State

HERE = find_home() / "docs" / "evidence"


@pytest.fixture(scope="module")
def evidence() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("evidence_page", HERE / "evidence.py")
    assert spec
    assert spec.loader
    module = sys.modules["evidence_page"] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)  # as for a script
        spec.loader.exec_module(module)
        yield module
    del sys.modules["evidence_page"]


def rising(*losses: float) -> Curve:
    return Curve(at=[100.0 * (i + 1) for i in range(len(losses))], values=[-x for x in losses])


def test_steps_to_a_part_of_the_gain(evidence: ModuleType) -> None:
    baseline, arm = rising(1.0, 0.8, 0.6, 0.6), rising(1.2, 0.6, 0.7, 0.5)
    assert evidence.share(baseline, baseline, 0.5) == 1
    assert evidence.share(baseline, arm, 0.5) == pytest.approx((100 + 100 * 0.4 / 0.6) / 200)
    assert evidence.share(baseline, arm, 1.0) == pytest.approx(200 / 300)
    assert evidence.share(baseline, rising(1.0, 0.9), 1.0) == math.inf
    assert evidence.several([0.5, math.inf]) == "50 never"


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ((-0.10, -0.11, -0.09), "lower"),
        ((0.10, 0.11, 0.09), "higher"),
        ((-0.1, 0.1, 0.01), "no diff"),
    ],
)
def test_the_interval_decides(
    evidence: ModuleType, differences: tuple[float, ...], words: str
) -> None:
    end = paired([(1.0, 1.0 + x) for x in differences], higher_is_better=False)
    assert words in evidence.verdict(evidence.Row("arm", "", end, [], []))


def test_the_mean_of_steps_is_geometric_with_an_interval(evidence: ModuleType) -> None:
    end = paired([(1.0, 0.9), (1.0, 0.8)], higher_is_better=False)
    assert evidence.mean_share(evidence.Row("a", "", end, [[0.5, 0.5]], [])) == "50 %"
    told = evidence.mean_share(evidence.Row("a", "", end, [[0.5, 0.72, 0.6]], []))
    logs = [math.log(x) for x in (0.5, 0.72, 0.6)]
    half = 4.302653 * statistics.stdev(logs) / math.sqrt(3)  # Student's t, two degrees of freedom
    low, high = (math.exp(statistics.mean(logs) + x) for x in (-half, half))
    assert told == f"60 % ({100 * low:.0f} to {100 * high:.0f})"
    assert "never" in evidence.mean_share(evidence.Row("a", "", end, [[0.5, math.inf]], []))


@pytest.mark.parametrize("file", sorted(HERE.glob("*.toml")), ids=lambda path: path.stem)
def test_seeds_steps_and_arms_are_arguments(evidence: ModuleType, file: Path) -> None:
    whole = evidence.asked(file, 5, None, [])
    assert {"baseline", "half_lr", "twice_lr", "default", "paper"} <= whole.arms.keys()
    small = evidence.asked(file, 2, 80, ["baseline", "default", "default_half", "twice_steps"])
    assert (small.seeds, small.steps) == ((0, 1), 80)
    assert small.arms["default"].mto == {"preset": whole.style}
    for name, steps in {"default_half": "40", "twice_steps": "160"}.items():
        arm = small.arms.get(name)
        assert arm is None or arm.arguments == ("--steps", steps)


def test_a_shorter_arm_keeps_its_learning_rate(evidence: ModuleType) -> None:
    study = evidence.asked(HERE / "mae_long.toml", 1, 120, [])
    assert study.arms["default_60_half_lr"].arguments == ("--lr", "4e-3", "--steps", "72")


def test_the_picture_has_a_panel_of_each_style_and_the_arms_that_ran(
    evidence: ModuleType, tmp_path: Path
) -> None:
    def found(style: str, *arms: str) -> SimpleNamespace:
        curve = Curve(at=[0, 50, 100], values=[1, 0.5, 0.4])
        records = [
            Record(arm=arm, seed=seed, scores={evidence.KEY: curve})
            for arm in arms
            for seed in (0, 1)
        ]
        return SimpleNamespace(
            report=SimpleNamespace(records=records),
            study=SimpleNamespace(style=style),
            **{"name": style, "opponent": "half_lr", "rates": {"baseline": 1.0, "half_lr": 0.9}},
        )

    file = tmp_path / "evidence.svg"
    evidence.draw([found("mae", "half_lr", "default"), found("simmim", "half_lr")], file)
    text = file.read_text()  # matplotlib names what its glyphs spell
    assert [text.count(f"<!-- {label} -->") for label in ("MAE-style", "SimMIM-style")] == [1, 1]
    assert text.count("<!-- MTO -->") == 1
    assert text.count("<!-- baseline, best of 2 learning rates -->") == 2


def test_the_page_is_of_the_runs_that_were_started(evidence: ModuleType, tmp_path: Path) -> None:
    file, folder = HERE / "mae.toml", tmp_path / "mae-40"
    (folder / "tasks").mkdir(parents=True)
    for run in ("baseline-0", "baseline-1", "default-0", "default_half-0"):
        State(status="done", command=[], settings={}).save(
            folder / "tasks" / f"pretrain-{run}.json"
        )
    study = evidence.begun(file, folder)
    assert (study.steps, study.seeds) == (40, (0, 1))
    assert [*study.arms] == ["baseline", "default", "default_half"]
    assert study.arms["default_half"].arguments == ("--steps", "20")
