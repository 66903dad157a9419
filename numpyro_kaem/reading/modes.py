"""Modes of one-dimensional densities, and the probability around each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.reading.product import as_product

# Half of the points at even probabilities, where the mass is, and half evenly between the outer ones, for the gaps.
_POINTS, _OUTER = 1024, 1e-4
# A ripple of the log-density that is lower than that, in nats, is no mode.
_PROMINENCE = 0.05
# Nor is what has less of the probability than that.
_SMALLEST_MASS = 1e-3


class Mode(NamedTuple):
    """A local maximum of a one-dimensional density.

    Attributes:
        z: where it is.
        probability: below it, F(z).
        mass: the probability between the lowest points of the density on either side of it.
    """

    z: float
    probability: float
    mass: float


def modes(prior: dist.Distribution | Callable, component: int | None = None) -> list[list[Mode]]:
    """The modes of the density of every coordinate, from low to high.

    A local maximum between the quantiles of 0.0001 and 0.9999 counts where the density falls by at least 5 per cent on
    the way to any higher one, and where at least 0.001 of the probability is. Masses of a coordinate sum to one. Of a
    plateau, such as a uniform density, the middle is taken. Places are those of a grid of about 2,000 points.

    Args:
        prior: a product of one-dimensional distributions, or a mixture of those.
        component: of a mixture of whole latent vectors.

    Returns:
        A list for every coordinate, in the order of a flat latent.

    Raises:
        ValueError: for a prior whose coordinates are not independent, and a mixture without `component`.

    Example:
        ```python
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import KAPrior, modes


        def log_density(z):
            lumps = jnp.stack([-8.0 * (z + 2.0) ** 2, -8.0 * (z - 1.0) ** 2])
            return jnp.logaddexp(lumps[0], lumps[1] + jnp.log(3.0))


        ((left, right),) = modes(KAPrior.from_log_density(log_density, (-4.0, 3.0)))
        assert abs(left.z + 2.0) < 0.01 and abs(left.mass - 0.25) < 0.01
        assert abs(right.z - 1.0) < 0.01 and abs(right.mass - 0.75) < 0.01
        ```
    """
    from scipy.signal import find_peaks

    product = as_product(prior, component)
    z = product.grid(jnp.linspace(_OUTER, 1.0 - _OUTER, _POINTS))
    z = jnp.sort(jnp.concatenate([z, jnp.linspace(z[0], z[-1], _POINTS)]), axis=0)
    heights, below = (
        np.asarray(function(z.reshape(-1, *product.shape))) for function in (product.log_prob, product.cdf)
    )
    lowest = heights.min(axis=0, keepdims=True) - 1.0
    padded = np.concatenate([lowest, heights, lowest])
    found = [
        _of_some_mass(find_peaks(padded[:, d], prominence=_PROMINENCE)[0] - 1, heights[:, d], below[:, d])
        for d in range(product.size)
    ]
    z = np.asarray(z)
    return [
        [Mode(float(z[place, d]), float(below[place, d]), mass) for place, mass in zip(*peaks, strict=True)]
        for d, peaks in enumerate(found)
    ]


def _of_some_mass(peaks: np.ndarray, heights: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Places of modes, those without mass left out one by one, and the masses between the lowest points."""
    if len(peaks) == 0:  # a peak on top of a ripple of less than the prominence
        return np.array([np.argmax(heights)]), [1.0]
    while True:
        cuts = [low + np.argmin(heights[low:high]) for low, high in pairwise(peaks)]
        masses = np.diff([0.0, *below[cuts], 1.0])
        if len(peaks) == 1 or masses.min() >= _SMALLEST_MASS:
            return peaks, masses.tolist()
        peaks = np.delete(peaks, np.argmin(masses))
