"""Recording the tokens at every depth while the model runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mto_core.tokens import Recording, Slot, TracedTokens, TraceError

_NOTHING = (
    "nothing was captured at depth {depth}{others}: the traced block did not run while the trace "
    "was armed. Usual causes: the trace is not armed around the forward; the model was compiled "
    "before the trace was attached (attach first, then torch.compile); the model that ran is a "
    "copy of the traced one (attach a trace to the copy)."
)
_TWICE = (
    "{which} was recorded twice in one armed pass, so it is unclear which tokens are meant. Arm "
    "around exactly one forward, read the tokens before backward and disarm before backward: "
    "activation checkpointing runs blocks a second time there."
)
_NO_GRAD = (
    "the tokens at depth {depth} carry no gradient, so the MTO loss would train nothing. Usual "
    "causes: the forward ran under torch.no_grad(); everything up to this depth is frozen; a "
    "reentrant checkpoint around more than one block (checkpoint each block by itself, or use "
    "use_reentrant=False). For looking without training: TokenTrace(..., require_grad=False)."
)
_CHANGED = (
    "the tokens at depth {depth} were changed in place after they were recorded: the values now "
    "are not those that the block saw. Replace the in-place operation, e.g. x += y by x = x + y."
)


class TokenTrace:
    """Records the input of the first block and the output of every block through forward hooks.

    Attach it before `torch.compile`, DDP or DeepSpeed wrap the model, and arm it for exactly one
    forward at a time. It works eagerly, under torch.compile (whole model or blocks), DDP, DeepSpeed
    ZeRO-1/2, non-reentrant checkpointing, and reentrant checkpointing of single blocks. A deep copy
    or pickle of the traced model is not traced. Tokens of an earlier forward are refused once the
    model has run again, and tokens that were changed in place after a block; under torch.compile
    the latter goes unseen.

    Args:
        blocks: The transformer blocks in the order in which they run, each once per forward. A
            block takes tokens as its first argument and returns tokens, or a tuple that begins with
            them; tokens are [B, P + N, D], or [B, H, W, D] (Swin).
        num_prefix_tokens: Leading tokens that are no patches (cls, register), P.
        require_grad: Whether tokens without gradient are an error. False is for looking at a model
            under `torch.no_grad()`.

    Raises:
        ValueError: No blocks, one block twice, or a negative `num_prefix_tokens`.
        TypeError: A block is not a module, or a whole model stands for its blocks.
        TraceError: A block is compiled already.

    Example:
        >>> blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        >>> trace = TokenTrace(blocks)
        >>> with trace:
        ...     tokens = blocks[1](blocks[0](torch.zeros(1, 4, 8, requires_grad=True)))
        >>> [tuple(t.shape) for t in trace.tokens_by_depth]
        [(1, 4, 8), (1, 4, 8), (1, 4, 8)]
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList | nn.Sequential,
        num_prefix_tokens: int = 0,
        *,
        require_grad: bool = True,
    ) -> None:
        modules = _checked(blocks)
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens must be >= 0, got {num_prefix_tokens}")
        self.num_prefix_tokens, self.require_grad = num_prefix_tokens, require_grad
        self.armed = False
        self._closed = ""
        self._recording = Recording(len(modules) + 1)
        self._argument = next(iter(inspect.signature(modules[0].forward).parameters), "")
        # Bound methods and not closures: a deep copy or pickle of the model copies the trace with
        # its hooks, and the copy arrives closed. A closure would go on recording into the original.
        self._handles = [
            modules[0].register_forward_pre_hook(self._before_first, with_kwargs=True),
            *(
                block.register_forward_hook(partial(self._after, depth))
                for depth, block in enumerate(modules, 1)
            ),
        ]

    def arm(self) -> None:
        """Forgets what was recorded and records from now on.

        Raises:
            TraceError: The trace is closed, or a copy.
        """
        if self._closed:
            raise TraceError(self._closed)
        self._recording.stale = True
        self._recording = Recording(len(self._recording.slots))
        self.armed = True

    def disarm(self) -> None:
        """Records nothing from now on; what was recorded stays readable."""
        self.armed = False

    def clear(self) -> None:
        """Forgets what was recorded, which lets the autograd graph go."""
        self._recording.slots = [Slot() for _ in self._recording.slots]

    def close(self) -> None:
        """Removes the hooks; the trace cannot be armed again."""
        self.disarm()
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._closed = "this TokenTrace is closed: make a new one"

    @property
    def tokens_by_depth(self) -> TracedTokens:
        """What the last armed forward recorded: L + 1 tensors [B, N, D] for L blocks.

        Gradients are looked for here and not in the hook: under reentrant checkpointing the tokens
        get theirs after the hook has run.

        Raises:
            TraceError: The trace is closed or a copy; nothing was recorded at some depth, or
                something twice; the model ran again since; tokens were changed in place, or have
                no gradient.
        """
        if self._closed:
            raise TraceError(self._closed)
        slots, tokens = self._recording.slots, []
        missing = [depth for depth, slot in enumerate(slots) if slot.tokens is None]
        if missing:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise TraceError(_NOTHING.format(depth=missing[0], others=others))
        self._recording.use()
        for depth, slot in enumerate(slots):
            assert slot.tokens is not None
            if slot.twice:
                which = f"the output of block {depth - 1}" if depth else "the input of block 0"
                raise TraceError(_TWICE.format(which=which))
            if slot.version is not None and slot.tokens._version != slot.version:
                raise TraceError(_CHANGED.format(depth=depth))
            if self.require_grad and not slot.tokens.requires_grad:
                raise TraceError(_NO_GRAD.format(depth=depth))
            tokens.append(slot.tokens)
        return TracedTokens(tokens, self.num_prefix_tokens, self._recording)

    def __enter__(self) -> TokenTrace:
        """Arms."""
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        """Disarms."""
        self.disarm()

    def __getstate__(self) -> dict[str, Any]:
        """Settings only, for copy.deepcopy and pickle: neither tokens nor hooks travel."""
        return {"num_prefix_tokens": self.num_prefix_tokens, "require_grad": self.require_grad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, armed=False, _handles=[], _recording=Recording(0))
        self._closed = "this TokenTrace is a copy and has no hooks: make a new one"

    def _before_first(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.armed:
            self._record(0, args[0] if args else kwargs.get(self._argument))
        # Activation checkpointing runs blocks again within backward, which is no new forward.
        elif torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._recording.stale = True

    def _after(self, depth: int, block: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self.armed:
            self._record(depth, output)

    def _record(self, depth: int, value: object) -> None:
        tokens = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(tokens, Tensor):
            where = "or a tuple that begins with one" if depth else "as first argument"
            raise TraceError(
                f"depth {depth}: expected a tensor of tokens, {where}, got {type(tokens).__name__}"
            )
        slot = self._recording.slots[depth]
        if slot.tokens is not None:
            slot.twice = True
            return
        slot.tokens = tokens
        # A compiled graph counts versions in its own way: there, changes in place go unseen.
        if not torch.compiler.is_compiling() and not tokens.is_inference():
            slot.version = tokens._version


def _checked(blocks: Any) -> list[nn.Module]:
    """The blocks as a list; see `TokenTrace` for the errors."""
    if not isinstance(blocks, Iterable):
        children = blocks.named_children() if isinstance(blocks, nn.Module) else ()
        lists = [
            f"model.{name}"
            for name, child in children
            if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > 1
        ]
        raise TypeError(
            f"blocks must be a sequence of transformer blocks, got {type(blocks).__name__}: pass "
            f"{' or '.join(lists) or 'model.blocks'}, the blocks that hold the mask tokens"
        )
    modules = list(blocks)
    if not modules:
        raise ValueError("blocks is empty: pass the model's transformer blocks, e.g. model.blocks")
    for number, block in enumerate(modules):
        if not isinstance(block, nn.Module):
            raise TypeError(f"block {number} is not a module but {type(block).__name__}")
        # wrapped by torch.compile(block), or compiled in place by block.compile()
        if hasattr(block, "_orig_mod") or getattr(block, "_compiled_call_impl", None) is not None:
            raise TraceError(
                f"block {number} ({type(block).__name__}) is compiled already: hooks added now may "
                "never run. Attach the trace first, then compile."
            )
    if len({id(block) for block in modules}) != len(modules):
        raise ValueError("a block stands in blocks twice: each must run once per forward")
    return modules
