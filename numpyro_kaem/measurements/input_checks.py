"""What can be wrong with what is asked of empirical Bayes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem.checks import check_not_masked


def check_weights(weights: ArrayLike | Sequence | None, num_data: int) -> np.ndarray:
    """Weights of the data as float64."""
    if weights is None:
        return np.ones(num_data)
    check_not_masked("weights", weights)
    values = np.asarray(weights, np.float64)
    if values.shape != (num_data,):
        raise ValueError(f"weights must have shape ({num_data},), one for each datum, got {values.shape}")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"weights must be finite and not negative, got {values[first]} for datum {first}")
    if not values.any():
        raise ValueError("weights must not all be zero")
    return values


def check_point_mass(point_mass: Any, support: tuple[float, float]) -> float | None:
    """The point of a point mass, or None."""
    if point_mass is None:
        return None
    if (
        isinstance(point_mass, bool)
        or not isinstance(point_mass, int | float | np.integer | np.floating)
        or not np.isfinite(point_mass)
    ):
        raise ValueError(f"point_mass must be the effect that has it, a finite number such as 0.0, got {point_mass!r}")
    if not support[0] <= float(point_mass) <= support[1]:
        raise ValueError(f"point_mass must be in the support {support} of the reference, got {point_mass!r}")
    return float(point_mass)


def check_smoothness(smoothness: Any, num_folds: int, weights: np.ndarray, fewest: int) -> tuple[str, float | None]:
    """How the smoothness is chosen, and the smoothness if it is given."""
    effective = float(weights.sum() ** 2 / np.sum(weights**2))
    if smoothness is None:
        smoothness = "cross-validation" if effective >= fewest * num_folds else "evidence"
    if isinstance(smoothness, str):
        if smoothness not in {"cross-validation", "evidence"}:
            raise ValueError(f'smoothness must be "cross-validation", "evidence", a number or None, got {smoothness!r}')
        if smoothness == "cross-validation" and effective < num_folds:
            raise ValueError(
                f"data must have at least {num_folds} entries for {num_folds} folds, got {effective:.3g} (effective "
                'number, with weights); give smoothness="evidence", or fewer num_folds'
            )
        return smoothness, None
    if (
        isinstance(smoothness, bool)
        or not isinstance(smoothness, int | float | np.integer | np.floating)
        or not 0 <= smoothness < np.inf
    ):
        raise ValueError(f"smoothness must be finite and at least 0, or how it is chosen, got {smoothness!r}")
    return "given", float(smoothness)
