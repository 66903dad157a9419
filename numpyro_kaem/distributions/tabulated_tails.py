"""The tails of tabulated distributions: their panels and their quantiles, from those of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array

from numpyro_kaem.cdf_table import CDFTable
from numpyro_kaem.distributions.tails import mass_below, survival, tail_quantile
from numpyro_kaem.inverse_transform import TAIL_RULE, TailPanels, invert_tail, tail_shares

if TYPE_CHECKING:
    from numpyro_kaem.distributions.tabulated import TabulatedDistribution


def tail_panels(distribution: TabulatedDistribution, table: CDFTable) -> tuple[TailPanels, TailPanels]:
    """Panels of the lower and the upper tail, each a fixed share of it."""
    dtype, rank = distribution._dtype, len(distribution._table_shape)
    shares = tail_shares(dtype)
    # Where all elements of the batch have the tail of one reference, so they have its panels.
    common = (
        distribution._tails_invert
        and distribution._reference.batch_shape == ()
        and distribution._basis.grid.batch_shape == ()
    )
    # The axes are panels, nodes, the two tails, and the batch; panels lead outwards.
    batch = [1] * (0 if common else rank)
    below = jnp.asarray([True, False]).reshape(2, *batch)
    both = (part.astype(dtype).reshape(-1, 1, *batch) for part in (shares, 1.0 - shares))
    edges = quantile_in_tail(distribution, table, *both, below)
    end = jnp.where(below, *(jnp.asarray(end, dtype) for end in distribution._body))
    edges = jnp.concatenate([jnp.broadcast_to(end, (1, *edges.shape[1:])), edges[1:]])
    # A tail without mass has no quantiles: its panels are empty.
    edges = jnp.where(jnp.isfinite(edges), edges, end)
    edges = jax.lax.stop_gradient(jnp.where(below, jnp.minimum(edges, end), jnp.maximum(edges, end)))
    places = TAIL_RULE.unit_nodes.astype(dtype).reshape(-1, 1, *batch)
    nodes = edges[:-1, None] + jnp.diff(edges, axis=0)[:, None] * places
    log_density = distribution._reference.log_prob(nodes) if common else distribution._log_density(nodes)
    # Rounded or empty panels may reach the end of the support, where a density need not be finite.
    log_density = jnp.where(jnp.isfinite(log_density), log_density, jnp.finfo(dtype).min)
    (lower, upper), edges = jnp.moveaxis(log_density, (0, 1), (-2, -1)), jnp.moveaxis(edges, 0, -1)
    return (
        TailPanels(shares[::-1], edges[0, ..., ::-1], lower[..., ::-1, ::-1]),
        TailPanels(shares, edges[1], upper),
    )


def quantile_in_tail(distribution: TabulatedDistribution, table: CDFTable, share, rest, below) -> Array:
    """The point with a share of the tail below it (where `below`) or above it, and the rest = 1 - share before it.

    A tail may hold the bulk of the reference. The point is found from that end of the reference which is nearer:
    next to a body in the other tail of the reference, the mass beyond has lost the digits of the mass before.
    """
    (low, high), reference = distribution._body, distribution._reference
    if distribution._tails_invert:
        # As arrays: Python numbers alone would be computed in the widest dtype that JAX is set to.
        low, high = (jnp.asarray(end, distribution._dtype) for end in (low, high))
        beyond = jnp.where(below, mass_below(reference, low), survival(reference, high))
        before = jnp.where(below, survival(reference, low), mass_below(reference, high))
        beyond, before = share * beyond, before + rest * beyond
        return tail_quantile(reference, jnp.minimum(beyond, before), below == (beyond <= before))
    bounds = _support_bound(distribution, "lower_bound", jnp.min), _support_bound(distribution, "upper_bound", jnp.max)
    tails, others = (
        (table.lower_tail, table.upper_tail),
        distribution._tail_probabilities(low, high, survival, mass_below),
    )

    def invert(side, start, tail, other):
        def masses(z):
            at = (z, high) if side == 0 else (low, z)
            return distribution._tail_probabilities(*at)[side], distribution._tail_probabilities(
                *at, survival, mass_below
            )[side]

        beyond, before = share * tail, other + rest * tail
        from_beyond = beyond <= before
        target = jnp.where(from_beyond, beyond, -before)
        # Decreasing outwards, both.
        return invert_tail(lambda z: jnp.where(from_beyond, masses(z)[0], -masses(z)[1]), target, start, bounds[side])

    ends = (invert(side, *of) for side, of in enumerate(zip((low, high), tails, others, strict=True)))
    return jnp.where(below, *ends)


def _support_bound(distribution: TabulatedDistribution, name: str, widest: Callable) -> float | Array:
    """An end of the support: a float where it is known and common to the batch; of a mixture, the widest one."""
    bound = getattr(distribution.support, name, -np.inf if name == "lower_bound" else np.inf)
    if not isinstance(bound, core.Tracer) and np.ndim(bound) == 0:
        return float(bound)
    bound = jnp.asarray(bound, distribution._dtype)
    return widest(bound, axis=-1) if bound.ndim > len(distribution._table_shape) else bound
