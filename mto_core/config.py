"""What to optimise and how strongly: one frozen object, with a preset per recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mto_core.checks import NAMES, TERMS, Backend, Direction, Preset, Reduction, Scale, check_name

# The paper gives no weights. "paper" has its three terms in its places, each set to pull a tenth as
# hard as the recipe's loss. The recipes' own go beyond it: L_spa alone, on layernorm logits, and
# for SimMIM's style at the encoder's output. They come from the small experiments of
# docs/evidence.md; BootMAE and ConMIM were not in them, and take those of the style they resemble.
# In BootMAE the fixed weight pulled 5 to 12 times as hard as its loss. Leads, not results.
_MAE_STYLE: dict[str, Any] = {"sparsity": 0.1, "sparsity_scale": "layernorm"}
_SIMMIM_STYLE = _MAE_STYLE | {"sparsity_depth": -1}
_ALL = {"sparsity": 1.0, "singularity": 1.0, "ranking": 1.0}
PRESETS: dict[Preset, dict[str, Any]] = {
    "mae": _MAE_STYLE,
    "bootmae": _MAE_STYLE | {"calibrate": 0.2},
    "simmim": _SIMMIM_STYLE,
    "conmim": _SIMMIM_STYLE,
    "observe": {},
    "paper": _ALL | {"calibrate": 0.1},
    "literal": _ALL,
}

_RANGES: list[tuple[tuple[str, ...], str, Callable[[float], bool]]] = [
    (TERMS, "a finite number >= 0", lambda value: value >= 0),
    (("eps", "balance", "calibrate", "balance_limit"), "a finite number > 0", lambda v: v > 0),
    (("sparsity_depth",), "a whole number", lambda value: value % 1 == 0),
    (("warmup_steps", "off_after"), "a whole number >= 0", lambda v: v >= 0 and v % 1 == 0),
    (("balance_every",), "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0),
    (("balance_decay",), "in [0, 1)", lambda value: 0 <= value < 1),
    (("calibrate_steps",), "a whole number >= 10", lambda v: v >= 10 and v % 1 == 0),
]
_MAY_BE_NONE = ("balance", "calibrate", "off_after")


@dataclass(frozen=True, kw_only=True)
class MTOConfig:
    """Weights and forms of the MTO terms; immutable, checked when made.

    Change a field with `dataclasses.replace(config, ranking=0.01)`. By default all weights are 0.

    Attributes:
        sparsity: Weight of L_spa (eq 3), >= 0. A term of weight 0 is measured on logged steps.
        singularity: Weight of L_e (eq 6), >= 0.
        ranking: Weight of L_r (eq 7), >= 0.
        sparsity_depth: Depth at which L_spa acts: 0, the first block's input (the paper), or
            another, as Python counts: -1 is the last block's output.
        scale: Logits of the affinity: "raw" (the paper), "sqrt_dim" or "layernorm".
        sparsity_scale, singularity_scale, ranking_scale: Those of one term; None means `scale`,
            whose heterogeneity is the one that is logged.
        reduction: L_spa over visible rows: "mean", or "sum" as printed, |V| times as large.
        direction: Which way L_r ranks: "decreasing", or "as_printed"; see `ranking_loss`.
        eps: Guard in L_e = 1 / (H + eps), in nats, > 0.
        warmup_steps: Steps over which the weights rise linearly from 0; the module needs `step`.
        off_after: None, or the last step with weights. From the next one on all are 0, and nothing
            is computed; the module needs `step`.
        balance: None, or rho > 0: each term with a weight above 0 is scaled such that its gradient
            norm at the first block's input stays at rho times that of the recipe's own loss. The
            weights then only say which terms take part. See docs/method.md for the cost.
        balance_every: Gradient norms are measured at steps divisible by this, >= 1, and at powers
            of two before. One measurement takes about as long as a step: 200 cost 0.5 % of a run.
        balance_decay: Share of the past in the running estimate at each measurement, in [0, 1).
        balance_limit: Largest weight that balance and calibrate may give a term, > 0; a term that
            is already satisfied has almost no gradient.
        calibrate: None, or rho > 0: as balance, but each weight is set once, from the median ratio
            of the first ten measured steps, and then kept. Until then the weights are 0.
        calibrate_steps: Steps within which these ten lie, evenly, >= 10.
        backend: How row entropies are computed: "auto", "dense", "recompute" or "fused".

    Raises:
        ValueError: A value is out of its range; the message names field, value and range.

    Example:
        >>> MTOConfig.preset("mae", warmup_steps=1000).sparsity
        0.1
    """

    sparsity: float = 0.0
    singularity: float = 0.0
    ranking: float = 0.0
    sparsity_depth: int = 0
    scale: Scale = "raw"
    sparsity_scale: Scale | None = None
    singularity_scale: Scale | None = None
    ranking_scale: Scale | None = None
    reduction: Reduction = "mean"
    direction: Direction = "decreasing"
    eps: float = 1e-2
    warmup_steps: int = 0
    off_after: int | None = None
    balance: float | None = None
    balance_every: int = 200
    balance_decay: float = 0.9
    balance_limit: float = 1e3
    calibrate: float | None = None
    calibrate_steps: int = 20
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for names, wanted, fits in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is None and name in _MAY_BE_NONE:
                    continue
                number = isinstance(value, (int, float)) and math.isfinite(value)
                if not (number and fits(value)):
                    raise ValueError(f"MTOConfig.{name} must be {wanted}, got {value!r}")
        for name in ("scale", "reduction", "direction", "backend"):
            check_name(name, getattr(self, name))
        for name in (f"{term}_scale" for term in TERMS):
            if (own := getattr(self, name)) is not None and own not in NAMES["scale"]:
                raise ValueError(f"MTOConfig.{name} must be None or a scale, got {own!r}")
        if self.balance is not None and self.calibrate is not None:
            raise ValueError(
                f"MTOConfig.balance={self.balance} and calibrate={self.calibrate}: the former "
                "changes weights all the time, the latter sets them once; leave one of them None"
            )
        begun = max(self.warmup_steps, self.calibrate_steps if self.calibrate is not None else 0)
        if self.off_after is not None and self.off_after <= begun:
            raise ValueError(
                f"MTOConfig.off_after={self.off_after} must be after warm-up and calibration, "
                f"which take {begun} steps"
            )

    @classmethod
    def preset(cls, name: Preset, **overrides: Any) -> MTOConfig:
        """The documented default of a recipe.

        Args:
            name: "mae", "bootmae", "simmim", "conmim" (what helped in small experiments, beyond the
                paper), "observe" (all weights 0), "paper" (its three terms in its places, weights
                by calibration, as it names none) or "literal" (all weights 1, for replication).
            **overrides: Fields that differ from the preset; `balance` takes the place of its
                calibration, and `calibrate=0` switches that off.

        Raises:
            TypeError, ValueError: Unknown field, unknown preset, a value out of its range, or a
                weight that the preset's calibration would replace.
        """
        check_name("preset", name)
        if overrides.get("balance") is not None:
            overrides = {"calibrate": None, **overrides}
        given = [term for term in TERMS if overrides.get(term)]
        if given and "calibrate" in PRESETS[name] and "calibrate" not in overrides:
            raise ValueError(
                f"preset {name!r} finds its weights by calibration, so {given[0]}="
                f"{overrides[given[0]]} would have no effect: pass calibrate=0 too, for fixed "
                "weights"
            )
        if overrides.get("calibrate") == 0:
            overrides = {**overrides, "calibrate": None}
        return cls(**{**PRESETS[name], **overrides})

    @property
    def weights(self) -> dict[str, float]:
        """The three weights by term."""
        return {name: getattr(self, name) for name in TERMS}

    def scale_of(self, term: str) -> Scale:
        """Logits of one term."""
        own: Scale | None = getattr(self, f"{term}_scale")
        return self.scale if own is None else own
