"""The fused backend: on a GPU where there is one, else its kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
CUDA = torch.cuda.is_available()  # else tests/conftest.py has asked for the interpreter

from benchmarks.tokens import (  # noqa: E402
    BARS,
    GRADIENT_BAR,
    KINDS,
    SMOOTH,
    tokens_of,
)
from mto_core import fused  # noqa: E402
from mto_core.entropy import resolve_backend, row_entropy, token_entropy  # noqa: E402
from mto_core.inputs import split_mask  # noqa: E402
from mto_core.losses import heterogeneity, sparsity_loss  # noqa: E402

from .test_numerics import DIM, MASK  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"


@triton.jit
def _counting(to, count):  # type: ignore[no-untyped-def]
    for number in range(count):
        tl.store(to, number)


def _runs_kernels() -> bool:
    """The interpreter of Triton 3.6 refuses loops with a NumPy that is newer than itself."""
    try:
        _counting[(1,)](torch.zeros(1, device=DEVICE), 2)
    except Exception:
        return False
    return True


needs_kernels = pytest.mark.skipif(
    not _runs_kernels(), reason=f"Triton {triton.__version__}'s interpreter and this NumPy differ"
)
RAGGED = torch.tensor([0, 1, 11, 19, 20])[:, None] > torch.arange(20)  # |M| of each image
RAGGED = RAGGED[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks: sets, padding and channels span more than one."""
    for name in ("CENTERS", "ENTROPIES", "BY_LOGITS", "BY_TOKENS"):
        sizes = {key: min(16, size) for key, size in getattr(fused, name).items()}
        monkeypatch.setattr(fused, name, sizes)


def sets(kind: str) -> tuple[Tensor, Tensor]:
    """Queries and keys of RAGGED, in tokens with one prefix."""
    rows = torch.arange(5 * 21).view(5, 21)[:, 1:]
    counted = split_mask(RAGGED, 1)
    return {
        "masked to visible": (counted.masked, counted.visible),
        "visible to all": (counted.visible, counted.patches),
        "padding anywhere": (rows.where(RAGGED, -1), rows.where(~RAGGED, -1)),
        "padding last": split_mask(RAGGED, 1, count=False)[:2],
    }[kind]


def evaluate(
    tokens: Tensor, kind: str, scale: str | float, weight: Tensor, **how: object
) -> tuple[Tensor, Tensor]:
    """H, and the gradient of its weighted sum."""
    x = tokens.clone().requires_grad_()
    queries, keys = (index.to(x.device) for index in sets(kind))
    if how:
        h = token_entropy(x, queries, keys, scale=scale, **how)  # type: ignore[arg-type]
    else:
        norm = scale == "layernorm"
        h = fused.fused_entropy(x, queries, keys, 1.0 if norm else float(scale), norm)
    (grad,) = torch.autograd.grad((h * weight.to(h)[:, : h.shape[1]]).sum(), x)
    return h.detach(), grad


KIND = ["masked to visible", "visible to all", "padding anywhere", "padding last"]
TOKENS = torch.randn(5, 21, 24, generator=torch.Generator().manual_seed(1)) + 0.3
WEIGHT = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))


@needs_kernels
@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("scale", [0.7, "layernorm"])
def test_entropy_and_gradient_against_float64(scale: str | float, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tokens = TOKENS.to(DEVICE, dtype)
        h, grad = evaluate(tokens, kind, scale, WEIGHT)
        exact, by = evaluate(tokens.double(), kind, scale, WEIGHT, backend="dense")
        torch.testing.assert_close(h.double(), exact, rtol=1e-5, atol=1e-6)
        assert grad.dtype == dtype
        rounding = {torch.float32: 1e-3 if CUDA else 1e-4, torch.bfloat16: 5e-3}[dtype]
        assert (grad - by).norm() < rounding * by.norm()


@needs_kernels
def test_the_operator_of_compiled_graphs_gives_the_same_bits() -> None:
    for scale, kind in ((0.7, KIND[0]), ("layernorm", KIND[1])):
        tokens = TOKENS.to(DEVICE)
        expected = evaluate(tokens, kind, scale, WEIGHT)
        x = tokens.clone().requires_grad_()
        queries, keys = (index.to(x.device) for index in sets(kind))
        norm = scale == "layernorm"
        h = fused._operator(x, queries, keys, 1.0 if norm else float(scale), norm)[0]
        (grad,) = torch.autograd.grad((h * WEIGHT.to(h)[:, : h.shape[1]]).sum(), x)
        torch.testing.assert_close((h, grad), expected, rtol=0, atol=0)


@needs_kernels
def test_gradients_are_the_same_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TOKENS.to(DEVICE)
    together = evaluate(tokens, KIND[1], 0.7, WEIGHT)
    monkeypatch.setattr(fused, "SCRATCH", 1)
    torch.testing.assert_close(evaluate(tokens, KIND[1], 0.7, WEIGHT), together, rtol=0, atol=0)


@needs_kernels
def test_a_second_derivative_is_refused() -> None:
    x = TOKENS.to(DEVICE).requires_grad_()
    h = fused.fused_entropy(x, *(index.to(x.device) for index in sets(KIND[0])), 1.0, False)
    (grad,) = torch.autograd.grad(h.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_tokens_that_it_cannot_take_are_refused() -> None:
    for tokens in (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.float64, device=DEVICE)):
        with pytest.raises(RuntimeError, match="Pass backend='auto'"):
            row_entropy(tokens, tokens, backend="fused")
        assert resolve_backend("auto", tokens) != "fused"


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mto_core import fused, kernels

floats = "mean rstd center entropy top log_z grad by_logits by_tokens".split()
types = {name: "*fp32" for name in floats} | {"tokens": "*bf16", "scale": "fp32"}
types |= {name: "*i64" for name in ("queries", "keys", "to", "of")}
exact = {"norm": True, "exact": fused.LOGITS}
by = {"norm": True, "exact": fused.GRADIENTS}
for capability in (80, 86, 90):
    for kernel, constants, sizes in (
        (kernels.centers, {"norm": True}, fused.CENTERS),
        (kernels.entropies, exact, fused.ENTROPIES),
        (kernels.gradients_by_logits, exact, fused.BY_LOGITS),
        (kernels.gradients_by_tokens, by | {"by_queries": True}, fused.BY_TOKENS),
        (kernels.gradients_by_tokens, by | {"by_queries": False}, fused.BY_TOKENS),
    ):
        constants = constants | {k: v for k, v in sizes.items() if k != "num_warps"}
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        places = {(names.index(n),): value for n, value in constants.items()}
        try:
            source = ASTSource(kernel, signature, places)
        except TypeError:  # Triton before 3.3
            rest = {n: kind for n, kind in signature.items() if n not in constants}
            source = ASTSource(kernel, rest, constants)
        target = GPUTarget("cuda", capability, 32)
        found = compile(source, target=target, options={"num_warps": sizes["num_warps"]})
        print(capability, names[0], found.metadata.shared)
"""


def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    """For A100, RTX 3090 and H100, within the 99 KiB of shared memory that the second has."""
    home = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(home), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shared = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(shared) == 15
    assert max(shared) <= 99 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("largest_logit", "bar"), BARS.items())
def test_the_bars_of_the_other_backends(
    largest_logit: float, bar: float, dtype: torch.dtype
) -> None:
    mask = MASK.cuda()
    sides = split_mask(mask)[:2]
    for kind in KINDS:
        tokens = tokens_of(kind, largest_logit, MASK, DIM).to("cuda", dtype)
        h = token_entropy(tokens.double(), *sides, scale="raw", backend="dense")
        l_spa = sparsity_loss(tokens.double(), mask, backend="dense")
        got = token_entropy(tokens, *sides, scale="raw", backend="fused").double()
        assert (got - h).abs().max() < bar, kind
        got = sparsity_loss(tokens, mask, backend="fused").double()
        assert (got - l_spa).abs().max() < bar, kind


@pytest.mark.gpu
def test_the_gradient_bar_of_the_other_backends() -> None:
    mask = MASK.cuda()
    for kind in SMOOTH:
        tokens = tokens_of(kind, 3e3, MASK, DIM).cuda()
        gradients = []
        for x, backend in ((tokens, "fused"), (tokens.double(), "dense")):
            x.requires_grad_()
            terms = [term(x, mask, backend=backend) for term in (heterogeneity, sparsity_loss)]  # type: ignore[arg-type]
            gradients.append(torch.autograd.grad(sum(terms).sum(), x)[0].double())
        off = (gradients[0] - gradients[1]).norm()
        assert off < GRADIENT_BAR * gradients[1].norm(), kind
