"""A toy recipe on DeepSpeed against the same recipe under DDP, on two gloo processes.

Equal bit for bit where the sums are the same sums. Where they are not, the reason is one of:

- accumulation: DDP averages over ranks, then adds micro batches; ZeRO adds first;
- clipping: torch divides by norm + 1e-6 and multiplies, ZeRO adds 1e-6 after dividing by the scale;
- the norm itself: torch takes it of norms by tensor, ZeRO of norms by shard.

The bounds below are a few units in the last place of float32.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

from .worker import ALIKE, Model

WORKER = Path(__file__).with_name("worker.py")
CASES = [*ALIKE, "styles", "resumed", "elsewhere"]
ULPS = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("ds")
    run_ranks(folder, [[WORKER, rank, 2, folder, *CASES] for rank in range(2)])
    (folder / "one").mkdir()
    run_ranks(folder / "one", [[WORKER, 0, 1, folder, "on_other_ranks"]])
    return folder


def runs(folder: Path, case: str, rank: int = 0) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = torch.load(folder / f"{case}-{rank}.pt", weights_only=False)
    return found


def agree(run: dict[str, Any], base: dict[str, Any], bound: float = 0.0) -> None:
    """Losses, weights and the optimizer's state are equal, the state in format too."""
    close = {"rtol": bound, "atol": bound}
    last = len(run["losses"])
    expected = torch.tensor(base["losses"][-last:])
    torch.testing.assert_close(torch.tensor(run["losses"]), expected, **close)
    assert run["model"].keys() == base["model"].keys()
    assert run["names"] == base["names"]
    for name, value in base["model"].items():
        torch.testing.assert_close(run["model"][name], value, **close)
    ours, theirs = run["optimizer"], base["optimizer"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert list(ours["state"]) == list(theirs["state"])
    for index, entry in theirs["state"].items():
        assert list(ours["state"][index]) == list(entry)
        for key, value in entry.items():
            torch.testing.assert_close(ours["state"][index][key], value, **close)
    norms = [norm for norm in base["norms"] if math.isfinite(norm)][-len(run["norms"]) :]
    found = [norm for norm in run["norms"] if math.isfinite(norm)]
    torch.testing.assert_close(found, norms, rtol=ULPS, atol=0)
    assert run["scales"] == base["scales"][-len(run["scales"]) :]


@pytest.mark.parametrize("case", [case for case in ALIKE if case != "scaled"])
def test_as_ddp_in_every_bit_but_for_the_order_of_sums(folder: Path, case: str) -> None:
    found = runs(folder, case)
    base = found.pop("ddp")
    for run in found.values():
        agree(run, base, bound=0 if case in ("plain", "bfloat16") else ULPS)


@pytest.mark.parametrize("case", ["clipped", "bfloat16"])
def test_clipping_and_autocast_reach_the_run(folder: Path, case: str) -> None:
    assert runs(folder, case)["stage 1"]["losses"] != runs(folder, "plain")["stage 1"]["losses"]
    assert min(runs(folder, "clipped")["ddp"]["norms"]) > 0.1, "every step is clipped"


def test_overflow_on_one_rank_skips_the_step_on_all(folder: Path) -> None:
    for rank in range(2):
        found = runs(folder, "scaled", rank)
        base = found["ddp"]
        assert base["scales"] == [65536.0] * 2 + [32768.0] * 3
        for name in ("stage 1", "stage 2"):
            assert found[name]["scales"] == base["scales"]
            assert not math.isfinite(found[name]["norms"][2])
            assert found[name]["scaler"] == base["scaler"]
            for key, value in base["model"].items():
                torch.testing.assert_close(found[name]["model"][key], value, rtol=ULPS, atol=ULPS)
    agree(runs(folder, "scaled")["stage 1"], runs(folder, "scaled")["ddp"], bound=ULPS)


@pytest.mark.parametrize("style", ["torch", "apex"])
def test_scalers_of_the_other_recipes(folder: Path, style: str) -> None:
    found = runs(folder, "styles")
    agree(found[f"{style} 1"], found[f"{style} 0"], bound=ULPS)


@pytest.mark.parametrize(
    "run", ["ddp to zero", "ddp to zero 2", "zero to ddp", "zero to zero", "loaded before"]
)
def test_checkpoints_go_on_exactly_in_both_directions(folder: Path, run: str) -> None:
    found = runs(folder, "resumed")
    agree(found[run], found["whole"])


def test_a_checkpoint_of_two_ranks_goes_on_on_one(folder: Path) -> None:
    found = runs(folder, "on_other_ranks")
    agree(found["zero"], found["ddp"])


def test_weights_without_gradient_stay_as_they_are(folder: Path) -> None:
    found = runs(folder, "plain")["stage 1"]
    assert len(found["optimizer"]["state"]) == 10, "two of twelve have no state, as in torch"
    torch.manual_seed(0)
    expected = Model().unused
    assert torch.equal(found["model"]["unused.weight"], expected.weight)
    assert torch.equal(found["model"]["unused.bias"], expected.bias)


def test_all_tensors_lie_where_the_model_does(folder: Path) -> None:
    found = runs(folder, "elsewhere")
    agree(found["elsewhere"], found["here"])


def test_the_log_of_rank_0_says_that_deepspeed_is_on(folder: Path) -> None:
    first, second = ((folder / f"{rank}.log").read_text() for rank in range(2))
    assert "ZeRO 2, 4 images x 3 micro batches x 2 processes = 24" in first
    assert "ZeRO 2, 4 images" not in second


def test_only_rank_0_holds_the_state(folder: Path) -> None:
    assert runs(folder, "plain", 1)["stage 1"]["optimizer"]["state"] == {}
