"""Learned densities cut off at bounds, such as the lifetimes of those who were alive when a study began."""

from __future__ import annotations

import abc
import copy

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jax.typing import ArrayLike
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_kaem._densities.cdf_table import CDFTable
from numpyro_kaem._densities.density import Constants, Density, unchecked
from numpyro_kaem._densities.inverse_table import InverseTable
from numpyro_kaem._densities.quantiles import tabulated
from numpyro_kaem._densities.truncated_density import TruncatedDensity
from numpyro_kaem.distributions.tabulated import TabulatedDistribution


class LearnedDistribution(TabulatedDistribution):
    """Abstract learned density on all of its reference's support, which may keep its tables and be truncated."""

    # Set by `tabulate`: the tables, and what of the normalisation log_prob needs.
    _kept_table: CDFTable | None = None
    _kept_inverse: InverseTable | None = None
    _kept_constants: Constants | None = None
    pytree_data_fields: tuple[str, ...] = ("_kept_table", "_kept_inverse", "_kept_constants")

    @property
    @abc.abstractmethod
    def _density(self) -> Density: ...

    @abc.abstractmethod
    def _settled(self) -> LearnedDistribution:
        """The same distribution, its parts in keeping with the shapes that their leaves have now."""

    @abc.abstractmethod
    def _new_axes(self) -> tuple[int, ...]:
        """Sizes of the leading axes that the leaves have got since it was made."""

    def truncate(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> TruncatedPrior:
        """The density between bounds, a `TruncatedPrior`; each is a number, an array or None, for none on that side."""
        return TruncatedPrior(self, low, high)

    def tabulate(self) -> LearnedDistribution:
        """The same distribution with its tables kept, for many calls with unchanged parameters.

        Without it every call builds the tables from the parameters; this one has them built already. Derivatives flow
        to the parameters through the tables where both are made in the differentiated function, and nowhere else: with
        respect to the parameters of a distribution that already has tables, these are constants.

        Example:
            ```python
            import jax
            import numpyro.distributions as dist
            from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

            basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
            energy = UnivariateEnergy.init(jax.random.key(0), (40,), basis=basis, scale=1.0)
            served = KAPrior(energy, dist.Normal(0.0, 1.0)).tabulate()
            draw = jax.jit(lambda prior, key: prior.sample(key, (1000,)))
            assert draw(served, jax.random.key(1)).shape == (1000, 40)
            ```
        """
        self = self._settled()
        copy, density = self._copy(), tabulated(self._density)
        copy._kept_table, copy._kept_inverse, copy._kept_constants = density.table, density.inverse, density.constants
        return copy


# NumPyro's `scan` returns distributions whose parameters have a leading axis that the batch shape does not know of yet,
# and asks this to make up for it. NumPyro's default knows parameters by their names in `arg_constraints`; an energy, a
# reference or a mixture's components are more than an array.
@promote_batch_shape.register
def _(distribution: LearnedDistribution) -> LearnedDistribution:
    axes = distribution._new_axes()
    promoted = copy.copy(distribution._settled())
    promoted._batch_shape = axes + distribution.batch_shape
    if distribution._expanded_shape is not None:
        promoted._expanded_shape = axes + distribution._expanded_shape
    return promoted


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
        if not isinstance(base_dist, LearnedDistribution):
            raise TypeError(f"base_dist must be a KAPrior or a KAMixture, got {base_dist!r}; wrap it afterwards")
        if low is None and high is None:
            raise ValueError("low or high must be given, got None for both")
        shape = jnp.broadcast_shapes(base_dist.batch_shape, *(jnp.shape(end) for end in (low, high) if end is not None))
        if low is not None and high is not None and not any(isinstance(end, core.Tracer) for end in (low, high)):
            ends = np.broadcast_arrays(low, high)
            wrong = ~(ends[0] < ends[1])
            if np.any(wrong):
                raise ValueError(f"bounds must be low < high, got low {ends[0][wrong][0]} and high {ends[1][wrong][0]}")
        self.base_dist, dtype = base_dist, base_dist._density.dtype
        self.low, self.high = (None if bound is None else jnp.asarray(bound, dtype) for bound in (low, high))
        if shape != self._density.shape:
            self._expanded_shape = shape
        super().__init__(shape, (), validate_args=validate_args)

    @property
    def quadrature(self):
        """The panel rule of the whole density."""
        return self.base_dist.quadrature

    @property
    def support(self):
        """The reference's support, between the bounds."""
        return self._density.support

    @property
    def _tilted(self):
        return self.base_dist._tilted

    @property
    def _density(self) -> TruncatedDensity:
        return unchecked(TruncatedDensity, self.base_dist._density, self.low, self.high)

    def truncate(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> TruncatedPrior:
        """The density between these bounds as well as between those that it has."""
        if self.low is not None:
            low = self.low if low is None else jnp.maximum(low, self.low)
        if self.high is not None:
            high = self.high if high is None else jnp.minimum(high, self.high)
        return TruncatedPrior(self.base_dist, low, high)

    def tabulate(self) -> TruncatedPrior:
        """The same distribution with the tables of the whole density kept (see `KAPrior.tabulate`)."""
        tabulated = self._copy()
        tabulated.base_dist = self.base_dist.tabulate()
        return tabulated
