"""`mto evaluate` at real model size: features are those of the recipe's own evaluation.

The other path has nothing of ours in it but a forward hook: the fine-tuning script trains with a
learning rate of zero, then scores val by itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mto_tools.evaluate.features import Maker
from mto_tools.evaluate.result import SCORES, Evaluation, path_of
from mto_tools.launch.command import Launch
from mto_tools.launch.digits import CLASSES, lay_out
from mto_tools.launch.process import start

from ..command import mto
from .conftest import Runs

HEAD = Path(__file__).with_name("head.py")
STILL = "--lr 0 --min_lr 0 --warmup_lr 0 --epochs 1 --warmup_epochs 0"
# Arguments that leave the weights as they are; pre-training of a model that can be fine-tuned;
# the checkpoint that is fine-tuned; outputs of the classifier.
CASES = {
    "mae": ("--lr 0 --min_lr 0 --epochs 1 --warmup_epochs 0", [], "", CLASSES),
    "simmim": (
        "--opts TRAIN.BASE_LR 0. TRAIN.MIN_LR 0. TRAIN.WARMUP_LR 0. TRAIN.EPOCHS 1 "
        "TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0",
        [],
        "",
        1000,
    ),
    "bootmae": (f"{STILL} --num_workers 0", [], "", 1000),
    "conmim": (
        f"{STILL} --num_workers 0",
        ["--model=conmim_base_patch16_224"],
        "checkpoint_copy-0.pth",
        1000,
    ),
}
CASES["simmim_swin"] = CASES["simmim"]


def own_features(maker: Maker, checkpoint: Path, data: Path, work: Path, case: str) -> np.ndarray:
    """What the classifier gets on val, [8, D], in the script's own loop."""
    from mto_tools.checkpoint import read_checkpoint

    still, _, _, classes = CASES[case]
    read = read_checkpoint(checkpoint)
    given = replace(maker, extra=still.split()).arguments(read, data, work / "own")
    (work / "own").mkdir()
    launch = Launch(
        maker.name,
        maker.recipe,
        maker.checkout / maker.facts.script,
        arguments=given,
        cpu=maker.cpu,
        before=[HEAD],
    )
    variables = {"MTO_HEAD": str(work / "own.npy"), "MTO_CLASSES": str(classes)}
    environment = {**launch.environment(), **variables}
    run = start(launch.argv(), cwd=data.parent, log=work / "own.log", environment=environment)
    assert run.wait() == 0, run.cause()
    return np.load(work / "own.npy")


@pytest.mark.parametrize("runs", list(CASES), indirect=True)
def test_features_are_those_of_the_recipes_own_evaluation(runs: Runs, tmp_path: Path) -> None:
    case, name, recipe = runs.name, runs.runner.launch.name, runs.runner.launch.recipe
    _, pretrain, file, _ = CASES[case]
    out = runs.run("brief", pretrain, epochs=1).out
    checkpoint = out / file if file else runs.runner.checkpoint(out, 0)
    data = lay_out(recipe.data, tmp_path / "data" / "images", 1)
    done = mto(
        *(
            "evaluate",
            runs.runner.launch.name,
            checkpoint,
            "--data",
            data,
            "--k",
            8,
            "--workers",
            0,
        ),
        *("--cache", tmp_path / "cache", "--cpu", "--repo", runs.patched),
        MTO_HOME=str(runs.patched.parents[1]),
    )
    assert done.returncode == 0, done.stderr
    assert set(Evaluation.load(path_of(checkpoint)).scores) == set(SCORES)
    (entry,) = (tmp_path / "cache").iterdir()
    maker = Maker(name, recipe, runs.patched, cpu=True)
    own = own_features(maker, checkpoint, data, tmp_path, case)
    ours = np.load(entry / "val.npy")
    assert ours.shape == own.shape
    np.testing.assert_allclose(ours, own, rtol=2e-4, atol=2e-4 * np.abs(own).max())
    assert np.abs(own - own.mean(0)).max() > 1e-3  # images differ
