"""The MTO loss of one forward: all terms, weighted, with measurements to judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mto_core.balance import GradientBalance, gradient_norm
from mto_core.checks import TERMS, compute_dtype
from mto_core.config import MTOConfig
from mto_core.inputs import Layer, align, check_trainable, warn_undefined, whole_tokens
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss
from mto_core.metrics import attention_mass


@dataclass(frozen=True, eq=False)
class MTOTerms:
    """Result of `MaskedTokenOptimization`: scalars and vectors on the tokens' device, float32.

    Terms are unweighted means over the batch. An image for which a term is undefined (no masked
    token, fewer than two visible ones) counts as 0 in that mean. NaN means "not measured": without
    `diagnostics` only the terms with a weight are computed, at the depths that they need.

    Attributes:
        total: [] the weighted sum, to add to the recipe's loss. Exactly 0 and without gradient
            where all weights are 0.
        sparsity: [] L_spa (eq 3 of arXiv 2404.08330).
        singularity: [] L_e (eq 6).
        ranking: [] L_r (eq 7); 0 where there is only one depth.
        heterogeneity: [L+1] H by depth (eq 2), detached.
        weights: Weight of each term at this step, warm-up and balance included.
        token_norm: [L+1] mean norm of the patch tokens by depth; None without diagnostics.
        diagonal_mass: [] mass that visible tokens give to themselves at depth 0, or None.
        masked_mass: [] mass that visible tokens give to masked ones at depth 0, or None.
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

    def scalars(self, prefix: str = "mto/") -> dict[str, float]:
        """Everything measured as a flat dict for a logger; waits for the device once.

        Names are "mto/total", "mto/sparsity", "mto/weight/sparsity", "mto/heterogeneity/00" by
        depth, and so on, after `prefix`. A value that was not measured is left out, so that a
        logger keeps the newest one.
        """
        scalars = ("total", *TERMS, "diagonal_mass", "masked_mass")
        found = {name: getattr(self, name) for name in scalars}
        for name, weight in self.weights.items():
            found[f"weight/{name}"] = torch.as_tensor(weight, device=self.total.device)
        for name in ("heterogeneity", "token_norm"):
            by_depth = getattr(self, name)
            for depth, value in enumerate(() if by_depth is None else by_depth):
                found[f"{name}/{depth:02d}"] = value
        found = {name: value for name, value in found.items() if value is not None}
        plain = torch.stack([value.detach().double() for value in found.values()]).tolist()
        named = zip(found, plain, strict=True)
        return {prefix + name: value for name, value in named if value == value}  # no NaN


class MaskedTokenOptimization(nn.Module):
    """Masked Token Optimization: L_mto = w_spa L_spa + w_e L_e + w_r L_r.

    Source: "Emerging Property of Masked Token for Effective Pre-training", arXiv 2404.08330.

    Has no parameters and draws no random numbers. Its state dict is empty unless `config.balance`
    is set; then it holds the running gradient norms, and belongs into the recipe's checkpoint.
    Tokens are not checked for NaN: a NaN there is one in the recipe's own loss too.

    Args:
        config: Weights and forms; see `MTOConfig`.

    Raises:
        TypeError: `config` is no `MTOConfig`.

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
        if not isinstance(config, MTOConfig):
            mend = f"MTOConfig.preset({config!r})" if isinstance(config, str) else "MTOConfig(...)"
            raise TypeError(f"config must be a MTOConfig, got {type(config).__name__}: pass {mend}")
        self.config = config
        self.active_terms = [name for name, weight in config.weights.items() if weight > 0]
        balanced = config.balance is not None and self.active_terms
        self.balance = GradientBalance(config) if balanced else None
        self._warned = False

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
            mask: bool, True = masked: [B, N], or [B, h, w] at the finest resolution of a
                hierarchical model; or one mask per depth.
            num_prefix_tokens: Leading tokens that are no patches, P; a trace knows its own.
            step: Optimizer step, the same for its micro batches; for a warm-up and for balance.
            loss: The recipe's own loss, a mean over this batch, before loss scaling and before
                division by accumulation steps. Needed for balance only, and in all ranks.
            diagnostics: True on a step that is logged: all terms and depths are measured, and
                `token_norm` and the masses. False computes only what the weights need.

        Raises:
            TypeError, ValueError: Arguments do not fit, are missing, or would train nothing.
            TraceError: The tokens are those of an earlier forward or step.
            RuntimeError: balance, where gradient norms cannot be measured; a misaligned mask under
                `torch.compile`.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens, step)
        active = self.active_terms
        depths = len(tokens) if diagnostics or "ranking" in active else min(1, len(active))
        layers = align(tokens, prefix, mask, depths)
        check_trainable(tokens, active)
        weights = self._weights(step, loss)
        self._warned = self._warned or warn_undefined(layers)
        terms, h = self._terms(layers, TERMS if diagnostics else active, active)
        if self.balance is not None and torch.is_grad_enabled():
            self.balance.measure(step, loss, terms, tokens[0])
        unmeasured = tokens[0].new_full((len(tokens),), torch.nan, dtype=compute_dtype(tokens[0]))
        total = unmeasured.new_zeros(())
        for name in active:
            total = total + weights[name] * terms[name]
        return MTOTerms(
            total=total,
            heterogeneity=torch.cat([*(x.detach().mean()[None] for x in h), unmeasured[len(h) :]]),
            weights=weights,
            **{name: terms.get(name, unmeasured[0]) for name in TERMS},
            **(self._diagnostics(layers, prefix) if diagnostics else {}),
        )

    if TYPE_CHECKING:
        __call__ = forward  # for editors: nn.Module types its own as Any

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
        ratio says how strongly a term pulls: above 1 it outweighs the recipe. Costs about two
        backward passes through the model without weight gradients. Call it before backward; it
        changes nothing, and needs no other rank. Arguments are those of `forward`, and `loss` is
        the recipe's own, with its graph.

        Returns:
            Ratio by term; `inf` where the loss has no gradient.

        Raises:
            TypeError, ValueError, TraceError: As in `forward`.
            RuntimeError: Reentrant checkpointing, whole-model torch.compile, tokens that the loss
                does not depend on.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens)
        layers = align(tokens, prefix, mask, len(tokens))
        names = [name for name in TERMS if name != "ranking" or len(tokens) > 1]
        with torch.enable_grad():
            norm = gradient_norm(loss, tokens[0], "the loss").item()
            terms, _ = self._terms(layers, names, names)
            ratios = {name: gradient_norm(terms[name], tokens[0], name).item() for name in names}
        return {name: value / norm if norm else float("inf") for name, value in ratios.items()}

    def _weights(self, step: int | None, loss: Tensor | None) -> dict[str, float | Tensor]:
        warmup = self.config.warmup_steps
        if step is None and warmup:
            raise ValueError(f"warmup_steps={warmup} needs step=, the optimizer step")
        weights: dict[str, float | Tensor] = dict(self.config.weights)
        if self.balance is not None:
            if torch.is_grad_enabled():
                self.balance.begin(step, loss)
            weights |= self.balance.weights()
        if step is None or step >= warmup:
            return weights
        return {name: weight * (step / warmup) for name, weight in weights.items()}

    def _terms(
        self, layers: list[Layer], wanted: Sequence[str], active: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Wanted terms, unweighted, [] each, and H [B] by depth; a graph only for active ones."""
        config = self.config
        how: dict[str, Any] = {"scale": config.scale, "backend": config.backend}
        values: dict[str, Tensor] = {}
        h: list[Tensor] = []
        if "sparsity" in wanted:
            with _graph("sparsity" in active):
                values["sparsity"] = sparsity_loss(*layers[0], reduction=config.reduction, **how)
        for depth, layer in enumerate(layers if {"singularity", "ranking"} & {*wanted} else []):
            with _graph("ranking" in active or ("singularity" in active and depth == 0)):
                h.append(heterogeneity(*layer, **how))
        if "singularity" in wanted:
            with _graph("singularity" in active):
                valid = layers[0][1].defined()
                values["singularity"] = singularity_loss(h[0], eps=config.eps, valid=valid)
        if "ranking" in wanted and len(h) < 2:
            values["ranking"] = torch.zeros_like(h[0])
        elif "ranking" in wanted:
            with _graph("ranking" in active):
                defined = torch.stack([split.defined() for _, split in layers]).all(0)
                ranking = ranking_loss(torch.stack(h), direction=config.direction)
                values["ranking"] = ranking.masked_fill(~defined, 0)
        return {name: value.mean() for name, value in values.items()}, h

    @torch.no_grad()
    def _diagnostics(self, layers: list[Layer], prefix: int) -> dict[str, Tensor]:
        """`token_norm`, `diagonal_mass` and `masked_mass`."""
        norms = [x[:, prefix:].norm(dim=-1, dtype=compute_dtype(x)).mean() for x, _ in layers]
        first, split = layers[0]
        mass = attention_mass(first[:, prefix:], split.mask, scale=self.config.scale)
        diagonal, masked = (value.mean() for value in mass)
        return {
            "token_norm": torch.stack(norms),
            "diagonal_mass": diagonal,
            "masked_mass": masked,
        }


def _graph(needed: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(needed and torch.is_grad_enabled())
