"""The MTO loss of one forward: all terms, weighted, with measurements to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mto_core.affinity import attention_mass
from mto_core.balance import GradientBalance, gradient_norm
from mto_core.checks import compute_dtype
from mto_core.config import MTOConfig
from mto_core.inputs import Layer, align, check_grad, warn_undefined, whole_tokens
from mto_core.losses import heterogeneity_of, ranking_loss, singularity_loss, sparsity_of
from mto_core.terms import TERMS, MTOTerms

# Logits that may be saved, in bytes, as a share of the tokens of all depths. A ViT-B with fused
# attention saves 15 times its tokens in float32, so this is 0.3 % of its activations.
SAVED_LOGITS_SHARE = 1 / 23


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
        self.balance: GradientBalance | None = None
        self._warned = False
        if config.balance is not None and self.active_terms:
            self.balance = GradientBalance(
                list(TERMS),
                self.active_terms,
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
            diagnostics: True on a step that is logged: all terms and depths are measured, and
                `token_norm`, `diagonal_mass` and `masked_mass` filled. False computes only the
                terms with a weight, or nothing at all.

        Raises:
            TypeError: The mask is no tensor, or the tokens are no sequence.
            ValueError: No images or tokens, tokens and mask do not fit, a hierarchical mask is
                misaligned, ranking with one depth, `step` or `loss` is missing, or nothing that a
                weighted term depends on requires grad.
            RuntimeError: balance, where gradient norms cannot be measured; a misaligned mask under
                `torch.compile`.
        """
        tokens, prefix = whole_tokens(tokens_by_depth, num_prefix_tokens)
        active = self.active_terms
        if len(tokens) < 2 and "ranking" in active:
            raise ValueError(
                "ranking compares depths, but there is only one: trace at least one block, or set "
                "ranking=0"
            )
        depths = range(len(tokens))
        if not diagnostics and "ranking" not in active:
            depths = range(1 if active else 0)
        weights = self._weights(step, loss)
        layers = align(tokens, prefix, mask, depths) if depths else {}
        if torch.is_grad_enabled():
            check_grad(tokens, active)
        self._warned = self._warned or warn_undefined(layers)
        values, h = self._terms(layers, list(TERMS) if diagnostics else active, active, tokens)
        if (
            self.balance is not None
            and loss is not None
            and step is not None
            and torch.is_grad_enabled()
            and self.balance.is_due(step)
        ):
            self.balance.measure(loss, values, tokens[0])
        total = h.new_zeros(())
        for name in active:
            total = total + weights[name] * values[name]
        more = self._diagnostics(layers, prefix) if diagnostics else {}
        return MTOTerms(total=total, heterogeneity=h, weights=weights, **values, **more)

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
        layers = align(tokens, prefix, mask, range(len(tokens)))
        names = [name for name in TERMS if name != "ranking" or len(tokens) > 1]
        with torch.enable_grad():
            norm = gradient_norm(loss, tokens[0], "the loss").item()
            values, _ = self._terms(layers, names, names, tokens)
            ratios = {name: gradient_norm(values[name], tokens[0], name).item() for name in names}
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
        self,
        layers: dict[int, Layer],
        wanted: Sequence[str],
        active: Sequence[str],
        tokens: list[Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Unweighted terms, [] each, and H [L+1]: NaN if not wanted, a graph only if active."""
        config = self.config
        how = {"scale": config.scale, "backend": config.backend}
        with_graph = layers if "ranking" in active else {0} if "singularity" in active else {}
        saved = _saved_logits(layers, list(with_graph), tokens)
        h: dict[int, Tensor] = {}  # [B] by depth
        if "singularity" in wanted or "ranking" in wanted:
            for depth, (x, _, split) in layers.items():
                with _graph(depth in with_graph):
                    h[depth] = heterogeneity_of(x, split, save_logits=depth in saved, **how)
        unmeasured = tokens[0].new_full((), torch.nan, dtype=compute_dtype(tokens[0]))
        terms = dict.fromkeys(TERMS, unmeasured)
        if "sparsity" in wanted:
            with _graph("sparsity" in active):
                x, _, split = layers[0]
                terms["sparsity"] = sparsity_of(x, split, reduction=config.reduction, **how).mean()
        if "singularity" in wanted:
            with _graph("singularity" in active):
                valid = layers[0].split.defined
                terms["singularity"] = singularity_loss(h[0], eps=config.eps, valid=valid).mean()
        if "ranking" in wanted:
            with _graph("ranking" in active):
                ranking = torch.zeros_like(h[0])
                if len(h) > 1:
                    defined = torch.stack([layer.split.defined for layer in layers.values()])
                    by_depth = torch.stack([h[depth] for depth in range(len(h))])
                    ranking = ranking_loss(by_depth, direction=config.direction)
                    ranking = ranking.masked_fill(~defined.all(0), 0)
                terms["ranking"] = ranking.mean()
        means = [h[d].detach().mean() if d in h else unmeasured for d in range(len(tokens))]
        return terms, torch.stack(means)

    def _diagnostics(self, layers: dict[int, Layer], prefix: int) -> dict[str, Tensor]:
        """`token_norm`, `diagonal_mass` and `masked_mass`."""
        diagonal, masked = attention_mass(*layers[0], scale=self.config.scale)
        with torch.no_grad():
            patches = [layer.tokens[:, prefix:] for layer in layers.values()]
            norms = [
                torch.linalg.vector_norm(x, dim=-1, dtype=compute_dtype(x)).mean() for x in patches
            ]
        return {
            "token_norm": torch.stack(norms),
            "diagonal_mass": diagonal.mean(),
            "masked_mass": masked.mean(),
        }


def _graph(needed: bool) -> nullcontext[None] | torch.no_grad:
    return nullcontext() if needed else torch.no_grad()


def _saved_logits(layers: dict[int, Layer], depths: list[int], tokens: list[Tensor]) -> list[int]:
    """Depths whose logits are saved for backward: last depth first, within the byte budget."""
    if torch.compiler.is_compiling():  # sets are not known: logits would be N x N
        return []
    saved, left = [], SAVED_LOGITS_SHARE * sum(t.nbytes for t in tokens)
    for depth in reversed(depths):
        x, _, split = layers[depth]
        logits = split.masked.rows.numel() * split.visible.rows.shape[1]
        if logits * compute_dtype(x).itemsize <= left:
            saved.append(depth)
            left -= logits * compute_dtype(x).itemsize
    return saved
