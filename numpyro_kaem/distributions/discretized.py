"""A logistic distribution rounded to integers, for 8-bit data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import promote_shapes


class DiscretizedLogistic(Distribution):
    r"""A logistic variable rounded to the integers from `low` to `high`, what lies beyond moved to these:

    $$P(x) = \sigma\Bigl(\frac{x + 1/2 - \mu}{s}\Bigr) - \sigma\Bigl(\frac{x - 1/2 - \mu}{s}\Bigr)$$

    with the first term 1 at `high` and the second 0 at `low`, so that the probabilities sum to one. Logarithms are
    taken of a product that is equal to the difference, and have full precision at any distance from $\mu$.

    The log-probability of an image of D values, divided by $-D \log 2$, is its bits per dimension.

    Args:
        loc: $\mu$, in the units of x.
        scale: s, above 0, in the units of x.
        low: smallest value.
        high: largest value, above `low`.
        validate_args: as in every NumPyro distribution.

    Raises:
        ValueError: for low that is not below high.

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
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("low", "high")

    def __init__(
        self, loc: ArrayLike, scale: ArrayLike, low: int = 0, high: int = 255, *, validate_args: bool | None = None
    ):
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        self.loc, self.scale = promote_shapes(loc, scale)
        self.low, self.high = low, high
        batch_shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        super().__init__(batch_shape, (), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The integers from `low` to `high`."""
        return constraints.integer_interval(self.low, self.high)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw integers, int32, of shape sample_shape + batch_shape."""
        shape = sample_shape + self.batch_shape
        z = self.loc + self.scale * jax.random.logistic(key, shape, jnp.result_type(float, self.loc, self.scale))
        return jnp.clip(jnp.round(z), self.low, self.high).astype(jnp.int32)

    def log_prob(self, value: ArrayLike, intermediates: object = None) -> Float[Array, "..."]:
        """Log-probability of values of the support; -inf elsewhere."""
        below, above = (value - 0.5 - self.loc) / self.scale, (value + 0.5 - self.loc) / self.scale
        at_most, at_least = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), and b - a = 1 / s.
        inside = at_most + at_least + jnp.log(-jnp.expm1(-1.0 / self.scale))
        log_prob = jnp.where(value <= self.low, at_most, jnp.where(value >= self.high, at_least, inside))
        is_value = (value >= self.low) & (value <= self.high) & (value == jnp.round(value))
        return jnp.where(is_value, log_prob, -jnp.inf)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        r"""$\text{low} + \sum_{k = \text{low}}^{\text{high} - 1} P(X > k)$."""
        cuts = jnp.arange(self.low, self.high) + 0.5
        return self.low + jnp.sum(jax.nn.sigmoid((self.loc[..., None] - cuts) / self.scale[..., None]), axis=-1)
