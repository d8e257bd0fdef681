"""From real runs to pages: what torchrun wrote, checkpoints side by side, a tiny `study paper`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mto_tools.launch.digits import lay_out
from mto_tools.study.report import Report
from mto_tools.study.tasks import read_states

from ..command import make_home, mto
from .conftest import OPTIONS, Runs

RECIPES = ["simmim", "mae", "conmim", "bootmae"]


@pytest.mark.parametrize("runs", RECIPES, indirect=True)
def test_folders_of_torchrun_are_reported_and_their_checkpoints_inspected(
    runs: Runs, tmp_path: Path
) -> None:
    name, recipe = runs.name, runs.runner.launch.recipe
    on = runs.run("on2", runs.mto(OPTIONS), processes=2)
    if recipe.logs.own:
        baseline = runs.baseline(2)
    else:  # it writes no log of its own
        baseline = runs.run(
            "observe2", runs.mto({"preset": "observe", "log_every": 1}), processes=2
        )
    arms = ["--arm", f"baseline={baseline.out}", "--arm", f"mto={on.out}", "--recipe", name]
    home = {"MTO_HOME": str(runs.patched.parents[1])}
    done = mto("report", *arms, "--out", tmp_path / "report", **home)
    assert done.returncode == 0, done.stderr
    report = Report.load(tmp_path / "report" / "report.json")
    assert report.fair
    losses = [record.curve("loss") for record in report.records]
    assert losses[0].at == losses[1].at
    assert losses[0].unit == ("epoch" if recipe.logs.own else "step")

    files = [runs.runner.checkpoint(on.out, epoch) for epoch in (0, 1)]
    data, out = runs.runner.data(4), tmp_path / "inspect"
    done = mto("inspect", name, *files, "--data", data, "--images", 2, "--out", out, **home)
    assert done.returncode == 0, done.stderr
    early, late = (
        one["blocks"] for one in json.loads((out / "inspect.json").read_text())["checkpoints"]
    )
    assert [one["tokens"] for one in early] == [one["tokens"] for one in late]
    for one, other in zip(early, late, strict=True):  # the weights have moved
        assert (
            one["measures"]["heterogeneity"]["mean"] != other["measures"]["heterogeneity"]["mean"]
        )


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_paper_is_reported_on_another_machine(home: Path, name: str, tmp_path: Path) -> None:
    from mto_tools.upstreams.recipe import load_recipe
    from mto_tools.upstreams.upstream import load_upstream

    recipe = load_recipe(load_upstream(home, name))
    data = lay_out(recipe.data, tmp_path / "data" / "images", 1)
    words = ["--data", data, "--epochs", 2, "--batch", 4, "--jobs", 1, "--out", tmp_path / "paper"]
    words += ["--finetune-epochs", 1, "--finetune-batch", 4]
    if name == "mae":
        pytest.importorskip("submitit")
        words += ["--launcher", "submitit-local"]
    done = mto("study", "paper", name, *words, MTO_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert len(read_states(tmp_path / "paper")) == 6
    report = Report.load(tmp_path / "paper" / "report.json")
    assert [record.scores["finetuned"].at for record in report.records] == [[1, 2], [1, 2]]

    shutil.rmtree(data)
    moved = (tmp_path / "paper").rename(tmp_path / "elsewhere")
    (moved / "report.json").unlink()
    there = make_home(tmp_path / "there", name)
    done = mto("report", moved, MTO_HOME=str(there), MTO_UPSTREAM_URL="/nowhere")
    assert done.returncode == 0, done.stderr
    again = Report.load(moved / "report.json")
    assert repr(again.records) == repr(report.records)  # NaN is equal to itself there
    shutil.rmtree(moved)  # gigabytes
