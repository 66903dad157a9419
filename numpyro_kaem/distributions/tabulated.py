"""Univariate distributions that are drawn by inverse transform from a table of their CDF."""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions.util import validate_sample

from numpyro_kaem.bases import Basis
from numpyro_kaem.cdf_table import CDFTable, table_cdf
from numpyro_kaem.checks import check_key
from numpyro_kaem.cut_panels import CutPanels
from numpyro_kaem.distributions.moments import expectation, mean_and_variance
from numpyro_kaem.distributions.reference import support_bounds_of_body
from numpyro_kaem.distributions.tabulated_tails import quantile_in_tail, tail_panels
from numpyro_kaem.distributions.tails import mass_below, survival
from numpyro_kaem.entry_points import compiled
from numpyro_kaem.inverse_transform import (
    InverseTable,
    build_inverse,
    table_icdf,
    with_guide,
)
from numpyro_kaem.quadrature import Panels, QuadratureRule, default_rule


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
        q = self._check_shape("q", q)
        shape = self._result_shape(q)
        if complement is not None:
            complement = self._check_shape("complement", complement)
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
        return build_inverse(table, tail_panels(self, table) if extended else None)

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
        self = self._prepared()
        low, high = self._body
        value = self._onto_ends(value)
        is_below, is_above, inside = value < low, value > high, self.support(value)
        # No jnp.clip: it would halve derivatives at the body's ends.
        in_body = jnp.where(is_below, low, jnp.where(is_above, high, value))
        in_body = jnp.broadcast_to(in_body, self._result_shape(in_body))
        body = self._out_of_rows(table_cdf(self._table(), self._in_rows(in_body)), in_body.shape)
        # Outside of its support the reference's own cdf may be NaN.
        in_support = jnp.where(inside, value, in_body)
        below, above = self._tail_probabilities(jnp.minimum(in_support, low), jnp.maximum(in_support, high))
        below, above = jnp.where(inside, below, 0.0), jnp.where(inside, above, 0.0)
        return jnp.where(is_below, below, jnp.where(is_above, 1.0 - above, body))

    @compiled
    def _survival(self, value):
        _, high = self._body
        # The upper tail from its own side, where 1 - F(z) has lost its digits.
        _, above = self._tail_probabilities(high, jnp.maximum(value, high))
        return jnp.where(value > high, above, 1.0 - self._cdf(value))

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
            far = quantile_in_tail(self, table, share, 1.0 - share, below)
            z = jnp.where(below | (complement < inverse.upper_end), far, z)
        support = self.support
        low, high = getattr(support, "lower_bound", -jnp.inf), getattr(support, "upper_bound", jnp.inf)
        z = jnp.where(q == 0, jnp.asarray(low, z.dtype), jnp.where(complement == 0, jnp.asarray(high, z.dtype), z))
        return self._in_rows(jnp.where((q >= 0) & (complement >= 0), z, jnp.nan))

    def _tail_probabilities(self, below, above, lower=mass_below, upper=survival):
        """F at points below the body and 1 - F at points above it.

        With `lower` and `upper` exchanged, what the reference has on the other side of the points, in the same units.
        """
        log_lower, log_upper = self._log_tail_weights()
        reference = self._reference
        return jnp.exp(log_lower) * lower(reference, below), jnp.exp(log_upper) * upper(reference, above)


@survival.register
def _(distribution: TabulatedDistribution, z):
    return distribution._survival(z)


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
