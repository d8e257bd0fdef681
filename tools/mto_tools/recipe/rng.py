"""One short checksum for the random numbers that a run has met, so that two runs can be compared.

The recipes draw from four generators: masks from CUDA's (MAE on a GPU), from Python's (BootMAE,
ConMIM) or from numpy's (SimMIM), crops from torch's or from Python's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def checksum(mask: Tensor | None = None) -> str:
    """16 digits for the state of every generator of this process, and the mask that came of them.

    Reads the states and changes none.

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
