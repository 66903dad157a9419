"""Logarithms of the tails of reference distributions, which are finite where the probabilities underflow.

Thirteen standard deviations out the tail of a Normal is zero in float32, its logarithm -88. A tail is the reference's
times a weight, and where the one underflows the other may overflow; of their logarithms there is a sum.
"""

from __future__ import annotations

import math
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions.util import log1mexp

from numpyro_kaem._densities.tails import (
    LAPLACE,
    _normalizer,
    _scales,
    _sign,
    _untransformed,
    _whole,
    mass_below,
    survival,
    tail_quantile,
)
from numpyro_kaem._numerics.special import (
    LARGEST_OF_GAMMA,
    beta_fraction,
    gamma_fraction,
    gamma_series,
)

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


@singledispatch
def log_mass_below(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Log of the probability below z."""
    return safe_log(mass_below(reference, z))


@singledispatch
def log_mass_above(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Log of the probability above z."""
    return safe_log(survival(reference, z))


@singledispatch
def log_tail_quantile(reference: dist.Distribution, log_probability: Array, from_below: Array) -> Array:
    """The z below which (where `from_below`), else above which, the reference has a probability, given its log."""
    return tail_quantile(reference, jnp.exp(log_probability), from_below)


def log_mass_between(reference: dist.Distribution, ends: Float[Array, "2 ..."]) -> Array:
    """Log of the probability between two points, one of which may be infinite, from the nearer end of the reference."""
    low, high = ends
    no_low, no_high = jnp.isneginf(low), jnp.isposinf(high)
    low, high = jnp.where(no_low, high, low), jnp.where(no_high, low, high)
    below = [jnp.where(no_low, -jnp.inf, log_mass_below(reference, low))]
    below.append(jnp.where(no_high, 0.0, log_mass_below(reference, high)))
    above = [jnp.where(no_low, 0.0, log_mass_above(reference, low))]
    above.append(jnp.where(no_high, -jnp.inf, log_mass_above(reference, high)))
    from_below = below[1] <= above[0]
    return log_difference(jnp.where(from_below, below[1], above[0]), jnp.where(from_below, below[0], above[1]))


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


@log_mass_below.register
def _(reference: dist.Normal, z):
    return log_normal_cdf(_standard(reference, z))


@log_mass_above.register
def _(reference: dist.Normal, z):
    return log_normal_cdf(-_standard(reference, z))


@log_tail_quantile.register
def _(reference: dist.Normal, log_probability, from_below):
    distance = reference.scale * normal_quantile(log_probability)
    return reference.loc + jnp.where(from_below, distance, -distance)


def _standard(reference, z: ArrayLike) -> Array:
    return jnp.asarray((z - reference.loc) / reference.scale)


@log_mass_above.register
def _(reference: dist.HalfNormal, z):
    return math.log(2.0) + log_mass_above(_whole(reference), z)


@log_tail_quantile.register
def _(reference: dist.HalfNormal, log_probability, from_below):
    near = tail_quantile(reference, jnp.exp(log_probability), from_below)
    return jnp.where(from_below, near, log_tail_quantile(_whole(reference), log_probability + LOG_HALF, from_below))


@log_mass_below.register
def _(reference: dist.Logistic, z):
    return jax.nn.log_sigmoid(_standard(reference, z))


@log_mass_above.register
def _(reference: dist.Logistic, z):
    return jax.nn.log_sigmoid(-_standard(reference, z))


@log_tail_quantile.register
def _(reference: dist.Logistic, log_probability, from_below):
    distance = reference.scale * (log_probability - log_complement(log_probability))
    return reference.loc + jnp.where(from_below, distance, -distance)


@log_mass_below.register
def _(reference: dist.SoftLaplace, z):
    return _log_arctan_exp(_standard(reference, z))


@log_mass_above.register
def _(reference: dist.SoftLaplace, z):
    return _log_arctan_exp(-_standard(reference, z))


@log_tail_quantile.register
def _(reference: dist.SoftLaplace, log_probability, from_below):
    far = log_probability < -20.0
    angle = jnp.exp(jnp.where(far, 0.0, log_probability)) * (0.5 * jnp.pi)
    distance = jnp.where(far, log_probability + math.log(0.5 * math.pi), jnp.log(jnp.tan(angle))) * reference.scale
    return reference.loc + jnp.where(from_below, distance, -distance)


def _log_arctan_exp(x: Array) -> Array:
    """Log of 2 / pi arctan(exp(x))."""
    far = x < -20.0
    return math.log(2.0 / math.pi) + jnp.where(far, x, jnp.log(jnp.arctan(jnp.exp(jnp.where(far, 0.0, x)))))


@log_mass_below.register(LAPLACE)
def _(reference, z):
    left, right = _scales(reference)
    return _log_of_two_exponentials(z - reference.loc, left, right)


@log_mass_above.register(LAPLACE)
def _(reference, z):
    left, right = _scales(reference)
    return _log_of_two_exponentials(reference.loc - z, right, left)


@log_tail_quantile.register(LAPLACE)
def _(reference, log_probability, from_below):
    near = tail_quantile(reference, jnp.exp(log_probability), from_below)
    left, right = _scales(reference)
    own, sign = jnp.where(from_below, left, right), jnp.where(from_below, 1.0, -1.0)
    far = reference.loc + sign * own * (log_probability - jnp.log(own / (left + right)))
    return jnp.where(log_probability < jnp.log(own / (left + right)), far, near)


def _log_of_two_exponentials(x: ArrayLike, below: ArrayLike, above: ArrayLike) -> Array:
    low = jnp.log(below / (below + above)) + jnp.where(x < 0, x, 0.0) / below
    high = above / (below + above) * jnp.exp(-jnp.where(x < 0, 0.0, x) / above)
    return jnp.where(x < 0, low, jnp.log1p(-high))


@log_mass_above.register
def _(reference: dist.Exponential, z):
    return -reference.rate * jnp.asarray(z)


@log_tail_quantile.register
def _(reference: dist.Exponential, log_probability, from_below):
    return -jnp.where(from_below, log_complement(log_probability), log_probability) / reference.rate


@log_mass_below.register
def _(reference: dist.Gumbel, z):
    return -jnp.exp(-_standard(reference, z))


@log_mass_above.register
def _(reference: dist.Gumbel, z):
    return _log_of_complement(-_standard(reference, z))


@log_tail_quantile.register
def _(reference: dist.Gumbel, log_probability, from_below):
    log_rate = jnp.where(from_below, jnp.log(-log_probability), _log_of_rate(log_probability))
    return reference.loc - reference.scale * log_rate


@log_mass_below.register
def _(reference: dist.Weibull, z):
    return _log_of_complement(reference.concentration * (safe_log(z) - jnp.log(reference.scale)))


@log_mass_above.register
def _(reference: dist.Weibull, z):
    return -((z / reference.scale) ** reference.concentration)


@log_tail_quantile.register
def _(reference: dist.Weibull, log_probability, from_below):
    log_rate = jnp.where(from_below, _log_of_rate(log_probability), jnp.log(-log_probability))
    return reference.scale * jnp.exp(log_rate / reference.concentration)


def _log_of_complement(log_rate: Array) -> Array:
    """Log(1 - exp(-r)) of log r."""
    small = log_rate < -20.0
    return jnp.where(small, log_rate, log_complement(-jnp.exp(jnp.where(small, 0.0, log_rate))))


def _log_of_rate(log_probability: Array) -> Array:
    """Log r of log(1 - exp(-r))."""
    small = log_probability < -20.0
    return jnp.where(small, log_probability, jnp.log(-log_complement(jnp.where(small, LOG_HALF, log_probability))))


@log_mass_above.register
def _(reference: dist.Gompertz, z):
    return -reference.concentration * jnp.expm1(reference.rate * z)


@log_tail_quantile.register
def _(reference: dist.Gompertz, log_probability, from_below):
    log_above = jnp.where(from_below, log_complement(log_probability), log_probability)
    return jnp.log1p(-log_above / reference.concentration) / reference.rate


@log_mass_below.register
def _(reference: dist.Dagum, z):
    log_ratio = reference.sharpness * (jnp.log(reference.scale) - safe_log(z))
    return -reference.concentration * jax.nn.softplus(log_ratio)


@log_mass_above.register
def _(reference: dist.LowerTruncatedPowerLaw, z):
    return (1.0 + reference.alpha) * jnp.log(z / reference.low)


@log_mass_below.register
def _(reference: dist.Gamma, z):
    return _log_gamma_masses(reference, z)[0]


@log_mass_above.register
def _(reference: dist.Gamma, z):
    return _log_gamma_masses(reference, z)[1]


def _log_gamma_masses(reference: dist.Gamma, z: ArrayLike) -> tuple[Array, Array]:
    z = jnp.asarray(z)
    info = jnp.finfo(jnp.result_type(z, reference.rate))
    safe = jnp.clip(z, info.tiny, info.max**0.5)
    a, x = reference.concentration, reference.rate * safe
    is_low = x <= a + 1.0
    log_scaled = reference.log_prob(safe) + jnp.log(safe)
    low = log_scaled + jnp.log(gamma_series(a, jnp.where(is_low, x, a + 1.0)) / a)
    high = log_scaled + jnp.log(gamma_fraction(a, jnp.where(is_low, a + 1.0, x)))
    below = jnp.where(is_low, low, log_complement(jnp.where(is_low, LOG_HALF, high)))
    above = jnp.where(is_low, log_complement(jnp.where(is_low, low, LOG_HALF)), high)
    is_large = a > LARGEST_OF_GAMMA
    large = jnp.where(is_large, a, LARGEST_OF_GAMMA)
    below = jnp.where(is_large, safe_log(jax.scipy.special.gammainc(large, x)), below)
    above = jnp.where(is_large, safe_log(jax.scipy.special.gammaincc(large, x)), above)
    return jnp.where(z <= 0.0, -jnp.inf, below), jnp.where(z <= 0.0, 0.0, above)


@log_mass_below.register
def _(reference: dist.Beta, z):
    return _log_below_in_beta(reference.log_prob, z, reference.concentration1, reference.concentration0)


@log_mass_above.register
def _(reference: dist.Beta, z):
    mirrored = lambda x: reference.log_prob(1.0 - x)  # noqa: E731
    return _log_below_in_beta(mirrored, 1.0 - z, reference.concentration0, reference.concentration1)


def _log_below_in_beta(log_density, x: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    x = jnp.asarray(x)
    info = jnp.finfo(jnp.result_type(x, a))
    safe = jnp.clip(x, info.tiny, 1.0 - info.epsneg)
    is_low = safe <= (a + 1.0) / (a + b + 2.0)
    near, first, second = jnp.where(is_low, safe, 1.0 - safe), jnp.where(is_low, a, b), jnp.where(is_low, b, a)
    log_power = log_density(safe) + jnp.log(safe) + jnp.log1p(-safe)
    log_mass = log_power + jnp.log(beta_fraction(first, second, near) / first)
    below = jnp.where(is_low, log_mass, log_complement(jnp.where(is_low, LOG_HALF, log_mass)))
    return jnp.where(x <= 0.0, -jnp.inf, jnp.where(x >= 1.0, 0.0, below))


@log_mass_below.register
def _(reference: dist.StudentT, z):
    return log_mass_above(reference, 2.0 * reference.loc - z)


@log_mass_above.register
def _(reference: dist.StudentT, z):
    t, df = _standard(reference, z), reference.df
    is_far, is_huge = t > 2.0, t > jnp.finfo(t.dtype).max ** 0.25
    largest = jnp.finfo(t.dtype).max ** 0.25
    distance = jnp.where(is_far, jnp.where(is_huge, largest, t), 2.0)
    log_density = reference.log_prob(reference.loc + distance * reference.scale) + jnp.log(reference.scale)
    fraction = beta_fraction(0.5 * df, 0.5, df / (df + distance**2))
    far = log_density + jnp.log(distance) + jnp.log(fraction / df)
    far = far - jnp.where(is_huge, df * (jnp.log(jnp.where(is_huge, t, largest)) - jnp.log(largest)), 0.0)
    return jnp.where(is_far, far, safe_log(survival(reference, jnp.where(is_far, reference.loc, z))))


@log_mass_below.register
def _(reference: dist.TransformedDistribution, z):
    z, base = _untransformed(reference, z), reference.base_dist
    return jnp.where(_sign(reference) > 0, log_mass_below(base, z), log_mass_above(base, z))


@log_mass_above.register
def _(reference: dist.TransformedDistribution, z):
    z, base = _untransformed(reference, z), reference.base_dist
    return jnp.where(_sign(reference) > 0, log_mass_above(base, z), log_mass_below(base, z))


@log_tail_quantile.register
def _(reference: dist.TransformedDistribution, log_probability, from_below):
    from_below = jnp.where(_sign(reference) > 0, from_below, ~from_below)
    z = log_tail_quantile(reference.base_dist, log_probability, from_below)
    for transform in reference.transforms:
        z = transform(z)
    return z


@log_mass_below.register
def _(reference: dist.MixtureSameFamily, z):
    return _log_of_components(reference, z, log_mass_below)


@log_mass_above.register
def _(reference: dist.MixtureSameFamily, z):
    return _log_of_components(reference, z, log_mass_above)


def _log_of_components(reference: dist.MixtureSameFamily, z: ArrayLike, log_mass) -> Array:
    log_masses = log_mass(reference.component_distribution, jnp.asarray(z)[..., None])
    return log_sum_exp(safe_log(reference.mixing_distribution.probs) + log_masses)


@log_mass_above.register(dist.LeftTruncatedDistribution | dist.LeftTruncatedGamma)
def _(reference, z):
    log_whole = log_mass_above(reference.base_dist, jnp.maximum(z, reference.low))
    return jnp.minimum(jnp.log(_normalizer(reference)) + log_whole, 0.0)


@log_mass_below.register(dist.RightTruncatedDistribution)
def _(reference, z):
    log_whole = log_mass_below(reference.base_dist, jnp.minimum(z, reference.high))
    return jnp.minimum(jnp.log(_normalizer(reference)) + log_whole, 0.0)
