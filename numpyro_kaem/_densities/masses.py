"""Log-densities and cumulative probabilities: of the body by its table, beyond it by the tails of the reference."""

from __future__ import annotations

import math
from functools import singledispatch

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.cdf_table import in_rows, out_of_rows, table_log_masses, table_mass_between, table_masses
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference_tails import log_mass_above, log_mass_below
from numpyro_kaem._densities.reference_tails import log_mass_between as reference_log_mass_between
from numpyro_kaem._numerics.log_probabilities import log_difference, log_sum, safe_log

# Compiled, because called one by one the many small operations would each be compiled on first use.


@singledispatch
@compiled
def log_prob(density: Density, z: Array) -> Array:
    """Normalised log-density, -inf outside the support."""
    z = onto_ends(density.support, density.dtype, z)
    inside = density.support(z)
    safe = jnp.where(inside, z, jnp.clip(z, *density.body))
    return jnp.where(inside, density.log_density(safe), -jnp.inf)


@singledispatch
@compiled
def cdf(density: Density, z: Array) -> Array:
    """F(z)."""
    return _masses(density.prepared(), _Regions(density, z), lambda beyond: 1.0 - beyond)[0]


@singledispatch
@compiled
def survival(density: Density, z: Array) -> Array:
    """1 - F(z), with the digits that this has lost in the upper tail."""
    return _exact_masses(density.prepared(), _Regions(density, z))[1]


@singledispatch
@compiled
def log_masses(density: Density, z: Array) -> tuple[Array, Array]:
    """Log F and log(1 - F); of the smaller one first, of the larger one from that."""
    density = density.prepared()
    at = _Regions(density, z)
    rows = table_log_masses(density.table, in_rows(at.in_body, density.shape))
    log_body = [out_of_rows(part, density.shape, at.in_body.shape) for part in rows]
    log_tails = [jnp.where(at.inside, tail, -jnp.inf) for tail in density.log_tail_masses(*at.in_tails)]
    masses = _exact_masses(density, at)
    logs = []
    for (mass, rest), body, tail, is_own, is_other in (
        (masses, log_body[0], log_tails[0], at.is_below, at.is_above),
        (masses[::-1], log_body[1], log_tails[1], at.is_above, at.is_below),
    ):
        is_small = mass < 0.5
        small = jnp.where(is_own, tail, jnp.where(is_other, safe_log(mass), body))
        logs.append(jnp.where(is_small, small, jnp.log1p(-jnp.where(is_small, 0.0, rest))))
    return logs[0], logs[1]


@singledispatch
@compiled
def log_mass_between(density: Density, low: Array, high: Array) -> Array:
    """Log of the probability between two points, low <= high: the sum of what is in the two tails and the body."""
    density = density.prepared()
    low, high = jnp.broadcast_arrays(low, high)
    start, end = _Regions(density, low), _Regions(density, high)
    (below_low, above_low), (below_high, above_high) = start.in_tails, end.in_tails
    # Beyond the support there is what is beyond infinity.
    below_low = jnp.where(start.is_below & ~start.inside, -jnp.inf, below_low)
    above_high = jnp.where(end.is_above & ~end.inside, jnp.inf, above_high)
    low_rows, high_rows = (in_rows(at.in_body, density.shape) for at in (start, end))

    def out(rows):
        return out_of_rows(rows, density.shape, start.in_body.shape)

    body = safe_log(out(table_mass_between(density.table, low_rows, high_rows)))
    # Of a body whose mass there underflows.
    (below_a, above_a), (below_b, above_b) = (
        map(out, table_log_masses(density.table, rows)) for rows in (low_rows, high_rows)
    )
    from_below = below_b < above_a
    tiny = log_difference(jnp.where(from_below, below_b, above_a), jnp.where(from_below, below_a, above_b))
    body = jnp.where(body < math.log(jnp.finfo(body.dtype).tiny) + 10.0, tiny, body)
    between = reference_log_mass_between, reference_log_mass_between
    tails = density.log_tail_masses(jnp.stack([below_low, below_high]), jnp.stack([above_low, above_high]), *between)
    return log_sum(body, *(jnp.where(low < high, tail, -jnp.inf) for tail in tails))


class _Regions:
    """Where points lie: below or above the body, in the support; moved into the body, or into either tail."""

    def __init__(self, density: Density, z: Array):
        low, high = density.body
        z = onto_ends(density.support, density.dtype, z)
        self.is_below, self.is_above = z < low, z > high
        self.inside = density.support(z) & jnp.isfinite(z)
        # No jnp.clip: it would halve derivatives at the body's ends.
        in_body = jnp.where(self.is_below, low, jnp.where(self.is_above, high, z))
        self.in_body = jnp.broadcast_to(in_body, jnp.broadcast_shapes(in_body.shape, density.shape))
        # Outside of its support the reference's own cdf may be NaN.
        in_support = jnp.where(self.inside, z, self.in_body)
        self.in_tails = jnp.minimum(in_support, low), jnp.maximum(in_support, high)


def onto_ends(support, dtype, z: Array) -> Array:
    """Points of another dtype, which the density's does not tell from an end of the support, moved onto it."""
    info = jnp.finfo(dtype)
    for end in (getattr(support, name, None) for name in ("lower_bound", "upper_bound")):
        if end is not None and jnp.result_type(z, end) != dtype:
            z, end = (jnp.asarray(part, jnp.result_type(z, end)) for part in (z, end))
            # A compiler may leave out conversions to another dtype and back.
            rounded = (jax.lax.reduce_precision(part, info.nexp, info.nmant) for part in (z, end))
            z = jnp.where(jnp.equal(*rounded), end, z)
    return z


def _masses(density: Density, at: _Regions, before_of) -> tuple[Array, Array]:
    """F and 1 - F: in a tail what is beyond, and what is before it by a function of that."""
    rows = table_masses(density.table, in_rows(at.in_body, density.shape))
    body_below, body_above = (out_of_rows(part, density.shape, at.in_body.shape) for part in rows)
    log_beyond = jnp.where(at.is_below, *density.log_tail_masses(*at.in_tails))
    beyond = jnp.where(at.inside & (at.is_below | at.is_above), jnp.exp(log_beyond), 0.0)
    before = before_of(beyond)
    return (
        jnp.where(at.is_below, beyond, jnp.where(at.is_above, before, body_below)),
        jnp.where(at.is_below, before, jnp.where(at.is_above, beyond, body_above)),
    )


def _exact_masses(density: Density, at: _Regions) -> tuple[Array, Array]:
    """F and 1 - F: what is before points of a tail that holds the bulk of the mass is summed up from its start."""

    def before_of(beyond):
        others = density.log_tail_masses(*at.in_tails, log_mass_above, log_mass_below)
        low, high = (jnp.asarray(end, density.dtype) for end in density.body)
        starts = density.log_tail_masses(low, high, log_mass_above, log_mass_below)
        other, start = (jnp.where(at.is_below, *pair) for pair in (others, starts))
        is_bulk = at.inside & (beyond > 0.5) & (other < 0.0)
        other, start = (jnp.where(is_bulk, part, 0.0) for part in (other, start))
        table = density.table
        rest = jnp.where(
            at.is_below, table.upper[..., 0] + table.mass[..., 0], table.lower[..., -1] + table.mass[..., -1]
        )
        return jnp.where(is_bulk, rest + (jnp.exp(other) - jnp.exp(start)), 1.0 - beyond)

    return _masses(density, at, before_of)
