"""Tails of NumPyro's families in closed form: a table of what is known of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array

from numpyro_kaem._densities.tails import (
    LAPLACE,
    CauchyTails,
    LaplaceTails,
    LogisticTails,
    NormalTails,
    SoftLaplaceTails,
    StudentTails,
    Tails,
    TailsOfLogs,
    half_cauchy_tails,
    half_normal_tails,
)
from numpyro_kaem._numerics.log_probabilities import (
    LOG_HALF,
    log_complement,
    log_complement_of_rate,
    log_rate_of,
    safe_log,
)
from numpyro_kaem._numerics.special import LARGEST_OF_GAMMA, beta_fraction, gamma_fraction, gamma_series

# Transforms of an exponential or a uniform variable ------------------------------------------------------------------


class Hazard(NamedTuple):
    """How a family transforms an exponential variable h: there is exp(-h(z)) above z or, where h falls, below it."""

    value: Callable  # h of the distribution and z
    inverse: Callable  # z of the distribution and h
    rises: bool = True
    log: Callable | None = None  # the same with log h, where h underflows in a tail
    inverse_of_log: Callable | None = None


class HazardTails(Tails):
    """Of a family whose `Hazard` is known: in the tail of large h from exp(-h), in the other from 1 - exp(-h)."""

    def __init__(self, hazard: Hazard, distribution: dist.Distribution):
        super().__init__(distribution)
        self.hazard = hazard

    def mass(self, z, above):
        h = self.hazard.value(self.of, z)
        return jnp.exp(-h) if above == self.hazard.rises else -jnp.expm1(-h)

    def log_mass(self, z, above):
        if above == self.hazard.rises:
            return jnp.asarray(-self.hazard.value(self.of, z))
        if self.hazard.log is None:
            return super().log_mass(z, above)
        return log_complement_of_rate(self.hazard.log(self.of, z))

    def quantile(self, probability, from_below):
        is_far = ~from_below if self.hazard.rises else from_below
        h = -jnp.where(is_far, jnp.log(probability), jnp.log1p(-probability))
        return self.hazard.inverse(self.of, h)

    def log_quantile(self, log_probability, from_below):
        is_far = ~from_below if self.hazard.rises else from_below
        if self.hazard.inverse_of_log is None:
            h = -jnp.where(is_far, log_probability, log_complement(log_probability))
            return self.hazard.inverse(self.of, h)
        log_h = jnp.where(is_far, jnp.log(-log_probability), log_rate_of(log_probability))
        return self.hazard.inverse_of_log(self.of, log_h)


def _log_ratio(z: ArrayLike, low: ArrayLike) -> Array:
    """Log z / low, to full precision where z is close to low."""
    return jnp.log1p((z - low) / low)


HAZARDS = {
    dist.Exponential: Hazard(lambda d, z: d.rate * z, lambda d, h: h / d.rate),
    dist.Gompertz: Hazard(
        lambda d, z: d.concentration * jnp.expm1(d.rate * z), lambda d, h: jnp.log1p(h / d.concentration) / d.rate
    ),
    dist.Weibull: Hazard(
        lambda d, z: (z / d.scale) ** d.concentration,
        lambda d, h: d.scale * h ** (1.0 / d.concentration),
        log=lambda d, z: d.concentration * (safe_log(z) - jnp.log(d.scale)),
        inverse_of_log=lambda d, log_h: d.scale * jnp.exp(log_h / d.concentration),
    ),
    dist.Gumbel: Hazard(
        lambda d, z: jnp.exp(-(z - d.loc) / d.scale),
        lambda d, h: d.loc - d.scale * jnp.log(h),
        rises=False,
        log=lambda d, z: jnp.asarray(-(z - d.loc) / d.scale),
        inverse_of_log=lambda d, log_h: d.loc - d.scale * log_h,
    ),
    dist.Dagum: Hazard(
        lambda d, z: d.concentration * jax.nn.softplus(d.sharpness * (jnp.log(d.scale) - safe_log(z))),
        lambda d, h: d.scale * jnp.expm1(h / d.concentration) ** (-1.0 / d.sharpness),
        rises=False,
    ),
    dist.LowerTruncatedPowerLaw: Hazard(
        lambda d, z: -(1.0 + d.alpha) * _log_ratio(z, d.low), lambda d, h: d.low * jnp.exp(-h / (1.0 + d.alpha))
    ),
}


class UniformTails(Tails):
    """Of a Uniform, from the nearer end."""

    def mass(self, z, above):
        distance = self.of.high - z if above else z - self.of.low
        return jnp.clip(distance / (self.of.high - self.of.low), 0.0, 1.0)

    def quantile(self, probability, from_below):
        distance = probability * (self.of.high - self.of.low)
        return jnp.where(from_below, self.of.low + distance, self.of.high - distance)


class PowerLawTails(Tails):
    """Of a DoublyTruncatedPowerLaw, or of a LogUniform, which has the power zero; from the nearer end."""

    def __init__(self, distribution):
        super().__init__(distribution)
        self.power = 0.0 if isinstance(distribution, dist.LogUniform) else 1.0 + distribution.alpha

    def mass(self, z, above):
        low, high = self.of.low, self.of.high
        power, part = (-self.power, (high, z)) if above else (self.power, (z, low))
        return self._integral(power, *part) / self._integral(power, high, low)

    def quantile(self, probability, from_below):
        low, high = self.of.low, self.of.high
        power = jnp.where(from_below, 1.0, -1.0) * self.power
        # Distance, as a logarithm, from the end that the probability is counted from: the power law's inverse.
        part = probability * self._integral(power, high, low)
        small = jnp.abs(power) < 1e-6
        distance = jnp.where(small, part, jnp.log1p(part * power) / jnp.where(small, 1.0, power))
        return jnp.where(from_below, low * jnp.exp(distance), high * jnp.exp(-distance))

    def _integral(self, power, z, low):
        """((z / low)^power - 1) / power, which is log z / low for power = 0."""
        x, small = _log_ratio(z, low), jnp.abs(power) < 1e-6
        return jnp.where(small, x, jnp.expm1(power * x) / jnp.where(small, 1.0, power))


# Multiples of the density --------------------------------------------------------------------------------------------


class GammaTails(TailsOfLogs):
    """Of a Gamma: the smaller mass in terms of the density, or both by JAX for large parameters."""

    def log_mass(self, z, above):
        z = jnp.asarray(z)
        info = jnp.finfo(jnp.result_type(z, self.of.rate))
        # Where z is an end of the support, a density need not be finite.
        safe = jnp.clip(z, info.tiny, info.max**0.5)
        a, x = self.of.concentration, self.of.rate * safe
        is_low = x <= a + 1.0
        log_scaled = self.of.log_prob(safe) + jnp.log(safe)
        low = log_scaled + jnp.log(gamma_series(a, jnp.where(is_low, x, a + 1.0)) / a)
        high = log_scaled + jnp.log(gamma_fraction(a, jnp.where(is_low, a + 1.0, x)))
        is_large = a > LARGEST_OF_GAMMA
        large = jnp.where(is_large, a, LARGEST_OF_GAMMA)
        if above:
            log_mass = jnp.where(is_low, log_complement(jnp.where(is_low, low, LOG_HALF)), high)
            of_large, outside = jax.scipy.special.gammaincc(large, x), 0.0
        else:
            log_mass = jnp.where(is_low, low, log_complement(jnp.where(is_low, LOG_HALF, high)))
            of_large, outside = jax.scipy.special.gammainc(large, x), -jnp.inf
        return jnp.where(z <= 0.0, outside, jnp.where(is_large, safe_log(of_large), log_mass))


class BetaTails(TailsOfLogs):
    """Of a Beta, from the nearer end and in terms of the density."""

    def log_mass(self, z, above):
        a, b = self.of.concentration1, self.of.concentration0
        a, b = (b, a) if above else (a, b)
        x = jnp.asarray(1.0 - z if above else z)
        info = jnp.finfo(jnp.result_type(x, a))
        # Where x is an end of the support, a density need not be finite.
        safe = jnp.clip(x, info.tiny, 1.0 - info.epsneg)
        is_low = safe <= (a + 1.0) / (a + b + 2.0)
        near, first, second = jnp.where(is_low, safe, 1.0 - safe), jnp.where(is_low, a, b), jnp.where(is_low, b, a)
        log_power = self.of.log_prob(1.0 - safe if above else safe) + jnp.log(safe) + jnp.log1p(-safe)
        log_mass = log_power + jnp.log(beta_fraction(first, second, near) / first)
        below = jnp.where(is_low, log_mass, log_complement(jnp.where(is_low, LOG_HALF, log_mass)))
        return jnp.where(x <= 0.0, -jnp.inf, jnp.where(x >= 1.0, 0.0, below))


FAMILIES: dict[Any, Callable[..., Tails]] = {
    dist.Normal: NormalTails,
    dist.Logistic: LogisticTails,
    dist.SoftLaplace: SoftLaplaceTails,
    dist.Cauchy: CauchyTails,
    dist.StudentT: StudentTails,
    LAPLACE: LaplaceTails,
    dist.HalfNormal: half_normal_tails,
    dist.HalfCauchy: half_cauchy_tails,
    dist.Uniform: UniformTails,
    dist.LogUniform: PowerLawTails,
    dist.DoublyTruncatedPowerLaw: PowerLawTails,
    dist.Gamma: GammaTails,
    dist.Beta: BetaTails,
    **{family: partial(HazardTails, hazard) for family, hazard in HAZARDS.items()},
}
