"""Probabilities that are given by their logarithms, which are finite where the probabilities underflow.

Thirteen standard deviations out the tail of a Normal is zero in float32, its logarithm -88. A tail is the reference's
times a weight, and where the one underflows the other may overflow; of their logarithms there is a sum.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions.util import log1mexp

LOG_HALF = -math.log(2.0)


def safe_log(probability: ArrayLike) -> Array:
    """Log p, -inf at zero without an infinite gradient."""
    probability = jnp.asarray(probability)
    return jnp.where(probability > 0, jnp.log(jnp.where(probability > 0, probability, 1.0)), -jnp.inf)


def log_complement(log_probability: ArrayLike) -> Array:
    """Log(1 - p) of log p: 0 at log p = -inf and -inf at 0, both without an infinite gradient."""
    log_probability = jnp.asarray(log_probability)
    partial = jnp.isfinite(log_probability) & (log_probability < 0)
    rest = log1mexp(jnp.where(partial, log_probability, LOG_HALF))
    return jnp.where(partial, rest, jnp.where(log_probability < 0, 0.0, -jnp.inf))


def log_difference(larger: ArrayLike, smaller: ArrayLike) -> Array:
    """Log(exp(larger) - exp(smaller)), -inf where that is not positive."""
    ratio = jnp.where(jnp.isneginf(larger), 0.0, smaller - jnp.where(jnp.isneginf(larger), 0.0, larger))
    return larger + log_complement(jnp.minimum(ratio, 0.0))


def log_sum(*terms: ArrayLike) -> Array:
    """Log of the sum of exponentials; of -inf alone it is -inf with zero gradient, not NaN."""
    return log_sum_exp(jnp.stack(jnp.broadcast_arrays(*terms), axis=-1))


def log_sum_exp(terms: Float[Array, "... num_terms"]) -> Float[Array, "..."]:
    """Log of the sum of exponentials along the last axis; of -inf alone it is -inf with zero gradient, not NaN."""
    empty = jnp.all(jnp.isneginf(terms), axis=-1)
    total = jax.nn.logsumexp(jnp.where(empty[..., None], 0.0, terms), axis=-1)
    return jnp.where(empty, -jnp.inf, total)


def log_complement_of_rate(log_rate: Array) -> Array:
    """Log(1 - exp(-r)) of log r."""
    small = log_rate < -20.0
    return jnp.where(small, log_rate, log_complement(-jnp.exp(jnp.where(small, 0.0, log_rate))))


def log_rate_of(log_probability: Array) -> Array:
    """Log r of log(1 - exp(-r))."""
    small = log_probability < -20.0
    return jnp.where(small, log_probability, jnp.log(-log_complement(jnp.where(small, LOG_HALF, log_probability))))


@jax.custom_jvp
def log_normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log of the standard normal CDF, in a fraction of the operations of `jax.scipy.special.log_ndtr`."""
    is_far, far, series = _mills_series(x)
    near = 0.5 * jax.lax.erfc(jnp.abs(jnp.where(is_far, 0.0, x)) * math.sqrt(0.5))
    near = jnp.where(x < 0, jnp.log(near), jnp.log1p(-near))
    return jnp.where(is_far, jax.scipy.stats.norm.logpdf(far) + jnp.log(series / -far), near)


@log_normal_cdf.defjvp
def _(primals, tangents):
    (x,), (tangent,) = primals, tangents
    log_probability = log_normal_cdf(x)
    is_far, far, series = _mills_series(x)
    near = jnp.where(is_far, 0.0, x)
    ratio = jnp.exp(jax.scipy.stats.norm.logpdf(near) - jnp.where(is_far, 0.0, log_probability))
    return log_probability, jnp.where(is_far, -far / series, ratio) * tangent


def _mills_series(x: Array) -> tuple[Array, Array, Array]:
    """Where x is far below zero; x there; and 1 - 1 / x^2 + 3 / x^4 - ..., Phi(x) |x| / phi(x) there."""
    turn, num_terms = (6.0, 6) if x.dtype == jnp.float32 else (20.0, 10)
    is_far = x < -turn
    # Up to where squares overflow.
    far = jnp.maximum(jnp.where(is_far, x, -turn), -(jnp.finfo(x.dtype).max ** 0.25))
    series = jnp.ones_like(far)
    for k in range(num_terms, 0, -1):
        series = 1.0 - (2 * k - 1) / far**2 * series
    return is_far, far, series


@jax.custom_jvp
def normal_quantile(log_probability: Float[Array, "..."]) -> Float[Array, "..."]:
    """The standard normal quantile of a probability that is given by its logarithm."""
    # Where the probability is about to underflow, from the asymptotic series of the tail.
    threshold = 0.7 * math.log(jnp.finfo(log_probability.dtype).tiny)
    is_far = log_probability < threshold
    far = jnp.where(is_far, log_probability, threshold)
    square = -2.0 * far - math.log(2.0 * math.pi)
    x = jnp.sqrt(square)
    for _ in range(6):
        r = 1.0 / x**2
        x = jnp.sqrt(square - 2.0 * jnp.log(x) + 2.0 * jnp.log1p(-r * (1.0 - 3.0 * r * (1.0 - 5.0 * r))))
    near = jax.scipy.special.ndtri(jnp.exp(jnp.where(is_far, threshold, log_probability)))
    return jnp.where(is_far, -x, near)


@normal_quantile.defjvp
def _(primals, tangents):
    (log_probability,), (tangent,) = primals, tangents
    x = normal_quantile(log_probability)
    # The Mills ratio, which neither underflows nor overflows; a quantile of 0 or 1 is infinite and stays.
    finite = jnp.isfinite(x)
    log_ratio = jnp.where(finite, log_probability - jax.scipy.stats.norm.logpdf(jnp.where(finite, x, 0.0)), 0.0)
    return x, jnp.where(finite, jnp.exp(log_ratio), 0.0) * tangent
