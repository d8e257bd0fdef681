"""What to optimise and how strongly: one frozen object, with a preset per recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mto_core.checks import (
    BACKENDS,
    DIRECTIONS,
    REDUCTIONS,
    SCALES,
    Backend,
    Direction,
    Reduction,
    Scale,
    check_name,
)

Preset = Literal["mae", "bootmae", "simmim", "conmim", "observe", "paper"]

# Weights (sparsity, singularity, ranking). The paper gives none. These come from a small experiment
# (digits, a 64-d ViT, 900 steps, 3 seeds) over one MAE-style and one SimMIM-style recipe; BootMAE
# and ConMIM take those of the style they resemble. Leads for a real run, not results.
_MAE_STYLE = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001}
_SIMMIM_STYLE = {"sparsity": 0.0, "singularity": 1.0, "ranking": 0.0}
PRESETS: dict[Preset, dict[str, Any]] = {
    "mae": _MAE_STYLE,
    "bootmae": _MAE_STYLE,
    "simmim": _SIMMIM_STYLE,
    "conmim": _SIMMIM_STYLE,
    "observe": {"sparsity": 0.0, "singularity": 0.0, "ranking": 0.0},
    "paper": {"sparsity": 1.0, "singularity": 1.0, "ranking": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class MTOConfig:
    """Weights and forms of the MTO terms; immutable, checked when made.

    Change a field with `dataclasses.replace(config, ranking=0.01)`. Without arguments all weights
    are 0: everything is measured and nothing is optimised.

    Attributes:
        sparsity: Weight of L_spa (eq 3), >= 0. A term of weight 0 is measured on logged steps.
        singularity: Weight of L_e (eq 6), >= 0.
        ranking: Weight of L_r (eq 7), >= 0.
        scale: Logits of the affinity: "raw" (the paper), "sqrt_dim" or "layernorm".
        reduction: L_spa over visible rows: "mean", or "sum" as printed, |V| times as large.
        direction: Which way L_r ranks: "decreasing" (the paper's text), or "as_printed" (the sign
            of its formula, for replication only: it did harm in a small experiment).
        eps: Guard in L_e = 1 / (H + eps), in nats, > 0.
        warmup_steps: Steps over which the weights rise linearly from 0; the module then needs
            `step`. 0 means full weight from the start.
        balance: None, or rho > 0: each term with a weight above 0 is scaled such that its gradient
            norm at the first block's input stays at rho times that of the recipe's own loss. The
            weights then only say which terms take part. See docs/method.md for the cost.
        balance_every: Measure the gradient norms at steps divisible by this, >= 1.
        balance_decay: Memory of the running estimate, in [0, 1): the share that the past keeps at
            each measurement.
        balance_limit: Largest weight that balance may give a term, > 0. A term that is already
            satisfied has almost no gradient, and holding its ratio would need any weight at all.
        backend: How row entropies are computed: "auto", "dense" or "recompute".

    Raises:
        ValueError: A value is out of its range; the message names field, value and range.

    Example:
        >>> MTOConfig.preset("mae").singularity
        0.1
        >>> MTOConfig.preset("mae", warmup_steps=1000).warmup_steps
        1000
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
        """Checks every field."""
        for name in ("sparsity", "singularity", "ranking"):
            self._check(name, lambda value: value >= 0, "a finite number >= 0")
        for name in ("eps", "balance_limit"):
            self._check(name, lambda value: value > 0, "a finite number > 0")
        if self.balance is not None:
            self._check("balance", lambda value: value > 0, "None or a finite number > 0")
        self._check("balance_decay", lambda value: 0 <= value < 1, "in [0, 1)")
        self._check("warmup_steps", lambda n: n >= 0 and n == int(n), "a whole number >= 0")
        self._check("balance_every", lambda n: n >= 1 and n == int(n), "a whole number >= 1")
        for name, known in (
            ("scale", SCALES),
            ("reduction", REDUCTIONS),
            ("direction", DIRECTIONS),
            ("backend", BACKENDS),
        ):
            check_name(name, getattr(self, name), known)

    @classmethod
    def preset(cls, name: Preset, **overrides: Any) -> MTOConfig:
        """The documented default of a recipe.

        Args:
            name: "mae", "bootmae", "simmim", "conmim" (weights found in a small experiment, see
                docs/method.md), "observe" (all weights 0: measure, change nothing) or "paper"
                (all weights 1; the paper names no weights).
            **overrides: Fields that differ from the preset.

        Raises:
            ValueError: Unknown preset, or a value out of its range.
            TypeError: Unknown field.
        """
        check_name("preset", name, tuple(PRESETS))
        return dataclasses.replace(cls(**PRESETS[name]), **overrides)

    @property
    def weights(self) -> dict[str, float]:
        """The three weights by term."""
        return {
            "sparsity": self.sparsity,
            "singularity": self.singularity,
            "ranking": self.ranking,
        }

    def _check(self, name: str, fits: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not fits(value):
            raise ValueError(f"MTOConfig.{name} must be {wanted}, got {value!r}")
