"""The recompute backend works in memory that it keeps: no result may live there."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mto_core import heterogeneity, sparsity_loss
from mto_core.entropy import split_mask
from mto_core.losses import heterogeneity_of


def problem(seed, batch=4, size=30, masked=18):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, size, 8, generator=generator)
    order = torch.rand(batch, size, generator=generator).argsort(1)
    return tokens.requires_grad_(), order < masked


def solve(tokens, mask, backend="recompute"):
    h = heterogeneity(tokens, mask, backend=backend)
    loss = h.sum() + sparsity_loss(tokens, mask, backend=backend).sum()
    (grad,) = torch.autograd.grad(loss, tokens)
    return h.detach(), grad


def test_a_later_call_leaves_earlier_results_alone():
    first = problem(0)
    h, grad = solve(*first)
    kept = h.clone(), grad.clone()
    for seed in range(1, 4):
        solve(*problem(seed))
        solve(*problem(seed, batch=9, size=50))  # larger: the memory grows
    assert torch.equal(h, kept[0])
    assert torch.equal(grad, kept[1])
    for got, expected in zip(solve(*first), kept, strict=True):
        assert torch.equal(got, expected)


def test_threads_do_not_share_it():
    problems = [problem(seed, size=40 + seed) for seed in range(12)]
    alone = [solve(*p) for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(lambda p: solve(*p), problems), alone, strict=True):
                assert torch.equal(got[0], expected[0])
                assert torch.equal(got[1], expected[1])


def inference(tokens, mask):
    with torch.inference_mode():
        heterogeneity(tokens, mask, backend="recompute")


def default_device(tokens, mask):
    with torch.device("meta"):
        heterogeneity_of(tokens, split_mask(mask.cpu()), backend="recompute")


def fake_tensors(tokens, mask):
    index = split_mask(mask)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        heterogeneity_of(mode.from_tensor(tokens.detach()), index, backend="recompute")


@pytest.mark.parametrize("first", [inference, default_device, fake_tensors])
def test_an_unusual_call_first_does_not_spoil_training(first):
    def first_then_train():
        tokens, mask = problem(7)
        first(tokens, mask)
        return solve(tokens, mask)

    with ThreadPoolExecutor(1) as pool:  # a thread of its own begins without any kept memory
        found = pool.submit(first_then_train).result()
    for got, expected in zip(found, solve(*problem(7), backend="dense"), strict=True):
        torch.testing.assert_close(got, expected)
