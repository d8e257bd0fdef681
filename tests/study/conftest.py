"""Studies over the fake recipe, and what comes of running them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mto_tools.home import find_home
from mto_tools.launch.inputs import Inputs
from mto_tools.study.builtin import Asked, compare
from mto_tools.study.report import Report
from mto_tools.study.session import How, Session
from mto_tools.study.spec import Study, load_study
from mto_tools.study.tasks import Task
from mto_tools.upstreams.recipe import Recipe, load_recipe
from mto_tools.upstreams.upstream import load_upstream

HERE = Path(__file__).parent
CLONE = find_home()
FAKE = Recipe.model_validate(
    {
        "pretrain": "fake_recipe.py",
        "arguments": "--data_path {data} --output_dir {out} --style {style} --seed {seed} "
        "--steps {steps} --log_every {log_every} --eval_every {eval_every}",
        "checkpoint": "checkpoint-{step:06d}.pth",
        "resume_from": "checkpoint.pth",
        "cuda_only": False,
        "options": {"save": "--save_every", "keep": "--save_steps"},
        "styles": {"mae": {"preset": "mae"}, "simmim": {"preset": "simmim"}},
        "data": {"name": "digits", "make": "make_digits.py --out {data}"},
        "logs": {
            "own": "log.jsonl",
            "data": "data",
            "finetune": "log.txt",
            "finetune_score": "test_acc1",
        },
        "compare": {
            "steps": 180,
            "disk_mb_per_run": 1,
            "scores": [
                {"key": "probe", "label": "Linear probe accuracy"},
                {"key": "knn", "label": "k-NN accuracy"},
            ],
        },
        "finetuned": {"fake": {}},
        "finetune": {
            "script": "fake_finetune.py",
            "arguments": "--finetune {checkpoint} --epochs {epochs} --batch_size {total} "
            "--seed {seed} --data_path {data} --output_dir {out}",
            "epochs": 3,
            "total_batch": 8,
            "images_per_gpu": 8,
            "models": ["fake"],
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


def inputs_of(name: str, images: int = 64) -> Inputs:
    """Of a shipped recipe, which stands nowhere, or of the fake one."""
    checkout = HERE if name == "fake" else Path("/up") / name
    return Inputs(checkout, Path("/data"), images, cwd=checkout, versions={})


def tasks_of(
    study: Study, folder: Path = Path("/out"), *, images: int = 64, gpu: bool = False
) -> list[Task]:
    """The tasks of a study over a shipped recipe, or over the fake one."""
    recipe = FAKE if study.upstream == "fake" else recipe_of(study.upstream)
    session = Session(study, folder, recipe)
    return session.maker(inputs_of(study.upstream, images), gpu=gpu).tasks()


def fake_session(folder: Path, *extra: str, seeds: int = 2, **more: Any) -> Session:
    """A comparison over the fake recipe; `extra` as after `--`, `more` as in the study file."""
    study = compare("fake", FAKE, Asked(seeds=seeds, extra=extra))
    return Session(study.model_copy(update=more), folder, FAKE)


def run(session: Session, *, jobs: int = 2, **how: Any) -> Report:
    """Run a study over the fake recipe here."""
    return session.run(inputs_of("fake"), How(jobs=jobs, **how), quiet())


def open_fake(folder: Path) -> Session:
    """The study over the fake recipe in a folder."""
    return Session(load_study(folder / "study.toml"), folder, FAKE)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "reports" / "fake" / "now"


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("reports")
    run(fake_session(work))
    return work


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The folder of a report over two seeds, to do anything with."""
    return Path(shutil.copytree(finished_once, tmp_path / "now"))
