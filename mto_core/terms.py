"""The result of one forward: the terms, and their form for a logger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TERMS = ("sparsity", "singularity", "ranking")


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
