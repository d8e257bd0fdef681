"""What a run measures beside the terms: random numbers, the order of its tokens, affinity maps."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mto_core import affinity


def checksum(mask: Tensor | None = None) -> str:
    """16 digits for the state of every generator of this process, and the mask that came of them.

    Recipes draw masks from CUDA's generator (MAE on a GPU), Python's (BootMAE, ConMIM) or numpy's
    (SimMIM), crops from torch's or Python's. Reads the states and changes none.

    Args:
        mask: Any tensor to go into it.
    """
    digest = hashlib.sha1()
    for state in _states():
        digest.update(state)
    if mask is not None:
        digest.update(mask.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _states() -> Iterator[bytes]:
    yield repr(random.getstate()).encode()
    kind, keys, *rest = np.random.get_state(legacy=True)
    yield np.asarray(keys).tobytes() + repr((kind, *map(float, rest))).encode()
    yield torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_initialized():  # asking for the state would initialise it
        yield torch.cuda.get_rng_state().numpy().tobytes()


def warn_of_order(tokens: Tensor, mask: Tensor) -> None:
    """Warn where a decoder is traced whose visible tokens stand first (UM-MAE, say).

    The token of a masked patch is the mask token plus its position, so two images that both mask
    patch n have equal tokens there. Where some differ, yet tokens of the one image recur at other
    places of the other, the mask is in another order than the tokens.

    Args:
        tokens: `[B, N, D]`, the patch tokens that enter the first block.
        mask: `[B, N]`, bool, True = masked.
    """
    if tokens.ndim != 3 or len(tokens) < 2 or tokens.shape[:2] != mask.shape:
        return
    first, second = tokens[:2].detach()
    both = mask[0] & mask[1]
    equal = (first == second).all(1)
    if not both.any() or bool(equal[both].all()):
        return
    _, row = torch.unique(torch.cat([first, second]), dim=0, return_inverse=True)
    recurring = torch.isin(row[: len(first)], row[len(first) :])
    if bool((recurring & ~equal).any()):
        warnings.warn(
            "mto: the traced tokens are not in the order of the mask: masked patches of two images "
            "differ at one place, but recur at another. The decoder may put visible tokens first: "
            "give mto.add the mask in the order of its tokens",
            stacklevel=2,
        )


def save_affinity(path: Path, tokens_by_depth: Sequence[Tensor], mask: Tensor) -> None:
    """Save the first image's affinity maps (Figure 2) as `.npz`.

    Arrays: `affinity` float16 `[L+1, N, N]`, rows and columns ordered masked then visible;
    `masked_to_visible` float16 `[L+1, M, V]`, softmax(X_M X_Vᵀ), the map that H is made of;
    `num_masked` int; `mask` bool `[N]`.

    Raises:
        ValueError: The depths hold different numbers of tokens (hierarchical models).
    """
    if len({tokens.shape[1] for tokens in tokens_by_depth}) > 1:
        raise ValueError(
            "affinity maps need the same number of tokens at every depth, but this model has "
            f"{[tokens.shape[1] for tokens in tokens_by_depth]}; leave --mto_affinity_steps out"
        )
    first = mask[0].flatten()
    shown = [tokens[0].detach().float() for tokens in tokens_by_depth]
    with torch.autocast(mask.device.type, enabled=False):
        maps = [affinity(tokens[None], first[None])[0] for tokens in shown]
        # Of its own, for softmax(X Xᵀ) may underflow there.
        across = [(tokens[first] @ tokens[~first].mT).softmax(-1) for tokens in shown]
    np.savez_compressed(
        path,
        affinity=torch.stack(maps).half().cpu().numpy(),
        masked_to_visible=torch.stack(across).half().cpu().numpy(),
        num_masked=int(first.sum()),
        mask=first.cpu().numpy(),
    )
