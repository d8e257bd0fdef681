"""The four terms: values, gradients, and what holds whatever the tokens are."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm

from mto_core.inputs import split_mask
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss

from .conftest import BACKENDS, MASKS, SCALES, bits


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def logits(tokens: Tensor, scale: str) -> Tensor:
    x = tokens.double()
    if scale == "layernorm":
        x = layer_norm(x, x.shape[-1:])
    s = x @ x.mT
    return s / math.sqrt(x.shape[-1]) if scale == "sqrt_dim" else s


def reference(tokens: Tensor, mask: Tensor, scale: str) -> tuple[Tensor, Tensor, Tensor]:
    """H (eq 2), and L_spa (eq 3) as mean and sum, straight from the equations, in float64."""
    h, mean, total = torch.zeros(3, len(mask), dtype=torch.float64)
    for image, masked in enumerate(mask):
        s = logits(tokens[image], scale)
        if masked.any() and not masked.all():
            h[image] = entropy(s[masked][:, ~masked].softmax(-1)).mean()
        if not masked.all():
            rows = entropy(s[~masked].softmax(-1))
            mean[image], total[image] = rows.mean(), rows.sum()
    return h, mean, total


tokens_and_mask = st.tuples(
    st.integers(1, 4), st.integers(0, 12), st.integers(2, 9), st.floats(0, 1), st.integers(0, 999)
)


def draw(case: tuple[int, int, int, float, int]) -> tuple[Tensor, Tensor]:
    batch, size, dim, ratio, seed = case
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, size, dim, generator=random)
    return tokens, torch.rand(batch, size, generator=random) < ratio


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    case=tokens_and_mask,
    scale=st.sampled_from(SCALES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=30, deadline=None)
def test_terms_are_the_equations(
    backend: str, case: tuple[int, int, int, float, int], scale: str, dtype: torch.dtype
) -> None:
    tokens, mask = draw(case)
    tokens = tokens.to(dtype)
    h, mean, total = reference(tokens, mask, scale)
    near = {"atol": 2e-5, "rtol": 2e-5, "check_dtype": False}
    same = {"scale": scale, "backend": backend}
    torch.testing.assert_close(heterogeneity(tokens, mask, **same), h, **near)
    torch.testing.assert_close(sparsity_loss(tokens, mask, **same), mean, **near)
    got = sparsity_loss(tokens, mask, reduction="sum", **same)
    torch.testing.assert_close(got, total, **near)


@given(case=tokens_and_mask, backend=st.sampled_from(BACKENDS))
@settings(max_examples=30, deadline=None)
def test_each_image_is_on_its_own_and_order_is_no_matter(
    case: tuple[int, int, int, float, int], backend: str
) -> None:
    tokens, mask = draw(case)
    shuffle = torch.randperm(mask.shape[1])
    for term in (heterogeneity, sparsity_loss):
        whole = term(tokens, mask, backend=backend)
        parts = [term(t[None], m[None], backend=backend) for t, m in zip(tokens, mask, strict=True)]
        torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=1e-5)
        shuffled = term(tokens[:, shuffle], mask[:, shuffle], backend=backend)
        torch.testing.assert_close(whole, shuffled, atol=1e-5, rtol=1e-5)


@given(case=tokens_and_mask, size=st.floats(0, 30), backend=st.sampled_from(BACKENDS))
@settings(max_examples=30, deadline=None)
def test_bounds(case: tuple[int, int, int, float, int], size: float, backend: str) -> None:
    tokens, mask = draw(case)
    h = heterogeneity(size * tokens, mask, backend=backend)
    l_spa = sparsity_loss(size * tokens, mask, backend=backend)
    visible = (~mask).sum(1)
    assert (h >= 0).all()
    assert (h <= visible.clamp_min(1).log() + 1e-5).all()
    assert (l_spa >= 0).all()
    assert (l_spa <= math.log(max(1, mask.shape[1])) + 1e-5).all()
    assert h[(visible <= 1) | ~mask.any(1)].eq(0).all()
    assert l_spa[visible == 0].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", [heterogeneity, sparsity_loss])
def test_prefix_tokens_play_no_part(backend: str, term: Callable[..., Tensor]) -> None:
    for rows in MASKS.values():
        mask = bits(rows)
        tokens = torch.randn(len(mask), 9, 4, requires_grad=True)
        got = term(tokens, split_mask(mask, num_prefix_tokens=2), backend=backend)
        expected = term(tokens[:, 2:], mask, backend=backend)  # not contiguous
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad((x * x).sum(), tokens)[0] for x in (got, expected)]
        assert gradients[0][:, :2].eq(0).all()
        torch.testing.assert_close(*gradients)


def test_singularity_loss() -> None:
    h0 = torch.tensor([4.0, 0.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([True, True, True, False])
    loss = singularity_loss(h0, eps=0.1, valid=valid)
    torch.testing.assert_close(loss, torch.tensor([1 / 4.1, 1 / 0.6, 10, 0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), h0)
    expected = [-1 / 4.1**2, -1 / 0.6**2, -100, 0]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(singularity_loss(h0, eps=0.1)[:3], loss[:3])


def test_the_default_eps_bounds_the_gradient_by_logits() -> None:
    """One key ahead of another by `gap`: H falls from ln 2 to nothing as the gap grows."""
    gap = torch.linspace(0, 60, 6001, dtype=torch.float64, requires_grad=True)
    p = torch.stack((gap, torch.zeros_like(gap)), -1).softmax(-1)
    loss = singularity_loss(-(p * p.log()).sum(-1))
    (gradient,) = torch.autograd.grad(loss.sum(), gap)
    assert loss.max() <= 100
    assert 20 < gradient.max() <= 25


def test_ranking_loss() -> None:
    h = torch.tensor([[3.0, 1.0], [2.0, 1.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    falling = math.log1p(math.exp(-1)) + math.log1p(math.exp(-1.5))
    rising = math.log1p(math.exp(1)) + math.log1p(math.exp(1.5))
    even = 2 * math.log(2)
    expected = torch.tensor([[falling, even], [rising, even]], dtype=torch.float64)
    torch.testing.assert_close(ranking_loss(h), expected[0])
    torch.testing.assert_close(ranking_loss(h, direction="as_printed"), expected[1])
    assert torch.autograd.gradcheck(ranking_loss, h)
    far = torch.tensor([[0.0], [1e4]], requires_grad=True)
    assert ranking_loss(far).item() == 1e4  # and not the overflow of exp


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: heterogeneity(x[0], m), r"tokens must be \[B, N, D\]"),
        (lambda x, m: heterogeneity(x.long(), m), "must be floating point"),
        (lambda x, m: heterogeneity(x, m.float()), r"got torch.float32: pass mask\.bool\(\)"),
        (lambda x, m: heterogeneity(x, m[:, 1:]), r"mask must be \[2, 7\].*got \[2, 6\]"),
        (lambda x, m: heterogeneity(x, m, scale="cosine"), "unknown scale 'cosine'"),
        (lambda x, m: heterogeneity(x, m, backend="triton"), "unknown backend 'triton'"),
        (lambda x, m: sparsity_loss(x, m, reduction="max"), "unknown reduction 'max'"),
        (lambda x, m: singularity_loss(x), r"h0 must be \[B\]"),
        (lambda x, m: singularity_loss(x[:, 0, 0], eps=0), "eps must be positive"),
        (lambda x, m: ranking_loss(x[:1, 0]), "at least two depths"),
        (lambda x, m: ranking_loss(x), r"must be \[L\+1, B\]"),
        (lambda x, m: ranking_loss(x[0], direction="up"), "unknown direction 'up'"),
    ],
)
def test_refuses(call: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 7, 4), torch.ones(2, 7).bool())
