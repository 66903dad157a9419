"""NumPyro's contract over a density that is drawn by inverse transform from a table of its CDF."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions.util import validate_sample

from numpyro_kaem._densities import masses
from numpyro_kaem._densities.centered_density import CenteredDensity
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.moments import entropy, mean_and_variance
from numpyro_kaem._densities.quantiles import draw, icdf
from numpyro_kaem._densities.reference_tails import tails_of
from numpyro_kaem._densities.tails import Tails
from numpyro_kaem._densities.truncated_density import TruncatedDensity
from numpyro_kaem.checks import broadcasts
from numpyro_kaem.distributions.lookup import LookupTable, make_lookup_table


class TabulatedDistribution(dist.Distribution):
    """Abstract univariate distribution with a tabulated body [a, b] and the tails of a reference beyond it.

    As with NumPyro's own distributions, `jax.vmap` and the like change the parameters and not the batch shape. So
    results have the shape of what the parameters broadcast to, draws and moments that of the batch shape as well.

    Points and probabilities have shape sample_shape + batch_shape, or one that broadcasts with it; others are a
    ValueError that names the argument.
    """

    # The batch shape where it is more than that of the density, after `expand`.
    _expanded_shape: tuple[int, ...] | None = None
    pytree_aux_fields: tuple[str, ...] = ("_expanded_shape",)

    @property
    @abc.abstractmethod
    def _density(self) -> Density | TruncatedDensity | CenteredDensity:
        """The density, in keeping with the shapes that the leaves have now."""

    @property
    @abc.abstractmethod
    def _tilted(self):
        """The `KAPrior` it is made of, likewise: what of the density can be told without making one at each call."""

    @property
    def support(self):
        """The reference's support, as far as it is not truncated."""
        return self._tilted.reference.support

    def expand(self, batch_shape: tuple[int, ...]) -> TabulatedDistribution:
        """The same distribution with its batch shape broadcast to `batch_shape`; keeps `cdf` and `icdf`."""
        batch_shape = tuple(batch_shape)
        if not broadcasts(self.batch_shape, batch_shape):
            raise ValueError(f"batch_shape must be one to which {self.batch_shape} broadcasts, got {batch_shape}")
        expanded = self._copy()
        if batch_shape != self.batch_shape:
            expanded._batch_shape = expanded._expanded_shape = batch_shape
        return expanded

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draw by inverse transform: z = icdf(u), u uniform on the open interval (0, 1).

        Draws are differentiable with respect to every parameter (see `icdf`).

        Args:
            key: JAX random key.
            sample_shape: shape of the independent draws.

        Returns:
            Draws of shape sample_shape + batch_shape.
        """
        density = self._density
        return draw(density, key, self._shape_with_batch(density, tuple(sample_shape)))

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."], intermediates=None) -> Float[Array, "..."]:
        """Normalised log-density, -inf outside the support; NumPyro's `intermediates` are not used."""
        density = self._density
        value, shape = self._checked(density, "value", value)
        return jnp.broadcast_to(masses.log_prob(density, value), shape)

    def cdf(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Probability below `value`, of shape sample_shape + batch_shape; differentiable in value and parameters."""
        density = self._density
        return masses.cdf(density, self._broadcast(density, "value", value))

    def survival(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Probability above `value`, 1 - cdf(value) with the digits that this has lost in the upper tail.

        The same shapes as of `cdf`; one below the support and zero above it. Differentiable in value and parameters.

        Example:
            ```python
            import jax
            import numpyro.distributions as dist
            from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

            energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (-3.0, 3.0)))
            prior = KAPrior(energy, dist.Normal(0.0, 1.0))
            assert prior.survival(9.0) > 0.0 and prior.survival(20.0) == 0.0
            assert -210.0 < prior.log_survival(20.0) < -200.0
            ```
        """
        density = self._density
        return masses.survival(density, self._broadcast(density, "value", value))

    def log_cdf(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of `cdf`, to full precision in both tails: finite where the probability underflows.

        It underflows, to -inf, only far out in the lower tails of references for which no logarithm of the tail is
        known: those that have a cdf alone, and doubly truncated ones. -inf below the support and 0 above it, where
        derivatives are zero.
        """
        density = self._density
        return masses.log_masses(density, self._broadcast(density, "value", value))[0]

    def log_survival(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of `survival`, to full precision in both tails, as `log_cdf`; 0 below the support and -inf above it."""
        density = self._density
        return masses.log_masses(density, self._broadcast(density, "value", value))[1]

    def log_mass_between(self, low: Num[ArrayLike, "..."], high: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of the probability between two points, log(F(high) - F(low)), with the digits of short intervals.

        -inf where low < high does not hold or there is nothing in between. Differentiable in points and parameters.
        """
        density = self._density
        low, high = self._broadcast(density, "low", low), self._broadcast(density, "high", high)
        return masses.log_mass_between(density, *jnp.broadcast_arrays(low, high))

    def icdf(self, q: Num[ArrayLike, "..."], *, complement: Num[ArrayLike, "..."] | None = None) -> Float[Array, "..."]:
        """The quantile z with cdf(z) = q.

        Derivatives are implicit, dz = (dq - dF(z)) / p(z), for the parameters of the energy, the reference and the
        mixture, and may be taken repeatedly.

        Args:
            q: probabilities in [0, 1], of shape sample_shape + batch_shape. Outside of [0, 1] the result is NaN;
                at 0 and 1 it is the support's end.
            complement: 1 - q, if it is known to more digits than q has left near one; not differentiated.
        """
        density = self._density
        # The search compares the bits of probabilities with those of the table.
        q = self._broadcast(density, "q", q).astype(density.dtype)
        if complement is not None:
            complement = self._broadcast(density, "complement", complement).astype(density.dtype)
            q, complement = jnp.broadcast_arrays(q, jax.lax.stop_gradient(complement))
        return icdf(density, q, complement, False)

    def lookup_table(self, bits: int = 16, *, address_bits: int = 12) -> LookupTable:
        """The inverse CDF of every coordinate as a table of integers, for hardware without floating-point arithmetic.

        Args:
            bits: width of a code, the integer that stands for a value z, from 1 to 32.
            address_bits: width of an address, the random bits of a draw, from 1 to 20. The table of a coordinate has
                2^address_bits codes: by default 4,096, which are 8 KiB of 16 bits each.

        Returns:
            Codes, what they stand for, and how far draws from the table are from those of the distribution.

        Raises:
            ValueError: for numbers out of range.

        Example:
            ```python
            import jax
            import numpyro.distributions as dist
            from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

            energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, (0.0, 1.0)), scale=1.0)
            lookup = KAPrior(energy, dist.Uniform(0.0, 1.0)).lookup_table(bits=16)
            assert lookup.table.shape == (4096,) and lookup.kolmogorov_distance < 2e-4
            ```
        """
        return make_lookup_table(self, bits, address_bits)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy -E[log p(z)], by quadrature."""
        density = self._density
        return jnp.broadcast_to(entropy(density), self._shape_with_batch(density))

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """Mean, by quadrature; infinite or NaN where the reference's is and no bound cuts it off."""
        density = self._density
        return jnp.broadcast_to(mean_and_variance(density)[0], self._shape_with_batch(density))

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """Variance, by quadrature; infinite or NaN where the reference's is and no bound cuts it off."""
        density = self._density
        return jnp.broadcast_to(mean_and_variance(density)[1], self._shape_with_batch(density))

    def _validate_sample(self, value):
        dtype = self._tilted.energy.coefficients.dtype
        return super()._validate_sample(masses.onto_ends(self.support, dtype, jnp.asarray(value)))

    def _copy(self) -> TabulatedDistribution:
        leaves, structure = self.tree_flatten()
        return type(self).tree_unflatten(structure, leaves)

    # Shapes ---------------------------------------------------------------------------------------------------------

    def _result_shape(self, density, value) -> tuple[int, ...]:
        return jnp.broadcast_shapes(jnp.shape(value), density.shape, self._expanded_shape or ())

    def _shape_with_batch(self, density, sample_shape: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Shape of draws, and of moments: NumPyro's, and that of the parameters where NumPyro would raise an error."""
        try:
            return jnp.broadcast_shapes(sample_shape + self.batch_shape, density.shape)
        except ValueError:
            return sample_shape + density.shape

    def _checked(self, density, name: str, value: ArrayLike) -> tuple[Array, tuple[int, ...]]:
        """An array in the density's dtype or a wider one, and its shape with the batch, or an error that names it."""
        value = jnp.asarray(value)
        try:
            shape = self._result_shape(density, value)
        except ValueError as error:
            raise ValueError(
                f"{name} must have a shape that broadcasts with the batch shape {self._result_shape(density, 0.0)} of "
                f"this {type(self).__name__}, got {value.shape}"
            ) from error
        return value.astype(jnp.result_type(value, density.dtype)), shape

    def _broadcast(self, density, name: str, value: ArrayLike) -> Array:
        """The checked array, broadcast with the batch."""
        return jnp.broadcast_to(*self._checked(density, name, value))


@tails_of.register(TabulatedDistribution)
class _OwnTails(Tails):
    """Its own functions, which lose no digits."""

    def mass(self, z, above):
        return self.of.survival(z) if above else self.of.cdf(z)

    def log_mass(self, z, above):
        return self.of.log_survival(z) if above else self.of.log_cdf(z)

    def quantile(self, probability, from_below):
        complement = 1.0 - probability
        q = jnp.where(from_below, probability, complement)
        return self.of.icdf(q, complement=jnp.where(from_below, complement, probability))
