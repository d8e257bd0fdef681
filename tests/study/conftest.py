"""A plan over the fake recipe, and what comes of running it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mto_tools.home import find_home
from mto_tools.launch.inputs import Inputs
from mto_tools.study.cli import train
from mto_tools.study.plan import Plan, make_plan
from mto_tools.upstreams.recipe import Recipe, load_recipe
from mto_tools.upstreams.upstream import load_upstream

HERE = Path(__file__).parent
CLONE = find_home()
FAKE = Recipe.model_validate(
    {
        "pretrain": "fake_recipe.py",
        "arguments": "--data_path {data} --output_dir {out} --style {style} --seed {seed} "
        "--steps {steps} --log_every {log_every} --eval_every {eval_every}",
        "checkpoint": "checkpoint.pth",
        "resume_from": "checkpoint.pth",
        "cuda_only": False,
        "styles": {"mae": {"preset": "mae"}, "simmim": {"preset": "simmim"}},
        "data": {"name": "digits", "make": "make_digits.py --out {data}"},
        "logs": {"own": "log.jsonl", "data": "data"},
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


def recipe_of(name: str) -> Recipe:
    return load_recipe(load_upstream(CLONE, name))


def plan_of(
    name: str,
    recipe: Recipe | None = None,
    *,
    out: Path = Path("/out"),
    checkout: Path | None = None,
    images: int = 64,
    **options: Any,
) -> Plan:
    """The plan of a shipped recipe, or of `recipe`."""
    checkout = checkout or Path("/up") / name
    inputs = Inputs(checkout, out / "data", images, cwd=checkout, versions={})
    options = {"cores": 2, "seeds": 2, **options}
    return make_plan(recipe or recipe_of(name), name, lambda: inputs, out, **options)


def fake_plan(out: Path, *extra: str, jobs: int = 2, **more: Any) -> Plan:
    return plan_of("fake", FAKE, out=out, checkout=HERE, jobs=jobs, extra=extra, **more)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "reports" / "fake" / "now"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("reports")
    train(fake_plan(work, seeds=2), work, quiet())
    return work


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The folder of a report over two seeds, to do anything with."""
    return Path(shutil.copytree(finished_once, tmp_path / "now"))
