"""The MTO loss of one forward: all terms, weighted, with what is needed to judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mto_core.balance import GradientBalance, gradient_norm
from mto_core.config import MTOConfig
from mto_core.diagnostics import token_norms, visible_mass
from mto_core.entropy import MaskIndex, compute_dtype
from mto_core.inputs import align, check_grad, whole_tokens
from mto_core.losses import heterogeneity_of, ranking_loss, singularity_loss, sparsity_of

# Logits that may be saved, in bytes, as a share of the tokens of all depths: some 0.3 % of what
# a ViT saves, which in float32 is 15 times these tokens (ViT-B with fused attention).
KEEP = 1 / 23


@dataclass(frozen=True, eq=False)
class MTOTerms:
    """What `MaskedTokenOptimization` returns: scalars and vectors of the tokens' device, float32.

    Terms are unweighted means over the batch. An image for which a term is undefined (no masked
    token, fewer than two visible ones) counts as 0 in that mean.

    Attributes:
        total: [] what to add to the recipe's loss: the weighted sum. Exactly 0 and without
            gradient where all weights are 0.
        sparsity: [] L_spa.
        singularity: [] L_e.
        ranking: [] L_r; 0 where there is only one depth.
        heterogeneity: [L+1] H by depth, detached.
        weights: Weight of each term at this step, warm-up and balance included.
        token_norm: [L+1] mean norm of the patch tokens by depth; None without diagnostics.
        diagonal_mass: [] what visible tokens give to themselves at depth 0, or None.
        masked_mass: [] what visible tokens give to masked ones at depth 0, or None.
    """

    total: Tensor
    sparsity: Tensor
    singularity: Tensor
    ranking: Tensor
    heterogeneity: Tensor
    weights: Mapping[str, float | Tensor]
    token_norm: Tensor | None = None
    diagonal_mass: Tensor | None = None
    masked_mass: Tensor | None = None

    def as_dict(self) -> dict[str, float | list[float] | dict[str, float]]:
        """The same as plain numbers for a logger; waits for the device."""
        names = ("total", "sparsity", "singularity", "ranking", "heterogeneity")
        found = {name: getattr(self, name) for name in (*names, *_DIAGNOSTICS)}
        plain = {name: value.tolist() for name, value in found.items() if value is not None}
        return plain | {"weights": {name: float(w) for name, w in self.weights.items()}}


_DIAGNOSTICS = ("token_norm", "diagonal_mass", "masked_mass")


class MaskedTokenOptimization(nn.Module):
    """Masked Token Optimization: L_mto = w_spa L_spa + w_e L_e + w_r L_r.

    Has no parameters and draws no random numbers. Its state dict is empty unless `config.balance`
    is set; then it holds the running gradient norms, and belongs into the recipe's checkpoint.
    Tokens are not checked for NaN: a NaN there is one in the recipe's own loss too.

    Args:
        config: Weights and forms; see `MTOConfig`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> tokens = [torch.randn(2, 16, 8, requires_grad=True) for _ in range(3)]
        >>> mask = torch.rand(2, 16) < 0.6
        >>> mto = MaskedTokenOptimization(MTOConfig(singularity=1.0))
        >>> terms = mto(tokens, mask)
        >>> terms.heterogeneity.shape, bool(terms.total == terms.singularity)
        (torch.Size([3]), True)
    """

    def __init__(self, config: MTOConfig) -> None:
        super().__init__()
        self.config = config
        self.balance: GradientBalance | None = None
        on = [name for name, weight in config.weights.items() if weight > 0]
        if config.balance is not None and on:
            self.balance = GradientBalance(
                list(config.weights),
                on,
                ratio=config.balance,
                every=config.balance_every,
                decay=config.balance_decay,
                limit=config.balance_limit,
            )

    def forward(
        self,
        tokens_by_depth: Sequence[Tensor],
        mask: Tensor | Sequence[Tensor],
        *,
        num_prefix_tokens: int = 0,
        step: int | None = None,
        loss: Tensor | None = None,
        diagnostics: bool = True,
    ) -> MTOTerms:
        """The terms of one forward.

        Args:
            tokens_by_depth: A trace's `tokens_by_depth`, or L + 1 tensors [B, P + N, D] (or
                [B, H, W, D]): the first block's input, position embedding included, and every
                block's output. N and D may differ by depth.
            mask: bool, True = masked: [B, N]; for a hierarchical model [B, N] or [B, h, w] at the
                finest resolution; or one mask per depth.
            num_prefix_tokens: Leading tokens that are no patches, P; a trace knows its own.
            step: Optimizer step, the same for all micro batches of a step. Needed for a warm-up
                and for balance.
            loss: The recipe's own loss, a mean over this batch, before loss scaling and before
                division by accumulation steps. Needed for balance only, and in all ranks.
            diagnostics: Whether to fill `token_norm`, `diagonal_mass` and `masked_mass`.

        Raises:
            ValueError: No images or tokens, tokens and mask do not fit, a hierarchical mask is
                misaligned, ranking with one depth, `step` or `loss` is missing, or nothing that a
                weighted term depends on requires grad.
            RuntimeError: balance, where gradient norms cannot be measured; a misaligned mask under
                `torch.compile`.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens)
        grids, masks, indices = align(tokens, prefix, mask)
        weights = self._weights(step, loss)
        on = [name for name, weight in self.config.weights.items() if weight > 0]
        if torch.is_grad_enabled():
            check_grad(grids, on)
        values, h = self._terms(grids, indices, on)
        if (
            self.balance is not None
            and loss is not None
            and step is not None
            and torch.is_grad_enabled()
            and self.balance.is_due(step)
        ):
            self.balance.measure(loss, values, tokens[0])
        total = h.new_zeros(())
        for name in on:
            total = total + weights[name] * values[name]
        diagonal = masked = norms = None
        if diagnostics:
            norms = token_norms(grids, prefix)
            scale = self.config.scale
            both = visible_mass(grids[0], masks[0], indices[0], scale=scale)
            diagonal, masked = (mass.mean() for mass in both)
        return MTOTerms(
            total=total,
            heterogeneity=h.detach().mean(1),
            weights=weights,
            token_norm=norms,
            diagonal_mass=diagonal,
            masked_mass=masked,
            **values,
        )

    def grad_ratios(
        self,
        tokens_by_depth: Sequence[Tensor],
        mask: Tensor | Sequence[Tensor],
        *,
        loss: Tensor,
        num_prefix_tokens: int = 0,
    ) -> dict[str, float]:
        """Gradient norm of each unweighted term relative to that of the recipe's loss.

        Both are taken at the first block's input, over this process's batch. Times its weight, a
        ratio says how strongly a term pulls: above 1 it outweighs the recipe. Costs about one
        forward of the terms and two backward passes through the model without weight gradients, so
        ask for it now and then. Call it before backward; changes nothing, and needs no other rank.

        Args:
            tokens_by_depth: As in `forward`.
            mask: As in `forward`.
            loss: The recipe's own loss, a scalar with its graph.
            num_prefix_tokens: As in `forward`.

        Returns:
            Ratio by term; `inf` where the loss has no gradient.

        Raises:
            ValueError: As in `forward`.
            RuntimeError: Reentrant checkpointing, whole-model torch.compile, tokens that the loss
                does not depend on.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens)
        grids, _, indices = align(tokens, prefix, mask)
        source = tokens[0]
        with torch.enable_grad():
            norm = gradient_norm(loss, source, "the loss").item()
            names = ["sparsity", "singularity"] + (["ranking"] if len(grids) > 1 else [])
            values, _ = self._terms(grids, indices, names)
            ratios = {name: gradient_norm(values[name], source, name).item() for name in names}
        return {name: value / norm if norm else float("inf") for name, value in ratios.items()}

    def extra_repr(self) -> str:
        """The configuration."""
        return str(self.config)

    def _weights(self, step: int | None, loss: Tensor | None) -> dict[str, float | Tensor]:
        config = self.config
        if step is None and config.warmup_steps:
            raise ValueError(f"warmup_steps={config.warmup_steps} needs step=, the optimizer step")
        weights: dict[str, float | Tensor] = dict(config.weights)
        if self.balance is not None:
            if torch.is_grad_enabled():
                if step is None or loss is None:
                    raise ValueError(
                        f"balance={config.balance} needs step= (the optimizer step) and loss= (the "
                        "recipe's own loss)"
                    )
                self.balance.begin(step)
            weights |= self.balance.weights()
        if not config.warmup_steps or step is None or step >= config.warmup_steps:
            return weights
        return {name: weight * (step / config.warmup_steps) for name, weight in weights.items()}

    def _terms(
        self, grids: list[Tensor], indices: list[MaskIndex], on: list[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Unweighted terms, [] each, and H [L+1, B]; with graph only what `on` needs."""
        config = self.config

        def graph(needed: bool) -> nullcontext[None] | torch.no_grad:
            return nullcontext() if needed else torch.no_grad()

        h = []
        how: dict[str, Any] = {"scale": config.scale, "backend": config.backend}
        needed = ["ranking" in on] * len(grids)
        needed[0] |= "singularity" in on
        keep = _affordable(grids, indices, needed)
        for depth, (tokens, index) in enumerate(zip(grids, indices, strict=True)):
            with graph(needed[depth]):
                h.append(heterogeneity_of(tokens, index, keep=keep[depth], **how))
        defined = [(i.num_masked > 0) & (i.num_visible > 1) for i in indices]
        with graph("sparsity" in on):
            sparsity = sparsity_of(grids[0], indices[0], reduction=config.reduction, **how)
        with graph("singularity" in on):
            singularity = singularity_loss(h[0], eps=config.eps, valid=defined[0])
        stacked = torch.stack(h)
        if len(h) < 2 and "ranking" in on:
            raise ValueError(
                "ranking compares depths, but there is only one: trace at least one block, or set "
                "ranking=0"
            )
        with graph("ranking" in on):
            ranking = torch.zeros_like(h[0])
            if len(h) > 1:
                ranking = ranking_loss(stacked, direction=config.direction)
                ranking = ranking.masked_fill(~torch.stack(defined).all(0), 0)
        terms = {"sparsity": sparsity, "singularity": singularity, "ranking": ranking}
        return {name: value.mean() for name, value in terms.items()}, stacked


def _affordable(grids: list[Tensor], indices: list[MaskIndex], needed: list[bool]) -> list[bool]:
    """At which depths to save the logits of H: of those with a graph the last, as `KEEP` allows."""
    keep = [False] * len(grids)
    if any(index.masked is None for index in indices):  # while torch.compile traces
        return keep
    left = KEEP * sum(tokens.nbytes for tokens in grids)
    for depth in reversed(range(len(grids))):
        masked, visible = indices[depth].masked, indices[depth].visible
        if masked is None or visible is None or not needed[depth]:
            continue
        size = masked.numel() * visible.shape[1] * compute_dtype(grids[depth]).itemsize
        keep[depth] = size <= left
        left -= size * keep[depth]
    return keep
