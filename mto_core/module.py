"""The MTO loss of one forward: all terms, weighted, with measurements to judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mto_core.balance import gradient_meter, gradient_norm
from mto_core.checks import TERMS, Scale, compute_dtype
from mto_core.config import MTOConfig
from mto_core.entropy import resolve_backend
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
        heterogeneity: [L+1] H by depth (eq 2) on logits of `config.scale`, detached.
        weights: Weight of each term at this step, with warm-up, `off_after`, balance, calibration.
        token_norm: [L+1] mean norm of the patch tokens by depth; None without diagnostics.
        diagonal_mass: [] mass that visible tokens give to themselves in the affinity of L_spa, at
            its depth and on its logits; None without diagnostics.
        masked_mass: [] mass that they give to masked tokens there, or None.
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
    or `config.calibrate` is set; then it holds gradient norms, and belongs into the recipe's
    checkpoint.
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
        self.balance = gradient_meter(config)
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
            step: Optimizer step, the same for its micro batches; for a warm-up, `off_after`,
                balance and calibration.
            loss: The recipe's own loss, a mean over this batch, before loss scaling and before
                division by accumulation steps. For balance and calibration, and in all ranks.
            diagnostics: True on a step that is logged: all terms and depths are measured, and
                `token_norm` and the masses. False computes only what the weights need.

        Raises:
            TypeError, ValueError: Arguments do not fit, are missing, or would train nothing.
            TraceError: The tokens are those of an earlier forward or step.
            RuntimeError: Gradient norms cannot be measured; a misaligned mask under
                `torch.compile`.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens, step)
        active, places = self.active_at(step), self._places(len(tokens))
        needed = {depth for name in active for depth in places[name]}
        depths = range(len(tokens)) if diagnostics else sorted(needed)
        fused = resolve_backend(self.config.backend, tokens[0]) == "fused"
        layers = align(tokens, prefix, mask, depths, count=diagnostics or not fused)
        check_trainable(tokens, {name: places[name] for name in active})
        weights = self._weights(step, loss)
        self._warned = self._warned or warn_undefined(layers)
        wanted = TERMS if diagnostics else active
        terms, h = self._terms(layers, wanted, active, places, depths if diagnostics else ())
        if self.balance is not None and active and torch.is_grad_enabled():
            self.balance.measure(step, loss, terms, tokens[0])
        unmeasured = tokens[0].new_full((len(tokens),), torch.nan, dtype=compute_dtype(tokens[0]))
        total = unmeasured.new_zeros(())
        for name in active:
            total = total + weights[name] * terms[name]
        return MTOTerms(
            total=total,
            heterogeneity=torch.stack(
                [h[d].detach().mean() if d in h else unmeasured[d] for d in range(len(tokens))]
            ),
            weights=weights,
            **{name: terms.get(name, unmeasured[0]) for name in TERMS},
            **(self._diagnostics(layers, prefix, *places["sparsity"]) if diagnostics else {}),
        )

    if TYPE_CHECKING:
        __call__ = forward  # for editors: nn.Module types its own as Any

    def active_at(self, step: int | None) -> list[str]:
        """The terms that act at this step: `forward` measures them there without `diagnostics`."""
        off = self.config.off_after
        return [] if off is not None and step is not None and step > off else self.active_terms

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
        layers = align(tokens, prefix, mask, range(len(tokens)))
        places = self._places(len(tokens))
        names = [name for name in TERMS if name != "ranking" or len(tokens) > 1]
        with torch.enable_grad():
            norm = gradient_norm(loss, tokens[0], "the loss").item()
            terms, _ = self._terms(layers, names, names, places)
            ratios = {name: gradient_norm(terms[name], tokens[0], name).item() for name in names}
        return {name: value / norm if norm else float("inf") for name, value in ratios.items()}

    def _weights(self, step: int | None, loss: Tensor | None) -> dict[str, float | Tensor]:
        warmup, off = self.config.warmup_steps, self.config.off_after
        if step is None and (warmup or off is not None):
            raise ValueError(
                f"warmup_steps={warmup}, off_after={off} need step=, the optimizer step"
            )
        weights: dict[str, float | Tensor] = dict(self.config.weights)
        if self.active_terms and not self.active_at(step):
            return dict.fromkeys(weights, 0.0)
        if self.balance is not None:
            if torch.is_grad_enabled():
                self.balance.begin(step, loss)
            weights |= self.balance.weights()
        if step is None or step >= warmup:
            return weights
        return {name: weight * (step / warmup) for name, weight in weights.items()}

    def _places(self, depths: int) -> dict[str, Sequence[int]]:
        """The depths at which each term acts."""
        at = self.config.sparsity_depth
        if not -depths <= at < depths:
            raise ValueError(
                f"sparsity_depth={at}, but the tokens have depths 0 to {depths - 1}; -1 is the last"
            )
        return {"sparsity": [at % depths], "singularity": [0], "ranking": range(depths)}

    def _terms(
        self,
        layers: Mapping[int, Layer],
        wanted: Sequence[str],
        active: Sequence[str],
        places: Mapping[str, Sequence[int]],
        logged: Sequence[int] = (),
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Wanted terms, unweighted, [] each, and H [B] by depth, at least of the logged ones.

        A graph only for active terms.
        """
        config = self.config
        h: dict[tuple[int, Scale], Tensor] = {}  # by depth and logits: terms share them

        def at(depth: int, scale: Scale) -> Tensor:
            if (depth, scale) not in h:
                h[depth, scale] = heterogeneity(*layers[depth], scale=scale, backend=config.backend)
            return h[depth, scale]

        values: dict[str, Tensor] = {}
        for name in (*active, *(name for name in wanted if name not in active)):
            scale, depths = config.scale_of(name), places[name]
            with _graph(name in active):
                if name == "sparsity":
                    how: dict[str, Any] = {"scale": scale, "backend": config.backend}
                    layer = layers[depths[0]]
                    values[name] = sparsity_loss(*layer, reduction=config.reduction, **how)
                elif name == "singularity":
                    valid = layers[0][1].defined
                    values[name] = singularity_loss(at(0, scale), eps=config.eps, valid=valid)
                elif len(depths) < 2:
                    values[name] = torch.zeros_like(at(0, scale))
                else:
                    defined = torch.stack([layers[d][1].defined for d in depths]).all(0)
                    by_depth = torch.stack([at(d, scale) for d in depths])
                    ranking = ranking_loss(by_depth, direction=config.direction)
                    values[name] = ranking.masked_fill(~defined, 0)
        with torch.no_grad():
            for depth in logged:
                at(depth, config.scale)
        means = {name: value.mean() for name, value in values.items()}
        return means, {depth: value for (depth, scale), value in h.items() if scale == config.scale}

    @torch.no_grad()
    def _diagnostics(self, layers: Mapping[int, Layer], prefix: int, at: int) -> dict[str, Tensor]:
        """`token_norm`, `diagonal_mass` and `masked_mass`, the masses at depth `at`."""
        patches = [x[:, prefix:] for x, _ in layers.values()]
        norms = [x.norm(dim=-1, dtype=compute_dtype(x)).mean() for x in patches]
        mask, scale = layers[at][1].mask, self.config.scale_of("sparsity")
        diagonal, masked = (x.mean() for x in attention_mass(patches[at], mask, scale=scale))
        return {
            "token_norm": torch.stack(norms),
            "diagonal_mass": diagonal,
            "masked_mass": masked,
        }


def _graph(needed: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(needed and torch.is_grad_enabled())
