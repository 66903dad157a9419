"""Quantiles and draws of densities, with implicit derivatives."""

from __future__ import annotations

import dataclasses
from functools import singledispatch

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.cdf_table import in_rows, out_of_rows
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.inverse_table import InverseTable, build_inverse, table_icdf, with_guide
from numpyro_kaem._densities.masses import cdf, log_prob
from numpyro_kaem._densities.tail_panels import quantile_in_tail, tail_panels


@eqx.filter_custom_jvp
def icdf(density, q: Array, complement: Array | None, drawn: bool) -> Array:
    """The quantile z with F(z) = q; derivatives are implicit, dz = (dq - dF(z)) / p(z).

    The complement is 1 - q, if it is known to more digits than q has, and not differentiated. Probabilities that are
    `drawn` from a uniform distribution are never at its ends.
    """
    return quantile(density, q, complement, drawn)


@icdf.def_jvp
def _icdf_jvp(primals, tangents):
    density, q, complement, drawn = primals
    density_dot, q_dot, *_ = tangents
    learned = bool(jax.tree.leaves(density_dot))
    if learned:  # all of the below by one table
        density, density_dot = eqx.filter_jvp(lambda d: d.prepared(), (density,), (density_dot,))
    z = icdf(density, q, complement, drawn)
    z_dot = jnp.zeros_like(z) if q_dot is None else q_dot
    if learned:
        _, cdf_dot = eqx.filter_jvp(lambda d: cdf(d, z), (density,), (density_dot,))
        z_dot = z_dot - cdf_dot
    # The inverse of a density that underflows stays finite, with room for what it is multiplied by: no infinite factor.
    smallest = 0.75 * float(np.log(jnp.finfo(z.dtype).tiny))
    return z, z_dot * jnp.exp(-jnp.maximum(log_prob(density, z), smallest))


@compiled
def draw(density, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Draws by inverse transform, z = icdf(u) with u uniform on the open interval (0, 1)."""
    dtype = density.dtype
    # jax.random.uniform gives multiples of eps in [0, 1); half a step further in, no draw is at 0 or 1.
    half = jnp.finfo(dtype).eps / 2
    # Made coordinate by coordinate, as they are looked up.
    rows = jax.eval_shape(lambda u: in_rows(u, density.shape), jax.ShapeDtypeStruct(shape, dtype)).shape
    u = out_of_rows(jax.random.uniform(key, rows, dtype) + half, density.shape, shape)
    return icdf(density, u, None, True)


@compiled
def tabulated(density: Density) -> Density:
    """The density with its tables, in which every leaf has the axes of the batch first, to be mapped along them."""
    density = density.prepared()

    def batch_first(table):
        edges = jnp.broadcast_to(table.edges, (*density.shape, table.edges.shape[-1]))
        return table._replace(edges=edges, polynomials=tuple(table.polynomials))

    return dataclasses.replace(
        density,
        table=batch_first(density.table),
        inverse=batch_first(with_guide(_inverse(density))),
        constants=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, density.constants_shape), density.constants),
    )


@singledispatch
@compiled
def quantile(density: Density, q: Array, complement: Array | None, drawn: bool) -> Array:
    """What `icdf` computes."""
    density = density.prepared()
    inverse = _inverse(density)
    rows = jax.tree.map(lambda p: in_rows(p, density.shape), (q, complement))
    z = table_icdf(inverse, *rows)
    if drawn and density.kinks is None:  # the tables reach further than draws do
        return out_of_rows(z, density.shape, q.shape)
    lower, upper = (end.reshape(-1, 1) for end in (inverse.lower_end, inverse.upper_end))
    in_table = (rows[0] > lower) & ((1.0 - rows[0] if complement is None else rows[1]) > upper)
    # A loop of at most one round, because lax.cond under vmap would build the tables anew for every element.
    z, _ = jax.lax.while_loop(
        lambda state: state[1],
        lambda state: (_with_ends(density, state[0], inverse, q, complement), jnp.zeros((), bool)),
        (z, ~jnp.all(in_table)),
    )
    return out_of_rows(z, density.shape, q.shape)


def _inverse(density: Density) -> InverseTable:
    """The table of quantiles of a prepared density, extended into the tails as far as draws reach."""
    if density.inverse is not None:
        return density.inverse
    # Panels of fixed shares cannot end at a kink.
    extended = density.has_tails and density.kinks is None
    return build_inverse(density.table, tail_panels(density) if extended else None)


def _with_ends(density: Density, rows: Array, inverse: InverseTable, q: Array, complement: Array | None) -> Array:
    """Quantiles with those that draws do not reach: beyond the tables, at 0 and 1, and outside of [0, 1]."""
    z = out_of_rows(rows, density.shape, q.shape)
    complement = 1.0 - q if complement is None else complement
    if density.has_tails:
        below, table = q < inverse.lower_end, density.table
        tail = jnp.where(below, table.lower_tail, table.upper_tail)
        share = jnp.minimum(jnp.where(below, q, complement) / jnp.where(tail > 0, tail, 1.0), 1.0)
        far = quantile_in_tail(density, share, 1.0 - share, below)
        z = jnp.where(below | (complement < inverse.upper_end), far, z)
    support = density.support
    low, high = getattr(support, "lower_bound", -jnp.inf), getattr(support, "upper_bound", jnp.inf)
    z = jnp.where(q == 0, jnp.asarray(low, z.dtype), jnp.where(complement == 0, jnp.asarray(high, z.dtype), z))
    return in_rows(jnp.where((q >= 0) & (complement >= 0), z, jnp.nan), density.shape)
