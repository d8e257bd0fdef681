"""Names that NumPy and SciPy removed."""

from __future__ import annotations

from typing import Any

import numpy as np


def numpy_aliases() -> None:
    """Bring back `np.int` and its like, gone in 1.24: position embeddings and mask generators."""
    for kind in (bool, int, float, object):
        vars(np).setdefault(kind.__name__, kind)


def interp2d() -> None:
    """Bring back `scipy.interpolate.interp2d`, gone in 1.14, which resizes position biases.

    `interp2d(x, y, z)` fits `z[j, i]` at `(x[i], y[j])`, and is a function of two new axes that
    returns `[len(y), len(x)]`; outside, the nearest edge's value. On a regular grid, the only case
    in the recipes, the old class fitted the same FITPACK spline as `RectBivariateSpline` does with
    no smoothing.
    """
    from scipy import interpolate  # type: ignore[import-untyped]

    def interp2d(x: Any, y: Any, z: Any, kind: str = "linear") -> Any:
        degree = {"linear": 1, "cubic": 3, "quintic": 5}[kind]
        values = np.reshape(z, (len(y), len(x))).T
        spline = interpolate.RectBivariateSpline(x, y, values, kx=degree, ky=degree)
        return lambda new_x, new_y: spline(new_x, new_y).T

    interpolate.interp2d = interp2d
