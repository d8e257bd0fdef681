"""Two gloo processes against one process over the whole batch, MTO on.

The ranks use the recompute backend, the one process the dense one.
"""

import dataclasses

import pytest
import torch

from . import distributed_worker as worker


def agree(got, expected, prefixes=("param.", "grad.", "mto.", "weights")):
    for name in expected:
        if name.startswith(prefixes) and "pending_images" not in name:
            torch.testing.assert_close(
                got[name], expected[name], msg=lambda text, name=name: f"{name}: {text}"
            )


def single(config, micro=1):
    config = dataclasses.replace(config, backend="dense")
    return worker.train(worker.Model(), lambda model: model, config, micro=micro)


def results(case, folder, run_ranks):
    """Of both ranks."""
    run_ranks(folder, [[worker.__file__, case, rank, 2, folder] for rank in range(2)])
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory, run_ranks):
    return results("ddp", tmp_path_factory.mktemp("ddp"), run_ranks)


@pytest.mark.parametrize("case", ["fixed", "checkpointing", "compiled"])
def test_ddp_trains_like_one_process_with_the_whole_batch(ddp, case):
    expected = single(worker.WEIGHTS)
    for rank in ddp:
        agree(rank[case], expected)


@pytest.mark.parametrize(
    ("case", "config"), [("balanced", worker.BALANCED), ("calibrated", worker.CALIBRATED)]
)
def test_measured_weights_are_identical_on_all_ranks_and_those_of_one_process(ddp, case, config):
    expected = single(config)
    assert (expected["weights"] > 0).all()
    for name, value in ddp[0][case].items():
        if name.startswith("mto."):
            assert torch.equal(value, ddp[1][case][name])
    for rank in ddp:
        agree(rank[case], expected)


@pytest.mark.parametrize(
    "config",
    [worker.WEIGHTS, worker.BALANCED, worker.CALIBRATED],
    ids=["fixed", "balanced", "calibrated"],
)
def test_micro_batches_train_like_the_whole_batch(config):
    agree(single(config, micro=4), single(config))


def test_deepspeed_zero_1_and_2_train_like_one_process(tmp_path, run_ranks):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed", exc_type=ImportError)
    expected = single(worker.WEIGHTS)
    for rank in results("zero", tmp_path, run_ranks):
        for stage in ("stage 1", "stage 2"):
            agree(rank[stage], expected, ("param.",))
