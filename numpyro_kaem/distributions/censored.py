"""Censored observations of learned densities: NumPyro's distributions, with the digits of the tails."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions.util import validate_sample

from numpyro_kaem._numerics.log_probabilities import log_sum
from numpyro_kaem.distributions.tabulated import TabulatedDistribution


class _Censored:
    """What NumPyro's constructors do, but for giving all arrays inside of base_dist the batch's number of axes.

    A prior has arrays with axes of their own, such as its coefficients.
    """

    def _set_up(self, base_dist, event_shape, validate_args, **indicators):
        if not isinstance(base_dist, TabulatedDistribution):
            name = type(self).__bases__[1].__name__
            raise TypeError(
                f"base_dist must be a KAPrior, a KAMixture or one of these truncated, got {type(base_dist).__name__}; "
                f"for other distributions there is numpyro.distributions.{name}"
            )
        for name, indicator in indicators.items():
            setattr(self, name, jnp.asarray(indicator, bool))
        shape = jnp.broadcast_shapes(base_dist.batch_shape, *map(jnp.shape, indicators.values()))
        self.base_dist, self._support = base_dist, base_dist.support
        dist.Distribution.__init__(self, shape, event_shape, validate_args=validate_args)

    def _validate_sample(self, value):
        # NumPyro compares NumPy values by NumPy, which cannot be where the bounds of a support are traced.
        return super()._validate_sample(jnp.asarray(value))  # type: ignore[misc]  # that of NumPyro's class


class _OneSided(_Censored):
    """Censored on the same side wherever it is."""

    def __init__(self, base_dist: dist.Distribution, censored: ArrayLike = False, *, validate_args: bool | None = None):
        self._set_up(base_dist, (), validate_args, censored=censored)


class LeftCensoredPrior(_OneSided, dist.LeftCensoredDistribution):
    """Observations of a learned density, of some of which only an upper bound is known:

        log p(value) = log F(value) where censored, else the log-density.

    A `numpyro.distributions.LeftCensoredDistribution`, whose own constructor cannot take a `KAPrior`: it reshapes every
    array inside of the base distribution to the batch shape.

    Args:
        base_dist: a `KAPrior`, `KAMixture` or `TruncatedPrior`.
        censored: which observations are censored, of a shape that broadcasts with the batch shape.
        validate_args: as in every NumPyro distribution.

    Raises:
        TypeError: for another base_dist.
        ValueError: for a shape that does not broadcast.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, LeftCensoredPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (0.1, 8.0)))
        concentration = KAPrior(energy, dist.LogNormal(0.0, 1.0))
        below_detection = jnp.array([True, False, False])
        observed = LeftCensoredPrior(concentration, below_detection)
        assert observed.log_prob(jnp.array([0.2, 0.7, 1.1])).shape == (3,)
        ```
    """

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log-density of exact observations, log F of censored ones."""
        return jnp.where(self.censored, self.base_dist.log_cdf(value), self.base_dist.log_prob(value))


class RightCensoredPrior(_OneSided, dist.RightCensoredDistribution):
    """Observations of a learned density, of some of which only a lower bound is known:

        log p(value) = log(1 - F(value)) where censored, else the log-density.

    A `numpyro.distributions.RightCensoredDistribution`, as `LeftCensoredPrior` is one of the left-censored kind. The
    survival function is not taken as 1 - F, which is zero in float32 from 1 - 6e-8 on. Arguments and errors are those
    of `LeftCensoredPrior`.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, RightCensoredPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (0.1, 8.0)))
        lifetime = KAPrior(energy, dist.Weibull(3.0, 2.0))
        entry, exit, died = jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0]), jnp.array([True, False])
        observed = RightCensoredPrior(lifetime.truncate(low=entry), censored=~died)
        assert observed.log_prob(exit).shape == (2,)
        ```
    """

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log-density of exact observations, log(1 - F) of censored ones."""
        return jnp.where(self.censored, self.base_dist.log_survival(value), self.base_dist.log_prob(value))


class IntervalCensoredPrior(_Censored, dist.IntervalCensoredDistribution):
    """Observations of a learned density that are known to lie in an interval, below or above a bound, or outside.

    A `numpyro.distributions.IntervalCensoredDistribution`: values have a last axis (lower, upper), and an interval
    whose ends are equal is an exact observation. Masses of intervals keep their digits however short or far out they
    are.

    Args:
        base_dist: a `KAPrior`, `KAMixture` or `TruncatedPrior`.
        left_censored: where only `upper` is known, and with right_censored, where the value is outside of the interval.
        right_censored: where only `lower` is known.
        validate_args: as in every NumPyro distribution.

    Raises:
        TypeError: for another base_dist.
        ValueError: for shapes that do not broadcast.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, IntervalCensoredPrior, KAPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (0.1, 8.0)))
        onset = KAPrior(energy, dist.Weibull(3.0, 2.0))
        visits = jnp.array([[1.0, 1.5], [2.0, jnp.inf]])  # the second subject was never seen ill
        observed = IntervalCensoredPrior(onset, jnp.zeros(2), right_censored=jnp.array([0, 1]))
        assert observed.log_prob(visits).shape == (2,)
        ```
    """

    def __init__(
        self,
        base_dist: dist.Distribution,
        left_censored: ArrayLike,
        right_censored: ArrayLike,
        *,
        validate_args: bool | None = None,
    ):
        self._set_up(base_dist, (2,), validate_args, left_censored=left_censored, right_censored=right_censored)

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "... 2"]) -> Float[Array, "..."]:
        """Log of the mass of what is known, or the log-density of an exact observation."""
        low, high = (jnp.asarray(value)[..., end] for end in (0, 1))
        is_left, is_right, is_interval, is_outside, is_exact = self._get_censoring_masks(value)
        base = self.base_dist
        below = base.log_cdf(jnp.where(is_outside, low, high))
        above = base.log_survival(jnp.where(is_outside, high, low))
        log_prob = jnp.where(is_left, below, jnp.where(is_right, above, log_sum(below, above)))
        log_prob = jnp.where(is_interval, base.log_mass_between(low, jnp.where(is_interval, high, low)), log_prob)
        return jnp.where(is_exact, base.log_prob(low), log_prob)
