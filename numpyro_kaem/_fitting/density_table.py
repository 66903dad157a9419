"""Densities that are tabulated on a grid, as smooth log-densities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jax.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from numpyro_kaem._fitting.sample_checks import of_coordinate, real_array
from numpyro_kaem.checks import check_positive
from numpyro_kaem.energies import BSpline


def tabulated_log_density(
    points: ArrayLike | Sequence, density: ArrayLike | Sequence, floor: float
) -> tuple[Callable[[np.ndarray], np.ndarray], BSpline, tuple[int, ...]]:
    """The logarithm of a tabulated density, by monotone cubics through it, a basis for it, and its batch shape.

    Args, Raises: see `KAPrior.from_table`.
    """
    points, density = real_array("points", points), real_array("density", density)
    if points.ndim != 1 or len(points) < 4 or not np.all(np.isfinite(points)) or not np.all(np.diff(points) > 0):
        raise ValueError(
            f"points must be at least 4 finite numbers that increase, got an array of shape {points.shape}"
        )
    if density.shape[:1] != points.shape:
        raise ValueError(
            f"density must have shape ({len(points)}, *batch), a row for each of the points, got {density.shape}; "
            "transpose a table of one density a row"
        )
    wrong = ~(np.isfinite(density) & (density >= 0))
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise ValueError(
            f"density must be finite and not negative, got {density[tuple(first)]} at point {points[first[0]]:.6g}"
            f"{of_coordinate(first[1:])}; exponentiate log-densities, after subtracting their maximum"
        )
    largest = density.max(axis=0)
    if np.any(largest == 0):
        raise ValueError(f"density must be positive somewhere, but is not{of_coordinate(np.argwhere(largest == 0)[0])}")
    if check_positive("floor", floor) >= 1.0:
        raise ValueError(f"floor must be a share of the largest density, less than 1, got {floor!r}")
    log_density = PchipInterpolator(points, np.log(np.maximum(density / largest, floor)), axis=0)
    basis = BSpline(int(np.clip((len(points) - 1) // 2, 40, 160)), 3, (points[0], points[-1]))
    # The points of all coordinates are the same, for they share the domain.
    return lambda z: log_density(z.reshape(len(z), -1)[:, 0]), basis, density.shape[1:]
