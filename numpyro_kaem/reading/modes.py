"""Modes of one-dimensional densities, and the probability around each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem.reading.product import Product, as_product

# Half of the points at even probabilities, where the mass is, and half evenly between the outer ones, for the gaps.
_POINTS, _OUTER = 1024, 1e-4
# A ripple of the log-density that is lower than that, in nats, is no mode.
_PROMINENCE = 0.05
# Nor is what has less of the probability than that.
_SMALLEST_MASS = 1e-3
_ROUNDS, _POINTS_OF_A_ROUND = 3, 17


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
    plateau, such as a uniform density, the middle is taken.

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

        sample = jnp.concatenate([jnp.linspace(-2.3, -1.7, 100), jnp.linspace(0.8, 1.2, 300)])
        ((left, right),) = modes(KAPrior.from_samples(sample))
        assert abs(left.z + 2.0) < 0.3 and abs(left.mass - 0.25) < 0.05
        assert abs(right.z - 1.0) < 0.3 and abs(right.mass - 0.75) < 0.05
        ```
    """
    from scipy.signal import find_peaks

    product = as_product(prior, component)
    z, heights, below = (np.asarray(values) for values in _on_grid(product))
    lowest = heights.min(axis=0, keepdims=True) - 1.0
    padded = np.concatenate([lowest, heights, lowest])
    found = [
        _of_some_mass(find_peaks(padded[:, d], prominence=_PROMINENCE)[0] - 1, heights[:, d], below[:, d])
        for d in range(product.size)
    ]
    # Coordinates with fewer modes than others repeat their last one.
    most = max(len(peaks) for peaks, _ in found)
    at = np.stack([np.pad(peaks, (0, most - len(peaks)), mode="edge") for peaks, _ in found], axis=1)
    around = [z[np.clip(at + step, 0, len(z) - 1), np.arange(product.size)] for step in (-1, 0, 1)]
    at, probabilities = (np.asarray(values).T.tolist() for values in _refined(product, *around))
    return [
        [Mode(*mode) for mode in zip(at[d][: len(masses)], probabilities[d], masses, strict=False)]
        for d, (_, masses) in enumerate(found)
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


@jit_by_program
def _on_grid(product: Product) -> tuple[Float[Array, "n D"], Float[Array, "n D"], Float[Array, "n D"]]:
    """Points of every coordinate, and the log-densities and probabilities there."""
    z = product.grid(jnp.linspace(_OUTER, 1.0 - _OUTER, _POINTS))
    z = jnp.sort(jnp.concatenate([z, jnp.linspace(z[0], z[-1], _POINTS)]), axis=0)
    latents = z.reshape(-1, *product.shape)
    return z, product.log_prob(latents), product.cdf(latents)


@jit_by_program
def _refined(product: Product, low: Float[Array, "n D"], at: Float[Array, "n D"], high: Float[Array, "n D"]):
    """Modes between their neighbours on the grid, and the probabilities below them."""

    def of_each(function, z):
        return function(z.reshape(-1, *product.shape)).reshape(z.shape)

    def closer(_, bracket):
        low, at, high = bracket
        step = (high - low) / (_POINTS_OF_A_ROUND - 1)
        z = jnp.concatenate([at[None], low + jnp.arange(_POINTS_OF_A_ROUND)[:, None, None] * step])
        best = jnp.take_along_axis(z, jnp.argmax(of_each(product.log_prob, z), axis=0)[None], axis=0)[0]
        return jnp.maximum(best - step, low), best, jnp.minimum(best + step, high)

    _, at, _ = jax.lax.fori_loop(0, _ROUNDS, closer, (low, at, high))
    return at, of_each(product.cdf, at)
