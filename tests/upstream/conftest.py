"""The real upstreams, where a source is given; they are patched and run as their users would.

    MTO_UPSTREAM_URL='/mirrors/{owner}/{repo}.git' pytest tests/upstream

Heavy: minutes for each recipe on two cores. Each run is made once and looked at by several tests.
MTO_UPSTREAM_PRECISION=bfloat16 is some three times faster on a CPU that has such instructions.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mto_tools.launch.small import Run, Runner
from mto_tools.launch.smoke import unpatched
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OPTIONS = {
    "sparsity": 0.01,
    "singularity": 0.1,
    "ranking": 0.001,
    "warmup_steps": 6,
    "log_every": 1,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A run of eight ViT-B steps takes minutes on a busy CPU; and one run starts another."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


@dataclass(frozen=True)
class Runs:
    """All runs of one recipe, each started when first asked for: two epochs of four steps."""

    runner: Runner
    patched: Path
    plain: Path

    @property
    def name(self) -> str:
        """Of the upstream, and the style but for the first: simmim, simmim_swin."""
        first = next(iter(self.runner.recipe.styles))
        return self.runner.upstream + (
            "" if self.runner.style == first else f"_{self.runner.style}"
        )

    def with_processes(self, processes: int) -> Runner:
        return replace(self.runner, processes=processes)

    def baseline(self, processes: int = 1) -> Run:
        return self._baseline(processes)

    @functools.cache  # noqa: B019
    def _baseline(self, processes: int) -> Run:
        runner = self.with_processes(processes)
        return runner.pretrain(f"plain{processes}", self.plain, patched=False, epochs=2)

    def off(self, processes: int = 1) -> Run:
        return self._off(processes)

    @functools.cache  # noqa: B019
    def _off(self, processes: int) -> Run:
        return self.with_processes(processes).pretrain(f"off{processes}", self.patched, epochs=2)

    @functools.cache  # noqa: B019
    def on(self) -> Run:
        folder = self.runner.work / "capture"
        folder.mkdir()
        return self.runner.pretrain(
            "on",
            self.patched,
            self.runner.mto(dict(OPTIONS)),
            epochs=2,
            before=[HERE / "capture.py"],
            environment={"MTO_CAPTURE": str(folder)},
        )

    @functools.cache  # noqa: B019
    def resumed(self) -> Run:
        arguments = self.runner.mto(OPTIONS)
        return self.runner.pretrain(
            "resumed", self.patched, arguments, epochs=2, resume=self.on().out
        )

    def captured(self, step: int) -> dict[str, Any]:
        import torch

        self.on()
        return torch.load(self.runner.work / "capture" / f"{step}.pt")

    def log(self, run: Run) -> list[dict[str, Any]]:
        return self.runner.log(run.out)

    def log_file(self, out: Path) -> Path:
        return out / self.runner.recipe.logs.measures

    def finetune(self, script: str) -> str:
        checkpoint = self.runner.checkpoint(self.on().out, 1)
        out = self.runner.work / "tuned"
        given = self.runner.other(script, self.patched, self.runner.data(4), out, checkpoint)
        return self.runner.start(Path(script).stem, self.patched / script, given)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house of its own: our patches, and no clone yet."""
    if "MTO_UPSTREAM_URL" not in os.environ:
        pytest.skip("no source of the upstreams: set MTO_UPSTREAM_URL to a mirror or a template")
    folder = tmp_path_factory.mktemp("home")
    for name in ("patches", "mto_core"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Clone, patch, and offer the runs of the recipe that the module names in `RECIPE`."""
    wanted = request.param if hasattr(request, "param") else request.module.RECIPE
    name, _, style = wanted.partition("_")
    upstream = load_upstream(home, name)
    recipe = load_recipe(upstream)
    for module in ("tensorboard", *(("yacs", "termcolor") if "yacs" in recipe.needs else ())):
        pytest.importorskip(module)
    if not upstream.checkout.exists():
        subprocess.run(
            [sys.executable, "-m", "mto_tools.cli", "apply", name],
            env={**os.environ, "MTO_HOME": str(home)},
            check=True,
        )
    work = tmp_path_factory.mktemp(wanted)
    plain = unpatched(upstream.checkout, upstream.pin, work / "plain")
    precision = os.environ.get("MTO_UPSTREAM_PRECISION", "float32")
    runner = Runner(
        *(name, recipe, recipe.style(style or None, name), work),
        precision=precision,
        before=(HERE / "reseed.py",),
    )
    yield Runs(runner, upstream.checkout, plain)
    shutil.rmtree(work)  # a ViT-B checkpoint with its optimizer is over a gigabyte
