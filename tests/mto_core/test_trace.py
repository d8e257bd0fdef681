import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace, TraceError

from .distributed_worker import Block, Model

WEIGHTS = {"sparsity": 0.5, "singularity": 0.5, "ranking": 0.5}
MTO = MaskedTokenOptimization(MTOConfig(**WEIGHTS, backend="recompute"))
REFERENCE = MaskedTokenOptimization(MTOConfig(**WEIGHTS, backend="dense"))

torch.manual_seed(1)
IMAGES = torch.randn(2, 13, 4)
MASK = torch.rand(2, 12) < 0.6


def traced(how="plain", style="tensor"):
    """A fresh model and its trace."""
    model = Model(how, style)
    return model, TokenTrace(model.blocks, 1)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def by_hand():
    """Gradients of loss + MTO with tokens passed on by the model's own code, no hooks."""
    model = Model()
    tokens = [model.embed(IMAGES)]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    loss = (model.head(tokens[-1]) - IMAGES).square().mean()
    return gradients(model, loss + REFERENCE(tokens, MASK, num_prefix_tokens=1).total)


def agrees_with_hand(model, trace, run=None):
    """Gradients of loss + MTO through the trace; `run` is the model where it is compiled."""
    with trace:
        loss = (model if run is None else run)(IMAGES)
    found = gradients(model, loss + MTO(trace.tokens_by_depth, MASK).total)
    torch.testing.assert_close(found, by_hand())


def refused(trace, message):
    with pytest.raises(TraceError, match=message):
        _ = trace.tokens_by_depth


@pytest.mark.parametrize("style", ["tensor", "tuple"])
@pytest.mark.parametrize("how", ["plain", "keyword", "nonreentrant", "reentrant"])
def test_gradients_are_those_of_the_tokens_passed_by_hand(how, style):
    agrees_with_hand(*traced(how, style))


def test_what_is_recorded():
    model, trace = traced()
    with trace:
        model(IMAGES)
    tokens = trace.tokens_by_depth
    assert [tuple(t.shape) for t in tokens] == [(2, 12, 6)] * 4
    embedded = model.embed(IMAGES)
    assert torch.equal(tokens[0], embedded[:, 1:])
    assert torch.equal(tokens[-1], model.run(embedded)[:, 1:])


def test_grids_are_flattened_row_by_row():
    blocks = nn.ModuleList([nn.Identity()])
    trace = TokenTrace(blocks)
    grid = torch.randn(2, 3, 5, 4, requires_grad=True)
    with trace:
        blocks[0](grid)
    assert torch.equal(trace.tokens_by_depth[1][:, 7], grid[:, 1, 2])
    assert trace.tokens_by_depth.whole[0] is grid


def test_a_swin_of_timm_several_stages():
    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_heads=(1, 2), **sizes)
    trace = TokenTrace([block for stage in swin.layers for block in stage.blocks])
    with trace:
        loss = swin(torch.randn(2, 3, 64, 64)).square().mean()
    shapes = [tuple(t.shape) for t in trace.tokens_by_depth]
    assert shapes == [(2, 256, 8)] * 3 + [(2, 64, 16)] * 2
    mask = (torch.rand(2, 4, 4) < 0.6).repeat_interleave(4, 1).repeat_interleave(4, 2)
    terms = MTO(trace.tokens_by_depth, mask)
    (loss + terms.total).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in swin.parameters())
    assert terms.heterogeneity.shape == (5,)


def test_only_while_armed():
    model, trace = traced()
    model(IMAGES)
    refused(trace, r"nothing was captured at depth 0 \(and 3 others\)")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), trace:
        model(torch.randn(2, 13, 5))
    assert not trace.armed  # an error in the model disarms
    with trace:
        model(IMAGES)
    assert len(trace.tokens_by_depth) == 4
    trace.clear()
    refused(trace, "nothing was captured")


def test_an_armed_trace_leaves_training_bit_identical():
    runs = []
    for attach in (False, True):
        model = Model()
        keys = list(model.state_dict())
        trace = TokenTrace(model.blocks, 1) if attach else None
        sgd = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            if trace:
                trace.arm()
            loss = model(IMAGES)
            if trace:
                trace.disarm()
                observe = MaskedTokenOptimization(MTOConfig())
                loss = loss + observe(trace.tokens_by_depth, MASK).total
            gradients(model, loss)
            sgd.step()
        assert list(model.state_dict()) == keys
        runs.append([loss.detach(), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# torch.compile


def test_whole_model_compiled_in_one_graph_and_never_again():
    model, trace = traced()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(IMAGES)
    for _ in range(3):
        agrees_with_hand(model, trace, compiled)
        compiled(IMAGES)
    assert counter.frame_count == 2  # one graph with the trace armed, one without


def test_armed_from_within_the_compiled_graph():
    model, trace = traced()
    model.register_forward_pre_hook(lambda module, _: trace.arm() if module.training else None)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        loss = compiled(IMAGES)
        total = loss + MTO(trace.tokens_by_depth, MASK).total
        trace.disarm()
        torch.testing.assert_close(gradients(model, total), by_hand())
    assert counter.frame_count == 1  # arming starts from the same state every time


@pytest.mark.parametrize("form", ["inductor", "checkpointing", "block by block"])
def test_compiled_forms_agree_with_hand(form):
    model, trace = traced("nonreentrant" if form == "checkpointing" else "plain")
    if form == "block by block":
        for block in model.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        agrees_with_hand(model, trace)
    else:
        backend = "inductor" if form == "inductor" else "aot_eager"
        agrees_with_hand(model, trace, torch.compile(model, backend=backend))


def test_silent_failure_attached_after_the_model_was_compiled():
    model = Model()
    compiled = torch.compile(model, backend="eager")
    compiled(IMAGES)
    trace = TokenTrace(model.blocks)
    with trace:
        compiled(IMAGES)
    refused(trace, "attach first, then torch.compile")


@pytest.mark.parametrize("in_place", [True, False])
def test_silent_failure_block_compiled_already(in_place):
    blocks = [Block(), Block()]
    if in_place:
        blocks[1].compile(backend="eager")
    else:
        blocks[1] = torch.compile(blocks[1], backend="eager")
    with pytest.raises(TraceError, match="block 1 .* is compiled already"):
        TokenTrace(blocks)


def test_silent_failure_called_twice_under_compile():
    model, trace = traced()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with trace:
        compiled(IMAGES)
        compiled(IMAGES)
    refused(trace, "recorded twice")


# other silent failures: each of these records something wrong, or nothing, without its guard


@pytest.mark.parametrize("how", ["nonreentrant", "reentrant"])
def test_silent_failure_recomputation_records_again(how):
    model, trace = traced(how)
    with trace:
        loss = model(IMAGES)
    tokens = trace.tokens_by_depth.whole
    loss.backward()  # runs the hooks again
    assert all(a is b for a, b in zip(trace.tokens_by_depth.whole, tokens, strict=True))
    with trace:  # still armed in backward: told on the next reading
        model(IMAGES).backward()
    refused(trace, "disarm before backward")


@pytest.mark.parametrize("later", ["training", "evaluation", "compiled", "block by block"])
def test_silent_failure_tokens_of_an_earlier_forward(later):
    """Armed once, forgotten later: a new mask would meet old tokens."""
    model, trace = traced()
    run = torch.compile(model, backend="eager") if later == "compiled" else model
    with trace:
        run(IMAGES)
    assert len(trace.tokens_by_depth) == 4
    if later == "block by block":
        model.run(model.embed(IMAGES))
    else:
        with torch.set_grad_enabled(later != "evaluation"):
            run(IMAGES)
    refused(trace, "earlier forward")
    agrees_with_hand(model, trace, run)


@pytest.mark.parametrize("compiled", [False, True])
def test_silent_failure_kept_tokens_of_an_earlier_forward(compiled):
    """The caller kept the sequence, or ran a copy of the model: no hook of ours sees the latter."""
    model, trace = traced()
    run = torch.compile(model, backend="eager") if compiled else model
    for later in ("armed", "unarmed", "cleared", "a copy"):
        with trace:
            run(IMAGES)
        kept = trace.tokens_by_depth
        MTO(kept, MASK, step=1)
        MTO(kept, MASK, step=1)  # the micro batches of a step, or two modules
        if later == "armed":
            trace.arm()
        elif later == "a copy":
            copy.deepcopy(model)(IMAGES)
            MTO(kept, MASK)
        else:
            if later == "cleared":
                trace.clear()
            trace.disarm()
            run(IMAGES)
        with pytest.raises(TraceError, match="earlier forward"):
            MTO(kept, MASK, step=2)
        if later != "a copy":
            with pytest.raises(TraceError, match="earlier forward"):
                MTO.grad_ratios(kept, MASK, loss=kept[0].sum())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", "the input of block 0 was recorded twice"),
        ("no_grad", r"depth 0 carry no gradient.*no_grad"),
        ("frozen", r"depth 0 carry no gradient.*frozen"),
        ("outer reentrant", r"depth 1 carry no gradient.*reentrant checkpoint"),
        ("in place", "depth 1 were changed in place"),
        ("skipped", "nothing was captured at depth 4:"),
    ],
)
def test_silent_failure(how, message):
    model = Model(how)
    if how == "frozen":
        model.embed.requires_grad_(False)
        model.blocks[0].requires_grad_(False)
    trace = TokenTrace([*model.blocks, Block()] if how == "skipped" else model.blocks)
    with trace, torch.set_grad_enabled(how != "no_grad"):
        model(IMAGES)
        if how == "twice":
            model(IMAGES * 2)
    refused(trace, message)


def test_looking_without_training():
    model = Model()
    trace = TokenTrace(model.blocks, require_grad=False)
    with trace, torch.no_grad():
        model(IMAGES)
    assert len(trace.tokens_by_depth) == 4
    with trace, torch.inference_mode():
        model(IMAGES)
        assert len(trace.tokens_by_depth) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_silent_failure_a_copy_records_into_the_original(duplicate):
    model, trace = traced()
    model.trace = trace
    with trace:
        loss = model(IMAGES)
    twin = duplicate(model)  # while tokens with a graph are held
    kept = trace.tokens_by_depth.whole
    trace.armed = True
    twin(IMAGES * 2)  # an EMA teacher beside the model
    trace.armed = False
    assert all(a is b for a, b in zip(trace.tokens_by_depth.whole, kept, strict=True))
    loss.backward()
    with trace:
        twin(IMAGES)
    refused(trace, "attach a trace to the copy")
    with pytest.raises(TraceError, match="is a copy and has no hooks"):
        twin.trace.arm()
    agrees_with_hand(twin, TokenTrace(twin.blocks, 1))


def test_close_removes_every_hook():
    model, trace = traced()
    trace.close()
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in model.blocks)
    with pytest.raises(TraceError, match="closed"):
        trace.arm()


@pytest.mark.parametrize(
    ("blocks", "prefix", "error", "message"),
    [
        ([], 0, ValueError, "blocks is empty"),
        ([nn.Identity(), print], 0, TypeError, "block 1 is not a module but builtin_function"),
        ([nn.Identity()], -1, ValueError, "num_prefix_tokens must be >= 0"),
        ([Block()] * 2, 0, ValueError, "twice"),
        (Model(), 0, TypeError, r"got Model: pass model\.blocks"),
        (None, 0, TypeError, r"got NoneType: pass model\.blocks"),
    ],
)
def test_what_cannot_be_traced_is_refused(blocks, prefix, error, message):
    with pytest.raises(error, match=message):
        TokenTrace(blocks, prefix)


def test_a_block_that_returns_no_tokens_is_refused():
    odd = nn.Identity()
    odd.register_forward_hook(lambda *_: {"hidden": 1})
    with TokenTrace([odd]), pytest.raises(TraceError, match="depth 1: expected a tensor.*got dict"):
        odd(IMAGES)


@pytest.mark.parametrize(
    ("shape", "prefix", "message"),
    [((2, 3, 3, 4), 0, "no room for num_prefix_tokens=1"), ((2, 10, 4), 2, "say it once, to the")],
)
def test_prefix_tokens_are_said_once_and_not_of_grids(shape, prefix, message):
    block = nn.Identity()
    trace = TokenTrace([block], num_prefix_tokens=1)
    with trace:
        block(torch.randn(shape, requires_grad=True))
    with pytest.raises(ValueError, match=message):
        MTO(trace.tokens_by_depth, torch.rand(2, 9) < 0.5, num_prefix_tokens=prefix)
