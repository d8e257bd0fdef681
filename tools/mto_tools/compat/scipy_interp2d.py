"""`scipy.interpolate.interp2d`, removed in SciPy 1.14."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

_DEGREE = {"linear": 1, "cubic": 3, "quintic": 5}


def interp2d() -> bool:
    """Bring back the splines that resize relative position biases for fine-tuning.

    On a regular grid, the only case in the recipes, the old class fitted the same FITPACK spline as
    `RectBivariateSpline` does with no smoothing.
    """
    from scipy import interpolate  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            interpolate.interp2d([0, 1, 2], [0, 1, 2], np.zeros((3, 3)))
            return False
        except (AttributeError, NotImplementedError):
            interpolate.interp2d = GridSpline
            return True


class GridSpline:
    """`z[j, i]` at `(x[i], y[j])`, evaluated on a grid; outside, the nearest edge's value."""

    def __init__(self, x: Any, y: Any, z: Any, kind: str = "linear") -> None:
        """Fit the spline through every point."""
        from scipy.interpolate import RectBivariateSpline  # type: ignore[import-untyped]

        columns, rows, values = np.asarray(x), np.asarray(y), np.asarray(z)
        if values.size != columns.size * rows.size:
            raise ValueError(
                f"interp2d: {values.size} values for a grid of {columns.size} by {rows.size}; "
                "scattered points are not supported"
            )
        values = values.reshape(rows.size, columns.size)
        degree = _DEGREE[kind]
        self._spline = RectBivariateSpline(columns, rows, values.T, kx=degree, ky=degree, s=0)

    def __call__(self, x: Any, y: Any) -> Any:
        """Return values `[len(y), len(x)]`, or `[len(x)]` for a single `y`."""
        columns, rows = np.sort(np.atleast_1d(x)), np.sort(np.atleast_1d(y))
        values = self._spline(columns, rows).T
        return values[0] if len(values) == 1 else values
