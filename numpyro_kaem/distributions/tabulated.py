"""Univariate distributions that are drawn by inverse transform from a table of their CDF."""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions.util import validate_sample

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.cdf_table import CDFTable, table_log_masses, table_mass_between, table_masses
from numpyro_kaem._densities.cut_panels import CutPanels
from numpyro_kaem._densities.inverse_table import (
    InverseTable,
    build_inverse,
    table_icdf,
    with_guide,
)
from numpyro_kaem._densities.log_tails import (
    log_difference,
    log_mass_above,
    log_mass_below,
    log_mass_between,
    log_sum,
    safe_log,
)
from numpyro_kaem._densities.panels import Panels, default_rule
from numpyro_kaem._densities.reference import support_bounds_of_body
from numpyro_kaem._densities.tails import survival
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.checks import check_key
from numpyro_kaem.distributions.moments import expectation, mean_and_variance
from numpyro_kaem.distributions.tabulated_tails import quantile_in_tail, tail_panels
from numpyro_kaem.energies import Basis

if TYPE_CHECKING:
    from numpyro_kaem.distributions.truncated import TruncatedPrior


class TabulatedDistribution(dist.Distribution):
    """Abstract univariate distribution with a tabulated body [a, b] and the tails of a reference beyond it.

    Subclasses say what the density is; this class draws from it and computes its CDF, quantiles and moments. The
    batch shape may be larger than the shape of the tables (after `expand`): tables are never built twice.

    As with NumPyro's own distributions, `jax.vmap` and the like change the parameters and not the batch shape. So
    results have the shape of what the parameters broadcast to, draws and moments that of the batch shape as well.
    """

    quadrature: QuadratureRule | None
    # Set by `tabulate`: the tables, and what of the normalisation log_prob needs.
    _kept_table: CDFTable | None = None
    _kept_inverse: InverseTable | None = None
    _kept_constants: Any = None
    # The batch shape where it is more than that of the parameters, after `expand`.
    _expanded_shape: tuple[int, ...] | None = None
    pytree_data_fields = ("_kept_table", "_kept_inverse", "_kept_constants")
    pytree_aux_fields = ("_expanded_shape",)

    # Nodes and masses of expectations, of a distribution whose table is not its own.
    _own_points: Any = None

    # What subclasses provide ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _settled(self) -> TabulatedDistribution:
        """The same distribution, its parts in keeping with the shapes that their leaves have now."""

    @property
    @abc.abstractmethod
    def _table_shape(self) -> tuple[int, ...]:
        """Batch shape before expansion."""

    @property
    @abc.abstractmethod
    def _basis(self) -> Basis:
        """The basis whose domain is the body, its grid of a batch shape that broadcasts to the table's."""

    @property
    @abc.abstractmethod
    def _dtype(self):
        """The dtype in which densities are computed."""

    @property
    @abc.abstractmethod
    def _reference(self) -> dist.Distribution:
        """The reference whose tails these are."""

    @property
    @abc.abstractmethod
    def _tails_invert(self) -> bool:
        """Whether the tails are multiples of one reference that has an icdf."""

    @property
    @abc.abstractmethod
    def _kinks(self) -> Float[Array, "*batch num_kinks"] | None:
        """Where the density has kinks, if there are any; the batch is that of the tables, or broadcasts with it."""

    @abc.abstractmethod
    def _log_density(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Normalised log-density at z inside the support."""

    @abc.abstractmethod
    def _build(self) -> tuple[CDFTable, Any]:
        """Tabulate the body; with the constants, of the same evaluation of the energy."""

    @abc.abstractmethod
    def _constants(self):
        """What a log-density needs besides the parameters; as it was kept, if it was."""

    @abc.abstractmethod
    def _log_tail_weights(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Log of the density over the reference's, below and above the body."""

    # The NumPyro contract -------------------------------------------------------------------------------------------

    @property
    def support(self):
        """The reference's support."""
        return self._settled()._reference.support

    def expand(self, batch_shape: tuple[int, ...]) -> TabulatedDistribution:
        """The same distribution with its batch shape broadcast to `batch_shape`; keeps `cdf` and `icdf`."""
        batch_shape = tuple(batch_shape)
        try:
            fits = jnp.broadcast_shapes(batch_shape, self.batch_shape) == batch_shape
        except ValueError:
            fits = False
        if not fits:
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

        Raises:
            TypeError: for something else than a key.
        """
        check_key(key)
        self = self._settled()
        return self._draw(key, self._shape_with_batch(tuple(sample_shape)))

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."], intermediates=None) -> Float[Array, "..."]:
        """Normalised log-density, -inf outside the support.

        Args:
            value: points of shape sample_shape + batch_shape, or broadcastable with it.
            intermediates: not used; part of NumPyro's interface.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        return self._log_prob(self._check_shape("value", value))

    def cdf(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Probability below `value`, of shape sample_shape + batch_shape; differentiable in value and parameters.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        value = self._check_shape("value", value)
        return self._cdf(jnp.broadcast_to(value, self._result_shape(value)))

    def survival(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Probability above `value`, 1 - cdf(value) with the digits that this has lost in the upper tail.

        The same shapes as of `cdf`; one below the support and zero above it. Differentiable in value and parameters.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.

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
        self = self._settled()
        value = self._check_shape("value", value)
        return self._survival(jnp.broadcast_to(value, self._result_shape(value)))

    def log_cdf(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of `cdf`, to full precision in both tails: finite where the probability underflows.

        It underflows, to -inf, only far out in the lower tails of references for which no logarithm of the tail is
        known: those that have a cdf alone, and doubly truncated ones. -inf below the support and 0 above it, where
        derivatives are zero.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        value = self._check_shape("value", value)
        return self._log_cdf(jnp.broadcast_to(value, self._result_shape(value)))

    def log_survival(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of `survival`, to full precision in both tails, as `log_cdf`; 0 below the support and -inf above it.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        value = self._check_shape("value", value)
        return self._log_survival(jnp.broadcast_to(value, self._result_shape(value)))

    def log_mass_between(self, low: Num[ArrayLike, "..."], high: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Log of the probability between two points, log(F(high) - F(low)), with the digits of short intervals.

        -inf where low < high does not hold or there is nothing in between. Differentiable in points and parameters.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        low, high = self._check_shape("low", low), self._check_shape("high", high)
        shape = jnp.broadcast_shapes(self._result_shape(low), self._result_shape(high))
        return self._log_mass_between(jnp.broadcast_to(low, shape), jnp.broadcast_to(high, shape))

    def truncate(self, low: ArrayLike | None = None, high: ArrayLike | None = None) -> TruncatedPrior:
        """The density between bounds, a `TruncatedPrior`; each is a number, an array or None, for none on that side."""
        from numpyro_kaem.distributions.truncated import TruncatedPrior

        return TruncatedPrior(self, low, high)

    def icdf(self, q: Num[ArrayLike, "..."], *, complement: Num[ArrayLike, "..."] | None = None) -> Float[Array, "..."]:
        """The quantile z with cdf(z) = q.

        Derivatives are implicit, dz = (dq - dF(z)) / p(z), for the parameters of the energy, the reference and the
        mixture, and may be taken repeatedly.

        Args:
            q: probabilities in [0, 1], of shape sample_shape + batch_shape. Outside of [0, 1] the result is NaN;
                at 0 and 1 it is the support's end.
            complement: 1 - q, if it is known to more digits than q has left near one; not differentiated.

        Raises:
            ValueError: for a shape that does not broadcast with the batch shape.
        """
        self = self._settled()
        # The search compares the bits of probabilities with those of the table.
        q = self._check_shape("q", q).astype(self._dtype)
        shape = self._result_shape(q)
        if complement is not None:
            complement = self._check_shape("complement", complement).astype(self._dtype)
            shape = jnp.broadcast_shapes(shape, complement.shape)
            complement = jax.lax.stop_gradient(jnp.broadcast_to(complement, shape))
        return _icdf(self, jnp.broadcast_to(q, shape), complement, False)

    def tabulate(self) -> TabulatedDistribution:
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
        tabulated = self._copy()
        tabulated._kept_table, tabulated._kept_inverse, tabulated._kept_constants = self._tabulate()
        return tabulated

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy -E[log p(z)], by quadrature."""
        self = self._settled()
        return jnp.broadcast_to(self._entropy(), self._shape_with_batch())

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """Mean, by quadrature; infinite or NaN where the reference's is."""
        self = self._settled()
        return jnp.broadcast_to(mean_and_variance(self)[0], self._shape_with_batch())

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """Variance, by quadrature; infinite or NaN where the reference's is."""
        self = self._settled()
        return jnp.broadcast_to(mean_and_variance(self)[1], self._shape_with_batch())

    def _validate_sample(self, value):
        return super()._validate_sample(self._onto_ends(jnp.asarray(value)))

    def _copy(self) -> TabulatedDistribution:
        leaves, structure = self.tree_flatten()
        return type(self).tree_unflatten(structure, leaves)

    # How it is done -------------------------------------------------------------------------------------------------

    @property
    def _rule(self) -> QuadratureRule:
        """The panel rule: as it was given, or that of the dtype and the basis."""
        return default_rule(self._dtype, self._basis) if self.quadrature is None else self.quadrature

    @property
    def _constants_shape(self) -> tuple[int, ...]:
        return self._table_shape

    @property
    def _panels(self) -> Panels:
        """The quadrature panels of the body."""
        low, high = self._support_bounds
        if isinstance(self._reference, dist.Uniform):  # flat up to its ends
            low, high = -np.inf, np.inf
        return Panels.lay_out(self._rule, self._basis, low, high, float(jnp.finfo(self._dtype).eps))

    @property
    def _pieces(self) -> Panels | CutPanels:
        """The panels, cut where the reference has kinks."""
        if self._kinks is None:
            return self._panels
        return CutPanels.at(self._kinks, self._panels, self._basis, self._dtype)

    @property
    def _body(self) -> tuple[float, float] | tuple[Array, Array]:
        """Ends of the body, floats or arrays like those of the domain."""
        edges = self._panels.edges(self._basis)
        if isinstance(edges, np.ndarray):
            return float(edges[0]), float(edges[-1])
        edges = edges.astype(self._dtype)
        return edges[..., 0], edges[..., -1]

    @property
    def _edges_and_sizes(self) -> tuple[np.ndarray | Array, np.ndarray | Array]:
        """Edges and widths of the panels, with the shape of the tables unless all share them."""
        pieces, basis, shape = self._pieces, self._basis, self._table_shape
        both = pieces.edges(basis), pieces.sizes(basis)
        if both[0].ndim == 1:
            return both
        return tuple(jnp.broadcast_to(array, (*shape, array.shape[-1])) for array in both)

    @property
    def _has_tails(self) -> bool:
        low, high = self._body
        return isinstance(low, Array) or (low, high) != self._support_bounds

    @property
    def _support_bounds(self) -> tuple[float, float]:
        return support_bounds_of_body(self._reference, self._basis.domain, self._dtype)

    def _result_shape(self, value) -> tuple[int, ...]:
        return jnp.broadcast_shapes(jnp.shape(value), self._table_shape, self._expanded_shape or ())

    def _shape_with_batch(self, sample_shape: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Shape of draws, and of moments: NumPyro's, and that of the parameters where NumPyro would raise an error."""
        try:
            return jnp.broadcast_shapes(sample_shape + self.batch_shape, self._table_shape)
        except ValueError:
            return sample_shape + self._table_shape

    def _check_shape(self, name: str, value) -> Array:
        value = jnp.asarray(value)
        try:
            self._result_shape(value)
        except ValueError as error:
            raise ValueError(
                f"{name} must have a shape that broadcasts with the batch shape {self._result_shape(0.0)} of this "
                f"{type(self).__name__}, got {value.shape}"
            ) from error
        return value.astype(jnp.result_type(value, self._dtype))

    def _row_order(self, shape: tuple[int, ...]) -> list[int]:
        """The axes of an array of shape sample_shape + batch_shape with those of the tables first."""
        first = len(shape) - len(self._table_shape)
        own = [first + axis for axis, size in enumerate(self._table_shape) if size == shape[first + axis]]
        return own + [axis for axis in range(len(shape)) if axis not in own]

    def _in_rows(self, values: Array) -> Float[Array, "num_rows n"]:
        """An array of shape sample_shape + batch_shape, a row for each distribution in the tables.

        So the look-ups of one distribution stay within its own part of the tables.
        """
        num_rows = math.prod(self._table_shape)
        return jnp.transpose(values, self._row_order(values.shape)).reshape(num_rows, values.size // max(num_rows, 1))

    def _out_of_rows(self, rows: Float[Array, "num_rows n"], shape: tuple[int, ...]) -> Array:
        """The inverse of `_in_rows`, for an array of the given shape."""
        order = self._row_order(shape)
        return jnp.transpose(rows.reshape([shape[axis] for axis in order]), np.argsort(order))

    def _prepared(self) -> TabulatedDistribution:
        """The same distribution with the table and the constants kept, for all that is computed from here on."""
        if self._kept_table is not None:
            return self
        prepared = self._copy()
        prepared._kept_table, prepared._kept_constants = self._build()
        return prepared

    def _table(self) -> CDFTable:
        return self._prepared()._kept_table

    def _inverse(self) -> InverseTable:
        """The table of quantiles, extended into the tails as far as draws reach."""
        if self._kept_inverse is not None:
            return self._kept_inverse
        table = self._table()
        # Panels of fixed shares cannot end at a kink.
        extended = self._has_tails and self._kinks is None
        return build_inverse(table, tail_panels(self) if extended else None)

    # Compiled, because called one by one the many small operations would each be compiled on first use.

    @compiled
    def _draw(self, key, shape):
        dtype = self._dtype
        # jax.random.uniform gives multiples of eps in [0, 1); half a step further in, no draw is at 0 or 1.
        half = jnp.finfo(dtype).eps / 2
        # Made coordinate by coordinate, as they are looked up.
        rows = jax.eval_shape(self._in_rows, jax.ShapeDtypeStruct(shape, dtype)).shape
        return _icdf(self, self._out_of_rows(jax.random.uniform(key, rows, dtype) + half, shape), None, True)

    @compiled
    def _entropy(self):
        prepared = self._prepared()
        return expectation(prepared, lambda z: -prepared._log_density(z))

    @compiled
    def _tabulate(self):
        prepared = self._prepared()

        # Every leaf has the axes of the batch first, that it may be mapped along them.
        def batch_first(tables):
            edges = jnp.broadcast_to(tables.edges, (*self._table_shape, tables.edges.shape[-1]))
            return tables._replace(edges=edges, polynomials=tuple(tables.polynomials))

        table, inverse = batch_first(prepared._kept_table), batch_first(with_guide(prepared._inverse()))
        constants = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, self._constants_shape), prepared._kept_constants)
        return table, inverse, constants

    @compiled
    def _log_prob(self, value):
        value = self._onto_ends(value)
        inside = self.support(value)
        safe = jnp.where(inside, value, jnp.clip(value, *self._body))
        return jnp.broadcast_to(jnp.where(inside, self._log_density(safe), -jnp.inf), self._result_shape(value))

    @compiled
    def _cdf(self, value):
        return self._masses(value)[0]

    @compiled
    def _survival(self, value):
        return self._masses(value, before=self._before)[1]

    @compiled
    def _log_cdf(self, value):
        return self._log_masses(value)[0]

    @compiled
    def _log_survival(self, value):
        return self._log_masses(value)[1]

    def _masses(self, value, before=lambda table, regions, beyond: 1.0 - beyond):
        """F and 1 - F: in a tail what is beyond, and what is before it."""
        self = self._prepared()
        table, regions = self._table(), self._regions(value)
        is_below, is_above, inside, in_body, tails = regions
        rows = table_masses(table, self._in_rows(in_body))
        body_below, body_above = (self._out_of_rows(part, in_body.shape) for part in rows)
        log_beyond = jnp.where(is_below, *self._log_tail_probabilities(*tails))
        beyond = jnp.where(inside & (is_below | is_above), jnp.exp(log_beyond), 0.0)
        before = before(table, regions, beyond)
        return (
            jnp.where(is_below, beyond, jnp.where(is_above, before, body_below)),
            jnp.where(is_below, before, jnp.where(is_above, beyond, body_above)),
        )

    def _before(self, table, regions, beyond):
        """What is before points in the tails; of a tail that holds the bulk of the mass, summed up from its start."""
        is_below, _, inside, _, tails = regions
        others = self._log_tail_probabilities(*tails, log_mass_above, log_mass_below)
        ends = (jnp.asarray(end, self._dtype) for end in self._body)
        starts = self._log_tail_probabilities(*ends, log_mass_above, log_mass_below)
        other, start = (jnp.where(is_below, *pair) for pair in (others, starts))
        is_bulk = inside & (beyond > 0.5) & (other < 0.0)
        other, start = (jnp.where(is_bulk, part, 0.0) for part in (other, start))
        rest = jnp.where(is_below, table.upper[..., 0] + table.mass[..., 0], table.lower[..., -1] + table.mass[..., -1])
        return jnp.where(is_bulk, rest + (jnp.exp(other) - jnp.exp(start)), 1.0 - beyond)

    def _log_masses(self, value):
        """Log F and log(1 - F); of the smaller one first, of the larger one from that."""
        self = self._prepared()
        is_below, is_above, inside, in_body, tails = self._regions(value)
        rows = table_log_masses(self._table(), self._in_rows(in_body))
        log_body = [self._out_of_rows(part, in_body.shape) for part in rows]
        log_tails = [jnp.where(inside, tail, -jnp.inf) for tail in self._log_tail_probabilities(*tails)]
        masses = self._masses(value, before=self._before)
        logs = []
        for (mass, rest), body, tail, is_own, is_other in (
            (masses, log_body[0], log_tails[0], is_below, is_above),
            (masses[::-1], log_body[1], log_tails[1], is_above, is_below),
        ):
            is_small = mass < 0.5
            small = jnp.where(is_own, tail, jnp.where(is_other, safe_log(mass), body))
            logs.append(jnp.where(is_small, small, jnp.log1p(-jnp.where(is_small, 0.0, rest))))
        return tuple(logs)

    @compiled
    def _log_mass_between(self, low, high):
        """Log of the probability between two points, low <= high: the sum of what is in the two tails and the body."""
        self = self._prepared()
        low, high = jnp.broadcast_arrays(low, high)
        is_below, _, low_inside, body_low, (below_low, above_low) = self._regions(low)
        _, is_above, high_inside, body_high, (below_high, above_high) = self._regions(high)
        # Beyond the support there is what is beyond infinity.
        below_low = jnp.where(is_below & ~low_inside, -jnp.inf, below_low)
        above_high = jnp.where(is_above & ~high_inside, jnp.inf, above_high)
        rows = table_mass_between(self._table(), self._in_rows(body_low), self._in_rows(body_high))
        body = safe_log(self._out_of_rows(rows, body_low.shape))
        # Of a body whose mass there underflows.
        logs = [table_log_masses(self._table(), self._in_rows(end)) for end in (body_low, body_high)]
        (below_a, above_a), (below_b, above_b) = ([self._out_of_rows(p, body_low.shape) for p in log] for log in logs)
        from_below = below_b < above_a
        tiny = log_difference(jnp.where(from_below, below_b, above_a), jnp.where(from_below, below_a, above_b))
        body = jnp.where(body < math.log(jnp.finfo(body.dtype).tiny) + 10.0, tiny, body)
        tails = self._log_tail_probabilities(
            jnp.stack([below_low, below_high]), jnp.stack([above_low, above_high]), log_mass_between, log_mass_between
        )
        return log_sum(body, *(jnp.where(low < high, tail, -jnp.inf) for tail in tails))

    def _regions(self, value):
        """Whether points are below the body, above it, in the support; the points moved into the body and the tails."""
        low, high = self._body
        value = self._onto_ends(value)
        is_below, is_above, inside = value < low, value > high, self.support(value) & jnp.isfinite(value)
        # No jnp.clip: it would halve derivatives at the body's ends.
        in_body = jnp.where(is_below, low, jnp.where(is_above, high, value))
        in_body = jnp.broadcast_to(in_body, self._result_shape(in_body))
        # Outside of its support the reference's own cdf may be NaN.
        in_support = jnp.where(inside, value, in_body)
        return is_below, is_above, inside, in_body, (jnp.minimum(in_support, low), jnp.maximum(in_support, high))

    @compiled
    def _quantile(self, q, complement, drawn: bool):
        self = self._prepared()
        inverse = self._inverse()
        rows = jax.tree.map(self._in_rows, (q, complement))
        z = table_icdf(inverse, *rows)
        if drawn and self._kinks is None:  # the tables reach further than draws do
            return self._out_of_rows(z, q.shape)
        lower, upper = (end.reshape(-1, 1) for end in (inverse.lower_end, inverse.upper_end))
        in_table = (rows[0] > lower) & ((1.0 - rows[0] if complement is None else rows[1]) > upper)
        # A loop of at most one round, because lax.cond under vmap would build the tables anew for every element.
        z, _ = jax.lax.while_loop(
            lambda state: state[1],
            lambda state: (self._with_ends(state[0], inverse, q, complement), jnp.zeros((), bool)),
            (z, ~jnp.all(in_table)),
        )
        return self._out_of_rows(z, q.shape)

    def _onto_ends(self, value):
        """Points of another dtype, which this density's does not tell from an end of the support, moved onto it."""
        support, info = self.support, jnp.finfo(self._dtype)
        for end in (getattr(support, name, None) for name in ("lower_bound", "upper_bound")):
            if end is not None and jnp.result_type(value, end) != self._dtype:
                value, end = (jnp.asarray(part, jnp.result_type(value, end)) for part in (value, end))
                # A compiler may leave out conversions to another dtype and back.
                rounded = (jax.lax.reduce_precision(part, info.nexp, info.nmant) for part in (value, end))
                value = jnp.where(jnp.equal(*rounded), end, value)
        return value

    def _with_ends(self, rows, inverse, q, complement):
        """Quantiles with those that draws do not reach: beyond the tables, at 0 and 1, and outside of [0, 1]."""
        z = self._out_of_rows(rows, q.shape)
        complement = 1.0 - q if complement is None else complement
        if self._has_tails:
            below = q < inverse.lower_end
            table = self._table()
            tail = jnp.where(below, table.lower_tail, table.upper_tail)
            share = jnp.minimum(jnp.where(below, q, complement) / jnp.where(tail > 0, tail, 1.0), 1.0)
            far = quantile_in_tail(self, share, 1.0 - share, below)
            z = jnp.where(below | (complement < inverse.upper_end), far, z)
        support = self.support
        low, high = getattr(support, "lower_bound", -jnp.inf), getattr(support, "upper_bound", jnp.inf)
        z = jnp.where(q == 0, jnp.asarray(low, z.dtype), jnp.where(complement == 0, jnp.asarray(high, z.dtype), z))
        return self._in_rows(jnp.where((q >= 0) & (complement >= 0), z, jnp.nan))

    def _log_tail_probabilities(self, below, above, lower=log_mass_below, upper=log_mass_above):
        """Log F at points below the body and log(1 - F) at points above it.

        With `lower` and `upper` exchanged, what the reference has on the other side of the points, in the same units.
        """
        log_lower, log_upper = self._log_tail_weights()
        reference = self._reference
        return log_lower + lower(reference, below), log_upper + upper(reference, above)


@survival.register
def _(distribution: TabulatedDistribution, z):
    return distribution.survival(z)


@log_mass_below.register
def _(distribution: TabulatedDistribution, z):
    return distribution.log_cdf(z)


@log_mass_above.register
def _(distribution: TabulatedDistribution, z):
    return distribution.log_survival(z)


@eqx.filter_custom_jvp
def _icdf(distribution: TabulatedDistribution, q: Array, complement: Array | None, drawn: bool) -> Array:
    return distribution._quantile(q, complement, drawn)


@_icdf.def_jvp
def _icdf_jvp(primals, tangents):
    distribution, q, complement, drawn = primals
    distribution_dot, q_dot, *_ = tangents
    learned = bool(jax.tree.leaves(distribution_dot))
    if learned:  # all of the below by one table
        distribution, distribution_dot = eqx.filter_jvp(lambda d: d._prepared(), (distribution,), (distribution_dot,))
    z = _icdf(distribution, q, complement, drawn)
    z_dot = jnp.zeros_like(z) if q_dot is None else q_dot
    if learned:
        _, cdf_dot = eqx.filter_jvp(lambda d: d.cdf(z), (distribution,), (distribution_dot,))
        z_dot = z_dot - cdf_dot
    # The inverse of a density that underflows stays finite, with room for what it is multiplied by: no infinite factor.
    smallest = 0.75 * float(np.log(jnp.finfo(z.dtype).tiny))
    return z, z_dot * jnp.exp(-jnp.maximum(distribution.log_prob(z), smallest))
