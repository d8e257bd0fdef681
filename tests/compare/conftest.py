"""A plan over the fake recipe, and what comes of running it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mto_tools.compare.command import build, train
from mto_tools.compare.plan import Options, Plan, make_plan
from mto_tools.compare.report import Report
from mto_tools.compare.run import execute
from mto_tools.compare.spec import make_launch
from mto_tools.home import find_home
from mto_tools.upstreams.recipe import Recipe

HERE = Path(__file__).parent
CLONE = find_home()
RECIPE = Recipe.model_validate(
    {
        "pretrain": "fake_recipe.py",
        "arguments": "--data_path {data} --output_dir {out} --style {style} --seed {seed} "
        "--steps {steps} --log_every {log_every} --eval_every {eval_every}",
        "checkpoint": "checkpoint.pth",
        "resume_from": "checkpoint.pth",
        "cuda_only": False,
        "styles": {"mae": {"preset": "mae"}, "simmim": {"preset": "simmim"}},
        "data": {"name": "digits", "make": "make_digits.py --out {data}"},
        "logs": {"train": "log.jsonl", "data": "data"},
        "compare": {
            "steps": 180,
            "disk_mb_per_run": 1,
            "scores": [
                {"key": "probe", "label": "Linear probe accuracy"},
                {"key": "knn", "label": "k-NN accuracy"},
            ],
        },
    }
)
assert RECIPE.compare
LAUNCH = make_launch(RECIPE, RECIPE.compare)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of mto with nothing checked out yet."""
    home = tmp_path / "mto"
    shutil.copytree(CLONE / "patches" / "mini", home / "patches" / "mini")
    litter = shutil.ignore_patterns("__pycache__", "*_cache")
    embedded = home / "upstream" / "embedded"
    shutil.copytree(CLONE / "upstream" / "embedded", embedded, ignore=litter)
    (home / "mto_core").mkdir()
    monkeypatch.setenv("MTO_HOME", str(home))
    return home


def fake_plan(out: Path, *extra: str, seeds: int = 2, jobs: int = 2, cores: int = 2) -> Plan:
    options = Options(seeds=seeds, jobs=jobs, extra=list(extra))
    return make_plan(
        LAUNCH, options, upstream="fake", checkout=HERE, out=out, data=out / "data", cores=cores
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "reports" / "fake" / "now.unfinished"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run_fake(work: Path) -> Callable[..., Report]:
    """Run the fake recipe for real and judge it, without drawing; more arguments go to it."""

    def run(*extra: str, seeds: int = 1) -> Report:
        plan = fake_plan(work, *extra, seeds=seeds)
        execute(plan, work, quiet())
        return build(plan, work, work, "fake", {}, [])

    return run


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("reports") / "now.unfinished"
    work.mkdir()
    train(fake_plan(work, seeds=2), work, work.with_name("now"), "fake", quiet())
    return work


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The folder of a report over two seeds, to do anything with."""
    return Path(shutil.copytree(finished_once, tmp_path / "now"))
