"""Names, dtypes and argument checks that all rooms of the package share."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

TERMS = ("sparsity", "singularity", "ranking")
Scale = Literal["raw", "sqrt_dim", "layernorm"]
Backend = Literal["auto", "dense", "recompute", "fused"]
Reduction = Literal["mean", "sum"]
Direction = Literal["decreasing", "as_printed"]
Preset = Literal["mae", "bootmae", "simmim", "conmim", "observe", "paper", "literal"]

# Made once: torch.compile of torch 2.6 cannot trace get_args.
NAMES: dict[str, tuple[str, ...]] = {
    "scale": get_args(Scale),
    "backend": get_args(Backend),
    "reduction": get_args(Reduction),
    "direction": get_args(Direction),
    "preset": get_args(Preset),
}


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype of logits and entropies: float64 for float64 tokens, float32 for any other."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def check_name(what: str, name: object) -> None:
    """Raises ValueError unless `name` is a known scale, backend, …, as `what` says."""
    if name not in NAMES[what]:
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(NAMES[what])}")


def check_tokens(tokens: Any, name: str = "tokens") -> None:
    """Raises TypeError unless `tokens` is a tensor, ValueError unless it is floating [B, N, D]."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tokens).__name__}")
    if tokens.ndim != 3:
        raise ValueError(f"{name} must be [B, N, D], got shape {tuple(tokens.shape)}")
    if not tokens.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tokens.dtype}")


def check_mask(
    mask: Any, tokens: Tensor | None = None, name: str = "mask", *, flat: bool = True
) -> None:
    """Raises TypeError unless `mask` is a tensor, ValueError unless it is bool.

    With tokens also ValueError unless it is on their device and, where `flat`, [B, N].
    """
    wanted = f"{name} must be bool with True = masked, got"
    if not isinstance(mask, Tensor):
        mend = f"torch.tensor({name}, dtype=torch.bool)"
        if mask is None:
            mend = "the mask that the model ran with"
        elif hasattr(mask, "__array__"):
            mend = f"torch.from_numpy({name}).bool()"
        raise TypeError(f"{wanted} {type(mask).__name__}: pass {mend}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{wanted} {mask.dtype}: pass {name}.bool()")
    if tokens is not None and mask.device != tokens.device:
        raise ValueError(
            f"{name} is on {mask.device}, but the tokens are on {tokens.device}: pass "
            f"{name}.to(tokens.device)"
        )
    if tokens is not None and flat and mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name} must be {list(tokens.shape[:2])} to fit tokens {list(tokens.shape)} "
            f"(strip prefix tokens first), got {list(mask.shape)}"
        )
