"""Gradient norms at the first block's input: compared on request, or held at a ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mto_core.checks import TERMS
from mto_core.config import MTOConfig

# A loss in fp16 autocast has gradients under fp16's smallest number. A power of two costs no
# accuracy; where it makes them overflow instead, the next one is tried.
_SCALES = (2.0**16, 2.0**8, 1.0)

_UNRELATED = (
    "{what} does not depend on the first block's input as it was recorded, so its gradient norm "
    "cannot be measured. Usual causes: the whole model is under torch.compile, where both are "
    "outputs of one graph (compile block by block: block.compile()); tokens were sliced before "
    "they came here (pass the trace's tokens_by_depth as it is, or whole tokens with "
    "num_prefix_tokens); the loss is that of another forward, or detached."
)
_CAUSES = {  # by a part of torch's message
    "use_reentrant": (
        "gradient norms (balance, grad_ratios) need torch.autograd.grad, which reentrant "
        "activation checkpointing forbids. Use checkpoint(..., use_reentrant=False), or fixed "
        "weights (balance=None)."
    ),
    "donated": (
        "gradient norms (balance, grad_ratios) go through the graph twice, but torch.compile gave "
        "its buffers away after the first time. Set torch._functorch.config.donated_buffer = False "
        "before the model is compiled, or use fixed weights (balance=None)."
    ),
    "does not require grad": _UNRELATED,
}


def gradient_norm(value: Tensor, source: Tensor, what: str) -> Tensor:
    """Norm of the gradient of a scalar by `source`, float32 [], safe from fp16 underflow.

    One backward pass through what lies between the two, without gradients of parameters; the graph
    stays alive. RuntimeError: reentrant checkpointing, donated buffers, or no path to `source`.
    """
    norm = source.new_zeros((), dtype=torch.float32)
    for scale in _SCALES:
        try:
            grads = torch.autograd.grad(value * scale, source, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            for sign, cause in _CAUSES.items():
                if sign in str(error):
                    raise RuntimeError(cause.format(what=what)) from error
            raise
        if grads[0] is None:
            raise RuntimeError(_UNRELATED.format(what=what))
        norm = torch.linalg.vector_norm(grads[0].detach(), dtype=torch.float32) / scale
        if norm.isfinite():
            break
    return norm


class GradientBalance(nn.Module):
    """Weights that hold each term's gradient norm at a ratio to that of the recipe's loss.

    Keeps a running mean of squared per-image gradient norms, of the loss and of each term, beside
    the share of it that is measured. They are averaged over all images of a step, on all ranks and
    in all micro batches, and come into force at the next step, so that neither loss nor state
    depends on how a batch is split. The first measured step has no estimate yet, and weights of 0.
    A state dict has room for all terms: one that did not take part when it was saved begins anew.
    """

    mean_square: Tensor
    measured: Tensor
    pending: Tensor
    pending_images: Tensor

    def __init__(self, config: MTOConfig) -> None:
        super().__init__()
        self.config = config
        self.active_terms = [name for name, weight in config.weights.items() if weight > 0]
        self._step: int | None = None
        # first the loss, then the terms; images that were measured since the last step for each
        for name in ("mean_square", "measured", "pending", "pending_images"):
            self.register_buffer(name, torch.zeros(1 + len(TERMS)))

    def _apply(self, fn: Any, recurse: bool = True) -> GradientBalance:
        """Follows the model to another device, but not to half precision: squares would be 0."""
        keep: Any = super()._apply
        keep(lambda t: fn(t) if t.is_meta else t.to(fn(t).device), recurse)
        return self

    @torch.no_grad()
    def begin(self, step: int | None, loss: Tensor | None) -> None:
        """Takes in what the step before has measured, where `step` is a new one."""
        if step is None or loss is None:
            raise ValueError(
                f"balance={self.config.balance} needs step= (the optimizer step) and loss= (the "
                "recipe's own loss)"
            )
        if step == self._step:
            return
        self._step = step
        keep = torch.where(self.pending_images > 0, self.config.balance_decay, 1.0)
        new = self.pending / self.pending_images.clamp_min(1)
        self.mean_square.mul_(keep).add_((1 - keep) * new)
        self.measured.mul_(keep).add_(1 - keep)
        self.pending.zero_()
        self.pending_images.zero_()

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The weights by term; 0 before the first measurement and for a term without gradient."""
        mean = self.mean_square / self.measured.where(self.measured > 0, 1)
        weights = (self.config.balance or 0.0) * (mean[0] / mean[1:]).sqrt()
        weights = weights.clamp_max(self.config.balance_limit).where(mean[1:] > 0, 0)
        return {name: weights[TERMS.index(name)] for name in self.active_terms}

    def measure(
        self, step: int | None, loss: Tensor | None, terms: Mapping[str, Tensor], source: Tensor
    ) -> None:
        """Adds the images of this call, if the step is due. Collective: call it on all ranks."""
        if step is None or loss is None or step % self.config.balance_every:
            return
        batch = source.shape[0]
        norms = [gradient_norm(loss, source, "the loss")]
        norms += [gradient_norm(terms[name], source, name) for name in self.active_terms]
        # Means over the batch have gradients 1/B as large per image: sum_i |B g_i|^2 = B^2 |g|^2.
        sums = (torch.stack(norms) * batch) ** 2
        measured = torch.cat([sums, sums.new_full((1,), batch)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(measured)
        with torch.no_grad():
            # An overflow under AMP skips the measurement, not the run.
            measured = measured.where(measured.isfinite().all(), 0).to(self.pending)
            slots = [0, *(1 + TERMS.index(name) for name in self.active_terms)]
            self.pending[slots] += measured[:-1]
            self.pending_images[slots] += measured[-1]
