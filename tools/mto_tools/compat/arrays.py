"""Names that NumPy and SciPy removed."""

from __future__ import annotations

from typing import Any

import numpy as np

_DEGREE = {"linear": 1, "cubic": 3, "quintic": 5}


def numpy_aliases() -> None:
    """Bring back `np.int` and its like, gone in 1.24: position embeddings and mask generators."""
    for kind in (bool, int, float, object):
        vars(np).setdefault(kind.__name__, kind)


def interp2d() -> None:
    """Bring back `scipy.interpolate.interp2d`, gone in 1.14, which resizes position biases.

    On a regular grid, the only case in the recipes, the old class fitted the same FITPACK spline as
    `RectBivariateSpline` does with no smoothing.
    """
    from scipy import interpolate  # type: ignore[import-untyped]

    interpolate.interp2d = GridSpline


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
