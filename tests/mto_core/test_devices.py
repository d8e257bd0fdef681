"""What a GPU would refuse or wait for, found on a CPU; the same on a GPU, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mto_core import MaskedTokenOptimization, MTOConfig, MTOTerms, TokenTrace, affinity
from mto_core.entropy import row_entropy

from .. import devices
from ..devices import Elsewhere, Syncs
from .conftest import BACKENDS, SCALES, make

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALL = {"sparsity": 0.1, "singularity": 0.2, "ranking": 0.3}


def objective(**config: Any) -> MaskedTokenOptimization:
    return MaskedTokenOptimization(MTOConfig(**ALL, **config))


def train(
    mto: MaskedTokenOptimization, tokens: list[Tensor], mask: Tensor, diagnostics: bool = True
) -> tuple[MTOTerms, list[Tensor | None]]:
    """Terms, and the gradients of their sum by the tokens."""
    loss = torch.stack([t.square().mean().float() for t in tokens]).sum()
    terms = mto(tokens, mask, step=0, loss=loss, diagnostics=diagnostics)
    total = loss + terms.total
    return terms, list(torch.autograd.grad(total, tokens))


def same(found: Any, expected: Any) -> None:
    terms, grads = found
    for name, value in vars(expected[0]).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(getattr(terms, name), value, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grads, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tensors_follow_the_tokens(backend: str, dtype: torch.dtype) -> None:
    tokens, mask = make(dtype=dtype)
    for scale, diagnostics in product(SCALES, (True, False)):
        mto = objective(backend=backend, scale=scale)
        expected = train(mto, tokens, mask, diagnostics)
        with Elsewhere():
            found = train(mto, tokens, mask, diagnostics)
            found[0].scalars()
        same(found, expected)


def test_all_tensors_follow_with_balance_and_a_coarser_mask() -> None:
    tokens = [*make(size=64)[0][:1], *make(size=16)[0][1:]]
    mask = torch.rand(3, 2, 2).gt(0.5).repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask[:, :4, :4], mask[:, 4:, 4:] = True, False
    mto, other = objective(balance=0.1), objective(balance=0.1)
    with Elsewhere():
        found = train(mto, tokens, mask)
    same(found, train(other, tokens, mask))


def test_all_tensors_follow_in_the_functions_beside_the_loss() -> None:
    tokens, mask = make()
    mto = objective()
    queries, keys = tokens[0][:, :5], tokens[0][:, 5:]
    with Elsewhere():
        loss = tokens[0].square().mean()
        for t in tokens[1:]:
            loss = loss + t.square().mean()
        mto.grad_ratios(tokens, mask, loss=loss)
        affinity(tokens[0], mask)
        for backend in BACKENDS:
            row_entropy(
                *(queries, keys), query_mask=mask[:, :5], key_mask=mask[:, 5:], backend=backend
            ).sum().backward()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.embed(x))[:, 1:].float().square().mean()


def steps(config: MTOConfig, diagnostics: bool, mask: Tensor) -> list[str]:
    """Where the third of three training steps waits for the device."""
    model = Model()
    trace = TokenTrace(model.blocks, num_prefix_tokens=1)
    mto = MaskedTokenOptimization(config)
    x = torch.randn(4, 17, 8)
    for step in range(1, 4):
        with Syncs() as syncs:
            with trace:
                loss = model(x)
            tokens = trace.tokens_by_depth
            total = loss + mto(tokens, mask, step=step, loss=loss, diagnostics=diagnostics).total
            total.backward()
    return syncs.places


MASK = torch.rand(4, 16).argsort(1) < 9
# The sets of tokens are as long as the largest of the batch, which only the device knows.
COUNTS = ["inputs.py:split_mask"]


@pytest.mark.parametrize("diagnostics", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_waits_for_the_device_once(backend: str, diagnostics: bool) -> None:
    config = MTOConfig(**ALL, backend=backend, warmup_steps=10)
    assert steps(config, diagnostics, MASK) == COUNTS


def test_a_step_between_two_measurements_of_balance_waits_once() -> None:
    assert steps(MTOConfig(**ALL, balance=0.1), False, MASK) == COUNTS


def test_a_step_without_weights_waits_for_nothing() -> None:
    assert steps(MTOConfig.preset("observe"), False, MASK) == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: bool(t.sum() > 0),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.where(t > 0),
        lambda t: t.masked_select(t > 0),
        lambda t: t[[0, 1]],
        lambda t: torch.tensor(0.5),
    ],
)
def test_each_way_to_wait_is_seen(
    wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "OURS", (__file__,))
    with Syncs() as syncs:
        wait(torch.ones(3))
    assert len(syncs.places) == 1


@pytest.mark.parametrize("config", [ALL, ALL | {"balance": 0.1}])
def test_real_loss_scaling_in_float16(config: dict[str, float]) -> None:
    """Scaled and unscaled gradients are those without a scale; an overflow only skips a step."""
    runs = []
    for scale in (1.0, 2.0**10):
        model = Model()
        trace = TokenTrace(model.blocks, num_prefix_tokens=1)
        mto = MaskedTokenOptimization(MTOConfig(**config, balance_every=1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(4, 17, 8, generator=torch.Generator().manual_seed(1))
        for step in range(1, 5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                with trace:
                    loss = model(x * (1e6 if step == 3 else 1))
                terms = mto(trace.tokens_by_depth, MASK, step=step, loss=loss)
            scaler.scale(loss + terms.total).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == scale / 2, "the third step overflowed, and no other"
        runs.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*runs, rtol=2e-3, atol=1e-4)
    assert all(p.isfinite().all() for p in runs[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_gpu_gives_what_a_cpu_gives(backend: str, dtype: torch.dtype) -> None:
    tokens, mask = make(size=64, dim=32, dtype=dtype)
    mto = objective(backend=backend)
    expected = train(objective(backend="dense"), tokens, mask)
    moved = [t.detach().cuda().requires_grad_() for t in tokens]
    terms, grads = train(mto.cuda(), moved, mask.cuda())
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype != torch.float64 else {}
    for name in (*ALL, "total", "heterogeneity", "token_norm"):
        value = getattr(terms, name)
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), getattr(expected[0], name), **close)
    rounded = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-3}.get(dtype, 1e-10)
    for mine, other in zip(grads, expected[1], strict=True):
        assert mine is not None
        assert other is not None
        assert (mine.cpu() - other).double().norm() < rounded * other.double().norm()


@pytest.mark.gpu
@pytest.mark.parametrize("scale", SCALES)
def test_a_fused_step_waits_for_nothing(scale: str) -> None:
    """torch itself refuses to wait; another mask each time."""
    tokens, mask = make(size=64, dim=32, prefix=1)
    moved = [t.detach().cuda().requires_grad_() for t in tokens]
    mto = objective(scale=scale)
    for turn in range(3):
        there = mask.roll(turn, 0).cuda()
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            total = mto(moved, there, num_prefix_tokens=1, diagnostics=False).total
            grads = torch.autograd.grad(total, moved)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        exact = [t.detach().cpu().double().requires_grad_() for t in moved]
        dense = objective(scale=scale, backend="dense")
        wanted = dense(exact, there.cpu(), num_prefix_tokens=1).total
        torch.testing.assert_close(total.cpu().double(), wanted, rtol=1e-5, atol=1e-6)
        for mine, other in zip(grads, torch.autograd.grad(wanted, exact), strict=True):
            assert (mine.cpu() - other).norm() < 1e-3 * other.norm()


@pytest.mark.gpu
def test_the_fused_backend_compiles_with_its_neighbours() -> None:
    tokens, mask = make(size=64, dim=32)
    moved, there = [t.detach().cuda().requires_grad_() for t in tokens], mask.cuda()
    mto = objective()
    compiled = torch.compile(mto)
    for diagnostics in (False, True):
        totals = [f(moved, there, diagnostics=diagnostics).total for f in (mto, compiled)]
        torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-6)
        grads = [torch.autograd.grad(total, moved) for total in totals]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
