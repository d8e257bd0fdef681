"""What does not fit is refused, and what to pass is said."""

import pytest
import torch

from mto_core import MaskedTokenOptimization, MTOConfig, heterogeneity

from .conftest import make

MTO = MaskedTokenOptimization(MTOConfig(sparsity=0.7, singularity=0.3, ranking=0.5))


def grids(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, *shape, 5, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: (t, m.float()), "mask must be bool with True = masked"),
        (lambda t, m: (t, m.new_zeros(3, 17)), r"pass mask\[:, 1:\]"),
        (lambda t, m: (t, m[:, 1:]), r"depth 0 has 16 patch tokens.*num_prefix_tokens=1"),
        (lambda t, m: ([x[:, 2:] for x in t], m), "stripped twice"),
        (lambda t, m: (t, m[:2]), r"for 3 images, got \[2, 16\]"),
        (lambda t, m: (t, m[:, :, None, None]), r"mask must be \[B, N\] or \[B, h, w\]"),
        (lambda t, m: (t, [m]), "got 1 masks for 3 depths"),
        (lambda t, m: (t[:1], m), "ranking compares depths"),
        (lambda t, m: ([], m), "tokens_by_depth is empty"),
        (lambda t, m: ([x[0] for x in t], m), r"tokens at depth 0 must be \[B, N, D\]"),
        (lambda t, m: ([x.detach() for x in t], m), "no tokens at depth 0 require grad"),
        (lambda t, m: ([t[0].long(), *t[1:]], m), "floating"),
        (lambda t, m: ([x[:0] for x in t], m[:0]), "there must be images"),
        (lambda t, m: ([x[:, :0] for x in t], m[:, :0]), "more tokens than the 0"),
        (lambda t, m: ([t[0], t[1][:2], t[2]], m), r"depth 1 are \[2, 16, 4\]"),
        (lambda t, m: (t, m, -1), "must be >= 0, got -1"),
        (lambda t, m: (t, m, 16), "than the 16 of num_prefix_tokens"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    tokens, mask, *prefix = change(*make())
    with pytest.raises(ValueError, match=message):
        MTO(tokens, mask, num_prefix_tokens=sum(prefix))


def first_depth(tokens, mask):
    return heterogeneity(tokens[0], mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.numpy(), r"got ndarray: pass torch\.from_numpy\(mask\)\.bool\(\)"),
        (lambda m: m.tolist(), r"got list: pass torch\.tensor\(mask, dtype=torch\.bool\)"),
        (lambda m: None, "got NoneType: pass the mask that the model ran with"),
    ],
)
@pytest.mark.parametrize("call", [MTO, first_depth])
def test_a_mask_is_a_tensor(call, change, message):
    tokens, mask = make()
    with pytest.raises(TypeError, match=message):
        call(tokens, change(mask))


@pytest.mark.parametrize("call", [MTO, first_depth, lambda t, m: MTO(t, [m] * len(t))])
def test_a_mask_is_where_the_tokens_are(call):
    tokens, mask = make()
    with pytest.raises(ValueError, match=r"mask is on .*pass mask\.to\(tokens\.device\)"):
        call(tokens, mask.to("meta"))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("cells", "tokens", "visible"),
    [
        (196, 49, 49),  # MAE: looks like a grid of half the resolution
        (256, 64, 64),
        (196, 50, 50),
        (196, 98, 49),  # patch_drop_rate=0.5
        (196, 49, 98),  # patch_drop_rate=0.75
    ],
)
def test_blocks_that_see_visible_tokens_only_are_told(cells, tokens, visible, compiled):
    mask = torch.arange(cells).ge(visible).repeat(2, 1)
    traced = [torch.randn(2, 1 + tokens, 4, requires_grad=True) for _ in range(3)]
    mto = torch.compile(MTO, backend="eager") if compiled else MTO
    with pytest.raises(ValueError, match=r"(?s)visible tokens only.*model\.decoder_blocks") as told:
        mto(traced, mask, num_prefix_tokens=1)
    if not compiled:
        assert (f"{tokens} are visible" in str(told.value)) == (tokens == visible)


def test_one_tensor_is_no_sequence_of_depths():
    tokens, mask = make()
    with pytest.raises(TypeError, match="one per depth"):
        MTO(torch.stack(tokens), mask)


# hierarchical models


@pytest.mark.parametrize("compiled", [False, True])
def test_a_misaligned_mask_is_refused_and_named(compiled):
    tokens = grids((8, 8), (4, 4))
    mask = torch.arange(64).lt(32).view(8, 8).repeat(2, 1, 1)
    mto, error, token = MTO, ValueError, "token 15 of image 1"
    if compiled:
        mto = torch.compile(MTO, backend="eager", fullgraph=True)
        error, token = RuntimeError, "a token"
    torch.testing.assert_close(mto(tokens, mask).total, MTO(tokens, mask).total)
    mask[1, 7, 7] = True  # one cell of a visible 2 x 2 block
    with pytest.raises(error, match=f"depth 1: {token} covers 2x2 cells"):
        mto(tokens, mask)


@pytest.mark.parametrize(
    ("shapes", "mask", "size"),
    [
        ([(2, 8), (2, 8)], (8, 2), "2 x 8"),  # transposed
        ([(4, 4), (4, 1)], (4, 4), "4 x 1"),  # a model that merges along one axis only
        ([(4, 4), (1, 4)], (16,), "1 x 4"),
    ],
)
def test_a_mask_that_has_another_grid_than_the_tokens(shapes, mask, size):
    mask = torch.zeros(2, *mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"has {size} patch tokens"):
        MTO(grids(*shapes), mask)
