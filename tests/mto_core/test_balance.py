import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace, ranking_loss
from mto_core import heterogeneity as heterogeneity_of
from mto_core.balance import GradientBalance, gradient_norm

WEIGHTS = {"sparsity": 0.2, "singularity": 3.0, "ranking": 0.5}
BALANCED = MTOConfig(**WEIGHTS, balance=0.1, balance_every=2, balance_decay=0.5)
RANKING = MTOConfig(ranking=1, balance=0.5, balance_every=1)


class Model(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        x = self.embed(images)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else self.ckpt(block, x)
        return (self.head(x) - images).square().mean()

    def ckpt(self, block, x):
        return checkpoint(block, x, use_reentrant=self.reentrant)


torch.manual_seed(1)
IMAGES = torch.randn(4, 13, 4)
MASK = torch.rand(4, 12) < 0.6


def forward(model, trace, mto, step, images=IMAGES, mask=MASK):
    with trace:
        loss = model(images)
    return loss, mto(trace.tokens_by_depth, mask, step=step, loss=loss)


def run(mto, steps, scaled=False, reentrant=None):
    """The last forward of some steps of a fresh model."""
    model = Model(reentrant)
    trace = TokenTrace(model.blocks, 1)
    for step in steps:
        loss, terms = forward(model, trace, mto, step, IMAGES * (1 + step if scaled else 1))
    return loss, terms


def norms_by_hand(model, images=IMAGES, mask=MASK):
    """Gradient norms of the loss and the three terms at the first block's input, no trace."""
    source = model.embed(images)
    tokens = [source]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    h = torch.stack([heterogeneity_of(t[:, 1:], mask) for t in tokens])
    p = (tokens[0][:, 1:] @ tokens[0][:, 1:].mT).log_softmax(-1)
    rows = -(p.exp() * p).sum(-1)
    visible = ~mask
    values = [
        (model.head(tokens[-1]) - images).square().mean(),
        ((rows * visible).sum(1) / visible.sum(1)).mean(),
        (1 / (h[0] + 1e-2)).mean(),
        ranking_loss(h).mean(),
    ]
    return [torch.autograd.grad(v, source, retain_graph=True)[0].norm().item() for v in values]


def test_grad_ratios_are_those_of_autograd_and_leave_no_trace():
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    mto = MaskedTokenOptimization(MTOConfig())  # no weights: the diagnostic does not need them
    loss, _ = forward(model, trace, mto, 0)
    ratios = mto.grad_ratios(trace.tokens_by_depth, MASK, loss=loss)
    own, *terms = norms_by_hand(model)
    assert list(ratios) == ["sparsity", "singularity", "ranking"]
    assert list(ratios.values()) == pytest.approx([t / own for t in terms], rel=1e-4)
    assert all(p.grad is None for p in model.parameters())
    loss.backward()  # the graph is still there


def test_weights_hold_each_ratio_from_the_second_step():
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    mto = MaskedTokenOptimization(BALANCED)
    _, first = forward(model, trace, mto, 0)
    assert [float(w) for w in first.weights.values()] == [0, 0, 0]
    _, second = forward(model, trace, mto, 1)
    own, *terms = norms_by_hand(model)
    pulls = [float(w) * t for w, t in zip(second.weights.values(), terms, strict=True)]
    assert pulls == pytest.approx([0.1 * own] * 3, rel=1e-4)
    values = torch.stack([second.sparsity, second.singularity, second.ranking])
    weights = torch.stack(list(second.weights.values()))
    torch.testing.assert_close(second.total, values @ weights)
    assert not any(w.requires_grad for w in second.weights.values())


def test_the_estimate_is_a_running_mean_over_measured_steps_only():
    mto = MaskedTokenOptimization(BALANCED)
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    squares = []
    for step in range(6):
        images = IMAGES * (1 + step)
        if step % 2 == 0:
            squares.append([(n * 4) ** 2 / 4 for n in norms_by_hand(model, images)])
        _, terms = forward(model, trace, mto, step, images)
    # decay 0.5 over steps 0, 2, 4, from 0; that bias cancels in the ratio
    mean = [0.125 * a + 0.25 * b + 0.5 * c for a, b, c in zip(*squares, strict=True)]
    expected = [0.1 * (mean[0] / m) ** 0.5 for m in mean[1:]]
    assert [float(w) for w in terms.weights.values()] == pytest.approx(expected, rel=1e-4)


def test_terms_without_weight_take_no_part():
    mto = MaskedTokenOptimization(MTOConfig(singularity=1.0, balance=0.5, balance_every=1))
    _, terms = run(mto, range(2))
    assert terms.weights["sparsity"] == terms.weights["ranking"] == 0.0
    torch.testing.assert_close(terms.total, terms.weights["singularity"] * terms.singularity)
    assert not terms.ranking.requires_grad
    assert not MaskedTokenOptimization(MTOConfig(balance=0.5)).state_dict()


def test_a_saved_state_resumes_the_same_weights():
    _, whole = run(MaskedTokenOptimization(BALANCED), range(8), scaled=True)
    half, resumed = MaskedTokenOptimization(BALANCED), MaskedTokenOptimization(BALANCED)
    run(half, range(5), scaled=True)  # step 4 was measured, and is not taken in yet
    resumed.load_state_dict(half.state_dict())
    assert run(resumed, range(5, 8), scaled=True)[1].weights == whole.weights


def test_terms_may_change_between_save_and_load():
    def balanced(**weights):
        return MaskedTokenOptimization(MTOConfig(**weights, balance=0.1, balance_every=2))

    saved, resumed = balanced(sparsity=1, singularity=1), balanced(singularity=1, ranking=1)
    run(saved, range(4))
    resumed.load_state_dict(saved.state_dict())
    fresh = run(balanced(**WEIGHTS), range(4))[1].weights
    weights = run(resumed, [4])[1].weights
    assert float(weights["singularity"]) == pytest.approx(float(fresh["singularity"]), rel=1e-4)
    assert float(weights["ranking"]) == 0.0
    weights = run(resumed, [5])[1].weights  # same images and model at each step: one is enough
    for name in ("singularity", "ranking"):
        assert float(weights[name]) == pytest.approx(float(fresh[name]), rel=1e-4)


def test_half_precision_of_the_model_leaves_the_norms_alone():
    source = torch.full((2, 3), 1e-4, requires_grad=True)
    balance = GradientBalance(RANKING)
    nn.ModuleList([balance]).half()
    balance.measure(0, (source * 1e-4).sum(), {"ranking": (source * 2e-4).sum()}, source)
    balance.begin(1, source.sum())
    assert balance.weights()["ranking"].item() == pytest.approx(0.25)


def test_warmup_and_limit_apply_to_balanced_weights():
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    config = MTOConfig(**WEIGHTS, balance=1e6, balance_every=1, balance_limit=7.0, warmup_steps=4)
    mto = MaskedTokenOptimization(config)
    for step, weight in [(0, 0.0), (1, 1.75), (2, 3.5), (4, 7.0), (5, 7.0)]:
        _, terms = forward(model, trace, mto, step)
        assert [float(w) for w in terms.weights.values()] == [weight] * 3


def test_evaluation_measures_nothing_and_needs_neither_step_nor_loss():
    model = Model()
    trace = TokenTrace(model.blocks, 1, require_grad=False)
    mto = MaskedTokenOptimization(BALANCED)
    for step in range(2):
        forward(model, trace, mto, step)
    state = {name: value.clone() for name, value in mto.state_dict().items()}
    with torch.no_grad(), trace:
        model(IMAGES)
    with torch.no_grad():
        mto(trace.tokens_by_depth, MASK)
    assert all(torch.equal(value, state[name]) for name, value in mto.state_dict().items())


# float16


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


# refusals


@pytest.mark.parametrize(("step", "loss"), [(None, True), (3, False)])
def test_balance_needs_step_and_loss(step, loss):
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    with trace:
        value = model(IMAGES)
    mto = MaskedTokenOptimization(BALANCED)
    with pytest.raises(ValueError, match=r"balance=0.1 needs step= .* and loss="):
        mto(trace.tokens_by_depth, MASK, step=step, loss=value if loss else None)


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(RuntimeError, match="reentrant activation checkpointing forbids"):
        run(MaskedTokenOptimization(BALANCED), [0], reentrant=True)


def test_nonreentrant_checkpointing_gives_the_same_weights():
    found = []
    for reentrant in (None, False):
        loss, terms = run(MaskedTokenOptimization(BALANCED), range(3), reentrant=reentrant)
        (loss + terms.total).backward()
        found.append(torch.stack(list(terms.weights.values())))
    torch.testing.assert_close(*found)


def test_sliced_tokens_are_refused():
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    with trace:
        loss = model(IMAGES)
    mto = MaskedTokenOptimization(BALANCED)
    with pytest.raises(RuntimeError, match="the loss does not depend on the first block's input"):
        mto(list(trace.tokens_by_depth), MASK, step=0, loss=loss)
    with pytest.raises(RuntimeError, match="the loss does not depend on"):
        mto.grad_ratios(trace.tokens_by_depth, MASK, loss=loss.detach())


def test_a_whole_compiled_model_is_refused_and_compiled_blocks_are_not():
    torch._dynamo.reset()
    model = Model()
    trace = TokenTrace(model.blocks, 1)
    mto = MaskedTokenOptimization(BALANCED)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(RuntimeError, match="compile block by block"):
        forward(compiled, trace, mto, 0)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="aot_eager")
    loss, _ = forward(model, trace, mto, 0)
    ratios = mto.grad_ratios(trace.tokens_by_depth, MASK, loss=loss)
    own, *terms = norms_by_hand(Model())
    assert list(ratios.values()) == pytest.approx([t / own for t in terms], rel=1e-4)
    torch._dynamo.reset()


class Attention(nn.Module):
    """A block with intermediates that a compiled backward keeps for itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        y = torch.sin(self.mix(self.norm(x)))
        return x + torch.sin((y @ y.mT).softmax(-1) @ y).exp()


def test_buffers_that_a_compiled_block_gave_away_are_explained():
    torch._dynamo.reset()
    model = Model()
    model.blocks = nn.ModuleList([Attention(), Attention()])
    trace = TokenTrace(model.blocks, 1)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    model(IMAGES).backward()
    with trace:
        loss = model(IMAGES)
    mto = MaskedTokenOptimization(MTOConfig())
    with pytest.raises(RuntimeError, match="donated_buffer = False before"):
        mto.grad_ratios(trace.tokens_by_depth, MASK, loss=loss)
    torch._dynamo.reset()
