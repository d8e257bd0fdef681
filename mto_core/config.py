"""What to optimise and how strongly: one frozen object, with a preset per recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mto_core.checks import TERMS, Backend, Direction, Preset, Reduction, Scale, check_name

# The paper gives no weights. These come from a small experiment (digits, a 64-d ViT, 900 steps, 3
# seeds) over one MAE-style and one SimMIM-style recipe; BootMAE and ConMIM take those of the style
# they resemble. Leads for a real run, not results.
_MAE_STYLE = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001}
_SIMMIM_STYLE = {"singularity": 1.0}
PRESETS: dict[Preset, dict[str, float]] = {
    "mae": _MAE_STYLE,
    "bootmae": _MAE_STYLE,
    "simmim": _SIMMIM_STYLE,
    "conmim": _SIMMIM_STYLE,
    "observe": {},
    "paper": {"sparsity": 1.0, "singularity": 1.0, "ranking": 1.0},
}

_RANGES: list[tuple[tuple[str, ...], str, Callable[[float], bool]]] = [
    (TERMS, "a finite number >= 0", lambda value: value >= 0),
    (("eps", "balance", "balance_limit"), "a finite number > 0", lambda value: value > 0),
    (("warmup_steps",), "a whole number >= 0", lambda value: value >= 0 and value % 1 == 0),
    (("balance_every",), "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0),
    (("balance_decay",), "in [0, 1)", lambda value: 0 <= value < 1),
]


@dataclass(frozen=True, kw_only=True)
class MTOConfig:
    """Weights and forms of the MTO terms; immutable, checked when made.

    Change a field with `dataclasses.replace(config, ranking=0.01)`. By default all weights are 0.

    Attributes:
        sparsity: Weight of L_spa (eq 3), >= 0. A term of weight 0 is measured on logged steps.
        singularity: Weight of L_e (eq 6), >= 0.
        ranking: Weight of L_r (eq 7), >= 0.
        scale: Logits of the affinity: "raw" (the paper), "sqrt_dim" or "layernorm".
        reduction: L_spa over visible rows: "mean", or "sum" as printed, |V| times as large.
        direction: Which way L_r ranks: "decreasing", or "as_printed"; see `ranking_loss`.
        eps: Guard in L_e = 1 / (H + eps), in nats, > 0.
        warmup_steps: Steps over which the weights rise linearly from 0; the module needs `step`.
        balance: None, or rho > 0: each term with a weight above 0 is scaled such that its gradient
            norm at the first block's input stays at rho times that of the recipe's own loss. The
            weights then only say which terms take part. See docs/method.md for the cost.
        balance_every: Gradient norms are measured at steps divisible by this, >= 1.
        balance_decay: Share of the past in the running estimate at each measurement, in [0, 1).
        balance_limit: Largest weight that balance may give a term, > 0; a term that is already
            satisfied has almost no gradient.
        backend: How row entropies are computed: "auto", "dense" or "recompute".

    Raises:
        ValueError: A value is out of its range; the message names field, value and range.

    Example:
        >>> MTOConfig.preset("mae", warmup_steps=1000).singularity
        0.1
    """

    sparsity: float = 0.0
    singularity: float = 0.0
    ranking: float = 0.0
    scale: Scale = "raw"
    reduction: Reduction = "mean"
    direction: Direction = "decreasing"
    eps: float = 1e-2
    warmup_steps: int = 0
    balance: float | None = None
    balance_every: int = 10
    balance_decay: float = 0.9
    balance_limit: float = 1e3
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for names, wanted, fits in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is None and name == "balance":
                    continue
                number = isinstance(value, (int, float)) and math.isfinite(value)
                if not (number and fits(value)):
                    raise ValueError(f"MTOConfig.{name} must be {wanted}, got {value!r}")
        for name in ("scale", "reduction", "direction", "backend"):
            check_name(name, getattr(self, name))

    @classmethod
    def preset(cls, name: Preset, **overrides: Any) -> MTOConfig:
        """The documented default of a recipe.

        Args:
            name: "mae", "bootmae", "simmim", "conmim" (weights found in a small experiment),
                "observe" (all weights 0) or "paper" (all weights 1; the paper names none).
            **overrides: Fields that differ from the preset.

        Raises:
            TypeError, ValueError: Unknown field, unknown preset, or a value out of its range.
        """
        check_name("preset", name)
        return cls(**{**PRESETS[name], **overrides})

    @property
    def weights(self) -> dict[str, float]:
        """The three weights by term."""
        return {name: getattr(self, name) for name in TERMS}
