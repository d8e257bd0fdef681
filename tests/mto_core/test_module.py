import json
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mto_core import MaskedTokenOptimization, MTOConfig, affinity
from mto_core import entropy as engine
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss

from .conftest import BACKENDS, SCALES, make

ALL = {"sparsity": 0.7, "singularity": 0.3, "ranking": 0.5}
MTO = MaskedTokenOptimization(MTOConfig(**ALL))


def by_image(tokens, masks, prefix=0):
    """The terms and H by depth, image by image in float64; tokens [L+1][B, P + N, D]."""
    found = []
    for b in range(len(masks[0])):
        both = zip(tokens, masks, strict=True)
        pairs = [(t[b : b + 1, prefix:].double(), m[b : b + 1]) for t, m in both]
        h = torch.stack([heterogeneity(*pair, backend="dense") for pair in pairs])
        defined = all(m.any() and (~m).sum() > 1 for _, m in pairs)
        first = pairs[0][1].any() and (~pairs[0][1]).sum() > 1
        singularity = singularity_loss(h[0]) if first else h.new_zeros(1)
        ranking = ranking_loss(h) if defined else h.new_zeros(1)
        found.append(torch.cat((sparsity_loss(*pairs[0]), singularity, ranking, h[:, 0])))
    mean = torch.stack(found).mean(0).tolist()
    return mean[:3], mean[3:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_terms_are_the_equations_per_image_then_averaged(prefix, dtype):
    tokens, mask = make(prefix=prefix, dtype=dtype)
    mask[1] = True  # undefined for this image
    mask[2, 1:] = False
    terms = MTO(tokens, mask, num_prefix_tokens=prefix)
    means, h = by_image(tokens, [mask] * 3, prefix)
    got = [terms.sparsity.item(), terms.singularity.item(), terms.ranking.item()]
    assert got == pytest.approx(means, rel=1e-5)
    assert terms.heterogeneity.tolist() == pytest.approx(h, rel=1e-5)
    total = sum(w * v for w, v in zip(ALL.values(), means, strict=True))
    assert terms.total.item() == pytest.approx(total, rel=1e-5)


def test_splitting_a_batch_changes_neither_loss_nor_gradient():
    tokens, mask = make(batch=6)
    mask[0] = False  # undefined images count in the mean, wherever they fall
    whole = MTO(tokens, mask).total
    parts = [MTO([t[part] for t in tokens], mask[part]).total for part in (slice(3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    left = torch.autograd.grad(whole, tokens)
    right = torch.autograd.grad(sum(parts) / 2, tokens)
    torch.testing.assert_close(left, right)


def test_all_weights_zero_observes_without_a_graph():
    tokens, mask = make()
    terms = MaskedTokenOptimization(MTOConfig.preset("observe"))(tokens, mask)
    assert terms.total.item() == 0.0
    assert not terms.total.requires_grad
    expected = MTO(tokens, mask)
    for name in ALL:
        assert not getattr(terms, name).requires_grad
        torch.testing.assert_close(getattr(terms, name), getattr(expected, name))
    loss = torch.tensor(1.2345)
    assert torch.equal(loss + terms.total, loss)


@pytest.mark.parametrize("name", list(ALL))
def test_only_weighted_terms_get_a_graph(name):
    tokens, mask = make()
    terms = MaskedTokenOptimization(MTOConfig(**{name: 1.0}))(tokens, mask)
    assert [n for n in ALL if getattr(terms, n).requires_grad] == [name]
    assert not terms.heterogeneity.requires_grad
    torch.testing.assert_close(terms.total, getattr(terms, name))
    terms.total.backward()
    assert [t.grad is not None for t in tokens] == [True] + [name == "ranking"] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 15, 16])  # none masked, one visible, all masked
def test_undefined_images_add_nothing_and_stay_finite(count, backend):
    tokens, mask = make(batch=2)
    alone, alone_mask = [t[:1] for t in tokens], mask[:1]
    mask[1] = torch.arange(16) < count
    mto = MaskedTokenOptimization(MTOConfig(**ALL, backend=backend))
    terms = mto(tokens, mask)
    reference = mto(alone, alone_mask)
    torch.testing.assert_close(terms.singularity, reference.singularity / 2)
    torch.testing.assert_close(terms.ranking, reference.ranking / 2)
    for grad in torch.autograd.grad(terms.total, tokens):
        assert grad.isfinite().all()


@pytest.mark.parametrize("at", [0, 1, -1, 2])
def test_l_spa_acts_at_its_depth_on_its_logits(at):
    tokens, mask = make(prefix=1, dtype=torch.float64)
    config = MTOConfig(sparsity=1.0, sparsity_depth=at, sparsity_scale="layernorm")
    terms = MaskedTokenOptimization(config)(tokens, mask, num_prefix_tokens=1, diagnostics=False)
    x = tokens[at][:, 1:].detach()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    p = (x @ x.mT).softmax(-1)
    rows = -(p * p.log()).sum(-1) * ~mask
    expected = (rows.sum(1) / (~mask).sum(1)).mean()
    torch.testing.assert_close(terms.total, expected)
    terms.total.backward()
    assert [t.grad is not None for t in tokens] == [d == at % 3 for d in range(3)]
    logged = MaskedTokenOptimization(config)(tokens, mask, num_prefix_tokens=1)
    mass = p.diagonal(dim1=1, dim2=2) * ~mask
    torch.testing.assert_close(logged.diagonal_mass, (mass.sum(1) / (~mask).sum(1)).mean())


def test_terms_have_logits_of_their_own_and_h_those_of_scale():
    tokens, mask = make(dtype=torch.float64)
    own = {"singularity_scale": "layernorm", "ranking_scale": "sqrt_dim"}
    mto = MaskedTokenOptimization(MTOConfig(singularity=1.0, ranking=1.0, **own))
    terms = mto(tokens, mask)
    h = {s: torch.stack([heterogeneity(t, mask, scale=s) for t in tokens]) for s in SCALES}
    torch.testing.assert_close(terms.singularity, singularity_loss(h["layernorm"][0]).mean())
    torch.testing.assert_close(terms.ranking, ranking_loss(h["sqrt_dim"]).mean())
    torch.testing.assert_close(terms.heterogeneity, h["raw"].mean(1))
    lean = mto(tokens, mask, diagnostics=False)
    assert lean.heterogeneity.isnan().all(), "raw logits are made on logged steps only"
    assert torch.equal(lean.total, terms.total)


def test_gradients_at_another_depth_are_those_of_finite_differences():
    tokens, mask = make(batch=2, size=6, dtype=torch.float64)
    scales = {"sparsity_scale": "layernorm", "singularity_scale": "sqrt_dim"}
    config = MTOConfig(**ALL, **scales, sparsity_depth=-1, backend="dense")
    mto = MaskedTokenOptimization(config)
    for diagnostics in (True, False):
        assert torch.autograd.gradcheck(
            lambda *given, logged=diagnostics: mto(given, mask, diagnostics=logged).total,
            tuple(tokens),
        )


@pytest.mark.parametrize("at", [3, -4])
def test_a_depth_that_is_not_there_is_refused(at):
    with pytest.raises(ValueError, match=rf"sparsity_depth={at}, .* 0 to 2"):
        MaskedTokenOptimization(MTOConfig(sparsity=1.0, sparsity_depth=at))(*make())


def test_a_term_at_a_depth_without_gradient_is_refused():
    tokens, mask = make()
    tokens[2] = tokens[2].detach()
    with pytest.raises(ValueError, match="sparsity has a weight, but no tokens at depth 2"):
        MaskedTokenOptimization(MTOConfig(sparsity=1.0, sparsity_depth=-1))(tokens, mask)


def test_after_the_last_step_with_weights_nothing_is_computed():
    tokens, mask = make()
    mto = MaskedTokenOptimization(MTOConfig(**ALL, off_after=5))
    before = mto(tokens, mask, step=5, diagnostics=False)
    torch.testing.assert_close(before.total, MTO(tokens, mask).total)
    with Products() as products:
        after = mto(tokens, mask, step=6, diagnostics=False)
    assert products.count == 0
    assert after.total.item() == 0
    assert not after.total.requires_grad
    assert set(after.weights.values()) == {0.0}
    assert mto(tokens, mask, step=6).sparsity.isfinite(), "a logged step measures"
    with pytest.raises(ValueError, match="off_after=5 need step="):
        mto(tokens, mask)


def test_balance_and_calibration_end_with_the_weights():
    tokens, mask = make()
    measured = {"balance": 0.1, "balance_every": 1}, {"calibrate": 0.1, "calibrate_steps": 10}
    for how in measured:
        mto = MaskedTokenOptimization(MTOConfig(**ALL, off_after=11, **how))
        for step in range(14):
            terms = mto(tokens, mask, step=step, loss=sum(t.sum() for t in tokens))
        state = {name: value.clone() for name, value in mto.state_dict().items()}
        assert terms.total.item() == 0
        mto(tokens, mask, step=14, loss=tokens[0].sum())
        assert all(torch.equal(value, state[n]) for n, value in mto.state_dict().items())


def test_warmup_is_linear_in_the_step():
    tokens, mask = make()
    mto = MaskedTokenOptimization(MTOConfig(**ALL, warmup_steps=10))
    full = MTO(tokens, mask).total
    for step, share in [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)]:
        terms = mto(tokens, mask, step=step)
        torch.testing.assert_close(terms.total, full * share)
        assert terms.weights["ranking"] == 0.5 * share
    with pytest.raises(ValueError, match=r"warmup_steps=10, .* need step="):
        mto(tokens, mask)


def test_diagnostics_agree_with_the_affinity_map(monkeypatch):
    tokens, mask = make(prefix=1)
    mask[0, :12], mask[1, :3] = True, False  # images with different counts
    assert len(set(mask.sum(1).tolist())) == 3
    mto = MaskedTokenOptimization(MTOConfig(scale="sqrt_dim"))
    terms = mto(tokens, mask, num_prefix_tokens=1)
    diagonal, masked = [], []
    maps = affinity(tokens[0][:, 1:], mask, scale="sqrt_dim")
    for p, m in zip(maps, mask.sum(1).tolist(), strict=True):
        diagonal.append(p.diagonal()[m:].mean())
        masked.append(p[m:, :m].sum(1).mean())
    torch.testing.assert_close(terms.diagonal_mass, torch.stack(diagonal).mean())
    torch.testing.assert_close(terms.masked_mass, torch.stack(masked).mean())
    norms = torch.stack([t[:, 1:].norm(dim=-1).mean() for t in tokens])
    torch.testing.assert_close(terms.token_norm, norms.detach())

    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", 100)
    chunked = mto(tokens, mask, num_prefix_tokens=1)
    torch.testing.assert_close(chunked.diagonal_mass, terms.diagonal_mass)
    torch.testing.assert_close(chunked.masked_mass, terms.masked_mass)


def test_scalars_are_a_flat_dict_of_finite_numbers():
    tokens, mask = make()
    terms = MTO(tokens, mask)
    plain = json.loads(json.dumps(terms.scalars(), allow_nan=False))
    assert plain["mto/total"] == terms.total.item()
    assert plain["mto/weight/ranking"] == 0.5
    by_depth = [plain[f"mto/heterogeneity/{depth:02d}"] for depth in range(3)]
    assert by_depth == terms.heterogeneity.tolist()
    assert len(plain) == 1 + 3 + 2 + 3 + 3 + 3  # total, terms, masses, weights, H, norms
    only = MaskedTokenOptimization(MTOConfig(singularity=1.0))(tokens, mask, diagnostics=False)
    assert set(only.scalars("")) == {
        "total",
        "singularity",
        "heterogeneity/00",
        *(f"weight/{name}" for name in ALL),
    }


@pytest.mark.parametrize(
    ("weighted", "terms", "depths"),
    [
        ([], [], []),
        (["sparsity"], ["sparsity"], []),
        (["singularity"], ["singularity"], [0]),
        (["sparsity", "singularity"], ["sparsity", "singularity"], [0]),
        (["ranking"], ["ranking"], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", [0, -1])
def test_only_what_a_weight_needs_is_computed_off_log(weighted, terms, depths, backend, at):
    tokens, mask = make()
    config = MTOConfig(**{name: ALL[name] for name in weighted}, backend=backend, sparsity_depth=at)
    mto = MaskedTokenOptimization(config)
    logged = mto(tokens, mask)
    with Products() as products:
        lean = mto(tokens, mask, diagnostics=False)
    assert products.count == len(depths) + ("sparsity" in weighted)
    assert torch.equal(lean.total, logged.total)
    measured = lean.heterogeneity.isfinite()
    assert measured.nonzero().flatten().tolist() == depths
    assert torch.equal(lean.heterogeneity[measured], logged.heterogeneity[measured])
    assert logged.heterogeneity.isfinite().all()
    for name in ALL:
        assert getattr(lean, name).isnan() == (name not in terms)
    assert lean.token_norm is lean.diagonal_mass is lean.masked_mass is None
    if weighted:
        left, right = (
            torch.autograd.grad(t.total, tokens, allow_unused=True) for t in (lean, logged)
        )
        assert [a is None for a in left] == [b is None for b in right]
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True) if a is not None)


class Products(TorchDispatchMode):
    """Counts affinities: products of queries and keys in the forward."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "row_entropy" in name or ("bmm" in name and args[0].shape[1] > 1):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_mask_that_defines_no_term_warns_once():
    tokens, mask = make()
    mask[:] = True
    mask[:, 0] = False  # one visible token in every image
    mto = MaskedTokenOptimization(MTOConfig(singularity=1.0))
    with pytest.warns(UserWarning, match="at most 15 masked and 1 visible of 16 tokens"):
        mto(tokens, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mto(tokens, mask)
        mask[0, :5] = False
        MaskedTokenOptimization(MTOConfig(singularity=1.0))(tokens, mask)


def test_a_preset_is_no_config():
    with pytest.raises(TypeError, match=r"got str: pass MTOConfig\.preset\('mae'\)"):
        MaskedTokenOptimization("mae")


# hierarchical models


def pyramid(batch=2, sides=(8, 8, 4, 2), dims=(3, 3, 5, 7)):
    generator = torch.Generator().manual_seed(1)
    tokens = [
        torch.randn(batch, s, s, d, generator=generator, requires_grad=True)
        for s, d in zip(sides, dims, strict=True)
    ]
    coarse = torch.tensor([[[True, False], [True, False]], [[False, False], [True, False]]])
    return tokens, coarse


def test_a_mask_is_brought_to_every_resolution():
    tokens, coarse = pyramid()
    fine = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)  # 8 x 8
    middle = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    per_depth = [m.flatten(1) for m in (fine, fine, middle, coarse)]
    expected = MTO([t.flatten(1, 2) for t in tokens], per_depth)
    ranking = by_image([t.flatten(1, 2) for t in tokens], per_depth)[0][2]
    assert expected.ranking.item() == pytest.approx(ranking, rel=1e-5)
    for mask in (fine, fine.flatten(1), [fine, fine, middle, coarse], [fine] * 4):
        terms = MTO(tokens, mask)
        torch.testing.assert_close(terms.heterogeneity, expected.heterogeneity)
        torch.testing.assert_close(terms.total, expected.total)


def test_a_grid_need_not_be_square():
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[:, :2, :4] = True
    mto = MaskedTokenOptimization(MTOConfig())
    tokens = [torch.randn(1, 4, 8, 3), torch.randn(1, 2, 4, 3)]
    coarse = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = mto(tokens, [mask.flatten(1), coarse]).heterogeneity
    assert torch.equal(mto(tokens, mask).heterogeneity, expected)
    with pytest.raises(ValueError, match=r"square or as \[B, h, w\]"):
        mto(tokens, mask.flatten(1))


# a good guest


def test_no_gradient_is_needed_to_evaluate():
    tokens, mask = make()
    detached = [t.detach() for t in tokens]
    with torch.no_grad():
        assert MTO(detached, mask).total.item() == pytest.approx(MTO(tokens, mask).total.item())
    only_deep = [tokens[0].detach(), *tokens[1:]]
    MaskedTokenOptimization(MTOConfig(ranking=1.0))(only_deep, mask).total.backward()


def test_no_state_no_random_numbers_and_one_depth_will_do_without_ranking():
    tokens, mask = make(depths=1)
    mto = MaskedTokenOptimization(MTOConfig(sparsity=1.0, singularity=1.0))
    assert not mto.state_dict()
    assert not list(mto.parameters())
    before = torch.get_rng_state()
    terms = mto(tokens, mask)
    terms.total.backward()
    assert terms.ranking.item() == 0.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("backend", "compiler"), [("dense", "eager"), ("recompute", "aot_eager")])
@pytest.mark.parametrize("own", [{}, {"sparsity_depth": -1, "sparsity_scale": "layernorm"}])
def test_compiles_into_one_graph_for_batches_of_any_size(backend, compiler, own):
    mto = MaskedTokenOptimization(MTOConfig(**ALL, backend=backend, **own))
    compiled = torch.compile(mto, fullgraph=True, backend=compiler)
    for batch in (3, 5, 2):
        tokens, mask = make(batch)
        expected, terms = mto(tokens, mask), compiled(tokens, mask)
        torch.testing.assert_close(terms.total, expected.total)
        torch.testing.assert_close(terms.masked_mass, expected.masked_mass)
        left = torch.autograd.grad(terms.total, tokens)
        torch.testing.assert_close(left, torch.autograd.grad(expected.total, tokens))
