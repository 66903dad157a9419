"""Tails by cdf and icdf, and those of symmetric densities, of their halves and of Laplace densities.

NumPyro's distributions have `cdf` and `icdf` but no survival function, and `1 - cdf` has lost its digits five standard
deviations out, as has a cdf that is written 1/2 + x. Here both tails are taken from a symmetry, a transformation or
their closed form where the distribution has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array

from numpyro_kaem._numerics.log_probabilities import LOG_HALF, log_complement, log_normal_cdf, normal_quantile, safe_log
from numpyro_kaem._numerics.special import beta_fraction

SYMMETRIC = (dist.Normal, dist.Laplace, dist.Logistic, dist.Cauchy, dist.StudentT, dist.SoftLaplace)
LAPLACE = dist.Laplace | dist.AsymmetricLaplace | dist.AsymmetricLaplaceQuantile


class Tails:
    """Both tails of a distribution, by its cdf and icdf; subclasses know better what these lose the digits of."""

    def __init__(self, distribution: dist.Distribution):
        self.of = distribution

    def mass(self, z: ArrayLike, above: bool) -> Array:
        """Probability above z or below it."""
        below = self.of.cdf(z)
        return 1.0 - below if above else below

    def log_mass(self, z: ArrayLike, above: bool) -> Array:
        """Log of the probability above z or below it."""
        return safe_log(self.mass(z, above))

    def quantile(self, probability: Array, from_below: Array) -> Array:
        """The z below which (where `from_below`), else above which, there is the given probability."""
        # Short of one: its quantile would be the end of the support, which may be infinite.
        most = 1.0 - jnp.finfo(probability.dtype).eps
        return self.of.icdf(jnp.where(from_below, probability, jnp.minimum(1.0 - probability, most)))

    def log_quantile(self, log_probability: Array, from_below: Array) -> Array:
        """As `quantile`, given the logarithm."""
        return self.quantile(jnp.exp(log_probability), from_below)


class TailsOfLogs(Tails):
    """Tails whose logarithms are known: probabilities are their exponentials."""

    def mass(self, z, above):
        return jnp.exp(self.log_mass(z, above))


# Symmetric densities -------------------------------------------------------------------------------------------------


class SymmetricTails(Tails):
    """The upper tail is the lower one, mirrored at the location."""

    def mass(self, z, above):
        return self.of.cdf(2.0 * self.of.loc - z if above else z)

    def quantile(self, probability, from_below):
        z = self.of.icdf(probability)
        return jnp.where(from_below, z, 2.0 * self.of.loc - z)

    def _standard(self, z, above):
        """The distance from the location, in scales; negative towards the tail that is asked for."""
        x = jnp.asarray((z - self.of.loc) / self.of.scale)
        return -x if above else x

    def _at(self, distance, from_below):
        """The point at such a distance."""
        distance = self.of.scale * distance
        return self.of.loc + jnp.where(from_below, distance, -distance)


class NormalTails(SymmetricTails):
    def log_mass(self, z, above):
        return log_normal_cdf(self._standard(z, above))

    def log_quantile(self, log_probability, from_below):
        return self._at(normal_quantile(log_probability), from_below)


class LogisticTails(SymmetricTails):
    def log_mass(self, z, above):
        return jax.nn.log_sigmoid(self._standard(z, above))

    def log_quantile(self, log_probability, from_below):
        return self._at(log_probability - log_complement(log_probability), from_below)


class SoftLaplaceTails(SymmetricTails):
    """Of a SoftLaplace: F = 2 / pi arctan(exp(x))."""

    def log_mass(self, z, above):
        x = self._standard(z, above)
        far = x < -20.0
        return math.log(2.0 / math.pi) + jnp.where(far, x, jnp.log(jnp.arctan(jnp.exp(jnp.where(far, 0.0, x)))))

    def log_quantile(self, log_probability, from_below):
        far = log_probability < -20.0
        angle = jnp.exp(jnp.where(far, 0.0, log_probability)) * (0.5 * jnp.pi)
        distance = jnp.where(far, log_probability + math.log(0.5 * math.pi), jnp.log(jnp.tan(angle)))
        return self._at(distance, from_below)


class CauchyTails(SymmetricTails):
    def mass(self, z, above):
        distance = z - self.of.loc if above else self.of.loc - z
        return jnp.arctan2(self.of.scale, distance) / jnp.pi

    def quantile(self, probability, from_below):
        return self._at(-1.0 / jnp.tan(jnp.pi * probability), from_below)


class StudentTails(SymmetricTails):
    """Of a StudentT, with x^2 / (df + x^2) ~ Beta(1/2, df/2): the density's multiples by continued fractions."""

    def mass(self, z, above):
        is_far, log_far, near = self._parts(-self._standard(z, above))
        return jnp.where(is_far, jnp.exp(log_far), near)

    def log_mass(self, z, above):
        is_far, log_far, near = self._parts(-self._standard(z, above))
        return jnp.where(is_far, log_far, safe_log(near))

    def _parts(self, t):
        """Whether t is far from the location, the log of what is beyond it there, and elsewhere what is beyond it."""
        df, scale = self.of.df, self.of.scale

        def log_density(distance):
            return self.of.log_prob(self.of.loc + distance * scale)

        def between(distance):
            fraction = beta_fraction(0.5, 0.5 * df, distance**2 / (df + distance**2))
            return jnp.exp(log_density(distance)) * distance * scale * fraction

        def log_beyond(distance):
            fraction = beta_fraction(0.5 * df, 0.5, df / (df + distance**2))
            return log_density(distance) + jnp.log(scale) + jnp.log(distance) + jnp.log(fraction / df)

        # From here on outwards the second fraction is the one that converges.
        turn = jnp.asarray(jnp.sqrt(3.0 * df / (df + 2.0)), t.dtype)
        # One half but for the log-density's own constant, which for many degrees of freedom has hardly a digit in
        # float32.
        half = between(turn) + jnp.exp(log_beyond(turn))
        # No jnp.abs, which has no derivative at the location.
        distance = jnp.where(t > 0, t, -t)
        outside, largest = distance > turn, jnp.finfo(t.dtype).max ** 0.25
        is_huge = distance > largest
        log_outside = log_beyond(jnp.where(outside, jnp.where(is_huge, largest, distance), turn))
        further = jnp.log(jnp.where(is_huge, distance, largest)) - jnp.log(largest)
        log_outside = log_outside - jnp.where(is_huge, df * further, 0.0)
        inside = half - between(jnp.where(outside, turn, distance))
        rest = jnp.where(outside, jnp.exp(log_outside), inside)
        return outside & (t > 0), log_outside, jnp.where(t > 0, inside, 2.0 * half - rest)


class LaplaceTails(TailsOfLogs):
    """Of a density that rises as exp(x / left) up to the location and falls as exp(-x / right) from there."""

    def __init__(self, distribution):
        super().__init__(distribution)
        if isinstance(distribution, dist.Laplace):
            self.left = self.right = distribution.scale
        else:
            of = getattr(distribution, "_ald", distribution)
            self.left, self.right = of.left_scale, of.right_scale

    def log_mass(self, z, above):
        x = self.of.loc - z if above else z - self.of.loc
        own, other = (self.right, self.left) if above else (self.left, self.right)
        # No jnp.minimum: it would halve the derivative at 0.
        near = jnp.log(own / (own + other)) + jnp.where(x < 0, x, 0.0) / own
        rest = other / (own + other) * jnp.exp(-jnp.where(x < 0, 0.0, x) / other)
        return jnp.where(x < 0, near, jnp.log1p(-rest))

    def quantile(self, probability, from_below):
        own, other = jnp.where(from_below, self.left, self.right), jnp.where(from_below, self.right, self.left)
        sign = 2.0 * from_below - 1.0
        ratio = probability * ((own + other) / own)
        rest = (1.0 - probability) * ((own + other) / other)
        is_own = ratio <= 1.0
        near, far = jnp.log(jnp.where(is_own, ratio, 1.0)), jnp.log(jnp.where(is_own, 1.0, rest))
        return self.of.loc + sign * jnp.where(is_own, own * near, -other * far)


# Half of a symmetric density -----------------------------------------------------------------------------------------


class HalfTails(Tails):
    """Of the positive half of a symmetric distribution: the upper tail is twice the whole one's."""

    def __init__(self, distribution, whole: SymmetricTails, mass_below: Callable, near: Callable):
        super().__init__(distribution)
        self._whole, self._mass_below, self._near = whole, mass_below, near

    def mass(self, z, above):
        return 2.0 * self._whole.mass(z, above) if above else self._mass_below(z)

    def log_mass(self, z, above):
        return math.log(2.0) + self._whole.log_mass(z, above) if above else safe_log(self._mass_below(z))

    def quantile(self, probability, from_below):
        far = self._whole.quantile(0.5 * probability, jnp.zeros_like(from_below))
        return jnp.where(from_below, self._near(probability), far)

    def log_quantile(self, log_probability, from_below):
        far = self._whole.log_quantile(log_probability + LOG_HALF, jnp.zeros_like(from_below))
        return jnp.where(from_below, self._near(jnp.exp(log_probability)), far)


def half_normal_tails(half: dist.HalfNormal) -> HalfTails:
    whole, width, special = NormalTails(dist.Normal(0.0, half.scale)), math.sqrt(2.0) * half.scale, jax.scipy.special
    return HalfTails(half, whole, lambda z: special.erf(z / width), lambda p: width * special.erfinv(p))


def half_cauchy_tails(half: dist.HalfCauchy) -> HalfTails:
    whole, scale, quarter = CauchyTails(dist.Cauchy(0.0, half.scale)), half.scale, 0.5 * jnp.pi
    return HalfTails(half, whole, lambda z: jnp.arctan2(z, scale) / quarter, lambda p: scale * jnp.tan(quarter * p))
