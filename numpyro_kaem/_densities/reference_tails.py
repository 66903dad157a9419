"""Tails of reference distributions, on both sides to full relative precision, and the logarithms of these."""

from __future__ import annotations

import math
from functools import singledispatch

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_kaem._densities.family_tails import FAMILIES
from numpyro_kaem._densities.tails import Tails
from numpyro_kaem._numerics.log_probabilities import log_difference, log_sum_exp, safe_log
from numpyro_kaem._numerics.quadrature import GaussLegendre

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
def tails_of(distribution: dist.Distribution) -> Tails:
    """The tails of a distribution, as exact as they are known."""
    return Tails(distribution)


for _family, _tails in FAMILIES.items():
    tails_of.register(_family, _tails)


def mass_below(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability below z."""
    return tails_of(reference).mass(z, above=False)


def survival(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability above z."""
    return tails_of(reference).mass(z, above=True)


def log_mass_below(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Log of the probability below z."""
    return tails_of(reference).log_mass(z, above=False)


def log_mass_above(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Log of the probability above z."""
    return tails_of(reference).log_mass(z, above=True)


def tail_quantile(reference: dist.Distribution, probability: Array, from_below: Array) -> Array:
    """The z below which (where `from_below`), else above which, the reference has the given probability."""
    return tails_of(reference).quantile(probability, from_below)


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


@tails_of.register(dist.TransformedDistribution)
class TransformedTails(Tails):
    """The base distribution's, which change sides where the transforms decrease."""

    def __init__(self, distribution):
        super().__init__(distribution)
        self.base = tails_of(distribution.base_dist)
        self.rises = math.prod(transform.sign for transform in distribution.transforms) > 0

    def mass(self, z, above):
        z = self._untransformed(z)
        return jnp.where(self.rises, self.base.mass(z, above), self.base.mass(z, not above))

    def log_mass(self, z, above):
        z = self._untransformed(z)
        return jnp.where(self.rises, self.base.log_mass(z, above), self.base.log_mass(z, not above))

    def quantile(self, probability, from_below):
        return self._transformed(self.base.quantile(probability, jnp.where(self.rises, from_below, ~from_below)))

    def log_quantile(self, log_probability, from_below):
        from_below = jnp.where(self.rises, from_below, ~from_below)
        return self._transformed(self.base.log_quantile(log_probability, from_below))

    def _untransformed(self, z):
        for transform in reversed(self.of.transforms):
            z = transform.inv(z)
        return z

    def _transformed(self, z):
        for transform in self.of.transforms:
            z = transform(z)
        return z


@tails_of.register(dist.MixtureSameFamily)
class MixtureTails(Tails):
    """Weighted sums of those of the components."""

    def __init__(self, distribution):
        super().__init__(distribution)
        self.components = tails_of(distribution.component_distribution)
        self.probs = distribution.mixing_distribution.probs

    def mass(self, z, above):
        return jnp.sum(self.probs * self.components.mass(jnp.asarray(z)[..., None], above), axis=-1)

    def log_mass(self, z, above):
        return log_sum_exp(safe_log(self.probs) + self.components.log_mass(jnp.asarray(z)[..., None], above))


@tails_of.register(TRUNCATED)
class TruncatedTails(Tails):
    """The part of the whole distribution's between the cuts."""

    def __init__(self, distribution):
        super().__init__(distribution)
        self.base = distribution.base_dist
        # Infinite where it is not truncated.
        start = 0.0 if isinstance(self.base, dist.Gamma) else -math.inf
        self.low, self.high = getattr(distribution, "low", start), getattr(distribution, "high", math.inf)

    def mass(self, z, above):
        z = jnp.clip(z, self.low, self.high)
        return self._factor * _mass_between(self.base, *((z, self.high) if above else (self.low, z)))

    def log_mass(self, z, above):
        from_left = isinstance(self.of, dist.LeftTruncatedDistribution | dist.LeftTruncatedGamma)
        if (above and from_left) or (not above and isinstance(self.of, dist.RightTruncatedDistribution)):
            # The end that is not cut off is the whole distribution's.
            log_whole = tails_of(self.base).log_mass(jnp.clip(z, self.low, self.high), above)
            return jnp.minimum(jnp.log(self._factor) + log_whole, 0.0)
        return super().log_mass(z, above)

    @property
    def _factor(self):
        """What the density of the whole distribution is multiplied by, as the log-density has it in its dtype."""
        inside = self.base.mean if isinstance(self.base, dist.Gamma) else self.base.loc
        inside = jnp.clip(inside, self.low, self.high)
        return jnp.exp(self.of.log_prob(inside) - self.base.log_prob(inside))


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
