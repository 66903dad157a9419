"""Learned densities cut off at bounds, such as the lifetimes of those who were alive when a study began."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.inverse_table import TAIL_RULE
from numpyro_kaem._densities.log_tails import LOG_HALF, log_complement, log_sum, safe_log
from numpyro_kaem.distributions.moments import _finite_where, expectation
from numpyro_kaem.distributions.tabulated import TabulatedDistribution, _icdf
from numpyro_kaem.distributions.tabulated_tails import quantile_of_logs


class TruncatedPrior(TabulatedDistribution):
    """A learned density between bounds,

        p(z) / (F(high) - F(low)),   low <= z <= high,

    which `prior.truncate(low, high)` makes. The bounds may be arrays, such as the entry time of each subject, and are
    differentiated like the parameters. The mass between them is taken from the nearer tail, as a logarithm: an interval
    far out, where the probabilities underflow, still has its density and its draws.

    NumPyro's `TruncatedDistribution` cannot take a learned density: it has a fixed list of symmetric distributions with
    a `loc`, whose upper tails are their lower ones mirrored.

    Args:
        base_dist: a `KAPrior` or `KAMixture`.
        low: lower bound, a number or an array that broadcasts with the batch shape; None for none.
        high: upper bound, likewise.
        validate_args: as in every NumPyro distribution.

    Bounds between which there is no mass, such as those outside of the support, give NaN.

    Raises:
        TypeError: if base_dist is something else.
        ValueError: without any bound, for bounds that are known not to be low < high, and for shapes that do not fit.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (0.1, 8.0)), scale=0.5)
        lifetime = KAPrior(energy, dist.Weibull(3.0, 2.0))
        entry = jnp.array([0.0, 0.5, 4.0])  # of three subjects
        observed = lifetime.truncate(low=entry)
        assert observed.batch_shape == (3,)
        assert jnp.all(observed.sample(jax.random.key(1), (100,)) >= entry)
        ```
    """

    arg_constraints = {}
    reparametrized_params = ["low", "high"]
    pytree_data_fields = ("base_dist", "low", "high")

    def __init__(
        self,
        base_dist: dist.Distribution,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ):
        if not isinstance(base_dist, TabulatedDistribution) or isinstance(base_dist, TruncatedPrior):
            raise TypeError(f"base_dist must be a KAPrior or a KAMixture, got {base_dist!r}; wrap it afterwards")
        if low is None and high is None:
            raise ValueError("low or high must be given, got None for both")
        given = {"low": low, "high": high}
        shape = base_dist.batch_shape
        for name, bound in given.items():
            try:
                shape = jnp.broadcast_shapes(shape, jnp.shape(bound) if bound is not None else ())
            except ValueError as error:
                raise ValueError(
                    f"{name} must have a shape that broadcasts with {shape}, that of the prior and other bounds, got "
                    f"{jnp.shape(bound)}"
                ) from error
        if low is not None and high is not None and not any(isinstance(end, core.Tracer) for end in (low, high)):
            ends = np.broadcast_arrays(low, high)
            wrong = ~(ends[0] < ends[1])
            if np.any(wrong):
                raise ValueError(f"bounds must be low < high, got low {ends[0][wrong][0]} and high {ends[1][wrong][0]}")
        self.base_dist = base_dist
        self.low, self.high = (None if bound is None else jnp.asarray(bound, base_dist._dtype) for bound in (low, high))
        if shape != self._table_shape:
            self._expanded_shape = shape
        super(TabulatedDistribution, self).__init__(shape, (), validate_args=validate_args)

    @property
    def support(self):
        """From the lower to the upper bound, as far as the support of the whole density goes."""
        whole = self.base_dist.support
        low, high = getattr(whole, "lower_bound", None), getattr(whole, "upper_bound", None)
        if self.low is not None:
            low = self.low if low is None else jnp.maximum(self.low, low)
        if self.high is not None:
            high = self.high if high is None else jnp.minimum(self.high, high)
        if high is None:
            return constraints.greater_than_eq(low)
        return constraints.less_than_eq(high) if low is None else constraints.interval(low, high)

    def _validate_sample(self, value):
        # NumPyro compares NumPy values by NumPy, which cannot be where a bound is traced.
        return super()._validate_sample(jnp.asarray(value))

    def truncate(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> TruncatedPrior:
        """The density between these bounds as well as between those that it has."""
        if self.low is not None:
            low = self.low if low is None else jnp.maximum(low, self.low)
        if self.high is not None:
            high = self.high if high is None else jnp.minimum(high, self.high)
        return TruncatedPrior(self.base_dist, low, high)

    def tabulate(self) -> TruncatedPrior:
        """The same distribution with the tables of the whole density kept (see `KAPrior.tabulate`)."""
        return self._with_base(self.base_dist.tabulate())

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """Mean, by quadrature; infinite or NaN where the reference's is and the interval has no end there."""
        self = self._settled()
        return jnp.broadcast_to(_moments(self)[0], self._shape_with_batch())

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """Variance, likewise."""
        self = self._settled()
        return jnp.broadcast_to(_moments(self)[1], self._shape_with_batch())

    # How it is done -------------------------------------------------------------------------------------------------

    @property
    def quadrature(self):
        """The panel rule of the whole density."""
        return self.base_dist.quadrature

    def _settled(self) -> TruncatedPrior:
        return self._with_base(self.base_dist._settled())

    @property
    def _table_shape(self):
        bounds = (jnp.shape(bound) for bound in (self.low, self.high) if bound is not None)
        return jnp.broadcast_shapes(self.base_dist._table_shape, *bounds)

    @property
    def _basis(self):
        return self.base_dist._basis

    @property
    def _dtype(self):
        return self.base_dist._dtype

    @property
    def _reference(self):
        return self.base_dist._reference

    @property
    def _tails_invert(self):
        return self.base_dist._tails_invert

    @property
    def _kinks(self):
        return self.base_dist._kinks

    def _build(self):
        return self.base_dist._build()

    def _constants(self):
        return self.base_dist._constants()

    def _log_tail_weights(self):
        lower, upper = self.base_dist._log_tail_weights()
        return lower - self._log_mass, upper - self._log_mass

    def _with_base(self, base: TabulatedDistribution) -> TruncatedPrior:
        copy = self._copy()
        copy.base_dist = base
        return copy

    def _prepared(self) -> TruncatedPrior:
        return self._with_base(self.base_dist._prepared())

    @property
    def _bounds(self) -> tuple[Array, Array]:
        none = jnp.asarray(jnp.inf, self._dtype)
        return (-none if self.low is None else self.low), (none if self.high is None else self.high)

    @property
    def _log_mass(self) -> Array:
        """Log of the mass between the bounds, NaN where there is none."""
        log_mass = self._below(self.high) if self.low is None else self._above(self.low)
        return jnp.where(jnp.isneginf(log_mass), jnp.nan, log_mass)

    def _above(self, z) -> Array:
        """Log of the whole density's mass between z and the upper bound."""
        if self.high is None:
            return self.base_dist._log_masses(z)[1]
        return self.base_dist._log_mass_between(z, self.high)

    def _below(self, z) -> Array:
        """Log of the whole density's mass between the lower bound and z."""
        if self.low is None:
            return self.base_dist._log_masses(z)[0]
        return self.base_dist._log_mass_between(self.low, z)

    def _log_density(self, z):
        return self.base_dist._log_density(z) - self._log_mass

    @compiled
    def _log_prob(self, value):
        self = self._prepared()
        low, high = self._bounds
        inside = (value >= low) & (value <= high)
        log_prob = jnp.where(inside, self.base_dist._log_prob(value) - self._log_mass, -jnp.inf)
        return jnp.broadcast_to(log_prob, self._result_shape(value))

    @compiled
    def _log_masses(self, value):
        """Of the truncated density; of the smaller one first, of the larger one from that."""
        self = self._prepared()
        low, high = self._bounds
        z = jnp.where(value < low, low, jnp.where(value > high, high, value))
        log_mass = self._log_mass
        below, above = self._below(z) - log_mass, self._above(z) - log_mass
        is_below = below < above
        rest_of_below = log_complement(jnp.where(is_below, jnp.minimum(below, LOG_HALF), -jnp.inf))
        rest_of_above = log_complement(jnp.where(is_below, -jnp.inf, jnp.minimum(above, LOG_HALF)))
        return jnp.where(is_below, below, rest_of_above), jnp.where(is_below, rest_of_below, above)

    def _cdf(self, value):
        return jnp.exp(self._log_masses(value)[0])

    def _survival(self, value):
        return jnp.exp(self._log_masses(value)[1])

    @compiled
    def _log_mass_between(self, low, high):
        self = self._prepared()
        start, end = self._bounds
        low, high = (jnp.where(z < start, start, jnp.where(z > end, end, z)) for z in (low, high))
        return self.base_dist._log_mass_between(low, high) - self._log_mass

    @compiled
    def _quantile(self, q, complement, drawn: bool):
        self = self._prepared()
        base, (low, high), log_mass = self.base_dist, self._bounds, self._log_mass
        complement = 1.0 - q if complement is None else complement
        log_below = log_sum(base._log_masses(low)[0], safe_log(q) + log_mass)
        log_above = log_sum(base._log_masses(high)[1], safe_log(complement) + log_mass)
        from_below = log_below < log_above
        nearer = jnp.exp(jnp.where(from_below, log_below, log_above))
        shape = nearer.shape
        far = 1.0 - nearer
        z = base._quantile(
            jnp.broadcast_to(jnp.where(from_below, nearer, far), shape), jnp.where(from_below, far, nearer), False
        )
        # Where the probabilities of the whole density underflow, from their logarithms.
        tails = base._table().log_tails
        log_share = jnp.where(from_below, log_below - tails[0], log_above - tails[1])
        underflows = jnp.where(from_below, log_below, log_above) < math.log(jnp.finfo(z.dtype).tiny) + 10.0
        log_share = jnp.where(underflows & (log_share < 0.0), log_share, LOG_HALF)
        in_tail = quantile_of_logs(base, log_share, log_complement(log_share), from_below)
        z = jnp.where(underflows & (log_share != LOG_HALF), in_tail, z)
        z = jnp.clip(z, low, high)
        z = jnp.where(q == 0, low, jnp.where(complement == 0, high, z))
        return jnp.where((q >= 0) & (complement >= 0), z, jnp.nan)

    def _own_points(self):
        """Quantiles at the nodes of panels of probability, which become shorter towards both ends, and their masses."""
        nodes, weights = TAIL_RULE.unit_nodes, TAIL_RULE.weights
        num_octaves = 60 if self._dtype == jnp.float32 else 100
        # Each octave from 1/2 downwards in sixteen panels, from 1/64 on in one.
        edges = np.concatenate(
            [0.5 ** np.arange(num_octaves, 5, -1), *(0.5**k * np.linspace(1, 2, 17)[:-1] for k in (5, 4, 3, 2)), [0.5]]
        )
        q = (edges[:-1, None] + np.diff(edges)[:, None] * nodes).ravel()
        mass = (np.diff(edges)[:, None] * weights).ravel()
        column = (-1, *[1] * len(self._table_shape))
        q, rest, mass = (
            np.concatenate(pair).astype(self._dtype).reshape(column)
            for pair in ((q, 1.0 - q), (1.0 - q, q), (mass, mass))
        )
        shape = (len(q), *self._table_shape)
        z = _icdf(self, jnp.broadcast_to(q, shape), jnp.broadcast_to(rest, shape), False)
        return z, jnp.broadcast_to(mass, shape), (0, 0, 0)


@compiled
def _moments(distribution: TruncatedPrior) -> tuple[Array, Array]:
    distribution = distribution._prepared()
    is_open = distribution.low is None or distribution.high is None
    mean = expectation(distribution, lambda z: z)
    mean = _finite_where(mean, distribution.base_dist, "mean") if is_open else mean
    variance = expectation(distribution, lambda z: (z - mean) ** 2)
    return mean, _finite_where(variance, distribution.base_dist, "variance") if is_open else variance
