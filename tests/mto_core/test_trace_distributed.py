"""Two gloo processes against one process over the whole batch, MTO on.

The ranks use the recompute backend, the one process the dense one.
"""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")
SPEC = importlib.util.spec_from_file_location("distributed_worker", WORKER)
worker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(worker)


def launch(case, folder, world=2):
    """Results of every rank; all ranks are gone afterwards, whatever happened."""
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, case, str(rank), str(world), folder],
            stdout=(folder / f"{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(timeout=270) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    logs = "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(world))
    assert codes == [0] * world, logs
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def agree(got, expected, prefixes=("param.", "grad.", "mto.", "weights")):
    for name in expected:
        if name.startswith(prefixes) and "pending_images" not in name:
            torch.testing.assert_close(
                got[name], expected[name], msg=lambda text, name=name: f"{name}: {text}"
            )


def single(config, micro=1):
    config = dataclasses.replace(config, backend="dense")
    return worker.train(worker.Model(), lambda model: model, config, micro=micro)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", ["fixed", "checkpointing", "compiled"])
def test_ddp_trains_like_one_process_with_the_whole_batch(ddp, case):
    expected = single(worker.WEIGHTS)
    for rank in ddp:
        agree(rank[case], expected)


def test_balance_is_identical_on_all_ranks_and_that_of_one_process(ddp):
    expected = single(worker.BALANCED)
    assert (expected["weights"] > 0).all()
    for name, value in ddp[0]["balanced"].items():
        if name.startswith("mto."):
            assert torch.equal(value, ddp[1]["balanced"][name])
    for rank in ddp:
        agree(rank["balanced"], expected)


@pytest.mark.parametrize("config", [worker.WEIGHTS, worker.BALANCED], ids=["fixed", "balanced"])
def test_micro_batches_train_like_the_whole_batch(config):
    agree(single(config, micro=4), single(config))


def test_deepspeed_zero_1_and_2_train_like_one_process(tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed", exc_type=ImportError)
    expected = single(worker.WEIGHTS)
    for rank in launch("zero", tmp_path):
        for stage in ("stage 1", "stage 2"):
            agree(rank[stage], expected, ("param.",))
