"""The glue in one process: flags, identity when off, what is added and written when on."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mto_core import MTOConfig, heterogeneity, ranking_loss, singularity_loss, sparsity_loss
from mto_core.trace import TraceError
from mto_tools import recipe
from mto_tools.recipe.settings import resolve_settings

from .conftest import Tiny, batch, begin, flags, lines


def test_flags_stay_out_of_the_namespace() -> None:
    args = flags("--lr", "2", "--mto", "--mto_sparsity", "0.5", "--mto_affinity_steps", "1,9")
    assert vars(args) == {"lr": 2.0}
    found = resolve_settings(None, None)
    assert found.on
    assert found.affinity_steps == (1, 9)
    assert found.config() == MTOConfig.preset("mae", sparsity=0.5)


def test_off_is_the_identity(tmp_path: Path) -> None:
    model, x, mask = begin(folder=tmp_path)
    loss = model(x, mask)
    assert recipe.add(loss, mask) is loss
    assert recipe.log() == {}
    assert list(tmp_path.iterdir()) == []
    assert not model._forward_pre_hooks
    assert not any(block._forward_hooks for block in model.blocks)


def test_what_is_added_and_logged_is_mto_core_by_hand(tmp_path: Path) -> None:
    weights = {"sparsity": 0.5, "singularity": 2.0, "ranking": 0.25}
    given = {"preset": "literal", **weights}
    options = (f"--mto_{name}={value}" for name, value in given.items())
    model, x, mask = begin("--mto", *options, folder=tmp_path)
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    loss = model(x, mask)
    total = recipe.add(loss, mask.float().reshape(4, 2, 3), step=1)

    tokens = [seen[0]]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    h = torch.stack([heterogeneity(t[:, 1:], mask) for t in tokens])
    terms = {
        "sparsity": sparsity_loss(tokens[0][:, 1:], mask).mean(),
        "singularity": singularity_loss(h[0], eps=MTOConfig().eps).mean(),
        "ranking": ranking_loss(h).mean(),
    }
    extra = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    torch.testing.assert_close(total, loss + extra)
    record = lines(tmp_path)[0]
    for name, value in terms.items():
        assert record[name] == pytest.approx(value.item(), rel=1e-5)
        assert recipe.log()[f"mto_{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert record["loss"] == recipe.log()["mto_loss"] == loss.item()
    assert record["total"] == pytest.approx(extra.item(), rel=1e-5)
    assert record["heterogeneity"] == pytest.approx(h.mean(1).tolist(), rel=1e-5)
    assert record["weights"] == weights
    grad = torch.autograd.grad(total, model.mask_token, retain_graph=True)[0]
    assert not torch.equal(grad, torch.autograd.grad(loss, model.mask_token)[0])


def test_observing_leaves_the_loss_alone_but_writes(tmp_path: Path) -> None:
    options = ("--mto_preset=observe", "--mto_grad_every=1", "--mto_affinity_steps=1")
    model, x, mask = begin("--mto", *options, folder=tmp_path)
    loss = model(x, mask)
    assert recipe.add(loss, mask, step=1) is loss
    record = lines(tmp_path)[0]
    assert record["total"] == 0
    assert set(record["grad_ratio"]) == {"sparsity", "singularity", "ranking"}
    saved = np.load(tmp_path / "mto-affinity-000001.npz")
    assert saved["affinity"].shape == (3, 6, 6)
    assert saved["num_masked"] == mask[0].sum()
    loss.backward()


def test_two_block_lists_are_averaged() -> None:
    x, mask = batch()
    found = {}
    for name in ("blocks", "more", "both"):
        flags("--mto")
        model = Tiny()
        lists = [model.blocks, model.more] if name == "both" else [getattr(model, name)]
        recipe.attach(model, *lists, num_prefix_tokens=1)
        loss = model(x, mask)
        found[name] = recipe.add(loss, mask, step=1) - loss
    torch.testing.assert_close(found["both"], (found["blocks"] + found["more"]) / 2)


def test_only_training_forwards_arm() -> None:
    model, x, mask = begin("--mto")
    copied = copy.deepcopy(model)
    model.eval()
    for forward in (copied, model):
        with pytest.raises(TraceError):
            recipe.add(forward(x, mask), mask, step=1)
    model.train()
    with torch.no_grad(), pytest.raises(TraceError):
        recipe.add(model(x, mask), mask, step=1)
    recipe.add(model(x, mask), mask, step=1)


@pytest.mark.parametrize("preset", ["observe", "mae"])
def test_tokens_of_an_earlier_forward_are_refused(preset: str) -> None:
    """A forward before training, then one whose tokens were not recorded."""
    model, x, mask = begin("--mto", "--mto_preset", preset)
    model(x, mask)
    loss = model.forward(x, mask.flip(0))  # passes by the hook that arms
    with pytest.raises(TraceError):
        recipe.add(loss, mask.flip(0), step=1)


@pytest.mark.parametrize("shape", [[], [1], [1, 1]])
def test_a_loss_of_one_number_keeps_its_shape(shape: list[int], tmp_path: Path) -> None:
    """BootMAE without its feature loss has a loss of shape [1]."""
    options = ("--mto_balance", "0.1", "--mto_grad_every", "1")
    model, x, mask = begin("--mto", *options, folder=tmp_path)
    total = recipe.add(model(x, mask).reshape(shape), mask, step=10)
    assert list(total.shape) == shape
    total.backward()
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("form", [Tensor.tolist, Tensor.numpy, lambda _: None])
def test_a_mask_is_a_tensor(form: Callable[[Tensor], Any]) -> None:
    model, x, mask = begin("--mto")
    with pytest.raises(TypeError, match="mask must be bool .* pass"):
        recipe.add(model(x, mask), form(mask), step=1)


def test_a_loss_is_one_number_with_its_graph() -> None:
    model, x, mask = begin("--mto")
    wrong: Any = 1.0
    with pytest.raises(TypeError, match="loss must be a tensor"):
        recipe.add(wrong, mask, step=1)
    with pytest.raises(ValueError, match=r"scalar, got shape \[4\]"):
        recipe.add(model(x, mask).expand(4), mask, step=1)


def test_between_logged_steps_the_log_keeps_the_newest_measured_values() -> None:
    model, x, mask = begin("--mto", "--mto_preset", "simmim", "--mto_log_every", "3")
    found = []
    for step in range(1, 4):
        recipe.add(model(x * step, mask), mask, step=step)
        found.append(recipe.log())
    assert not any(math.isnan(value) for record in found for value in record.values())
    assert found[1]["mto_h02"] == found[0]["mto_h02"] != found[2]["mto_h02"]
    assert found[1]["mto_loss"] != found[0]["mto_loss"]


def test_a_log_of_new_values_has_those_that_the_step_measured() -> None:
    model, x, mask = begin("--mto", "--mto_preset", "simmim", "--mto_log_every", "3")
    found = []
    for step in range(1, 4):
        recipe.add(model(x * step, mask), mask, step=step)
        found.append(recipe.log(new=True))
        assert found[-1] == recipe.log(new=True)  # reading changes nothing
        assert found[-1].items() <= recipe.log().items()
    assert set(found[1]) == {"mto_loss", "mto_sparsity", "mto_total"}
    assert set(found[0]) == set(found[2]) == set(recipe.log()) > set(found[1])


def test_settings_of_a_yacs_node() -> None:
    model = Tiny()
    recipe.attach(
        *(model, model.blocks), num_prefix_tokens=1, preset="simmim", settings={"ON": True}
    )
    x, mask = batch()
    loss = model(x, mask)
    added = recipe.add(loss, mask, step=1) - loss
    assert added.item() == pytest.approx(0.1 * recipe.log()["mto_sparsity"], rel=1e-5)
    with pytest.raises(ValueError, match="unknown MTO setting 'weight'; known: on, "):
        recipe.attach(model, model.blocks, settings={"WEIGHT": 1})


def test_an_unknown_preset_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        flags("--mto", "--mto_preset", "swin")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("'swin'", "mae", "simmim"))


@pytest.mark.parametrize(
    ("name", "value"), [("log_every", 0), ("log_every", -3), ("grad_every", -1)]
)
def test_periods_that_cannot_be_are_refused_at_the_start(
    name: str, value: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        flags("--mto", f"--mto_{name}", str(value))
    words = f"{name} must be at least .*, got {value}"
    assert re.search(words, capsys.readouterr().err)
    with pytest.raises(ValueError, match=words):
        resolve_settings(None, {"ON": True, name.upper(): value})


EARLY = """
import sys
import torch.distributed as dist
from mto_tools import recipe
from mto_tools.errors import RefusedError
from tests.recipe.conftest import begin

rank, store = int(sys.argv[1]), sys.argv[2]
model, x, mask = begin("--mto")
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
loss = model(x, mask)
try:
    recipe.add(loss, mask)
except RefusedError as error:
    assert "init_process_group" in error.hint
else:
    raise SystemExit("not refused")
recipe.attach(model, model.blocks, num_prefix_tokens=1)
recipe.add(model(x, mask), mask).backward()
dist.destroy_process_group()
"""


def test_attached_before_the_process_group_is_refused(
    tmp_path: Path, run_ranks: Callable[..., None]
) -> None:
    run_ranks(tmp_path, [["-c", EARLY, rank, tmp_path / "store"] for rank in range(2)])
