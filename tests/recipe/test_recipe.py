"""The glue in one process: flags, identity when off, what is added and written when on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mto_core import MTOConfig, heterogeneity, ranking_loss, singularity_loss, sparsity_loss
from mto_tools import recipe
from mto_tools.recipe.settings import settle

from .conftest import Tiny, batch, flags


def test_flags_stay_out_of_the_namespace() -> None:
    args = flags("--lr", "2", "--mto", "--mto_sparsity", "0.5", "--mto_affinity_steps", "1,9")
    assert vars(args) == {"lr": 2.0}
    assert settle(None, None).on
    assert settle(None, None).affinity_steps == (1, 9)
    assert settle(None, None).config() == MTOConfig.preset("mae", sparsity=0.5)


def test_off_is_the_identity(tmp_path: Path) -> None:
    flags("--mto_sparsity", "5")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
    loss = model(x, mask)
    assert recipe.add(loss, mask) is loss
    assert recipe.log() == {}
    assert list(tmp_path.iterdir()) == []
    assert not model._forward_pre_hooks
    assert not any(block._forward_hooks for block in model.blocks)


def test_what_is_added_and_logged_is_mto_core_by_hand(tmp_path: Path) -> None:
    flags("--mto", "--mto_sparsity", "0.5", "--mto_singularity", "2", "--mto_ranking", "0.25")
    model = Tiny()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    recipe.attach(model, [*model.blocks], num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
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
    extra = 0.5 * terms["sparsity"] + 2 * terms["singularity"] + 0.25 * terms["ranking"]
    torch.testing.assert_close(total, loss + extra)
    record = json.loads((tmp_path / "mto.jsonl").read_text())
    for name, value in terms.items():
        assert record[name] == pytest.approx(value.item(), rel=1e-5)
        assert recipe.log()[f"mto_{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert record["loss"] == recipe.log()["mto_loss"] == loss.item()
    assert record["total"] == pytest.approx(extra.item(), rel=1e-5)
    assert record["heterogeneity"] == pytest.approx(h.mean(1).tolist(), rel=1e-5)
    assert record["weights"] == {"sparsity": 0.5, "singularity": 2.0, "ranking": 0.25}
    grad = torch.autograd.grad(total, model.mask_token, retain_graph=True)[0]
    assert not torch.equal(grad, torch.autograd.grad(loss, model.mask_token)[0])


def test_observing_leaves_the_loss_alone_but_writes(tmp_path: Path) -> None:
    flags("--mto", "--mto_preset", "observe", "--mto_grad_every", "1", "--mto_affinity_steps", "1")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
    loss = model(x, mask)
    assert recipe.add(loss, mask, step=1) is loss
    record = json.loads((tmp_path / "mto.jsonl").read_text())
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
    flags("--mto")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1)
    x, mask = batch()
    copied = copy.deepcopy(model)
    assert recipe._run is not None
    trace = recipe._run.traces[0]
    with torch.no_grad():
        model(x, mask)
    model.eval()
    model(x, mask)
    copied(x, mask)
    assert not trace.armed
    model.train()
    model(x, mask)
    assert trace.armed


def test_settings_of_a_yacs_node() -> None:
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, preset="simmim", settings={"ON": True})
    assert recipe._run is not None
    assert recipe._run.config == MTOConfig.preset("simmim")
    with pytest.raises(ValueError, match="unknown MTO setting 'weight'; known: on, "):
        recipe.attach(model, model.blocks, settings={"WEIGHT": 1})


def test_an_unknown_preset_names_the_known_ones() -> None:
    flags("--mto", "--mto_preset", "swin")
    with pytest.raises(ValueError, match="unknown preset 'swin'.*mae.*simmim"):
        recipe.attach(Tiny(), Tiny().blocks)


@pytest.mark.parametrize(
    ("name", "value"), [("log_every", 0), ("log_every", -3), ("grad_every", -1)]
)
def test_periods_that_cannot_be_are_refused_at_the_start(
    name: str, value: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        flags("--mto", f"--mto_{name}", str(value))
    words = f"MTO setting {name} must be at least {int(name == 'log_every')}, got {value}"
    assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match=words):
        settle(None, {"ON": True, name.upper(): value})
