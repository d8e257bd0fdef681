"""Recording the tokens at every depth while the model runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mto_core.checks import check_tokens


class TraceError(RuntimeError):
    """The tokens of a forward were not recorded, or not in a form that a loss can use."""


class Recording:
    """The record of one armed forward: by depth, the tensors recorded, each with its version."""

    def __init__(self, depths: int) -> None:
        self.found: list[list[tuple[Tensor, int | None]]] = [[] for _ in range(depths)]
        self.stale = False  # the model ran again
        self.step: int | None = None  # the optimizer step whose loss used it

    def use(self, step: int | None = None) -> None:
        """Raises TraceError if a later forward or another step needs tokens of its own."""
        if self.stale or (None not in (step, self.step) and step != self.step):
            raise TraceError(
                "these tokens are of an earlier forward: the model ran again, or another step used "
                "them. Arm the trace around every forward that gets the MTO loss (with trace:), "
                "and compute that loss from trace.tokens_by_depth before the model runs again."
            )
        self.step = self.step if step is None else step


class TracedTokens(list[Tensor]):
    """The tokens of one forward by depth: item l is [B, N, D], without prefix tokens.

    `MaskedTokenOptimization` computes on the whole tensors: gradients of slices would cost a
    zero-padded copy per depth.

    Attributes:
        whole: The blocks' own tensors by depth: [B, P + N, D] or [B, H, W, D].
        num_prefix_tokens: P.
        recording: Their record, which tells whether they are of an earlier forward.
    """

    def __init__(self, whole: list[Tensor], num_prefix_tokens: int, recording: Recording) -> None:
        super().__init__(flatten_grid(t, num_prefix_tokens)[:, num_prefix_tokens:] for t in whole)
        self.whole, self.num_prefix_tokens = whole, num_prefix_tokens
        self.recording = recording


def flatten_grid(tokens: Tensor, num_prefix_tokens: int = 0, name: str = "tokens") -> Tensor:
    """[B, H, W, D] as [B, H·W, D], [B, N, D] as it is; TypeError or ValueError for any other."""
    if isinstance(tokens, Tensor) and tokens.ndim == 4:
        if num_prefix_tokens:
            raise ValueError(
                f"{name} {list(tokens.shape)} are a grid, which has no room for "
                f"num_prefix_tokens={num_prefix_tokens}"
            )
        tokens = tokens.flatten(1, 2)
    check_tokens(tokens, name)
    return tokens


class TokenTrace:
    """Records the input of the first block and the output of every block through forward hooks.

    Attach it before `torch.compile`, DDP or DeepSpeed wrap the model, and arm it for exactly one
    forward at a time. It works under torch.compile (whole model or blocks), DDP, DeepSpeed ZeRO-1/2
    and activation checkpointing (reentrant: of single blocks). A copy of the model is not traced.
    Tokens of an earlier forward are refused, and tokens that were changed in place after a block;
    under torch.compile the latter goes unseen.

    Args:
        blocks: The transformer blocks in the order in which they run. A block takes tokens,
            [B, P + N, D] or [B, H, W, D] (Swin), as its first argument and returns them, alone or
            first in a tuple.
        num_prefix_tokens: Leading tokens that are no patches (cls, register), P.
        require_grad: Whether tokens without gradient are an error; False is for looking only.

    Raises:
        TypeError, ValueError: `blocks` are not modules, none or one twice; a negative count.
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
        self._handles = [modules[0].register_forward_pre_hook(self._before_first, with_kwargs=True)]
        for depth, block in enumerate(modules, 1):
            self._handles.append(block.register_forward_hook(partial(self._after, depth)))

    def arm(self) -> None:
        """Forgets what was recorded and records from now on; TraceError if closed or a copy."""
        if self._closed:
            raise TraceError(self._closed)
        self._recording.stale = True
        self._recording = Recording(len(self._recording.found))
        self.armed = True

    def disarm(self) -> None:
        """Records nothing from now on; what was recorded stays readable."""
        self.armed = False

    def clear(self) -> None:
        """Forgets what was recorded, which lets the autograd graph go."""
        self._recording.found = [[] for _ in self._recording.found]

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
            TraceError: The trace is closed or a copy, or the record is not what a loss needs.
        """
        if self._closed:
            raise TraceError(self._closed)
        found = self._recording.found
        if missing := [depth for depth, records in enumerate(found) if not records]:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise TraceError(
                f"nothing was captured at depth {missing[0]}{others}: the traced block did not run "
                "while the trace was armed. Usual causes: the trace is not armed around the "
                "forward; the model was compiled before the trace was attached (attach first, then "
                "torch.compile); the model that ran is a copy of the traced one (attach a trace to "
                "the copy)."
            )
        self._recording.use()
        for depth, [(tokens, version), *again] in enumerate(found):
            if again:
                which = f"the output of block {depth - 1}" if depth else "the input of block 0"
                raise TraceError(
                    f"{which} was recorded twice in one armed pass, so it is unclear which tokens "
                    "are meant. Arm around exactly one forward, read the tokens before backward "
                    "and disarm before backward: activation checkpointing runs blocks a second "
                    "time there."
                )
            if version is not None and tokens._version != version:
                raise TraceError(
                    f"the tokens at depth {depth} were changed in place after they were recorded. "
                    "Replace the in-place operation, e.g. x += y by x = x + y."
                )
            if self.require_grad and not tokens.requires_grad:
                raise TraceError(
                    f"the tokens at depth {depth} carry no gradient, so the MTO loss would train "
                    "nothing. Usual causes: the forward ran under torch.no_grad(); everything up "
                    "to this depth is frozen; a reentrant checkpoint around more than one block "
                    "(checkpoint each block by itself, or use use_reentrant=False). For looking "
                    "without training: TokenTrace(..., require_grad=False)."
                )
        whole = [records[0][0] for records in found]
        return TracedTokens(whole, self.num_prefix_tokens, self._recording)

    def __enter__(self) -> TokenTrace:
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: neither tokens nor hooks travel."""
        closed = "this TokenTrace is a copy and has no hooks: make a new one"
        mine = {"armed": False, "_closed": closed, "_handles": [], "_recording": Recording(0)}
        return self.__dict__ | mine

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
        # A compiled graph counts versions in its own way: there, changes in place go unseen.
        counted = not torch.compiler.is_compiling() and not tokens.is_inference()
        records = self._recording.found[depth]
        if len(records) < 2:  # the second one is an error already
            records.append((tokens, tokens._version if counted else None))


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
    if not modules or len({id(block) for block in modules}) != len(modules):
        raise ValueError(
            "blocks is empty, or has a block twice: pass the model's transformer blocks, each once"
        )
    for number, block in enumerate(modules):
        if not isinstance(block, nn.Module):
            raise TypeError(f"block {number} is not a module but {type(block).__name__}")
        # wrapped by torch.compile(block), or compiled in place by block.compile()
        if hasattr(block, "_orig_mod") or getattr(block, "_compiled_call_impl", None) is not None:
            raise TraceError(
                f"block {number} ({type(block).__name__}) is compiled already: hooks added now may "
                "never run. Attach the trace first, then compile."
            )
    return modules
