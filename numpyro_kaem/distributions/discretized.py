"""A logistic distribution rounded to integers, for 8-bit data."""

from __future__ import annotations

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from numpyro_kaem.checks import joint_shape


class DiscretizedLogistic(Distribution):
    r"""A logistic variable rounded to the integers from `low` to `high`, what lies beyond moved to these:

    $$P(x) = \sigma\Bigl(\frac{x + 1/2 - \mu}{s}\Bigr) - \sigma\Bigl(\frac{x - 1/2 - \mu}{s}\Bigr)$$

    with the first term 1 at `high` and the second 0 at `low`, so that the probabilities sum to one. Logarithms are
    taken of a product that is equal to the difference, and have full precision at any distance from $\mu$.

    The log-probability of an image of D values, divided by $-D \log 2$, is its bits per dimension. A scale that is wide
    for the range moves the probability to its ends: with $s \gg$ `high` - `low` these have one half each.

    Args:
        loc: $\mu$, in the units of x.
        scale: s, above 0, in the units of x.
        low: smallest value.
        high: largest value, above `low`.
        validate_args: as in every NumPyro distribution.

    Raises:
        ValueError: for low and high that are not whole numbers with low < high, and for shapes that do not fit.

    References:
        D. P. Kingma et al., Improved variational inference with inverse autoregressive flow, arXiv 1606.04934.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        from numpyro_kaem import DiscretizedLogistic

        pixels = DiscretizedLogistic(jnp.array([10.0, 200.0]), 8.0)
        x = pixels.sample(jax.random.key(0), (1000,))
        assert x.shape == (1000, 2) and x.min() >= 0 and x.max() <= 255
        total = jnp.exp(pixels.log_prob(jnp.arange(256)[:, None])).sum(0)
        assert jnp.allclose(total, 1.0, atol=1e-5)
        ```
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    has_enumerate_support = True
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("low", "high")

    def __init__(
        self, loc: ArrayLike, scale: ArrayLike, low: int = 0, high: int = 255, *, validate_args: bool | None = None
    ):
        if not all(isinstance(end, numbers.Integral) for end in (low, high)) or not low < high:
            raise ValueError(f"low and high must be whole numbers with low < high, got {low!r} and {high!r}")
        batch_shape = joint_shape(loc=jnp.shape(loc), scale=jnp.shape(scale))
        self.loc, self.scale = promote_shapes(loc, scale)
        self.low, self.high = int(low), int(high)
        super().__init__(batch_shape, (), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The integers from `low` to `high`."""
        return constraints.integer_interval(self.low, self.high)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """Draw integers, int32, of shape sample_shape + batch_shape."""
        shape = sample_shape + self.batch_shape
        z = self.loc + self.scale * jax.random.logistic(key, shape, jnp.result_type(float, self.loc, self.scale))
        return jnp.clip(jnp.round(z), self.low, self.high).astype(jnp.int32)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Float[Array, "..."]:
        """Log-probability of values of the support, of any type; -inf elsewhere."""
        value = self._as_number(value)
        is_value = (value >= self.low) & (value <= self.high) & (value == jnp.round(value))
        value = jnp.where(is_value, value, self.low)  # no infinite derivative of what is not in the result
        below, above = (value - 0.5 - self.loc) / self.scale, (value + 0.5 - self.loc) / self.scale
        at_most, at_least = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), and b - a = 1 / s.
        inside = at_most + at_least + jnp.log(-jnp.expm1(-1.0 / jnp.asarray(self.scale, value.dtype)))
        log_prob = jnp.where(value <= self.low, at_most, jnp.where(value >= self.high, at_least, inside))
        return jnp.where(is_value, log_prob, -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> Int[Array, "..."]:
        """All values, along a new first axis; of the batch shape after it, or of ones unless `expand`."""
        shape = self.batch_shape if expand else (1,) * len(self.batch_shape)
        values = jnp.arange(self.low, self.high + 1, dtype=jnp.int32)
        return jnp.broadcast_to(jnp.expand_dims(values, range(1, 1 + len(shape))), (len(values), *shape))

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """The sum of all values times their probabilities."""
        return self._expectation(lambda x: x)

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """The mean squared distance from the mean."""
        return self._expectation(lambda x: (x - self.mean) ** 2)

    def _as_number(self, value: ArrayLike) -> Array:
        """A value in the precision of the parameters, whatever integers it comes as: of uint8, -1 is 255."""
        return jnp.asarray(value).astype(jnp.result_type(value, self.loc, self.scale, 0.0))

    def _validate_sample(self, value: ArrayLike) -> Array:
        return super()._validate_sample(self._as_number(value))

    def _expectation(self, function: Callable) -> Array:
        x = self.enumerate_support(expand=False)
        return jnp.sum(jnp.exp(self.log_prob(x)) * function(x), axis=0)
