"""Whole searches over the fake recipe: real processes, one or several, killed or left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mto_tools.study.builtin import BASELINE
from mto_tools.study.spec import Arm, Study
from mto_tools.study.tasks import read_states
from mto_tools.tune.result import Result
from mto_tools.tune.runs import Limit

from ..forkserver import Forked, ForkServer
from ..study.conftest import HERE
from .conftest import ASKED, FRESH, RECIPE, search

pytest.importorskip("optuna")

TRIALS = 8
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from mto_tools.launch.inputs import Inputs
from mto_tools.study.spec import load_study
from mto_tools.tune.runs import Limit, Runs
from mto_tools.tune.search import tune
from mto_tools.upstreams.recipe import Recipe
folder, study, fresh, recipe, here, trials, out = sys.argv[1:]
inputs = Inputs(Path(here), Path("/data"), 64, cwd=Path(here), versions={})
runs = Runs(load_study(Path(study)), int(fresh), Recipe.model_validate_json(recipe), inputs,
            Path(folder), Console(stderr=True))
tune(runs, Limit(trials=int(trials))).save(Path(out))
"""


@pytest.fixture(scope="session")
def server(fork_server: Callable[..., ForkServer]) -> ForkServer:
    return fork_server("mto_tools.tune.search", "mto_tools.recipe.settings", "optuna", "mto_core")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nobody stopped."""
    from mto_tools.tune.search import tune

    runs = search(tmp_path_factory.mktemp("tune"))
    tune(runs, Limit(trials=TRIALS)).write(runs.folder)
    return runs.folder


def probe(folder: Path, arm: str, seed: int) -> float:
    """The last score in a run's own log."""
    lines = (folder / "runs" / f"{arm}-{seed}" / "log.jsonl").read_text().splitlines()
    return [line["probe"] for line in map(json.loads, lines) if "probe" in line][-1]


def gains(folder: Path, arm: str, seeds: range) -> list[float]:
    """Against the first learning rate."""
    pairs = [(probe(folder, "rate0", seed), probe(folder, arm, seed)) for seed in seeds]
    return [(ours - theirs) / theirs for theirs, ours in pairs]


def test_a_search_finds_what_the_runs_logs_say(whole: Path) -> None:
    found = Result.load(whole / "result.json")
    assert found.baseline == "rate0", "the baseline is best there"
    assert [trial.number for trial in found.trials] == [*range(TRIALS)]
    first = found.trials[0].mto
    assert first["sparsity"] == 0.1
    assert first["singularity"] == first["ranking"] == 0.0
    assert first["scale"] == first["sparsity_scale"] == "layernorm"
    for trial in found.trials:
        if not any(trial.mto.get(term) for term in ("sparsity", "singularity", "ranking")):
            assert trial.gain == 0
        elif not trial.early:
            expected = np.mean(gains(whole, f"t{trial.number}", range(2)))
            assert trial.gain == pytest.approx(expected, rel=1e-12)
    rest = [trial.gain for trial in found.trials if not trial.early]
    assert found.best is not None
    assert found.best.gain == max(rest) >= found.trials[0].gain > 0
    fresh = gains(whole, f"t{found.best.number}", range(2, 5))
    assert found.gains == pytest.approx(fresh, rel=1e-12)
    low, high = stats.t.interval(0.95, 2, np.mean(fresh), stats.sem(fresh))
    assert found.interval == pytest.approx((low, high), rel=1e-9)
    assert (whole / "tune.svg").read_text().count("<svg") == 1


def test_the_flags_are_those_that_ran(whole: Path) -> None:
    found = Result.load(whole / "result.json")
    assert found.best is not None
    command = read_states(whole)[f"pretrain-t{found.best.number}-0"].command
    flags = " ".join(found.flags)
    assert flags.startswith("--lr 1 --mto --mto_preset mae")
    words = dict(pairwise(command))
    options = [word for word in found.flags if word.startswith("--mto_")]
    assert len(options) == 7
    for option in options:
        assert words[option] == found.flags[found.flags.index(option) + 1]


def test_the_best_learning_rate_lies_between_others(tmp_path: Path) -> None:
    from mto_tools.tune.search import tune

    rates = ("4", "8", "16")  # the fake recipe's best is 1
    arms = {f"rate{n}": Arm(mto=BASELINE, arguments=("--lr", x)) for n, x in enumerate(rates)}
    runs = search(tmp_path, arms=arms, seeds=(0,))
    found = tune(runs, Limit(trials=1), widen=True)
    assert found.study.arms[found.baseline].arguments == ("--lr", "1")
    assert [arm.arguments[-1] for arm in found.study.arms.values()] == [*rates, "2", "1", "0.5"]
    assert found.flags[:2] == ["--lr", "1"]
    again = tune(runs, Limit(trials=1), widen=True)
    assert again.model_dump(exclude={"seconds"}) == found.model_dump(exclude={"seconds"})
    assert {state.attempts for state in read_states(tmp_path).values()} == {1}
    narrow = tune(runs, Limit(trials=1))
    assert narrow.study.arms[narrow.baseline].arguments == ("--lr", "4")


# Run, step, and whether the checkpoint is left cut: in the baseline, in trials, in fresh seeds.
KILLS = ("rate1-0-20", "t0-1-7", "t2-0-31-cut", "t6-0-60", "rate0-3-1")


def test_killed_it_finds_the_same(whole: Path, server: ForkServer, tmp_path: Path) -> None:
    events = tmp_path / "kill"
    events.mkdir()
    for name in KILLS:
        (events / name).touch()
    folder = tmp_path / "tune"
    folder.mkdir()
    study = ASKED.model_copy(update={"arguments": ("--kill", str(events))})
    codes = []
    for _ in range(len(KILLS) + 1):
        codes.append(start(server, folder, tmp_path / "found", study).wait())
        if not codes[-1]:
            break
    assert codes[-1] == 0, (tmp_path / "found.txt").read_text()
    killed = len(KILLS) - len(list(events.iterdir()))
    assert len(codes) == killed + 1 >= 5
    ours, theirs = Result.load(tmp_path / "found"), Result.load(whole / "result.json")
    assert (ours.trials, ours.best, ours.gains) == (theirs.trials, theirs.best, theirs.gains)


def test_two_processes_share_the_trials(server: ForkServer, tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    folder.mkdir()
    both = [start(server, folder, tmp_path / name, ASKED) for name in ("one", "other")]
    assert [process.wait() for process in both] == [0, 0], (tmp_path / "one.txt").read_text()
    one, other = (Result.load(tmp_path / name) for name in ("one", "other"))
    assert one.model_dump(exclude={"seconds"}) == other.model_dump(exclude={"seconds"})
    assert [trial.number for trial in one.trials] == [*range(TRIALS)]
    assert {state.attempts for state in read_states(folder).values()} == {1}


def start(server: ForkServer, folder: Path, out: Path, study: Study) -> Forked:
    """A process with a part in the search."""
    asked = out.with_suffix(".toml")
    study.save_as(asked)
    words = [folder, asked, FRESH, RECIPE.model_dump_json(), HERE, TRIALS, out]
    return server.start("-c", DRIVER, *map(str, words), out=out.with_suffix(".txt"))
