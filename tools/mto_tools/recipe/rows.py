"""What a step has measured, as one tensor for the log, and by name for the recipe's own loggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mto_core import MTOTerms
from mto_core.checks import TERMS

SCALARS = ("loss", "total", *TERMS, "diagonal_mass", "masked_mass")


def row_of(loss: Tensor, terms: MTOTerms) -> Tensor:
    """All that is logged in one tensor, so that reading it waits for the device once."""
    missing = torch.full((), torch.nan, device=loss.device)
    found = [loss, *(getattr(terms, name) for name in SCALARS[1:])]
    scalars = [missing if value is None else value for value in found]
    # Added to a zero: torch.as_tensor would copy each weight to the device, and wait for it.
    zero = torch.zeros((), device=loss.device)
    weights = [zero + terms.weights[name] for name in TERMS]
    norms = missing.expand_as(terms.heterogeneity) if terms.token_norm is None else terms.token_norm
    first = torch.stack([x.detach().double() for x in (*scalars, *weights)])
    return torch.cat([first, terms.heterogeneity.double(), norms.double()])


def plain(row: Tensor, depths: int) -> dict[str, Any]:
    """`row_of` as numbers by name."""
    values = iter(row.tolist())
    named: dict[str, Any] = {name: next(values) for name in SCALARS}
    named["weights"] = {name: next(values) for name in TERMS}
    rest = list(values)
    return named | {"heterogeneity": rest[:depths], "token_norm": rest[depths:]}


def by_name(row: Tensor, depths: int) -> dict[str, Tensor]:
    """Loss, terms and H of a `row_of`, under the names of `mto_tools.recipe.log`."""
    values = dict(zip(SCALARS, row, strict=False))
    h = row[len(SCALARS) + len(TERMS) :][:depths]
    named = {name: values[name] for name in ("loss", *TERMS, "total")}
    named |= {f"h{depth:02d}": value for depth, value in enumerate(h)}
    return {f"mto_{name}": value for name, value in named.items()}


def needed(terms: Sequence[MTOTerms], active: Sequence[str]) -> dict[str, Tensor]:
    """All that a step between logged ones measures, the mean over objectives."""
    found = {}
    for name in (*active, "total"):
        values = [getattr(each, name) for each in terms]
        found[f"mto_{name}"] = values[0] if len(values) == 1 else torch.stack(values).mean()
    return found
