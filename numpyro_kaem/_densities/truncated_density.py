"""A density between bounds: its mass, its quantiles and its moments, from those of the whole."""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.inverse_table import TAIL_RULE
from numpyro_kaem._densities.masses import cdf, log_mass_between, log_masses, log_prob, survival
from numpyro_kaem._densities.moments import points
from numpyro_kaem._densities.quantiles import icdf, quantile
from numpyro_kaem._densities.tail_panels import quantile_of_logs
from numpyro_kaem._numerics.log_probabilities import LOG_HALF, log_complement, log_sum, safe_log


class TruncatedDensity(eqx.Module):
    """p(z) / (F(high) - F(low)) for low <= z <= high; it is asked for what a `Density` is asked for."""

    whole: Density
    low: Array | None
    high: Array | None

    def prepared(self) -> TruncatedDensity:
        """The same density with the table of the whole."""
        return dataclasses.replace(self, whole=self.whole.prepared())

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.whole.shape, *(jnp.shape(b) for b in (self.low, self.high) if b is not None))

    @property
    def dtype(self):
        return self.whole.dtype

    @property
    def reference(self):
        return self.whole.reference

    @property
    def is_bounded(self) -> bool:
        """Whether it has both bounds."""
        return self.low is not None and self.high is not None

    @property
    def body(self):
        return self.whole.body

    @property
    def edges_and_sizes(self):
        return self.whole.edges_and_sizes

    @property
    def support(self):
        """From the lower to the upper bound, as far as the support of the whole goes."""
        whole = self.whole.support
        low, high = getattr(whole, "lower_bound", None), getattr(whole, "upper_bound", None)
        if self.low is not None:
            low = self.low if low is None else jnp.maximum(self.low, low)
        if self.high is not None:
            high = self.high if high is None else jnp.minimum(self.high, high)
        if high is None:
            return constraints.greater_than_eq(low)
        return constraints.less_than_eq(high) if low is None else constraints.interval(low, high)

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Both bounds, infinite where there is none."""
        none = jnp.asarray(jnp.inf, self.dtype)
        return (-none if self.low is None else self.low), (none if self.high is None else self.high)

    @property
    def log_mass(self) -> Array:
        """Log of the mass between the bounds, NaN where there is none."""
        log_mass = self.log_mass_below(self.high) if self.low is None else self.log_mass_above(self.low)
        return jnp.where(jnp.isneginf(log_mass), jnp.nan, log_mass)

    def log_mass_above(self, z) -> Array:
        """Log of the mass of the whole between z and the upper bound."""
        return log_masses(self.whole, z)[1] if self.high is None else log_mass_between(self.whole, z, self.high)

    def log_mass_below(self, z) -> Array:
        """Log of the mass of the whole between the lower bound and z."""
        return log_masses(self.whole, z)[0] if self.low is None else log_mass_between(self.whole, self.low, z)

    def log_density(self, z) -> Array:
        """Normalised log-density at z between the bounds."""
        return self.whole.log_density(z) - self.log_mass

    def clipped(self, z) -> Array:
        """Points moved between the bounds; not by jnp.clip, which halves derivatives there."""
        low, high = self.bounds
        return jnp.where(z < low, low, jnp.where(z > high, high, z))


@log_prob.register(TruncatedDensity)
@compiled
def _(density, z):
    density = density.prepared()
    low, high = density.bounds
    return jnp.where((z >= low) & (z <= high), log_prob(density.whole, z) - density.log_mass, -jnp.inf)


@log_masses.register(TruncatedDensity)
@compiled
def _(density, z):
    density = density.prepared()
    z, log_mass = density.clipped(z), density.log_mass
    below, above = density.log_mass_below(z) - log_mass, density.log_mass_above(z) - log_mass
    is_below = below < above
    rest_of_below = log_complement(jnp.where(is_below, jnp.minimum(below, LOG_HALF), -jnp.inf))
    rest_of_above = log_complement(jnp.where(is_below, -jnp.inf, jnp.minimum(above, LOG_HALF)))
    return jnp.where(is_below, below, rest_of_above), jnp.where(is_below, rest_of_below, above)


@cdf.register(TruncatedDensity)
def _(density, z):
    return jnp.exp(log_masses(density, z)[0])


@survival.register(TruncatedDensity)
def _(density, z):
    return jnp.exp(log_masses(density, z)[1])


@log_mass_between.register(TruncatedDensity)
@compiled
def _(density, low, high):
    density = density.prepared()
    return log_mass_between(density.whole, density.clipped(low), density.clipped(high)) - density.log_mass


@quantile.register(TruncatedDensity)
@compiled
def _(density, q, complement, drawn: bool):
    density = density.prepared()
    whole, (low, high), log_mass = density.whole, density.bounds, density.log_mass
    complement = 1.0 - q if complement is None else complement
    log_below = log_sum(log_masses(whole, low)[0], safe_log(q) + log_mass)
    log_above = log_sum(log_masses(whole, high)[1], safe_log(complement) + log_mass)
    from_below = log_below < log_above
    nearer = jnp.exp(jnp.where(from_below, log_below, log_above))
    far = 1.0 - nearer
    z = quantile(whole, jnp.where(from_below, nearer, far), jnp.where(from_below, far, nearer), False)
    # Where the probabilities of the whole density underflow, from their logarithms.
    tails = whole.table.log_tails
    log_share = jnp.where(from_below, log_below - tails[0], log_above - tails[1])
    underflows = jnp.where(from_below, log_below, log_above) < math.log(jnp.finfo(z.dtype).tiny) + 10.0
    log_share = jnp.where(underflows & (log_share < 0.0), log_share, LOG_HALF)
    in_tail = quantile_of_logs(whole, log_share, log_complement(log_share), from_below)
    z = jnp.where(underflows & (log_share != LOG_HALF), in_tail, z)
    z = jnp.clip(z, low, high)
    z = jnp.where(q == 0, low, jnp.where(complement == 0, high, z))
    return jnp.where((q >= 0) & (complement >= 0), z, jnp.nan)


@points.register(TruncatedDensity)
def _(density):
    """Quantiles at the nodes of panels of probability, which become shorter towards both ends, and their masses."""
    num_octaves = 60 if density.dtype == jnp.float32 else 100
    # Each octave from 1/2 downwards in sixteen panels, from 1/64 on in one.
    edges = np.concatenate(
        [0.5 ** np.arange(num_octaves, 5, -1), *(0.5**k * np.linspace(1, 2, 17)[:-1] for k in (5, 4, 3, 2)), [0.5]]
    )
    q = (edges[:-1, None] + np.diff(edges)[:, None] * TAIL_RULE.unit_nodes).ravel()
    mass = (np.diff(edges)[:, None] * TAIL_RULE.weights).ravel()
    column = (-1, *[1] * len(density.shape))
    q, rest, mass = (
        np.concatenate(pair).astype(density.dtype).reshape(column)
        for pair in ((q, 1.0 - q), (1.0 - q, q), (mass, mass))
    )
    shape = (len(q), *density.shape)
    z = icdf(density.prepared(), jnp.broadcast_to(q, shape), jnp.broadcast_to(rest, shape), False)
    return z, jnp.broadcast_to(mass, shape), (0, 0, 0)
