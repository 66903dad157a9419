"""Tails of reference distributions, on both sides to full relative precision.

NumPyro's distributions have `cdf` and `icdf` but no survival function, and `1 - cdf` has lost its digits five standard
deviations out, as has a cdf that is written 1/2 + x. Here both tails are taken from a symmetry, a transformation or
their closed form where the distribution has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array

from numpyro_kaem._numerics.quadrature import GaussLegendre
from numpyro_kaem._numerics.special import (
    LARGEST_OF_GAMMA,
    beta_fraction,
    gamma_fraction,
    gamma_series,
)

SYMMETRIC = (dist.Normal, dist.Laplace, dist.Logistic, dist.Cauchy, dist.StudentT, dist.SoftLaplace)
LAPLACE = dist.Laplace | dist.AsymmetricLaplace | dist.AsymmetricLaplaceQuantile
# Their icdf has lost its digits next to the ends of the support.
TRUNCATED = (
    dist.LeftTruncatedDistribution
    | dist.RightTruncatedDistribution
    | dist.TwoSidedTruncatedDistribution
    | dist.LeftTruncatedGamma
    | dist.RightTruncatedGamma
    | dist.TwoSidedTruncatedGamma
)


@singledispatch
def mass_below(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability below z."""
    return reference.cdf(z)


@singledispatch
def survival(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability above z."""
    if isinstance(reference, SYMMETRIC):
        return reference.cdf(2.0 * reference.loc - z)
    return 1.0 - reference.cdf(z)


@singledispatch
def tail_quantile(reference: dist.Distribution, probability: Array, from_below: Array) -> Array:
    """The z below which (where `from_below`), else above which, the reference has the given probability."""
    if isinstance(reference, SYMMETRIC):
        z = reference.icdf(probability)
        return jnp.where(from_below, z, 2.0 * reference.loc - z)
    # Short of one: its quantile would be the end of the support, which may be infinite.
    most = 1.0 - jnp.finfo(probability.dtype).eps
    return reference.icdf(jnp.where(from_below, probability, jnp.minimum(1.0 - probability, most)))


@survival.register
def _(reference: dist.Uniform, z):
    return jnp.clip((reference.high - z) / (reference.high - reference.low), 0.0, 1.0)


@tail_quantile.register
def _(reference: dist.Uniform, probability, from_below):
    distance = probability * (reference.high - reference.low)
    return jnp.where(from_below, reference.low + distance, reference.high - distance)


@survival.register
def _(reference: dist.Exponential, z):
    return jnp.exp(-reference.rate * z)


@tail_quantile.register
def _(reference: dist.Exponential, probability, from_below):
    return -jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability)) / reference.rate


@mass_below.register
def _(reference: dist.Cauchy, z):
    return survival(reference, 2.0 * reference.loc - z)


@survival.register
def _(reference: dist.Cauchy, z):
    return jnp.arctan2(reference.scale, z - reference.loc) / jnp.pi


@tail_quantile.register
def _(reference: dist.Cauchy, probability, from_below):
    distance = reference.scale / jnp.tan(jnp.pi * probability)
    return reference.loc + jnp.where(from_below, -distance, distance)


@survival.register(dist.HalfNormal)
@survival.register(dist.HalfCauchy)
def _(reference, z):
    return 2.0 * survival(_whole(reference), z)


@mass_below.register
def _(reference: dist.HalfNormal, z):
    return jax.scipy.special.erf(z / (math.sqrt(2.0) * reference.scale))


@mass_below.register
def _(reference: dist.HalfCauchy, z):
    return jnp.arctan2(z, reference.scale) / (0.5 * jnp.pi)


@tail_quantile.register
def _(reference: dist.HalfNormal, probability, from_below):
    near = math.sqrt(2.0) * reference.scale * jax.scipy.special.erfinv(probability)
    return jnp.where(from_below, near, tail_quantile(_whole(reference), 0.5 * probability, jnp.zeros_like(from_below)))


@tail_quantile.register
def _(reference: dist.HalfCauchy, probability, from_below):
    near = reference.scale * jnp.tan(0.5 * jnp.pi * probability)
    return jnp.where(from_below, near, tail_quantile(_whole(reference), 0.5 * probability, jnp.zeros_like(from_below)))


def _whole(reference):
    """The symmetric distribution of which it is the positive half."""
    whole = dist.Normal if isinstance(reference, dist.HalfNormal) else dist.Cauchy
    return whole(0.0, reference.scale)


@survival.register
def _(reference: dist.Gumbel, z):
    return -jnp.expm1(-jnp.exp(-(z - reference.loc) / reference.scale))


@tail_quantile.register
def _(reference: dist.Gumbel, probability, from_below):
    log_below = jnp.where(from_below, jnp.log(probability), jnp.log1p(-probability))
    return reference.loc - reference.scale * jnp.log(-log_below)


@mass_below.register
def _(reference: dist.Weibull, z):
    return -jnp.expm1(-((z / reference.scale) ** reference.concentration))


@survival.register
def _(reference: dist.Weibull, z):
    return jnp.exp(-((z / reference.scale) ** reference.concentration))


@tail_quantile.register
def _(reference: dist.Weibull, probability, from_below):
    log_above = jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability))
    return reference.scale * (-log_above) ** (1.0 / reference.concentration)


@mass_below.register
def _(reference: dist.Gamma, z):
    return _gamma_masses(reference, z)[0]


@survival.register
def _(reference: dist.Gamma, z):
    return _gamma_masses(reference, z)[1]


def _gamma_masses(reference: dist.Gamma, z: ArrayLike) -> tuple[Array, Array]:
    """Probabilities below and above z: the smaller one in terms of the density, or both by JAX for large parameters."""
    z = jnp.asarray(z)
    info = jnp.finfo(jnp.result_type(z, reference.rate))
    # Where z is an end of the support, a density need not be finite.
    safe = jnp.clip(z, info.tiny, info.max**0.5)
    a, x = reference.concentration, reference.rate * safe
    scaled = jnp.exp(reference.log_prob(safe) + jnp.log(safe))
    is_low = x <= a + 1.0
    low = scaled / a * gamma_series(a, jnp.where(is_low, x, a + 1.0))
    high = scaled * gamma_fraction(a, jnp.where(is_low, a + 1.0, x))
    below, above = jnp.where(is_low, low, 1.0 - high), jnp.where(is_low, 1.0 - low, high)
    is_large = a > LARGEST_OF_GAMMA
    large = jnp.where(is_large, a, LARGEST_OF_GAMMA)
    below = jnp.where(is_large, jax.scipy.special.gammainc(large, x), below)
    above = jnp.where(is_large, jax.scipy.special.gammaincc(large, x), above)
    return jnp.where(z <= 0.0, 0.0, below), jnp.where(z <= 0.0, 1.0, above)


@mass_below.register
def _(reference: dist.Beta, z):
    return _below_in_beta(reference.log_prob, z, reference.concentration1, reference.concentration0)


@survival.register
def _(reference: dist.Beta, z):
    mirrored = lambda x: reference.log_prob(1.0 - x)  # noqa: E731
    return _below_in_beta(mirrored, 1.0 - z, reference.concentration0, reference.concentration1)


def _below_in_beta(log_density: Callable, x: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    """Probability of Beta(a, b) below x, from the nearer end and in terms of the density."""
    info = jnp.finfo(jnp.result_type(x, a))
    # Where x is an end of the support, a density need not be finite.
    safe = jnp.clip(x, info.tiny, 1.0 - info.epsneg)
    is_low = safe <= (a + 1.0) / (a + b + 2.0)
    near, first, second = jnp.where(is_low, safe, 1.0 - safe), jnp.where(is_low, a, b), jnp.where(is_low, b, a)
    log_power = log_density(safe) + jnp.log(safe) + jnp.log1p(-safe)
    mass = jnp.exp(log_power) / first * beta_fraction(first, second, near)
    below = jnp.where(is_low, mass, 1.0 - mass)
    return jnp.where(x <= 0.0, 0.0, jnp.where(x >= 1.0, 1.0, below))


@mass_below.register
def _(reference: dist.StudentT, z):
    return survival(reference, 2.0 * reference.loc - z)


@survival.register
def _(reference: dist.StudentT, z):
    t, df = jnp.asarray((z - reference.loc) / reference.scale), reference.df

    def density_times(distance):
        return jnp.exp(reference.log_prob(reference.loc + distance * reference.scale)) * distance * reference.scale

    def between(distance):
        share = distance**2 / (df + distance**2)  # that is Beta(1/2, df/2)
        return density_times(distance) * beta_fraction(0.5, 0.5 * df, share)

    def beyond(distance):
        return density_times(distance) / df * beta_fraction(0.5 * df, 0.5, df / (df + distance**2))

    # From here on outwards the second fraction is the one that converges.
    turn = jnp.asarray(jnp.sqrt(3.0 * df / (df + 2.0)), t.dtype)
    # One half but for the log-density's own constant, which for many degrees of freedom has hardly a digit in float32.
    half = between(turn) + beyond(turn)
    # No jnp.abs, which has no derivative at the location.
    distance = jnp.where(t > 0, t, -t)
    is_far, largest = distance > turn, jnp.finfo(t.dtype).max ** 0.25
    is_huge = distance > largest
    outside = beyond(jnp.where(is_far, jnp.where(is_huge, largest, distance), turn))
    outside = jnp.where(is_huge, outside * (largest / jnp.where(is_huge, distance, largest)) ** df, outside)
    above = jnp.where(is_far, outside, half - between(jnp.where(is_far, turn, distance)))
    return jnp.where(t > 0, above, 2.0 * half - above)


@mass_below.register
def _(reference: dist.TransformedDistribution, z):
    z, base = _untransformed(reference, z), reference.base_dist
    return jnp.where(_sign(reference) > 0, mass_below(base, z), survival(base, z))


@survival.register
def _(reference: dist.TransformedDistribution, z):
    z, base = _untransformed(reference, z), reference.base_dist
    return jnp.where(_sign(reference) > 0, survival(base, z), mass_below(base, z))


def _untransformed(reference: dist.TransformedDistribution, z: ArrayLike) -> ArrayLike:
    for transform in reversed(reference.transforms):
        z = transform.inv(z)
    return z


@tail_quantile.register
def _(reference: dist.TransformedDistribution, probability, from_below):
    z = tail_quantile(reference.base_dist, probability, jnp.where(_sign(reference) > 0, from_below, ~from_below))
    for transform in reference.transforms:
        z = transform(z)
    return z


def _sign(reference: dist.TransformedDistribution):
    """+1 for an increasing chain of transforms, -1 for a decreasing one."""
    return math.prod(transform.sign for transform in reference.transforms)


@mass_below.register(LAPLACE)
def _(reference, z):
    left, right = _scales(reference)
    return _of_two_exponentials(z - reference.loc, left, right)


@survival.register(LAPLACE)
def _(reference, z):
    left, right = _scales(reference)
    return _of_two_exponentials(reference.loc - z, right, left)


@tail_quantile.register(LAPLACE)
def _(reference, probability, from_below):
    left, right = _scales(reference)
    own, other, sign = jnp.where(from_below, left, right), jnp.where(from_below, right, left), 2.0 * from_below - 1.0
    ratio = probability * ((own + other) / own)
    rest = (1.0 - probability) * ((own + other) / other)
    is_own = ratio <= 1.0
    near, far = jnp.log(jnp.where(is_own, ratio, 1.0)), jnp.log(jnp.where(is_own, 1.0, rest))
    return reference.loc + sign * jnp.where(is_own, own * near, -other * far)


def _scales(reference) -> tuple[ArrayLike, ArrayLike]:
    """Scales of the exponentials below and above the location."""
    if isinstance(reference, dist.Laplace):
        return reference.scale, reference.scale
    reference = getattr(reference, "_ald", reference)
    return reference.left_scale, reference.right_scale


def _of_two_exponentials(x: ArrayLike, below: ArrayLike, above: ArrayLike) -> Array:
    """Probability below x of a density that rises as exp(x / below) up to 0 and falls as exp(-x / above) from there."""
    # No jnp.minimum: it would halve the derivative at 0.
    low = below / (below + above) * jnp.exp(jnp.where(x < 0, x, 0.0) / below)
    high = above / (below + above) * jnp.exp(-jnp.where(x < 0, 0.0, x) / above)
    return jnp.where(x < 0, low, 1.0 - high)


@survival.register
def _(reference: dist.Gompertz, z):
    return jnp.exp(-reference.concentration * jnp.expm1(reference.rate * z))


@tail_quantile.register
def _(reference: dist.Gompertz, probability, from_below):
    log_above = jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability))
    return jnp.log1p(-log_above / reference.concentration) / reference.rate


@survival.register
def _(reference: dist.Dagum, z):
    log_ratio = reference.sharpness * (jnp.log(reference.scale) - jnp.log(z))
    return -jnp.expm1(-reference.concentration * jax.nn.softplus(log_ratio))


@tail_quantile.register
def _(reference: dist.Dagum, probability, from_below):
    log_below = jnp.where(from_below, jnp.log(probability), jnp.log1p(-probability))
    return reference.scale * jnp.expm1(-log_below / reference.concentration) ** (-1.0 / reference.sharpness)


@mass_below.register
def _(reference: dist.LowerTruncatedPowerLaw, z):
    return -jnp.expm1((1.0 + reference.alpha) * _log_ratio(z, reference.low))


@survival.register
def _(reference: dist.LowerTruncatedPowerLaw, z):
    return (z / reference.low) ** (1.0 + reference.alpha)


@tail_quantile.register
def _(reference: dist.LowerTruncatedPowerLaw, probability, from_below):
    log_above = jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability))
    return reference.low * jnp.exp(log_above / (1.0 + reference.alpha))


@mass_below.register
def _(reference: dist.DoublyTruncatedPowerLaw, z):
    power, low, high = 1.0 + reference.alpha, reference.low, reference.high
    return _power_integral(power, _log_ratio(z, low)) / _power_integral(power, _log_ratio(high, low))


@survival.register
def _(reference: dist.DoublyTruncatedPowerLaw, z):
    power, low, high = 1.0 + reference.alpha, reference.low, reference.high
    return _power_integral(-power, _log_ratio(high, z)) / _power_integral(-power, _log_ratio(high, low))


@tail_quantile.register
def _(reference: dist.DoublyTruncatedPowerLaw, probability, from_below):
    power = jnp.where(from_below, 1.0, -1.0) * (1.0 + reference.alpha)
    # Distance, as a logarithm, from the end that the probability is counted from: the power law's inverse.
    part = probability * _power_integral(power, _log_ratio(reference.high, reference.low))
    small = jnp.abs(power) < 1e-6
    distance = jnp.where(small, part, jnp.log1p(part * power) / jnp.where(small, 1.0, power))
    return jnp.where(from_below, reference.low * jnp.exp(distance), reference.high * jnp.exp(-distance))


def _log_ratio(z: ArrayLike, low: ArrayLike) -> Array:
    """Log z / low, to full precision where z is close to low."""
    return jnp.log1p((z - low) / low)


def _power_integral(power: ArrayLike, x: ArrayLike) -> Array:
    """(exp(power x) - 1) / power, which is x for power = 0."""
    small = jnp.abs(power) < 1e-6
    return jnp.where(small, x, jnp.expm1(power * x) / jnp.where(small, 1.0, power))


@mass_below.register
def _(reference: dist.LogUniform, z):
    return _log_ratio(z, reference.low) / _log_ratio(reference.high, reference.low)


@survival.register
def _(reference: dist.LogUniform, z):
    return _log_ratio(reference.high, z) / _log_ratio(reference.high, reference.low)


@tail_quantile.register
def _(reference: dist.LogUniform, probability, from_below):
    distance = probability * _log_ratio(reference.high, reference.low)
    return jnp.where(from_below, reference.low * jnp.exp(distance), reference.high * jnp.exp(-distance))


@mass_below.register
def _(reference: dist.MixtureSameFamily, z):
    return _of_components(reference, z, mass_below)


@survival.register
def _(reference: dist.MixtureSameFamily, z):
    return _of_components(reference, z, survival)


def _of_components(reference: dist.MixtureSameFamily, z: ArrayLike, mass) -> Array:
    masses = mass(reference.component_distribution, jnp.asarray(z)[..., None])
    return jnp.sum(reference.mixing_distribution.probs * masses, axis=-1)


@mass_below.register(TRUNCATED)
def _(reference, z):
    low, high = _cuts(reference)
    z = jnp.clip(z, low, high)
    return _normalizer(reference) * _mass_between(reference.base_dist, low, z)


@survival.register(TRUNCATED)
def _(reference, z):
    low, high = _cuts(reference)
    z = jnp.clip(z, low, high)
    return _normalizer(reference) * _mass_between(reference.base_dist, z, high)


def _cuts(reference) -> tuple[ArrayLike, ArrayLike]:
    """Where a distribution is truncated, infinite where it is not."""
    start = 0.0 if isinstance(reference.base_dist, dist.Gamma) else -math.inf
    return getattr(reference, "low", start), getattr(reference, "high", math.inf)


def _normalizer(reference) -> Array:
    """What the density of the whole distribution is multiplied by, as the log-density has it in its dtype."""
    base, (low, high) = reference.base_dist, _cuts(reference)
    inside = jnp.clip(base.mean if isinstance(base, dist.Gamma) else base.loc, low, high)
    return jnp.exp(reference.log_prob(inside) - base.log_prob(inside))


def _mass_between(base: dist.Distribution, low: ArrayLike, high: ArrayLike) -> Array:
    """Probability of an interval, also of a short one far out: from the nearer tail, or by quadrature."""
    if isinstance(base, dist.Gamma):
        middle, width = base.concentration / base.rate, jnp.sqrt(base.concentration) / base.rate
        width = jnp.minimum(width, low)  # the density may be singular at zero
    else:
        middle, width = base.loc, base.scale
    low, high, middle, width = jnp.broadcast_arrays(*map(jnp.asarray, (low, high, middle, width)))
    short = high - low <= 0.5 * width
    start, end = jnp.where(short, low, middle), jnp.where(short, high, middle)
    # A Laplace density has a kink in the middle.
    inner = jnp.clip(middle, start, end)
    by_quadrature = sum(_integral(base, a, b) for a, b in ((start, inner), (inner, end)))
    below = mass_below(base, jnp.minimum(high, middle)) - mass_below(base, jnp.minimum(low, middle))
    above = survival(base, jnp.maximum(low, middle)) - survival(base, jnp.maximum(high, middle))
    return jnp.where(short, by_quadrature, below + above)


def _integral(base: dist.Distribution, low: Array, high: Array) -> Array:
    """Integral of a density over an interval on which it is smooth."""
    rule = GaussLegendre()
    nodes = low + (high - low) * rule.unit_nodes.reshape(-1, *[1] * low.ndim).astype(low.dtype)
    weights = rule.weights.reshape(-1, *[1] * low.ndim).astype(low.dtype)
    return (high - low) * jnp.sum(weights * jnp.exp(base.log_prob(nodes)), axis=0)
