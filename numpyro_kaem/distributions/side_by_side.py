"""Univariate distributions of different families side by side, as one distribution with a batch shape."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_kaem._densities.reference import support_ends

_STEPS = 60  # halvings of a bracket, after which float64 cannot tell its ends apart
_REACH = 80.0  # of the bracket: exp(80) is a number of float32


class SideBySide(dist.Distribution):
    """One univariate distribution for each place of a batch, of families that may differ:

        z_i ~ p_i,   independent.

    NumPyro's distributions have arrays of parameters, and so one family for all of a batch. Distributions of the same
    family are evaluated together.

    Where NumPyro has no quantiles of a family (a Gamma, a mixture), they are found by bisection of its CDF, and draws
    are the family's own.

    Args:
        parts: a distribution of batch and event shape () for each place, in the order of the flattened batch.
        batch_shape: of the whole, of as many places.
        validate_args: as in every NumPyro distribution.

    Raises:
        ValueError: where their number is not that of the places.

    Example:
        ```python
        import jax
        import numpyro.distributions as dist
        from numpyro_kaem.distributions import SideBySide

        prior = SideBySide((dist.Normal(0.0, 1.0), dist.StudentT(3.0, 0.0, 1.0)), (2,))
        z = prior.sample(jax.random.key(0), (100,))
        assert z.shape == prior.log_prob(z).shape == (100, 2)
        ```
    """

    arg_constraints = {}
    pytree_data_fields = ("parts",)

    def __init__(
        self,
        parts: tuple[dist.Distribution, ...],
        batch_shape: tuple[int, ...],
        *,
        validate_args: bool | None = None,
    ):
        self.parts = tuple(parts)
        if len(self.parts) != math.prod(batch_shape) or any(part.batch_shape + part.event_shape for part in self.parts):
            raise ValueError(
                f"parts must be one univariate distribution without a batch for each place of {tuple(batch_shape)}, "
                f"got {len(self.parts)}"
            )
        super().__init__(tuple(batch_shape), (), validate_args=validate_args)

    @property
    def support(self):
        """Of all parts: the line, or half-lines or intervals with ends of their own."""
        low, high = (np.reshape(ends, self.batch_shape) for ends in np.array([support_ends(p) for p in self.parts]).T)
        if np.all(np.isfinite(low)):
            return constraints.interval(low, high) if np.all(np.isfinite(high)) else constraints.greater_than(low)
        return constraints.less_than(high) if np.all(np.isfinite(high)) else constraints.real

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of every part by its own sampler."""
        keys = jax.random.split(key, len(self.parts))
        draws = [part.sample(of, sample_shape) for part, of in zip(self.parts, keys, strict=True)]
        return jnp.reshape(jnp.stack(draws, axis=-1), (*sample_shape, *self.batch_shape))

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."], intermediates=None) -> Float[Array, "..."]:
        """Log-density of each coordinate; NumPyro's `intermediates` are not used."""
        return self._each(lambda part, z: part.log_prob(z), value)

    def cdf(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Probability below each coordinate."""
        return self._each(lambda part, z: part.cdf(z), value)

    def icdf(self, q: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Quantiles of each coordinate, differentiable in q and the parameters."""
        return self._each(_quantile, q)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """Of every part that knows its own."""
        return jnp.reshape(jnp.stack([part.mean for part in self.parts]), self.batch_shape)

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """Of every part that knows its own."""
        return jnp.reshape(jnp.stack([part.variance for part in self.parts]), self.batch_shape)

    def _each(self, function, value: ArrayLike) -> Array:
        """A function of every part at its own coordinate, of all parts of one make at once."""
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        flat = jnp.reshape(jnp.broadcast_to(value, shape), (-1, len(self.parts)))
        alike: dict = {}
        for place, part in enumerate(self.parts):
            leaves, make = jax.tree.flatten(part)
            alike.setdefault((make, *map(jnp.shape, leaves)), []).append(place)
        result = [jnp.zeros(0)] * len(self.parts)
        for places in alike.values():
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.parts[place] for place in places))
            columns = jax.vmap(function, (0, 1), 1)(stacked, flat[:, np.array(places)])
            for column, place in enumerate(places):
                result[place] = columns[:, column]
        return jnp.reshape(jnp.stack(result, axis=-1), shape)


def _quantile(part: dist.Distribution, q: Array) -> Array:
    try:
        jax.eval_shape(part.icdf, q)
    except (NotImplementedError, ImportError, AttributeError):
        return _bisected(part, q)
    return part.icdf(q)


def _bisected(part: dist.Distribution, q: Array) -> Array:
    """Quantiles by bisection in a coordinate that reaches all of the support, with implicit derivatives."""
    to_support, unbounded = dist.biject_to(part.support), part.support is constraints.real

    def point(place):
        return to_support(jnp.sinh(place) if unbounded else place)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        below = part.cdf(point(middle)) < q
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = jnp.full_like(q, -_REACH), jnp.full_like(q, _REACH)
    low, high = jax.lax.fori_loop(0, _STEPS, halve, start)
    z = jax.lax.stop_gradient(point(0.5 * (low + high)))
    density = jax.lax.stop_gradient(jnp.exp(part.log_prob(z)))
    # The value is z, and the derivative that of the root of F(z) = q.
    difference = q - part.cdf(z)
    step = (difference - jax.lax.stop_gradient(difference)) / jnp.where(density > 0.0, density, 1.0)
    z = z + step
    low_end, high_end = (end.astype(z.dtype) for end in map(jnp.asarray, support_ends(part)))
    z = jnp.where(q == 0.0, low_end, jnp.where(q == 1.0, high_end, z))
    return jnp.where((q >= 0.0) & (q <= 1.0), z, jnp.nan)
