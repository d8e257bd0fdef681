"""Names, dtypes and argument checks that all rooms of the package share."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Scale = Literal["raw", "sqrt_dim", "layernorm"]
Backend = Literal["auto", "dense", "recompute"]
Reduction = Literal["mean", "sum"]
Direction = Literal["decreasing", "as_printed"]

SCALES: tuple[str, ...] = get_args(Scale)
BACKENDS: tuple[str, ...] = get_args(Backend)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
DIRECTIONS: tuple[str, ...] = get_args(Direction)


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype of logits and entropies: float64 for float64 tokens, float32 for any other."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def logit_scale(scale: str, tokens: Tensor) -> float:
    """The factor on the logits: 1 / sqrt(D) for "sqrt_dim", else 1."""
    return 1 / math.sqrt(tokens.shape[-1]) if scale == "sqrt_dim" else 1.0


def check_name(what: str, name: object, known: tuple[str, ...]) -> None:
    """Raises ValueError unless `name` is one of `known`."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")


def check_tokens(tokens: Tensor, name: str = "tokens") -> None:
    """Raises TypeError unless `tokens` is a tensor, ValueError unless it is floating [B, N, D]."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tokens).__name__}")
    if tokens.ndim != 3:
        raise ValueError(f"{name} must be [B, N, D], got shape {tuple(tokens.shape)}")
    if not tokens.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tokens.dtype}")


def check_is_mask(mask: Any, name: str = "mask") -> None:
    """Raises TypeError unless `mask` is a tensor, ValueError unless it is bool."""
    if not isinstance(mask, Tensor):
        if mask is None:
            mend = "pass the mask that the model ran with"
        elif hasattr(mask, "__array__"):
            mend = f"pass torch.from_numpy({name}).bool()"
        else:
            mend = f"pass torch.tensor({name}, dtype=torch.bool)"
        raise TypeError(
            f"{name} must be a bool tensor with True = masked, got {type(mask).__name__}: {mend}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool with True = masked, got {mask.dtype}: pass {name}.bool()"
        )


def check_mask(mask: Tensor, tokens: Tensor, name: str = "mask") -> None:
    """`check_is_mask`, and ValueError unless `mask` is [B, N] for tokens [B, N, D]."""
    check_is_mask(mask, name)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name} must be {list(tokens.shape[:2])} to fit tokens {list(tokens.shape)} "
            f"(strip prefix tokens first), got {list(mask.shape)}"
        )
