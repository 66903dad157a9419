"""Quantiles of tabulated distributions.

A table of a CDF, extended into the tails by panels that hold fixed shares of them, is inverted in three steps: a search
for the panel, the inverse of a rational quadratic with the panel's end values as a first guess, and steps of Halley's
method on the panel's polynomial.

Probabilities above one half are handled as survival probabilities throughout, because 1 - u keeps its digits where u
has lost them. Both halves share one search over integer keys: the bits of a positive float increase with it, so u is
ordered by bits(u) below one half and by c - bits(1 - u) above. The leading bits of a key tell where to begin, if a
table of that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from numpyro_kaem._densities.cdf_table import (
    CDFTable,
    padded,
    panel_depth,
    panel_polynomials,
    panel_shapes,
    search_panels,
    take,
    take_edge,
)
from numpyro_kaem._numerics.quadrature import GaussLegendre

# Buckets of a guide table per octave of probability.
_GUIDE_BITS = 5
# Of Halley's method, in panels across which the density changes by a factor of millions.
_MOST_STEPS = 16
_BISECTIONS = 80
# Where the nodes of tail panels are, whatever the rule of the body: there is nothing to be integrated.
TAIL_RULE = GaussLegendre()


class TailPanels(NamedTuple):
    """The panels of one tail, in increasing order."""

    shares: np.ndarray  # what part of the tail lies beyond each edge, seen from the body; float64
    edges: Float[Array, "*batch_or_none num_edges"]
    log_density: Float[Array, "*batch_or_none num_panels num_nodes"]  # at the nodes of `TAIL_RULE`, up to a constant


class InverseTable(NamedTuple):
    """What quantiles are looked up in, tails included; constants to derivatives, which are implicit."""

    edges: Float[Array, "*batch_or_none num_edges"]
    keys: Int[Array, "*batch num_panels"]  # of the panels' left ends
    base: Float[Array, "*batch num_panels"]  # F at the left end of each panel, or S at the right end
    slope: Float[Array, "*batch num_panels"]  # one over the mass of the panel, negative where its base is S
    polynomials: Float[Array, "num_powers *batch num_panels"] | tuple[Float[Array, "*batch num_panels"], ...]
    lower_end: Float[Array, "*batch"]  # the probability below the first edge
    upper_end: Float[Array, "*batch"]
    guide: Int[Array, "*batch num_parts"] | None = None  # of each leading part of a key, the last panel before it
    guide_depth: Int[Array, "*batch"] | None = None  # how often the panels of one such part must be halved


def tail_shares(dtype) -> np.ndarray:
    """Shares of a tail beyond the edges of its panels, decreasing from 1 at the body, to below the resolution of draws.

    They approach 1 by octaves as well as 0: the bulk of a reference may lie in a tail, at a distance from the body.
    """
    bits = jnp.finfo(dtype).nmant + 3.0
    far = 0.5 ** np.concatenate([np.arange(1.0, 8.0, 0.5), np.arange(8.0, bits + 1.0)])
    # Differences of these to one are exact in float64 up to its own resolution.
    near = 0.5 ** np.concatenate([np.arange(1.5, 4.0, 0.5), np.arange(4.0, min(bits, 52.0) + 1.0)])
    return np.concatenate([[1.0], 1.0 - near[::-1], far])


def build_inverse(table: CDFTable, tails: tuple[TailPanels, TailPanels] | None) -> InverseTable:
    """Prepare a table for quantiles, and extend it into the tails."""
    edges, lower, upper, mass, polynomials, lower_end, upper_end = lax.stop_gradient(table[:7])
    dtype, batch_shape = mass.dtype, mass.shape[:-1]
    left_survival = upper + mass
    if tails is not None:
        counts = [len(tails[0].shares) - 1, mass.shape[-1], len(tails[1].shares) - 1]

        def joined(*parts):
            """The panels of the lower tail, the body and the upper tail; a sum is made where it is used."""
            around = [(sum(counts[:i]), sum(counts[i + 1 :])) for i in range(3)]
            return sum(jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [a]) for p, a in zip(parts, around, strict=True))

        def times(tail, shares):
            return tail[..., None] * shares.astype(dtype)

        r, s = (tail.shares for tail in tails)
        from_left, from_right = left_survival[..., :1], (lower + mass)[..., -1:]
        lower = joined(times(lower_end, r[:-1]), lower, from_right + times(upper_end, 1.0 - s[:-1]))
        left_survival = joined(from_left + times(lower_end, 1.0 - r[:-1]), left_survival, times(upper_end, s[:-1]))
        upper = joined(from_left + times(lower_end, 1.0 - r[1:]), upper, times(upper_end, s[1:]))
        mass = joined(times(lower_end, np.diff(r)), mass, times(upper_end, -np.diff(s)))
        shapes = panel_shapes(lax.stop_gradient(jnp.stack([tail.log_density for tail in tails])), TAIL_RULE)
        powers, polynomials = panel_polynomials(shapes, TAIL_RULE), jnp.asarray(polynomials)
        missing = len(powers) - len(polynomials)  # of the body, whose rule may have fewer nodes
        polynomials = jnp.pad(polynomials, [(0, missing)] + [(0, 0)] * (polynomials.ndim - 1))
        powers = powers.reshape(len(powers), 2, *[1] * (len(batch_shape) + 3 - powers.ndim), *powers.shape[2:])
        polynomials = joined(powers[:, 0], polynomials, powers[:, 1])
        lower_end, upper_end = lower_end * float(r[0]), upper_end * float(s[-1])
        edges = [tails[0].edges, edges[..., 1:], tails[1].edges[..., 1:]]  # neighbours share one
        if any(part.ndim > 1 for part in edges):
            edges = [jnp.broadcast_to(part, (*batch_shape, part.shape[-1])) for part in edges]
        edges = jnp.concatenate(edges, axis=-1)
    from_above = lower > 0.5
    inverse_mass = 1.0 / jnp.maximum(mass, jnp.finfo(dtype).tiny)
    return lax.optimization_barrier(
        InverseTable(
            edges=edges,
            keys=_key(lower, left_survival),
            base=jnp.where(from_above, upper, lower),
            slope=jnp.where(from_above, -inverse_mass, inverse_mass),
            polynomials=polynomials,
            lower_end=lower_end,
            upper_end=upper_end,
        )
    )


def with_guide(table: InverseTable) -> InverseTable:
    """Add a table of where to begin the search; worth its while for many look-ups."""
    first, shift, num_parts = _parts_of_keys(table.keys.dtype)
    starts = first + (jnp.arange(num_parts + 1, dtype=table.keys.dtype) << shift)
    rows = table.keys.reshape(-1, table.keys.shape[-1])
    guide = jax.vmap(lambda keys: jnp.searchsorted(keys, starts, side="right").astype(jnp.int32) - 1)(rows)
    guide = jnp.maximum(guide, 0).at[..., 0].set(0)
    most = jnp.max(jnp.diff(guide, axis=-1), axis=-1)
    depth = jnp.ceil(jnp.log2(most + 1.0)).astype(jnp.int32)
    batch_shape = table.keys.shape[:-1]
    return table._replace(guide=guide[:, :-1].reshape(*batch_shape, num_parts), guide_depth=depth.reshape(batch_shape))


def _parts_of_keys(integer) -> tuple[int, int, int]:
    """The smallest key that is told apart, the bits of a key below its leading part, and the number of these parts."""
    info = np.finfo(np.float32 if integer == jnp.int32 else np.float64)
    first, half = (int(np.asarray(p, info.dtype).view(integer)) for p in (2.0 ** -(info.nmant + 20), 0.5))
    shift = info.nmant - _GUIDE_BITS
    return first, shift, ((2 * half - 2 * first) >> shift) + 1


def _key(lower: Float[Array, "..."], upper: Float[Array, "..."]) -> Int[Array, "..."]:
    """An integer that orders probabilities (lower, upper = 1 - lower) with full precision at both ends."""
    integer = jnp.int32 if lower.dtype == jnp.float32 else jnp.int64

    def bits(p):
        return lax.bitcast_convert_type(jnp.maximum(p, 0.0), integer)

    half = bits(jnp.asarray(0.5, lower.dtype))
    key = jnp.where(lower <= upper, jnp.minimum(bits(lower), half), 2 * half - jnp.minimum(bits(upper), half))
    return lax.stop_gradient(key)


def table_icdf(
    table: InverseTable, q: Float[Array, "num_rows n"], complement: Float[Array, "num_rows n"] | None = None
) -> Float[Array, "num_rows n"]:
    """Quantiles of every distribution, a row for each; those beyond the table are moved to its end.

    The complement is 1 - q, if it is known to more digits than q has.
    """
    shape, complement = q.shape, 1.0 - q if complement is None else complement
    row = lax.broadcasted_iota(jnp.int32, q.shape, 0).ravel()
    q, complement = q.ravel(), complement.ravel()
    key = _key(q, complement)
    if table.guide is None:
        panel = search_panels(padded(table.keys), row, key, panel_depth(table.base.shape[-1]))
    else:
        smallest, shift, num_parts = _parts_of_keys(key.dtype)
        first = take(table.guide, row, jnp.clip((key - smallest) >> shift, 0, num_parts - 1).astype(jnp.int32))
        panel = search_panels(padded(table.keys), row, key, jnp.max(table.guide_depth, initial=0), first)

    slope = take(table.slope, row, panel)
    from_above = slope < 0
    share = (jnp.where(from_above, complement, q) - take(table.base, row, panel)) * slope
    share = jnp.clip(share + jnp.where(from_above, 1.0, 0.0), 0.0, 1.0)
    place = _invert([take(power, row, panel) for power in table.polynomials], share)
    left, right = take_edge(table.edges, row, panel), take_edge(table.edges, row, panel + 1)
    return jnp.clip(left + (right - left) * place, left, right).reshape(shape)


def _invert(coefficients: list[Array], share: Array) -> Array:
    """Solve Q(t) = share for t in [0, 1]: Halley's method from the inverse of a rational quadratic.

    That has the values and slopes of Q at both ends (Gregory and Delbourgo 1982).
    """
    at_left = jnp.maximum(_value_and_derivatives(coefficients, 0.0)[1], 1e-6)
    at_right = jnp.maximum(_value_and_derivatives(coefficients, 1.0)[1], 1e-6)
    bend = at_left + at_right - 2.0
    a, b = 1.0 - at_left + share * bend, at_left - share * bend
    place = 2.0 * share / (b + jnp.sqrt(jnp.maximum(b**2 + 4.0 * a * share, 1e-30)))

    # The error of a step goes with the third power of the step before it.
    small = float(jnp.finfo(share.dtype).eps) ** (1.0 / 3.0) / 2.0

    def step(state):
        count, place, _ = state
        value, slope, half_bend = _value_and_derivatives(coefficients, place)
        slope, excess = jnp.maximum(slope, 1e-3), value - share
        change = excess * slope / jnp.maximum(slope**2 - excess * half_bend, 0.5 * slope**2)
        moved = jnp.clip(place - change, 0.0, 1.0)
        return count + 1, moved, jnp.any(jnp.abs(moved - place) > small * place)

    def goes_on(state):
        count, _, is_moving = state
        return (count < _MOST_STEPS) & is_moving

    return lax.while_loop(goes_on, step, (0, jnp.clip(place, 0.0, 1.0), True))[1]


def _value_and_derivatives(coefficients: list[Array], t: Array | float) -> tuple[Array, Array, Array]:
    """Q(t) = t (c_0 + c_1 x + ...) with x = 2 t - 1, its derivative, and half of the second one."""
    x, value, slope, half_bend = 2.0 * t - 1.0, coefficients[-1], 0.0, 0.0
    for coefficient in reversed(coefficients[:-1]):
        half_bend = half_bend * x + slope
        slope = slope * x + value
        value = value * x + coefficient
    return t * value, value + 2.0 * t * slope, 2.0 * (slope + 2.0 * t * half_bend)


def invert_tail(tail_mass: Callable[[Array], Array], target: Array, start: ArrayLike, bound: ArrayLike) -> Array:
    """Solve tail_mass(z) = target by bisection between `start` and the support's end `bound`, finite if an array.

    The function decreases from start to bound. Distances are bisected by ratios, so that quantiles keep their relative
    precision however far out they lie.
    """
    if isinstance(start, float) and isinstance(bound, float) and start == bound:
        return jnp.full_like(target, start)
    # The distance from start, or what is left of that to a finite bound, is bisected by geometric means: its logarithm
    # would be rounded to millionths in float32.
    unbounded, info = isinstance(bound, float) and math.isinf(bound), jnp.finfo(target.dtype)
    inner, outer = (np.exp(-40.0), np.sqrt(info.max)) if unbounded else (1.0, np.sqrt(info.tiny))

    def position(distance):
        return start + math.copysign(1.0, bound) * distance if unbounded else bound - (bound - start) * distance

    def step(_, bracket):
        inner, outer = bracket
        middle = jnp.sqrt(inner) * jnp.sqrt(outer)
        beyond = tail_mass(position(middle)) > target
        return jnp.where(beyond, middle, inner), jnp.where(beyond, outer, middle)

    bracket = jnp.full_like(target, inner), jnp.full_like(target, outer)
    inner, outer = lax.fori_loop(0, _BISECTIONS, step, bracket)
    return position(jnp.sqrt(inner) * jnp.sqrt(outer))
