"""Large logits, near ties, one-hot rows, equal tokens, empty sets: close to float64, never NaN."""

import pytest
import torch
from torch import Tensor

from benchmarks.tokens import BARS, GRADIENT_BAR, KINDS, SMOOTH, mask_of, tokens_of
from mto_core import affinity
from mto_core.entropy import row_entropy, token_entropy
from mto_core.inputs import split_mask
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss

from .conftest import BACKENDS, SCALES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIM = 768
MASK = mask_of(196, 120)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("largest_logit", "bar"), BARS.items())
def test_error_against_float64(largest_logit: float, bar: float, dtype: torch.dtype) -> None:
    sides = split_mask(MASK)[:2]
    for kind in KINDS:
        tokens = tokens_of(kind, largest_logit, MASK, DIM).to(dtype)
        h = token_entropy(tokens.double(), *sides, scale="raw", backend="dense")
        l_spa = sparsity_loss(tokens.double(), MASK, backend="dense")
        for backend in BACKENDS:
            got = token_entropy(tokens, *sides, scale="raw", backend=backend).double()
            assert (got - h).abs().max() < bar, (kind, backend)  # every row, and so their mean
            got = sparsity_loss(tokens, MASK, backend=backend).double()
            assert (got - l_spa).abs().max() < bar, (kind, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_against_float64(backend: str) -> None:
    for kind in SMOOTH:
        tokens = tokens_of(kind, 3e3, MASK, DIM)
        gradients = []
        for x in (tokens.requires_grad_(), tokens.detach().double().requires_grad_()):
            terms = [term(x, MASK, backend=backend) for term in (heterogeneity, sparsity_loss)]
            gradients.append(torch.autograd.grad(sum(terms).sum(), x)[0].double())
        off = (gradients[0] - gradients[1]).norm()
        assert off < GRADIENT_BAR * gradients[1].norm(), kind


def every_term(tokens: Tensor, mask: Tensor, scale: str, backend: str) -> Tensor:
    same = {"scale": scale, "backend": backend}
    h = torch.stack([heterogeneity(tokens * a, mask, **same) for a in (1, 0.7)])
    valid = mask.any(1) & ((~mask).sum(1) > 1)
    return (
        sparsity_loss(tokens, mask, reduction="sum", **same)
        + singularity_loss(h[0], valid=valid)
        + ranking_loss(h)
    )


RAGGED = torch.arange(24)[None] < torch.tensor([0, 1, 12, 22, 23, 24])[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_everything_stays_finite(dtype: torch.dtype, backend: str) -> None:
    """Logits up to 1e5; masks with |M| and |V| of 0, 1 and more in one batch."""
    random = torch.randn(6, 24, 32, generator=torch.Generator().manual_seed(2))
    equal = random[:, :1].expand_as(random)
    near = equal + 1e-3 * random
    for x, largest in [(random, 1e5), (equal, 1e5), (near, 1e5), (random, 0), (random, 1e-30)]:
        x = (x * (largest / (x @ x.mT).abs().max()).sqrt()).to(dtype).requires_grad_()
        for scale in SCALES:
            terms = every_term(x, RAGGED, scale, backend)
            (gradient,) = torch.autograd.grad(terms.sum(), x)
            assert terms.isfinite().all()
            assert gradient.isfinite().all()
            assert affinity(x, RAGGED, scale=scale).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_hot_rows_have_no_entropy_and_no_gradient(backend: str) -> None:
    x = (300 * torch.eye(6)).unsqueeze(0).requires_grad_()
    h = row_entropy(x, x, backend=backend)
    # both backends hold every weight above exp(-64)
    assert h.abs().max() < 1e-22
    assert torch.autograd.grad(h.sum(), x)[0].abs().max() < 1e-20


@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_that_fix_the_entropy_give_no_gradient(backend: str) -> None:
    x = torch.randn(6, 24, 32, requires_grad=True)
    h = heterogeneity(x, RAGGED, backend=backend)
    fixed = ~RAGGED.any(1) | ((~RAGGED).sum(1) < 2)
    assert fixed.tolist() == [True, False, False, False, True, True]
    assert h[fixed].eq(0).all()
    assert h[~fixed].gt(0).all()
    (gradient,) = torch.autograd.grad(h.sum(), x)
    assert gradient[fixed].eq(0).all()


def test_dense_makes_no_denormal_number() -> None:
    """Rows of random tokens have many logits 88 to 103 below the largest: exp is denormal there."""
    x = (100 * torch.eye(64) ** 0.5).sqrt().mul(torch.linspace(0.97, 1, 64))[None].requires_grad_()
    smallest: list[float] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.shape == (1, 64, 64):
            size = tensor.abs()[tensor != 0]
            smallest.append(size.min().item())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        h = row_entropy(x, x.clone(), backend="dense")
    assert len(smallest) > 2
    assert min(smallest) >= torch.finfo(torch.float32).tiny
    torch.autograd.grad(h.sum(), x)
