"""A density in the coordinate in which its mean is zero, and its variance one on request."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.masses import cdf, log_mass_between, log_masses, log_prob, survival
from numpyro_kaem._densities.moments import mean_and_variance, points
from numpyro_kaem._densities.quantiles import quantile
from numpyro_kaem._densities.truncated_density import TruncatedDensity


class CenteredDensity(eqx.Module):
    """The density s p(m + s x) of x = (z - m) / s for z ~ p with mean m, where s is 1 or p's standard deviation.

    It is asked for what a `Density` is asked for. The moments are None until they have been computed.
    """

    whole: Density | TruncatedDensity
    moments: tuple[Float[Array, "*batch"], Float[Array, "*batch"]] | None
    unit_variance: bool = eqx.field(static=True)

    def prepared(self) -> CenteredDensity:
        """The same density with the table of the whole, and with its moments."""
        whole = self.whole.prepared()
        moments = mean_and_variance(whole) if self.moments is None else self.moments
        return dataclasses.replace(self, whole=whole, moments=moments)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def dtype(self):
        return self.whole.dtype

    @property
    def loc_and_scale(self) -> tuple[Array, Array]:
        """The mean m of the whole, and s."""
        mean, variance = mean_and_variance(self.whole) if self.moments is None else self.moments
        return mean, jnp.sqrt(variance) if self.unit_variance else jnp.ones_like(mean)

    @property
    def variance(self) -> Array:
        """One on request, else that of the whole."""
        mean, variance = mean_and_variance(self.whole) if self.moments is None else self.moments
        return jnp.ones_like(mean) if self.unit_variance else variance

    @property
    def support(self):
        """The support of the whole, moved and scaled."""
        low, high = self._ends
        if low is None and high is None:
            return self.whole.support
        loc, scale = self.loc_and_scale
        low, high = (None if end is None else (end - loc) / scale for end in (low, high))
        if high is None:
            return constraints.greater_than_eq(low)
        return constraints.less_than_eq(high) if low is None else constraints.interval(low, high)

    @property
    def body(self) -> tuple[Array, Array]:
        low, high = self.whole.body
        return self.centered(low), self.centered(high)

    @property
    def edges_and_sizes(self) -> tuple[Array, Array]:
        (edges, sizes), (loc, scale) = self.whole.edges_and_sizes, self.loc_and_scale
        return (edges - loc[..., None]) / scale[..., None], sizes / scale[..., None]

    @property
    def _ends(self):
        support = self.whole.support
        return getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)

    def centered(self, z) -> Array:
        """The x of a z."""
        loc, scale = self.loc_and_scale
        return (z - loc) / scale

    def original(self, x) -> Array:
        """The z of an x: of one in the support a z in the support, which rounding may have left."""
        loc, scale = self.loc_and_scale
        z, info = loc + scale * x, jnp.finfo(self.dtype)
        for end, sign in zip(self._ends, (1.0, -1.0), strict=True):
            if end is not None:
                inner = end + sign * jnp.maximum(info.tiny, info.eps * jnp.abs(end))
                z = jnp.where(sign * (z - inner) < 0, inner, z)
        return z

    def beyond(self, x) -> tuple[Array, Array]:
        """Whether x is below, and above, the support, by more than the rounding of its ends."""
        sides = []
        for end, sign in zip(self._ends, (1.0, -1.0), strict=True):
            if end is None:
                sides.append(jnp.zeros(jnp.shape(x), bool))
            else:
                moved = self.centered(end)
                sides.append(sign * (x - moved) < -8.0 * jnp.finfo(self.dtype).eps * jnp.abs(moved))
        return sides[0], sides[1]

    def at_original(self, function, x, below: float, above: float) -> Array:
        """A function of z at x, and what it is below and above the support."""
        is_below, is_above = self.beyond(x)
        return jnp.where(is_below, below, jnp.where(is_above, above, function(self.whole, self.original(x))))

    def log_density(self, x) -> Array:
        """Normalised log-density at x inside the support."""
        return self.whole.log_density(self.original(x)) + jnp.log(self.loc_and_scale[1])


@log_prob.register(CenteredDensity)
@compiled
def _(density, x):
    density = density.prepared()
    return density.at_original(log_prob, x, -jnp.inf, -jnp.inf) + jnp.log(density.loc_and_scale[1])


@log_masses.register(CenteredDensity)
@compiled
def _(density, x):
    density = density.prepared()
    below, above = log_masses(density.whole, density.original(x))
    is_below, is_above = density.beyond(x)
    below = jnp.where(is_below, -jnp.inf, jnp.where(is_above, 0.0, below))
    return below, jnp.where(is_below, 0.0, jnp.where(is_above, -jnp.inf, above))


@cdf.register(CenteredDensity)
@compiled
def _(density, x):
    density = density.prepared()
    return density.at_original(cdf, x, 0.0, 1.0)


@survival.register(CenteredDensity)
@compiled
def _(density, x):
    density = density.prepared()
    return density.at_original(survival, x, 1.0, 0.0)


@log_mass_between.register(CenteredDensity)
@compiled
def _(density, low, high):
    density = density.prepared()
    return log_mass_between(density.whole, density.original(low), density.original(high))


@quantile.register(CenteredDensity)
@compiled
def _(density, q, complement, drawn: bool):
    density = density.prepared()
    return density.centered(quantile(density.whole, q, complement, drawn))


@points.register(CenteredDensity)
def _(density):
    density = density.prepared()
    z, mass, tails = points(density.whole)
    return density.centered(z), mass, tails
