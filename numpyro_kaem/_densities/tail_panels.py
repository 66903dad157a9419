"""The tails of densities: their panels and their quantiles, from those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.inverse_table import TAIL_RULE, TailPanels, invert_tail, tail_shares
from numpyro_kaem._densities.reference_tails import log_mass_above, log_mass_below, tails_of
from numpyro_kaem._numerics.log_probabilities import log_sum, safe_log


def tail_panels(density: Density) -> tuple[TailPanels, TailPanels]:
    """Panels of the lower and the upper tail, each a fixed share of it."""
    dtype, rank = density.dtype, len(density.shape)
    shares = tail_shares(dtype)
    # Where all elements of the batch have the tail of one reference, so they have its panels.
    common = density.tails_invert and density.reference.batch_shape == () and density.basis.grid.batch_shape == ()
    # The axes are panels, nodes, the two tails, and the batch; panels lead outwards.
    batch = [1] * (0 if common else rank)
    below = jnp.asarray([True, False]).reshape(2, *batch)
    beyond, before = (part.astype(dtype).reshape(-1, 1, *batch) for part in (shares, 1.0 - shares))
    edges = quantile_in_tail(density, beyond, before, below)
    low, high = (jnp.asarray(end, dtype) for end in density.body)
    end = jnp.where(below, low, high)
    edges = jnp.concatenate([jnp.broadcast_to(end, (1, *edges.shape[1:])), edges[1:]])
    # A tail without mass has no quantiles: its panels are empty.
    edges = jnp.where(jnp.isfinite(edges), edges, end)
    edges = jax.lax.stop_gradient(jnp.where(below, jnp.minimum(edges, end), jnp.maximum(edges, end)))
    places = TAIL_RULE.unit_nodes.astype(dtype).reshape(-1, 1, *batch)
    nodes = edges[:-1, None] + jnp.diff(edges, axis=0)[:, None] * places
    log_density = density.reference.log_prob(nodes) if common else density.log_density(nodes)
    # Rounded or empty panels may reach the end of the support, where a density need not be finite.
    log_density = jnp.where(jnp.isfinite(log_density), log_density, jnp.finfo(dtype).min)
    (lower, upper), edges = jnp.moveaxis(log_density, (0, 1), (-2, -1)), jnp.moveaxis(edges, 0, -1)
    return TailPanels(shares[::-1], edges[0, ..., ::-1], lower[..., ::-1, ::-1]), TailPanels(shares, edges[1], upper)


def quantile_in_tail(density: Density, share, rest, below) -> Array:
    """The point with a share of the tail below it (where `below`) or above it, and the rest = 1 - share before it."""
    return quantile_of_logs(density, safe_log(share), safe_log(rest), below)


def quantile_of_logs(density: Density, log_share, log_rest, below) -> Array:
    """As `quantile_in_tail`, given logarithms.

    A tail may hold the bulk of the reference. The point is found from that end of the reference which is nearer:
    next to a body in the other tail of the reference, the mass beyond has lost the digits of the mass before.
    """
    # As arrays: Python numbers alone would be computed in the widest dtype that JAX is set to.
    low, high = (jnp.asarray(end, density.dtype) for end in density.body)
    if density.tails_invert:
        reference = density.reference
        tail = jnp.where(below, log_mass_below(reference, low), log_mass_above(reference, high))
        other = jnp.where(below, log_mass_above(reference, low), log_mass_below(reference, high))
        beyond, before = log_share + tail, log_sum(other, log_rest + tail)
        return tails_of(reference).log_quantile(jnp.minimum(beyond, before), below == (beyond <= before))
    bounds = _support_bound(density, "lower_bound", jnp.min), _support_bound(density, "upper_bound", jnp.max)
    tails = density.log_tail_masses(low, high)
    others = density.log_tail_masses(low, high, log_mass_above, log_mass_below)

    def invert(side):
        def masses(z):
            at_low, at_high = (z, high) if side == 0 else (low, z)
            beyond = density.log_tail_masses(at_low, at_high)
            before = density.log_tail_masses(at_low, at_high, log_mass_above, log_mass_below)
            return beyond[side], before[side]

        beyond, before = log_share + tails[side], log_sum(others[side], log_rest + tails[side])
        from_beyond = beyond <= before
        target = jnp.where(from_beyond, beyond, -before)
        # Decreasing outwards, both.
        return invert_tail(
            lambda z: jnp.where(from_beyond, masses(z)[0], -masses(z)[1]), target, density.body[side], bounds[side]
        )

    return jnp.where(below, invert(0), invert(1))


def _support_bound(density: Density, name: str, widest: Callable) -> float | Array:
    """An end of the support: a float where it is known and common to the batch; of a mixture, the widest one."""
    bound = getattr(density.support, name, -np.inf if name == "lower_bound" else np.inf)
    if not isinstance(bound, core.Tracer) and np.ndim(bound) == 0:
        return float(bound)
    bound = jnp.asarray(bound, density.dtype)
    return widest(bound, axis=-1) if bound.ndim > len(density.shape) else bound
