"""`np.int`, `np.float` and their like, removed in NumPy 1.24."""

from __future__ import annotations

import warnings

import numpy as np


def numpy_aliases() -> bool:
    """Bring back the names for Python's own types: position embeddings and mask generators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about the very names we ask for
        missing = [kind for kind in (bool, int, float, object) if not hasattr(np, kind.__name__)]
    for kind in missing:
        setattr(np, kind.__name__, kind)
    return bool(missing)
