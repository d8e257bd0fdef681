"""mini under DeepSpeed on gloo ranks: DDP's run, killed, gone on with on as many ranks and on half.

On two ranks DeepSpeed is DDP to the last bit. One rank sums a gradient in another order, so losses
agree to ROUNDING.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ..forkserver import Forked, ForkServer

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

SMALL = (
    *("--img_size", "16", "--patch_size", "4", "--embed_dim", "16", "--depth", "2"),
    *("--num_heads", "2", "--decoder_dim", "16", "--decoder_depth", "2"),
    *("--decoder_num_heads", "2", "--batch_size", "16", "--device", "cpu"),
    *("--warmup_steps", "3", "--log_every", "1", "--eval_every", "1000", "--save_every", "3"),
    *("--mto", "--mto_log_every", "1"),
)
# Calibration has its weights at step 21, from twenty that were measured in part.
MODES = {
    "balance": ("--mto_balance", "0.1", "--steps", "12"),
    "calibrate": ("--mto_calibrate", "0.1", "--steps", "24"),
}
ROUNDING = 1e-6  # relative, of a loss; 2e-7 was measured


@dataclass
class Run:
    """One run of mini on some ranks."""

    folder: Path
    process: Forked

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text()

    def log(self, name: str = "log.jsonl") -> list[dict[str, Any]]:
        """The lines without their step time."""
        lines = [json.loads(line) for line in (self.out / name).read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "step_ms"} for line in lines]

    def checkpoint(self) -> dict[str, Any]:
        state = torch.load(self.out / "checkpoint.pth", weights_only=True)
        del state["args"]
        return leaves(state)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for n, x in value.items() for k, v in leaves(x, f"{path}/{n}").items()}
    if isinstance(value, (list, tuple)) and len(value) < 100:
        return {k: v for n, x in enumerate(value) for k, v in leaves(x, f"{path}/{n}").items()}
    return {path: value.tolist() if isinstance(value, torch.Tensor) else value}


@pytest.fixture(scope="module")
def start(
    recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, rank_server: ForkServer
) -> Iterator[Callable[..., Run]]:
    """Start a run of the patched recipe, under DDP at stage 0; `out` is gone on with."""
    recipe, home = recipes["patched"], tmp_path_factory.mktemp("ranks")
    runs: list[Run] = []

    def run(mode: str, world: int, stage: int = 0, out: Path | None = None, **env: str) -> Run:
        folder = home / str(len(runs))
        folder.mkdir()
        if out is not None:
            shutil.copytree(out, folder / "out")
        content = {
            "train_batch_size": 16,
            "train_micro_batch_size_per_gpu": 16 // world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {
                **{"stage": stage, "overlap_comm": False},
                **{"reduce_bucket_size": 5000, "allgather_bucket_size": 5000},
            },
        }
        file = home / f"{world}-{stage}.json"
        file.write_text(json.dumps(content))
        flags = ("--deepspeed_config", file) if stage else ()
        script = (
            recipe / "main_pretrain.py",
            "--data_path",
            home / "data",
            *SMALL,
            *MODES[mode],
            *flags,
        )
        torchrun = (Path(__file__).with_name("rank.py"), "torchrun", world, folder)
        env["FORKED_PYTHON"] = json.dumps(rank_server.command)
        process = rank_server.start(
            *map(str, (*torchrun, *script, "--output_dir", folder / "out")),
            **{"out": folder / "stdout", "err": folder / "err", "env": env},
        )
        runs.append(Run(folder, process))
        return runs[-1]

    rng = np.random.default_rng(0)
    for number in range(40):
        file = home / "data" / "train" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    yield run
    for made in runs:
        made.process.kill()


def done(run: Run) -> Run:
    assert run.process.wait() == 0, run.stderr[-3000:]
    return run


def assert_same(a: Run, b: Run) -> None:
    """Same losses, terms and heterogeneity, same checkpoint, optimizer state and all."""
    assert a.log() == b.log()
    assert a.log("mto.jsonl") == b.log("mto.jsonl")
    ours, theirs = a.checkpoint(), b.checkpoint()
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


@pytest.mark.parametrize("mode", MODES)
def test_ddp_killed_and_gone_on_with_on_as_many_ranks_and_on_half(
    start: Callable[..., Run], mode: str
) -> None:
    whole = done(start(mode, 2, stage=1))
    weights = [line["weights"]["sparsity"] for line in whole.log("mto.jsonl")]
    assert len(weights) == int(MODES[mode][-1])
    assert weights[-1] > 0
    assert_same(done(start(mode, 2)), whole)

    killed = start(mode, 2, stage=1, KILL="1:8")
    assert killed.process.wait() == 1
    assert torch.load(killed.out / "checkpoint.pth", weights_only=True)["step"] == 6
    cause = killed.stderr.partition("Root Cause")[2]
    for part in ("rank      : 1 ", "exitcode  : -9 "):
        assert part in cause
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((killed.folder / f"{rank}.pid").read_text()), 0)

    assert_same(done(start(mode, 2, stage=1, out=killed.out)), whole)
    half = done(start(mode, 1, stage=1, out=killed.out))
    for ours, theirs in zip(half.log(), whole.log(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=ROUNDING)
        assert ours["data"] == theirs["data"]
    assert half.checkpoint().keys() == whole.checkpoint().keys()
