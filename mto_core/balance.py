"""Gradient norms at the first block's input: compared on request, held at a ratio, or set once."""

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

CALIBRATIONS = 10  # measured steps whose median sets a weight

_UNRELATED = (
    "{what} does not depend on the first block's input as it was recorded, so its gradient norm "
    "cannot be measured. Usual causes: the whole model is under torch.compile, where both are "
    "outputs of one graph (compile block by block: block.compile()); tokens were sliced before "
    "they came here (pass the trace's tokens_by_depth as it is, or whole tokens with "
    "num_prefix_tokens); the loss is that of another forward, or detached."
)
_CAUSES = {  # by a part of torch's message
    "use_reentrant": (
        "gradient norms (balance, calibrate, grad_ratios) need torch.autograd.grad, which "
        "reentrant activation checkpointing forbids. Use checkpoint(..., use_reentrant=False), or "
        "fixed weights (balance=None, calibrate=None)."
    ),
    "donated": (
        "gradient norms (balance, calibrate, grad_ratios) go through the graph twice, but "
        "torch.compile gave its buffers away after the first time. Set "
        "torch._functorch.config.donated_buffer = False before the model is compiled, or use fixed "
        "weights (balance=None, calibrate=None)."
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


class GradientMeter(nn.Module):
    """Weights from gradient norms, of the recipe's loss and of each term, as a run measures them.

    Squared norms per image are summed over all images of a step, on all ranks and in all micro
    batches, and come into force at the next step, so that neither loss nor state depends on how a
    batch is split. A state dict has room for all terms: one that did not take part when it was
    saved begins anew.
    """

    pending: Tensor
    pending_images: Tensor

    def __init__(self, config: MTOConfig) -> None:
        super().__init__()
        self.config = config
        self.active_terms = [name for name, weight in config.weights.items() if weight > 0]
        self._step: int | None = None
        self.done = False  # nothing is left to measure, as of the last due step
        # first the loss, then the terms; images that were measured since the last step for each
        for name in ("pending", "pending_images"):
            self.register_buffer(name, torch.zeros(1 + len(TERMS)))

    def due(self, step: int) -> bool:
        """Whether this step is measured; the same on all ranks."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The weights by term, without warm-up."""
        raise NotImplementedError

    def _take(self, mean_square: Tensor, seen: Tensor) -> None:
        """Takes in what a step has measured: loss and terms [4], and for which of them it did."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> GradientMeter:
        """Follows the model to another device, but not to half precision: squares would be 0."""
        keep: Any = super()._apply
        keep(lambda t: fn(t) if t.is_meta else t.to(fn(t).device), recurse)
        return self

    @torch.no_grad()
    def begin(self, step: int | None, loss: Tensor | None) -> None:
        """Takes in what the step before has measured, where `step` is a new one."""
        if step is None or loss is None:
            name = "balance" if self.config.calibrate is None else "calibrate"
            raise ValueError(
                f"{name}={getattr(self.config, name)} needs step= (the optimizer step) and loss= "
                "(the recipe's own loss)"
            )
        if step == self._step:
            return
        self._step = step
        self._take(self.pending / self.pending_images.clamp_min(1), self.pending_images > 0)
        self.pending.zero_()
        self.pending_images.zero_()

    @torch.no_grad()
    def ratios(self) -> Tensor:
        """Gradient norm of each term over that of the loss [3], as this step has measured it."""
        return (self.pending[1:] / self.pending[0]).sqrt()

    def measure(
        self, step: int | None, loss: Tensor | None, terms: Mapping[str, Tensor], source: Tensor
    ) -> None:
        """Adds the images of this call, if the step is due. Collective: call it on all ranks."""
        if step is None or loss is None or not self.due(step):
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

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        weights = weights.clamp_max(self.config.balance_limit)
        return {name: weights[TERMS.index(name)] for name in self.active_terms}


class GradientBalance(GradientMeter):
    """Weights that hold each term's gradient norm at a ratio to that of the recipe's loss.

    Keeps a running mean of the squared norms, beside the share of it that is measured. The first
    measured step has no estimate yet, and weights of 0; so has a term without gradient.
    """

    mean_square: Tensor
    measured: Tensor

    def __init__(self, config: MTOConfig) -> None:
        super().__init__(config)
        for name in ("mean_square", "measured"):
            self.register_buffer(name, torch.zeros(1 + len(TERMS)))

    def due(self, step: int) -> bool:
        """Every `balance_every` steps; before the first of them, at powers of two."""
        every = self.config.balance_every
        return step % every == 0 or (step < every and step.bit_count() == 1)

    def _take(self, mean_square: Tensor, seen: Tensor) -> None:
        keep = torch.where(seen, self.config.balance_decay, 1.0)
        self.mean_square.mul_(keep).add_((1 - keep) * mean_square)
        self.measured.mul_(keep).add_(1 - keep)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The ratio wanted, over the running one."""
        mean = self.mean_square / self.measured.where(self.measured > 0, 1)
        weights = (self.config.balance or 0.0) * (mean[0] / mean[1:]).sqrt()
        return self._named(weights.where(mean[1:] > 0, 0))


class GradientCalibration(GradientMeter):
    """Weights that are set once, from the median ratio of the first measured steps, and then kept.

    They are 0 until then, and for a term without gradient.
    """

    first_ratios: Tensor
    counted: Tensor

    def __init__(self, config: MTOConfig) -> None:
        super().__init__(config)
        self.register_buffer("first_ratios", torch.zeros(CALIBRATIONS, len(TERMS)))
        self.register_buffer("counted", torch.zeros(len(TERMS)))

    def due(self, step: int) -> bool:
        """Every tenth part of `calibrate_steps`, until ten steps have been measured."""
        if self.done or step % (self.config.calibrate_steps // CALIBRATIONS):
            return False
        slots = [TERMS.index(name) for name in self.active_terms]
        self.done = bool((self.counted[slots] >= CALIBRATIONS).all())  # waits for the device
        return not self.done

    def _take(self, mean_square: Tensor, seen: Tensor) -> None:
        if self.done:
            return
        free = torch.arange(CALIBRATIONS, device=seen.device)[:, None] == self.counted  # [10, 3]
        seen = seen[1:] & (mean_square[0] > 0)
        ratios = (mean_square[1:] / mean_square[0]).sqrt()
        self.first_ratios.copy_(torch.where(free & seen, ratios, self.first_ratios))
        self.counted.add_(seen.to(self.counted)).clamp_max_(CALIBRATIONS)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The ratio wanted, over the median of the first ones."""
        median = self.first_ratios.quantile(0.5, dim=0)
        weights = (self.config.calibrate or 0.0) / median
        return self._named(weights.where((self.counted >= CALIBRATIONS) & (median > 0), 0))


def gradient_meter(config: MTOConfig) -> GradientMeter | None:
    """The one that the configuration asks for; None for fixed weights."""
    if not any(config.weights.values()):
        return None
    if config.calibrate is not None:
        return GradientCalibration(config)
    return GradientBalance(config) if config.balance is not None else None
