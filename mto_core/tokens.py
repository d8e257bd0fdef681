"""The tokens of one forward, as the blocks took and gave them."""

from __future__ import annotations

from torch import Tensor

_STALE = (
    "these tokens are of an earlier forward: the model ran again, or another step used them. Arm "
    "the trace around every forward that gets the MTO loss (with trace:), and compute that loss "
    "from trace.tokens_by_depth before the model runs again."
)


class TraceError(RuntimeError):
    """The tokens of a forward were not recorded, or not in a form that a loss can use."""


class Slot:
    """The record of one depth; plain attributes, as torch.compile traces the writes."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self.version: int | None = None
        self.twice = False


class Recording:
    """The record of one armed forward."""

    def __init__(self, depths: int) -> None:
        self.slots = [Slot() for _ in range(depths)]
        self.stale = False  # the model ran again
        self.step: int | None = None  # the optimizer step whose loss used it

    def use(self, step: int | None = None) -> None:
        """Raises TraceError if a later forward or another step needs tokens of its own."""
        if self.stale or (None not in (step, self.step) and step != self.step):
            raise TraceError(_STALE)
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


def flatten_grid(tokens: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """[B, H, W, D] as [B, H·W, D]; [B, N, D] as it is.

    Raises:
        ValueError: Another number of dimensions, or a grid that is said to have prefix tokens.
    """
    if tokens.ndim == 3:
        return tokens
    if tokens.ndim != 4:
        raise ValueError(f"tokens must be [B, N, D] or [B, H, W, D], got {list(tokens.shape)}")
    if num_prefix_tokens:
        raise ValueError(
            f"tokens {list(tokens.shape)} are a grid, which has no room for "
            f"num_prefix_tokens={num_prefix_tokens}"
        )
    return tokens.flatten(1, 2)
