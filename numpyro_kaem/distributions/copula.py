"""Gaussian copulas over learned marginals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions.util import validate_sample

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.masses import log_masses, log_prob
from numpyro_kaem._fitting.exponential_family import in_float64
from numpyro_kaem._numerics.log_probabilities import normal_quantile
from numpyro_kaem.distributions.tabulated import TabulatedDistribution


class OpenGaussianCopula(dist.GaussianCopula):
    """NumPyro's `GaussianCopula` over learned marginals, with both tails from their own side.

    Beyond 5.4 standard deviations the normal CDF rounds to one in float32: there NumPyro's density has the correlation
    of another point, and its draws are the end of the support.
    """

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draw from the Gaussian, and put its coordinates through the marginals' quantiles."""
        shape = sample_shape + self.batch_shape
        score = self.base_dist.expand(shape).sample(key)
        tiny = jnp.finfo(score.dtype).tiny
        below, above = (jnp.maximum(jax.scipy.special.ndtr(side), tiny) for side in (score, -score))
        return self.marginal_dist.icdf(below, complement=above)

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Sklar's density: that of the normal scores over those of independent ones, times the marginals'."""
        density = self.marginal_dist._density
        value = self.marginal_dist._broadcast(density, "value", value)
        scores, log_marginals = _scores_and_log_marginals(density, value)
        log_ratio = self.base_dist.log_prob(scores) - jnp.sum(jax.scipy.stats.norm.logpdf(scores), axis=-1)
        return log_ratio + jnp.sum(log_marginals, axis=-1)


@compiled
def _scores_and_log_marginals(density: Density, value: Array) -> tuple[Array, Array]:
    """Phi^-1(F(value)) and the log-densities, by one table."""
    density = density.prepared()
    below, above = log_masses(density, value)
    from_below = below < above
    # Outside of the support a score is any finite number: the density is zero by that of the marginal.
    score = normal_quantile(jnp.maximum(jnp.where(from_below, below, above), -1e6))
    return jnp.where(from_below, score, -score), log_prob(density, value)


def normal_score_copula(
    marginals: TabulatedDistribution, samples: np.ndarray, weights: np.ndarray, event_shape: tuple[int, ...]
) -> dist.Distribution:
    """Couple marginals with the correlation of the normal scores of samples (num_samples, num_coordinates).

    The normal score of a sample is Phi^-1 of its rank, so that the estimate depends on the marginals in no way, and
    neither outliers nor their shape disturb it.
    """
    ranks = np.empty_like(samples)
    for coordinate, column in enumerate(samples.T):
        _, group = np.unique(column, return_inverse=True)  # equal samples share a rank
        mass = np.bincount(group, weights)
        ranks[:, coordinate] = (np.cumsum(mass) - 0.5 * mass)[group]
    with in_float64():
        scores = np.asarray(jax.scipy.special.ndtri(np.clip(ranks, 1e-12, 1.0 - 1e-12)))
    cholesky = np.linalg.cholesky(check_correlation(scores, weights))
    copula = OpenGaussianCopula(marginals, correlation_cholesky=jnp.asarray(cholesky, float))
    if len(event_shape) == 1:
        return copula
    return dist.TransformedDistribution(copula, dist.transforms.ReshapeTransform(event_shape, (samples.shape[1],)))


def check_correlation(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation matrix of samples (num_samples, num_coordinates), or an error where it is singular."""
    deviation = samples - weights @ samples
    covariance = (weights[:, None] * deviation).T @ deviation
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    smallest, vectors = np.linalg.eigh(correlation)
    if smallest[0] < 1e-6:
        # Of all dependences: which vectors span these is a matter of rounding.
        largest = np.max(np.abs(vectors[:, smallest < 1e-6]), axis=1)
        involved = [int(index) for index in np.flatnonzero(largest > 0.1)]
        raise ValueError(
            f"the draws' correlation matrix is singular: coordinates {involved} (counted from 0, flattened) are "
            f"linearly dependent, or {len(samples)} draws are too few for {samples.shape[1]} coordinates; leave one of "
            "them out, or give more draws"
        )
    return correlation
