"""`apex.amp` by torch: scaled and unscaled training agree, overflow skips a step, states travel."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from torch import nn

from mto_tools.compat import apex


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> torch.amp.GradScaler:
    """A real GradScaler: torch's works on the CPU too."""
    made = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(apex, "loss_scaler", made)
    return made


def train(model: nn.Module, batches: torch.Tensor, micro: int) -> list[float]:
    """The shape of SimMIM's loop: divide, backward, clip after every micro batch, step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    norms = []
    for place, batch in enumerate(batches):
        with apex.scale_loss(model(batch).pow(2).mean() / micro, optimizer) as loss:
            loss.backward()
        parameters = list(apex.master_params(optimizer))
        norms.append(nn.utils.clip_grad_norm_(parameters, 0.5).item())
        if (place + 1) % micro == 0:
            optimizer.step()
            optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("micro", [1, 3])
def test_scaling_changes_nothing_under_accumulation_and_clipping(
    scaler, monkeypatch, micro: int
) -> None:
    model = nn.Linear(4, 2)
    plain = copy.deepcopy(model)
    batches = torch.randn(6, 5, 4)
    # The scale is a power of two, so nothing rounds differently.
    scaled = train(model, batches, micro)
    monkeypatch.setattr(apex, "loss_scaler", torch.amp.GradScaler("cpu", enabled=False))
    assert scaled == train(plain, batches, micro)
    assert torch.equal(model.weight, plain.weight)


@pytest.mark.parametrize("factors", [(torch.inf,), (torch.inf, 1.0), (1.0, torch.inf)])
def test_overflow_in_a_micro_batch_skips_one_step_and_halves_the_scale(scaler, factors) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step(*factors: float) -> torch.Tensor:
        optimizer.zero_grad()
        for factor in factors:
            with apex.scale_loss(model(torch.ones(1, 1)).sum() * factor, optimizer) as loss:
                loss.backward()
        optimizer.step()
        return model.weight.detach().clone()

    before = model.weight.detach().clone()
    with pytest.warns(UserWarning, match="overflow"):
        assert torch.equal(step(*factors), before)
    assert scaler.get_scale() == 512
    assert not torch.equal(step(1.0), before)


def test_state_has_the_layout_of_apex_and_comes_back(scaler) -> None:
    state = {"loss_scaler0": {"loss_scale": 32768.0, "unskipped": 17}}
    apex.load_state_dict(state)
    assert scaler.get_scale() == 32768.0
    assert apex.state_dict() == state


def test_half_inside_float_outside(scaler) -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.inside = y.dtype
            return y

    model = Model(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keys = list(model.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as `mto run --cpu --precision bfloat16`
        assert apex.initialize(model, optimizer, opt_level="O1") == (model, optimizer)
    y = model(torch.ones(1, 2))
    assert (model.inside, y.dtype) == (torch.bfloat16, torch.float32)
    assert model.weight.dtype == torch.float32
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_levels_with_half_precision_weights_are_refused(level: str) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="use O1"):
        apex.initialize(model, torch.optim.SGD(model.parameters()), opt_level=level)


def test_installed_only_where_apex_is_not() -> None:
    if importlib.util.find_spec("apex"):
        pytest.skip("a package called apex is installed")
    try:
        apex.amp()
        from apex import amp

        assert amp.scale_loss is apex.scale_loss
        apex.amp()
        assert sys.modules["apex.amp"] is amp
    finally:
        sys.modules.pop("apex", None)
        sys.modules.pop("apex.amp", None)
