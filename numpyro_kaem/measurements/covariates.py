"""Covariates of effects: theta_i = x_i . beta + exp(s_i . gamma) e_i, where e_i is drawn from the learned prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem.checks import check_not_masked
from numpyro_kaem.measurements.likelihood import Measurements


@dataclasses.dataclass(frozen=True)
class Covariates:
    """Covariates of location and scale, and their coefficients."""

    location: np.ndarray  # (n, num_location)
    spread: np.ndarray  # (n, num_spread)
    coefficients: np.ndarray  # beta, then gamma

    @classmethod
    def of(
        cls, covariates: ArrayLike | Sequence | None, scale_covariates: ArrayLike | Sequence | None, num_data: int
    ) -> Covariates:
        """Covariates that are checked, with coefficients of zero."""
        location = _checked("covariates", covariates, num_data)
        spread = _checked("scale_covariates", scale_covariates, num_data)
        for name, values in (("covariates", location), ("scale_covariates", spread)):
            _check_rank(name, values)
        count = location.shape[1] + spread.shape[1]
        return cls(location, spread, np.zeros(count))

    def of_other_data(
        self, covariates: ArrayLike | Sequence | None, scale_covariates: ArrayLike | Sequence | None, num_data: int
    ):
        """The same coefficients with rows of other data."""
        parts = []
        for name, given, old in (
            ("covariates", covariates, self.location),
            ("scale_covariates", scale_covariates, self.spread),
        ):
            values = _checked(name, given, num_data)
            if values.shape[1] != old.shape[1]:
                raise ValueError(
                    f"{name} must have {old.shape[1]} columns, as when the prior was learned, got {values.shape[1]}"
                )
            parts.append(values)
        return dataclasses.replace(self, location=parts[0], spread=parts[1])

    def with_coefficients(self, coefficients: np.ndarray) -> Covariates:
        """The same covariates with other coefficients."""
        return dataclasses.replace(self, coefficients=coefficients)

    def take(self, rows: np.ndarray) -> Covariates:
        """Those of some data."""
        return dataclasses.replace(self, location=self.location[rows], spread=self.spread[rows])

    @property
    def is_used(self) -> bool:
        """Whether there are any."""
        return len(self.coefficients) > 0

    @property
    def shift(self) -> np.ndarray:
        """The part x . beta of every effect."""
        return self.location @ self.coefficients[: self.location.shape[1]]

    @property
    def scale(self) -> np.ndarray:
        """The factor exp(s . gamma) of every effect."""
        return np.exp(self.spread @ self.coefficients[self.location.shape[1] :])

    def effects(self, e: np.ndarray) -> np.ndarray:
        """The effects theta of e, shape (n, ...)."""
        if not self.is_used:
            return e
        shape = (-1, *[1] * (e.ndim - 1))
        return self.shift.reshape(shape) + self.scale.reshape(shape) * e

    def residuals(self, effects: np.ndarray) -> np.ndarray:
        """The e of effects, shape (n,)."""
        return (effects - self.shift) / self.scale if self.is_used else effects

    def applied(self, measurements: Measurements) -> Measurements:
        """The same data as measurements of e."""
        return measurements.moved(self.shift, self.scale) if self.is_used else measurements


def _checked(name: str, given: ArrayLike | Sequence | None, num_data: int) -> np.ndarray:
    if given is None:
        return np.zeros((num_data, 0))
    check_not_masked(name, given)
    values = np.asarray(given)
    if values.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {values.dtype}")
    values = values.astype(np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != num_data:
        raise ValueError(
            f"{name} must have shape ({num_data}, num_covariates), a row for each datum, got {values.shape}"
        )
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"{name} must be finite, got {values[row, column]} for datum {row} in column {column}")
    return values


def _check_rank(name: str, values: np.ndarray) -> None:
    """Raise where columns depend on each other or on a constant, which the prior's own location or scale is."""
    centered = values - values.mean(axis=0)
    size = np.sqrt(np.mean(centered**2, axis=0))
    constant = np.flatnonzero(size <= 1e-10 * np.maximum(np.abs(values).max(axis=0, initial=0.0), 1e-300))
    if len(constant):
        raise ValueError(
            f"{name} must vary, but column {constant[0]} is {values[0, constant[0]]:.6g} throughout; leave it out: the "
            "prior has a location and a scale of its own"
        )
    if values.shape[1] == 0:
        return
    rank = int(np.linalg.matrix_rank(centered / size, tol=1e-8 * np.sqrt(values.size)))
    if rank < values.shape[1]:
        raise ValueError(
            f"{name} must have linearly independent columns, which no constant depends on either, but the rank of "
            f"{values.shape[1]} columns, less their means, is {rank}; leave out {values.shape[1] - rank} of them"
        )
