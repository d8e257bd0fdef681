"""SimMIM's way to the MTO options: a yacs node of defaults, options laid over it, `attach`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mto_tools import recipe as mto

CfgNode = pytest.importorskip("yacs.config").CfgNode


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x.pow(2).mean()


@pytest.fixture
def config():
    node = CfgNode({"TRAIN": {"EPOCHS": 1}})
    node.MTO = type(node)(mto.defaults("simmim"))
    yield node
    mto.attach(Tiny(), [], settings={})  # off again: the glue is the module's own state


def run(config, options: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    config.merge_from_list(options)
    config.freeze()
    torch.manual_seed(0)
    model = Tiny().train()
    mto.attach(model, model.blocks, settings=config.pop("MTO"))
    loss = model(torch.randn(2, 6, 4))
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]]).repeat(2, 1, 1)
    return loss, mto.add(loss, mask, step=1)


def test_off_is_the_identity_and_the_node_is_gone(config) -> None:
    loss, total = run(config, [])
    assert total is loss
    assert mto.log() == {}
    assert list(config) == ["TRAIN"]


def test_options_reach_the_terms(config) -> None:
    loss, total = run(config, ["MTO.ON", "True", "MTO.SPARSITY", "0.5", "MTO.SINGULARITY", "0"])
    terms = mto.log()
    assert total.item() == pytest.approx(loss.item() + 0.5 * terms["mto_sparsity"])
    assert terms["mto_sparsity"] > 0


def test_a_misspelt_option_is_refused(config) -> None:
    with pytest.raises(AssertionError, match=r"MTO\.SPARSTIY|Non-existent key"):
        config.merge_from_list(["MTO.SPARSTIY", "0.5"])
