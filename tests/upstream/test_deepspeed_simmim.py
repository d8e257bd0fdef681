"""SimMIM on DeepSpeed: what test_deepspeed.py cannot ask of every recipe."""

from __future__ import annotations

import re

import pytest

from mto_tools.errors import MtoError
from mto_tools.launch.small import Run

from .conftest import Runs
from .unclipped import Unclipped, same, same_but_for_rounding

RECIPE = "simmim"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Swin is asked the first question only."""
    swin = ["simmim_swin"] * (metafunc.function is test_every_bit_is_ddps_where_nothing_is_clipped)
    metafunc.parametrize("runs", ["simmim", *swin], indirect=True, scope="module")


@pytest.fixture(scope="module")
def unclipped(runs: Runs) -> Unclipped:
    return Unclipped(runs)


def logged(runs: Runs, run: Run) -> str:
    return (runs.log_file(run.out).parent / "log_rank0.txt").read_text()


def test_every_bit_is_ddps_where_nothing_is_clipped(runs: Runs, unclipped: Unclipped) -> None:
    run, base = unclipped.both()
    assert len(run.losses) == 8
    same(unclipped, run, base)
    ours, theirs = unclipped.saved(run), unclipped.saved(base)
    assert ours["amp"] == theirs["amp"]
    assert ours["lr_scheduler"] == theirs["lr_scheduler"]
    assert ours["config"].keys() == theirs["config"].keys()
    assert not {"MTO", "DEEPSPEED"} & set(ours["config"])
    norms = [
        [float(x) for x in re.findall(r"grad_norm (\S+) \(", logged(runs, r))] for r in (run, base)
    ]
    assert len(norms[0]) == 8
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_checkpoints_go_on_exactly_in_both_directions(unclipped: Unclipped) -> None:
    for run in unclipped.resumed():
        assert len(run.losses) == 4
        same(unclipped, run, unclipped.both()[1])


def test_accumulation_of_the_recipe(unclipped: Unclipped) -> None:
    """Where it clips, upstream does so after every micro batch, DeepSpeed once per step."""
    flags = (*unclipped.flags, "TRAIN.ACCUMULATION_STEPS", "2")
    base = unclipped.run("ddp-accum", mto=True, arguments=flags)
    run = unclipped.run("zero-accum", mto=True, stage=1, accumulation=2, arguments=flags)
    same_but_for_rounding(unclipped, run, base)


def test_a_run_without_amp_is_refused(runs: Runs, unclipped: Unclipped) -> None:
    """Its backward would not be DeepSpeed's."""
    given = [*unclipped.flags, *unclipped.config(1, 1), "--amp-opt-level=O0"]
    with pytest.raises(MtoError):
        runs.with_processes(2).pretrain("o0", runs.patched, given)
    log = (runs.runner.work / "o0.log").read_text()
    assert "DeepSpeed needs the recipe's loss scaler" in log
    assert "--amp-opt-level" in log
