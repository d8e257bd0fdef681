"""The real upstreams, where a source is given; they are patched and run as their users would.

    MTO_UPSTREAM_URL='/mirrors/{owner}/{repo}.git' pytest tests/upstream

Heavy: minutes for each recipe on two cores. Each run is made once and looked at by several tests.
MTO_UPSTREAM_PRECISION=bfloat16 is some three times faster on a CPU that has such instructions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mto_tools.launch.command import Launch
from mto_tools.launch.digits import CLASSES
from mto_tools.launch.small import Run, Runner
from mto_tools.launch.smoke import unpatched
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import Upstream, load_upstream

from ..command import make_home, mto

HERE = Path(__file__).parent
WEIGHTS = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001}
OPTIONS = {"preset": "literal", **WEIGHTS, "warmup_steps": 6, "log_every": 1}


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
    made: dict[str, Run] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the upstream, and the style but for the first: simmim, simmim_swin."""
        style = self.runner.style
        first = style == next(iter(self.runner.launch.recipe.styles))
        return self.runner.launch.name + ("" if first else f"_{style}")

    def run(
        self,
        name: str,
        arguments: Sequence[str] = (),
        *,
        processes: int = 1,
        patched: bool = True,
        before: Sequence[Path] = (),
        **how: Any,
    ) -> Run:
        """The run of that name."""
        if name not in self.made:
            launch = self.runner.launch
            launch = replace(launch, processes=processes, before=(*launch.before, *before))
            runner = replace(self.runner, launch=launch)
            checkout = self.patched if patched else self.plain
            how = {"epochs": 2, "patched": patched, **how}
            self.made[name] = runner.pretrain(name, checkout, arguments, **how)
        return self.made[name]

    def baseline(self, processes: int = 1) -> Run:
        return self.run(f"plain{processes}", processes=processes, patched=False)

    def off(self, processes: int = 1) -> Run:
        return self.run(f"off{processes}", processes=processes)

    def on(self) -> Run:
        return self.run("on", self.mto(OPTIONS), before=[HERE / "capture.py"])

    def resumed(self) -> Run:
        return self.run("resumed", self.mto(OPTIONS), resume=self.on().out)

    def mto(self, options: Mapping[str, object]) -> list[str]:
        """Arguments that switch MTO on."""
        return self.runner.launch.recipe.options.mto(options)

    def saved(self, run: Run, epoch: int = 1) -> dict[str, Any]:
        """A checkpoint."""
        file = self.runner.checkpoint(run.out, epoch)
        return torch.load(file, map_location="cpu", weights_only=False)

    def captured(self, step: int) -> dict[str, Any]:
        return torch.load(self.on().out.with_suffix(".capture") / f"{step}.pt")

    def log(self, run: Run) -> list[dict[str, Any]]:
        """MTO's log, without times."""
        return [
            {key: value for key, value in line.items() if key != "step_ms"}
            for line in self.runner.log(run.out)
        ]

    def log_file(self, out: Path) -> Path:
        return out / self.runner.launch.recipe.logs.measures

    def finetune(self, script: str, checkpoint: Path | None = None) -> str:
        """Run another script from a checkpoint, by default of the run with MTO on."""
        recipe, style = self.runner.launch.recipe, self.runner.style
        given = recipe.words(
            recipe.others[script],
            style,
            checkout=self.patched,
            data=self.runner.data(4),
            out=self.runner.work / "tuned",
            checkpoint=checkpoint or self.runner.checkpoint(self.on().out, 1),
            classes=CLASSES,
        )
        return self.runner.start(Path(script).stem, self.patched / script, given)


def apply(home: Path, name: str) -> Upstream:
    """Clone and patch an upstream where that is not done yet."""
    done = mto("apply", name, MTO_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return load_upstream(home, name)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of mto of its own: our patches, and no upstream yet."""
    if "MTO_UPSTREAM_URL" not in os.environ:
        pytest.skip("no source of the upstreams: set MTO_UPSTREAM_URL to a mirror or a template")
    return make_home(tmp_path_factory.mktemp("home"), "mae", "simmim", "bootmae", "conmim")


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Clone, patch, and offer the runs of the recipe that the module names in `RECIPE`."""
    wanted = request.param if hasattr(request, "param") else request.module.RECIPE
    name, _, style = wanted.partition("_")
    recipe = load_recipe(load_upstream(home, name))
    for module in ("tensorboard", *(("yacs", "termcolor") if "yacs" in recipe.needs else ())):
        pytest.importorskip(module)
    upstream = apply(home, name)
    work = tmp_path_factory.mktemp(wanted)
    plain = unpatched(upstream.checkout, upstream.pin, work / "plain")
    precision = os.environ.get("MTO_UPSTREAM_PRECISION", "float32")
    script, before = upstream.checkout / recipe.pretrain, [HERE / "reseed.py"]
    launch = Launch(name, recipe, script, cpu=True, precision=precision, before=before)
    runner = Runner(launch, recipe.style(style or None, name), work)
    yield Runs(runner, upstream.checkout, plain)
    shutil.rmtree(work)  # a ViT-B checkpoint with its optimizer is over a gigabyte
