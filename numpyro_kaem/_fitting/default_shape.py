"""The reference and the basis of a prior from samples, where the user gives none."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import gammaln

from numpyro_kaem._fitting.sample_checks import coordinates
from numpyro_kaem._fitting.ties import Sample
from numpyro_kaem.energies import BSpline

NUM_INTERVALS = 40  # of the default spline; its smoothness is the penalty's affair
MARGIN = 0.05  # of the samples' range, by which the default domain exceeds it on either side
_LEVELS = np.linspace(0.0, 1.0, 401)
_DEGREES_OF_FREEDOM = np.array([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0])


class Shape(NamedTuple):
    """What the samples of one coordinate look like."""

    low: float
    high: float
    quantiles: np.ndarray  # at _LEVELS
    center: float  # of the shortest interval with a tenth of the samples, and enough of them for that to mean much
    width: float

    @classmethod
    def of(cls, sample: Sample) -> Shape:
        below = np.cumsum(sample.weights) - 0.5 * sample.weights
        quantiles = np.interp(_LEVELS, below, sample.points)
        share = np.clip(20.0 * np.sum(sample.weights**2), 0.1, 0.5)
        tenth = int(share * (len(_LEVELS) - 1))
        widths = quantiles[tenth:] - quantiles[:-tenth]
        at = np.argmin(widths)
        center = float(0.5 * (quantiles[at + tenth] + quantiles[at]))
        low, high = float(sample.points[0]), float(sample.points[-1])
        # Repeated samples may leave no width.
        distinct = np.quantile(sample.levels, [0.25, 0.75])
        width = max(widths[at] * 0.1 / share, sample.step, 1e-3 * (distinct[1] - distinct[0]), 1e-9 * (high - low))
        return cls(low, high, quantiles, center, float(width))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The range of the middle half."""
        quarter = len(_LEVELS) // 4
        return float(self.quantiles[quarter]), float(self.quantiles[-1 - quarter])

    @property
    def is_heavy(self) -> bool:
        """Whether the range is that many times the middle half's that a Normal has nothing to say about the tails."""
        first, third = self.quartiles
        return bool(self.high - self.low > NUM_INTERVALS * max(third - first, self.width))

    @property
    def is_uneven(self) -> bool:
        """Whether even knots would miss where samples are dense."""
        return bool(self.high - self.low > 2.0 * NUM_INTERVALS * self.width)

    def knots(self, support: np.ndarray) -> np.ndarray:
        """Knots, even where that is fine enough.

        Otherwise a half of them follows the samples' quantiles. A quarter is even in asinh((z - center) / width), so
        that cells grow with the distance from where samples are densest, and a quarter in the integral of
        1 / (width + distance to the nearest quantile), so that they are small beside every cluster.
        """
        if not self.is_uneven:
            margin = MARGIN * (self.high - self.low)
            low, high = max(self.low - margin, support[0]), min(self.high + margin, support[1])
            return np.linspace(low, high, NUM_INTERVALS + 1)

        def to_even(z):
            return np.arcsinh((z - self.center) / self.width)

        def from_even(t):
            return self.center + self.width * np.sinh(t)

        first, last = to_even(np.array([self.low, self.high]))
        margin = MARGIN * (last - first)
        low, high = np.clip(from_even(np.array([first - margin, last + margin])), *support)
        distinct, index = np.unique(self.quantiles, return_index=True)
        shares = 0.5 ** np.arange(1.0, 20.0)
        inside = distinct[:-1, None] + np.diff(distinct)[:, None] * np.concatenate([shares, 1.0 - shares])
        spaced = from_even(np.linspace(to_even(low), to_even(high), 801))
        places = np.unique(np.clip(np.concatenate([[low, high], distinct, inside.ravel(), spaced]), low, high))

        after = np.clip(np.searchsorted(distinct, places), 1, len(distinct) - 1)
        distance = np.minimum(np.abs(places - distinct[after - 1]), np.abs(places - distinct[after]))
        density = 1.0 / (self.width + distance)
        beside = np.append(0.0, np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(places)))
        followed, even = np.interp(places, distinct, _LEVELS[index]), to_even(places)
        measure = 0.5 * followed + 0.25 * (even - even[0]) / (even[-1] - even[0]) + 0.25 * beside / beside[-1]
        knots = np.interp(np.linspace(0.0, 1.0, NUM_INTERVALS + 1), measure, places)
        return np.concatenate([[low], knots[1:-1], [high]])


def default_reference(shapes: list[Shape], samples: list[Sample], batch_shape: tuple[int, ...]) -> dist.Distribution:
    """A Normal of the samples' moments; where a coordinate has heavy tails, Student t distributions for all of them."""
    heavy = np.array([shape.is_heavy for shape in shapes])
    if not heavy.any():
        moments = np.array([sample.moments() for sample in samples]).T
        return dist.Normal(*(jnp.asarray(value.reshape(batch_shape), float) for value in moments))
    fitted = np.array([_fit_student(sample, shape) for sample, shape in zip(samples, shapes, strict=True)]).T
    at, where = next(coordinates(heavy, batch_shape))
    df, loc, size = fitted[:, at]
    warnings.warn(
        f"the samples{where} have heavy tails: half of them lie between {shapes[at].quartiles[0]:.3g} and "
        f"{shapes[at].quartiles[1]:.3g}, all of them between {shapes[at].low:.3g} and {shapes[at].high:.3g}. Beyond "
        f"these the density is that of the reference StudentT({df:g}, {loc:.3g}, {size:.3g}), fitted to them; give a "
        "reference if another one is right, or leave outliers out",
        stacklevel=5,
    )
    return dist.StudentT(*(jnp.asarray(value.reshape(batch_shape), float) for value in fitted))


def _fit_student(sample: Sample, shape: Shape) -> tuple[float, float, float]:
    """Degrees of freedom, from a list, location and scale of greatest likelihood, by iterated weighting."""
    size = len(sample.points)
    few = np.arange(min(size, 500))
    # The extremes, and of the many others some for all.
    at = np.unique(np.concatenate([few, np.linspace(0, size - 1, 4_000).astype(int), size - 1 - few]))
    z, weights = sample.points[at], np.add.reduceat(sample.weights, at)
    best = (-np.inf, 1.0, 0.0, 1.0)
    for df in _DEGREES_OF_FREEDOM:
        loc, scale = shape.quantiles[len(_LEVELS) // 2], max(0.5 * np.diff(shape.quartiles)[0], shape.width)
        for _ in range(20):
            trust = weights * (df + 1.0) / (df + ((z - loc) / scale) ** 2)
            loc = trust @ z / trust.sum()
            scale = max(np.sqrt(trust @ (z - loc) ** 2), 1e-3 * shape.width)
        constant = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * np.log(df) - np.log(scale)
        log_likelihood = constant - 0.5 * (df + 1.0) * weights @ np.log1p(((z - loc) / scale) ** 2 / df)
        best = max(best, (log_likelihood, df, loc, scale))
    return best[1:]


def default_basis(shapes: list[Shape], supports: np.ndarray, batch_shape: tuple[int, ...]) -> BSpline:
    """Cubic splines over the samples' range and a margin, inside of the references' supports (num_coordinates, 2)."""
    knots = np.stack([shape.knots(support) for shape, support in zip(shapes, supports, strict=True)])
    resolution = 16.0 * float(jnp.finfo(jnp.result_type(float)).eps) * np.abs(knots)
    too_close = np.any(np.diff(knots) < np.maximum(resolution[:, 1:], resolution[:, :-1]), axis=1)
    for at, where in coordinates(too_close, batch_shape):
        raise ValueError(
            f"z must vary by more than {jnp.result_type(float)} tells apart, but the samples{where} lie between "
            f"{shapes[at].low:.9g} and {shapes[at].high:.9g} and are densest near {shapes[at].center:.9g}; subtract "
            "that, or enable JAX's 64-bit mode"
        )
    if any(shape.is_uneven for shape in shapes):
        return BSpline.from_knots(knots.reshape(*batch_shape, -1), 3)
    return BSpline(NUM_INTERVALS, 3, (knots[:, 0].reshape(batch_shape), knots[:, -1].reshape(batch_shape)))
