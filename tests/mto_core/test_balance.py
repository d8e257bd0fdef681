import numpy as np
import pytest
import torch
from torch import nn

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace, ranking_loss
from mto_core import heterogeneity as heterogeneity_of
from mto_core.balance import GradientBalance, GradientCalibration, gradient_norm

from .distributed_worker import Model

WEIGHTS = {"sparsity": 0.2, "singularity": 3.0, "ranking": 0.5}
BALANCED = MTOConfig(**WEIGHTS, balance=0.1, balance_every=2, balance_decay=0.5)
RANKING = MTOConfig(ranking=1, balance=0.5, balance_every=1)

torch.manual_seed(1)
IMAGES = torch.randn(4, 13, 4)
MASK = torch.rand(4, 12) < 0.6


class Trained:
    """A fresh model with MTO."""

    def __init__(self, config=BALANCED, how="plain"):
        self.model = self.run = Model(how)
        self.trace = TokenTrace(self.model.blocks, 1)
        self.mto = MaskedTokenOptimization(config)

    def forward(self, images=IMAGES):
        with self.trace:
            return self.run(images)

    def step(self, step, images=IMAGES):
        loss = self.forward(images)
        return loss, self.mto(self.trace.tokens_by_depth, MASK, step=step, loss=loss)

    def weights(self, steps, scaled=False):
        """Those of the last step; `scaled` images grow with the step."""
        for step in steps:
            loss, terms = self.step(step, IMAGES * (1 + step) if scaled else IMAGES)
            (loss + terms.total).backward()
        return [float(weight) for weight in terms.weights.values()]

    def ratios(self, loss):
        return self.mto.grad_ratios(self.trace.tokens_by_depth, MASK, loss=loss)


def norms_by_hand(images=IMAGES):
    """Gradient norms of the loss and the three terms at the first block's input, no trace."""
    model = Model()
    source = model.embed(images)
    tokens = [source]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    h = torch.stack([heterogeneity_of(t[:, 1:], MASK) for t in tokens])
    p = (tokens[0][:, 1:] @ tokens[0][:, 1:].mT).log_softmax(-1)
    rows = -(p.exp() * p).sum(-1)
    values = [
        (model.head(tokens[-1]) - images).square().mean(),
        ((rows * ~MASK).sum(1) / (~MASK).sum(1)).mean(),
        (1 / (h[0] + 1e-2)).mean(),
        ranking_loss(h).mean(),
    ]
    return [torch.autograd.grad(v, source, retain_graph=True)[0].norm().item() for v in values]


def test_grad_ratios_are_those_of_autograd_and_leave_no_trace():
    trained = Trained(MTOConfig())  # no weights: the diagnostic does not need them
    loss, _ = trained.step(0)
    ratios = trained.ratios(loss)
    own, *terms = norms_by_hand()
    assert list(ratios) == ["sparsity", "singularity", "ranking"]
    assert list(ratios.values()) == pytest.approx([t / own for t in terms], rel=1e-4)
    assert all(p.grad is None for p in trained.model.parameters())
    loss.backward()  # the graph is still there


def test_weights_hold_each_ratio_from_the_second_step():
    trained = Trained()
    assert trained.weights([0]) == [0, 0, 0]
    _, second = trained.step(1)
    own, *terms = norms_by_hand()
    pulls = [float(w) * t for w, t in zip(second.weights.values(), terms, strict=True)]
    assert pulls == pytest.approx([0.1 * own] * 3, rel=1e-4)
    values = torch.stack([second.sparsity, second.singularity, second.ranking])
    weights = torch.stack(list(second.weights.values()))
    torch.testing.assert_close(second.total, values @ weights)
    assert not weights.requires_grad


def test_the_estimate_is_a_running_mean_over_measured_steps_only():
    measured = (0, 1, 2, 4)  # multiples of 2, and powers of two before
    squares = [[(4 * n) ** 2 / 4 for n in norms_by_hand(IMAGES * (1 + step))] for step in measured]
    # decay 0.5 over these steps, from 0; that bias cancels in the ratio
    shares = [0.0625, 0.125, 0.25, 0.5]
    mean = [
        sum(w * x for w, x in zip(shares, each, strict=True)) for each in zip(*squares, strict=True)
    ]
    expected = [0.1 * (mean[0] / m) ** 0.5 for m in mean[1:]]
    assert Trained().weights(range(6), scaled=True) == pytest.approx(expected, rel=1e-4)


def test_terms_without_weight_take_no_part():
    trained = Trained(MTOConfig(singularity=1.0, balance=0.5, balance_every=1))
    trained.step(0)
    _, terms = trained.step(1)
    assert terms.weights["sparsity"] == terms.weights["ranking"] == 0.0
    torch.testing.assert_close(terms.total, terms.weights["singularity"] * terms.singularity)
    assert not terms.ranking.requires_grad
    assert not MaskedTokenOptimization(MTOConfig(balance=0.5)).state_dict()


def test_a_saved_state_resumes_the_same_weights():
    half, resumed = Trained(), Trained()
    half.weights(range(5), scaled=True)  # step 4 was measured, and is not taken in yet
    resumed.mto.load_state_dict(half.mto.state_dict())
    assert resumed.weights(range(5, 8), scaled=True) == Trained().weights(range(8), scaled=True)


def test_terms_may_change_between_save_and_load():
    def balanced(**weights):
        return Trained(MTOConfig(**weights, balance=0.1, balance_every=2))

    saved, resumed = balanced(sparsity=1, singularity=1), balanced(singularity=1, ranking=1)
    saved.weights(range(4))
    resumed.mto.load_state_dict(saved.mto.state_dict())
    _, singularity, ranking = balanced(**WEIGHTS).weights(range(4))
    assert resumed.weights([4]) == pytest.approx([0, singularity, 0], rel=1e-4)
    # same images and model at each step: one is enough
    assert resumed.weights([5]) == pytest.approx([0, singularity, ranking], rel=1e-4)


def test_half_precision_of_the_model_leaves_the_norms_alone():
    source = torch.full((2, 3), 1e-4, requires_grad=True)
    balance = GradientBalance(RANKING)
    nn.ModuleList([balance]).half()
    balance.measure(0, (source * 1e-4).sum(), {"ranking": (source * 2e-4).sum()}, source)
    balance.begin(1, source.sum())
    assert balance.weights()["ranking"].item() == pytest.approx(0.25)


def test_warmup_and_limit_apply_to_balanced_weights():
    limits = {"balance": 1e6, "balance_every": 1, "balance_limit": 7.0, "warmup_steps": 4}
    trained = Trained(MTOConfig(**WEIGHTS, **limits))
    for step, weight in [(0, 0.0), (1, 1.75), (2, 3.5), (4, 7.0), (5, 7.0)]:
        assert trained.weights([step]) == [weight] * 3


def test_evaluation_measures_nothing_and_needs_neither_step_nor_loss():
    trained = Trained()
    trained.weights(range(2))
    state = {name: value.clone() for name, value in trained.mto.state_dict().items()}
    trained.trace.require_grad = False
    with torch.no_grad():
        trained.forward()
        trained.mto(trained.trace.tokens_by_depth, MASK)
    assert all(torch.equal(value, state[n]) for n, value in trained.mto.state_dict().items())


@pytest.mark.parametrize("size", [1e-9, 1e4])  # 0 in float16, and inf where it is scaled up
def test_a_gradient_that_float16_cannot_hold_is_measured(size):
    source = torch.ones(2, 3, requires_grad=True)
    loss = source.half().sum().float() * size
    assert gradient_norm(loss, source, "loss").item() == pytest.approx(6**0.5 * size, rel=1e-2)


@pytest.mark.parametrize(("pull", "weight"), [(1.0, 1.0), (0.0, 0.0)])
def test_an_overflow_skips_the_measurement_and_no_gradient_gets_no_weight(pull, weight):
    source = torch.ones(2, 3, requires_grad=True)
    balance = GradientBalance(RANKING)
    for step, size in ((0, 2.0), (1, float("inf"))):
        balance.measure(step, source.sum() * size, {"ranking": source.sum() * pull}, source)
        balance.begin(step + 1, source.sum())
        assert balance.weights()["ranking"].item() == pytest.approx(weight)


# calibration

CALIBRATED = MTOConfig(**WEIGHTS, calibrate=0.1, calibrate_steps=30)  # steps 0, 3, …, 27


def test_calibration_keeps_the_ratio_wanted_over_the_median_of_ten_steps():
    trained = Trained(CALIBRATED)
    assert trained.weights(range(28), scaled=True) == [0, 0, 0]
    norms = [norms_by_hand(IMAGES * (1 + step)) for step in range(0, 30, 3)]
    ratios = torch.tensor(norms, dtype=torch.float64)
    expected = [0.1 / float(np.median(ratios[:, i] / ratios[:, 0])) for i in (1, 2, 3)]
    first = trained.weights([28])
    assert first == pytest.approx(expected, rel=1e-4)
    state = {name: value.clone() for name, value in trained.mto.state_dict().items()}
    assert trained.weights(range(29, 60), scaled=True) == first, "set once"
    assert all(torch.equal(value, state[n]) for n, value in trained.mto.state_dict().items())


@pytest.mark.parametrize("cut", [5, 28, 40])
def test_calibration_resumes_from_its_state_at_any_step(cut):
    half, resumed = Trained(CALIBRATED), Trained(CALIBRATED)
    half.weights(range(cut), scaled=True)
    resumed.mto.load_state_dict(half.mto.state_dict())
    whole = Trained(CALIBRATED).weights(range(41), scaled=True)
    assert resumed.weights(range(cut, 41), scaled=True) == whole
    assert all(weight > 0 for weight in whole)


def test_calibration_may_begin_in_the_middle_of_a_run():
    config = MTOConfig(sparsity=1, calibrate=0.1, warmup_steps=2000)
    assert Trained(config).weights(range(1000, 1019)) == [0, 0, 0]
    own, sparsity, *_ = norms_by_hand()
    found = Trained(config).weights(range(1000, 1022))
    assert found[0] == pytest.approx(0.1 * own / sparsity * 1021 / 2000, rel=1e-4)


def test_calibration_leaves_out_overflows_and_a_term_without_gradient():
    source = torch.ones(2, 3, requires_grad=True)
    config = MTOConfig(sparsity=1, ranking=1, calibrate=0.5, calibrate_steps=10, balance_limit=9)
    meter = GradientCalibration(config)
    for step in range(12):
        loss = source.sum() * (float("inf") if step in (2, 5) else 2.0)
        terms = {"sparsity": source.sum() * 0, "ranking": source.sum() * (1 + step % 2)}
        assert meter.due(step)
        assert meter.weights()["ranking"] == 0
        meter.measure(step, loss, terms, source)
        meter.begin(step + 1, loss)
    assert not meter.due(12)
    pulls = [(1 + step % 2) / 2 for step in range(12) if step not in (2, 5)]
    assert meter.weights()["ranking"].item() == pytest.approx(0.5 / np.median(pulls))
    assert meter.weights()["sparsity"] == 0


# refusals


def test_balance_needs_step_and_loss():
    trained = Trained()
    loss = trained.forward()
    for given in ({"loss": loss}, {"step": 3}):
        with pytest.raises(ValueError, match=r"balance=0.1 needs step= .* and loss="):
            trained.mto(trained.trace.tokens_by_depth, MASK, **given)


def test_reentrant_checkpointing_is_refused_and_the_other_gives_the_same_weights():
    for config in (BALANCED, CALIBRATED):
        with pytest.raises(RuntimeError, match=r"use_reentrant=False"):
            Trained(config, how="reentrant").step(0)
    expected = Trained().weights(range(3))
    assert Trained(how="nonreentrant").weights(range(3)) == pytest.approx(expected)


def test_sliced_tokens_and_another_loss_are_refused():
    trained = Trained()
    loss = trained.forward()
    tokens = list(trained.trace.tokens_by_depth)
    with pytest.raises(RuntimeError, match="the loss does not depend on the first block's input"):
        trained.mto(tokens, MASK, step=0, loss=loss)
    with pytest.raises(RuntimeError, match="the loss does not depend on"):
        trained.ratios(loss.detach())


def test_a_whole_compiled_model_is_refused_and_compiled_blocks_are_not():
    trained = Trained()
    trained.run = torch.compile(trained.model, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"block\.compile\(\)"):
        trained.step(0)
    torch._dynamo.reset()
    trained.run = trained.model
    for block in trained.model.blocks:
        block.compile(backend="aot_eager")
    loss, _ = trained.step(0)
    own, *terms = norms_by_hand()
    ratios = list(trained.ratios(loss).values())
    assert ratios == pytest.approx([t / own for t in terms], rel=1e-4)


class Attention(nn.Module):
    """A block with intermediates that a compiled backward keeps for itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        y = torch.sin(self.mix(self.norm(x)))
        return x + torch.sin((y @ y.mT).softmax(-1) @ y).exp()


def test_buffers_that_a_compiled_block_gave_away_are_explained():
    trained = Trained(MTOConfig())
    trained.model.blocks = nn.ModuleList([Attention(), Attention()])
    trained.trace = TokenTrace(trained.model.blocks, 1)
    for block in trained.model.blocks:
        block.compile(backend="aot_eager")
    trained.model(IMAGES).backward()
    loss = trained.forward()
    with pytest.raises(RuntimeError, match="donated_buffer = False"):
        trained.ratios(loss)
