"""Row entropy: every backend against a float64 loop, and what each backend promises besides."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mto_core import entropy as engine
from mto_core.entropy import resolve_backend, row_entropy, token_entropy
from mto_core.inputs import split_mask
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss

from .conftest import BACKENDS, MASKS, SCALES, bits


def reference(
    queries: Tensor, keys: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float
) -> Tensor:
    """One row at a time, in float64, with only the keys that count."""
    result = torch.zeros(queries.shape[:2], dtype=torch.float64)
    for image, row in query_mask.nonzero().tolist():
        taken = keys[image, key_mask[image]].double()
        p = (scale * (taken @ queries[image, row].double())).softmax(0)
        result[image, row] = -(p * p.log().clamp_min(-1e300)).sum()
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    shape=st.tuples(*(st.integers(low, high) for low, high in [(0, 3), (0, 5), (0, 6), (0, 9)])),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([1.0, 0.3, 7.0]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_matches_a_float64_loop(
    backend: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    scale: float,
    masked: bool,
    seed: int,
) -> None:
    batch, num_queries, num_keys, dim = shape
    random = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, num_queries, dim, generator=random)
    k = torch.randn(batch, num_keys, dim, generator=random)
    qm = torch.rand(batch, num_queries, generator=random) < (0.6 if masked else 2)
    km = torch.rand(batch, num_keys, generator=random) < (0.6 if masked else 2)
    k = k.where(km[..., None], 1e4)  # padding may hold anything finite
    q, k = q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_()
    masks = {"query_mask": qm, "key_mask": km} if masked else {}
    got = row_entropy(q, k, **masks, scale=scale, backend=backend)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference(q.detach(), k.detach(), qm, km, scale)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-5)
    gradients = torch.autograd.grad((got * 3).sum(), (q, k), materialize_grads=True)
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_gradcheck_between_two_tensors(backend: str, name: str) -> None:
    mask = bits(MASKS[name])
    q = torch.randn(len(mask), 4, 3, dtype=torch.float64, requires_grad=True)
    k = torch.randn(len(mask), 7, 3, dtype=torch.float64, requires_grad=True)
    same = {"scale": 0.7, "backend": backend}
    assert torch.autograd.gradcheck(
        lambda q, k: row_entropy(q, k, query_mask=mask[:, :4], key_mask=~mask, **same), (q, k)
    )
    assert torch.autograd.gradcheck(lambda k: row_entropy(k, k, **same), k)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", MASKS)
def test_backends_agree_and_chunks_change_nothing(
    scale: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, prefix = bits(MASKS[name]), 2
    x = torch.randn(len(mask), 7 + prefix, 5, dtype=torch.float64, requires_grad=True)
    split = split_mask(mask, prefix)

    def run(backend: str) -> list[Tensor]:
        found = []
        for sets in ((split.masked, split.visible), (split.visible, split.patches)):
            h = token_entropy(x, *sets, scale=scale, backend=backend)
            total = (h * torch.arange(1.0, h.numel() + 1).view_as(h)).sum()
            found += [h, *torch.autograd.grad(total, x, retain_graph=True)]
            found += torch.autograd.grad(total, x)  # nothing that was saved is overwritten
        return found

    whole = run("dense")
    for elements in (1 << 22, 200, 1):
        monkeypatch.setattr(engine, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(run("recompute"), whole, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recompute_saves_tokens_and_indices_only(dtype: torch.dtype) -> None:
    mask = torch.arange(20).lt(12).repeat(2, 1)
    tokens = torch.randn(2, 21, 64, requires_grad=True).to(dtype)
    split = split_mask(mask, 1)
    known = {t.untyped_storage().data_ptr() for t in (tokens, *split)}

    def saved(backend: str) -> int:
        """Numbers of four bytes beyond those."""
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            assert heterogeneity(tokens, split, backend=backend).requires_grad
        return sum(t.untyped_storage().nbytes() // 4 for at, t in kept.items() if at not in known)

    assert saved("dense") > tokens.numel()  # the count does count
    assert saved("recompute") <= 2 * 2  # the mean's divisor, int64 [B]


def test_gradients_are_made_one_depth_at_a_time() -> None:
    """Else the gradients of all depths wait in memory for the model's backward."""
    mask = torch.arange(9).lt(5).repeat(2, 1)
    order: list[str] = []
    depths = [torch.randn(2, 9, 4, requires_grad=True) * 1]
    for _ in range(3):
        depths.append(depths[-1].tanh())
    total = torch.zeros(())
    for depth, tokens in enumerate(depths):
        assert tokens.grad_fn is not None
        tokens.grad_fn.register_prehook(lambda _, name=f"model {depth}": order.append(name))
        term = heterogeneity(tokens, mask, backend="recompute").sum()
        node = term.grad_fn
        while node is not None and "row_entropy" not in node.name():
            node = node.next_functions[0][0]
        assert node is not None
        node.register_prehook(lambda _, name=f"term {depth}": order.append(name))
        total = total + term
    total.backward()
    assert order == [f"{what} {depth}" for depth in (3, 2, 1, 0) for what in ("term", "model")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_reach_the_logits(backend: str) -> None:
    x = (4 * torch.randn(2, 9, 64)).requires_grad_()
    mask = torch.arange(9).lt(5).repeat(2, 1)
    plain = heterogeneity(x, mask, scale="sqrt_dim", backend=backend)
    gradient = torch.autograd.grad(plain.sum(), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        under = heterogeneity(x, mask, scale="sqrt_dim", backend=backend)
        # recompute makes its logits in here again
        gradient_under = torch.autograd.grad(under.sum(), x)[0]
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)
    assert backend == "dense" or torch.equal(gradient_under, gradient)


@pytest.mark.gpu
def test_tf32_does_not_reach_the_logits() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x = 6 * torch.randn(2, 50, 768, device="cuda")
        got = row_entropy(x[:, :20], x[:, 20:], backend="recompute").double()
        expected = row_entropy(x[:, :20].double(), x[:, 20:].double(), backend="dense")
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_second_derivative_works_or_says_why_not() -> None:
    x = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    mask = bits(["MM..."])
    assert torch.autograd.gradgradcheck(lambda x: heterogeneity(x, mask, backend="dense"), x)
    first = torch.autograd.grad(
        heterogeneity(x, mask, backend="recompute").sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="backend='dense'"):
        first[0].sum().backward()


def everything(x: Tensor, mask: Tensor, backend: str) -> Tensor:
    h0 = heterogeneity(x, mask, backend=backend)
    h1 = heterogeneity(2 * x, mask, scale="layernorm", backend=backend)
    rows = row_entropy(x, x + 1, query_mask=mask, key_mask=~mask, backend=backend).sum(1)
    terms = sparsity_loss(x, mask, backend=backend) + singularity_loss(h0, valid=mask.any(1))
    return terms + ranking_loss(torch.stack((h0, h1))) + rows


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler"
)


@pytest.mark.parametrize(
    ("backend", "compiler"),
    [
        *[(backend, "aot_eager") for backend in BACKENDS],
        pytest.param("recompute", "inductor", marks=needs_compiler),
    ],
)
def test_compiles_as_one_graph(backend: str, compiler: str) -> None:
    dynamic = compiler == "aot_eager"
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend=compiler)
    for size in (9, 12) if dynamic else (9,):
        x = torch.randn(3, size, 8, requires_grad=True)
        mask = torch.rand(3, size) < 0.6
        got, expected = compiled(x, mask, backend), everything(x, mask, backend)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(value.sum(), x) for value in (got, expected)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 traces once for each shape")
@pytest.mark.parametrize("backend", ["auto", "recompute"])
def test_dynamic_shapes_are_traced_once(backend: str) -> None:
    traced = CompileCounter()
    compiled = torch.compile(heterogeneity, fullgraph=True, dynamic=True, backend=traced)
    for size in (9, 12, 15):
        compiled(torch.randn(3, size, 8), torch.rand(3, size) < 0.5, backend=backend)
    assert traced.frame_count == 1


def test_compiled_autograd_takes_it_as_one_node() -> None:
    mask = torch.arange(20).lt(12).repeat(2, 1)
    x = torch.randn(2, 20, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(heterogeneity(x, mask, backend="recompute").sum(), x)
    total = heterogeneity(x, mask, backend="recompute").sum()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: total.backward(), backend="aot_eager")()
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_auto_goes_by_size() -> None:
    assert resolve_backend("auto", torch.empty(8, 196, 768)) == "recompute"
    assert resolve_backend("auto", torch.empty(64, 17, 64)) == "dense"
    assert resolve_backend("auto", torch.empty(64, 17, 64, device="meta")) == "recompute"
    assert resolve_backend("dense", torch.empty(8, 196, 768)) == "dense"


def test_split_mask_pads() -> None:
    split = split_mask(bits(["M..M", "...M"]), num_prefix_tokens=1)
    assert [sorted(row) for row in split.masked.tolist()] == [[1, 4], [-1, 9]]
    assert [sorted(row) for row in split.visible.tolist()] == [[-1, 2, 3], [6, 7, 8]]
    assert split.patches.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert split.defined.tolist() == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.ones(2, 3)}, r"queries must be \[B, N, D\], got shape \(2, 3\)"),
        ({"keys": torch.ones(2, 5, 9)}, "must agree"),
        ({"keys": torch.ones(2, 5, 4).double()}, "torch.float64 must agree"),
        ({"queries": torch.ones(2, 3, 4).long()}, "must be floating point, got torch.int64"),
        ({"query_mask": torch.ones(2, 3)}, r"pass query_mask\.bool\(\)"),
        ({"key_mask": torch.ones(2, 3).bool()}, r"key_mask must be \[2, 5\]"),
        (
            {"backend": "fast"},
            "unknown backend 'fast': choose one of auto, dense, recompute, fused",
        ),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"queries": torch.ones(2, 3, 4), "keys": torch.ones(2, 5, 4)} | change
    with pytest.raises(ValueError, match=message):
        row_entropy(**arguments)  # type: ignore[arg-type]
