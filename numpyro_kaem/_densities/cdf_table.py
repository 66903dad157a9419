"""Tables of one-dimensional cumulative distribution functions.

The body [a, b] of a density is cut into panels. On each, the density is a polynomial through its quadrature nodes, so
the CDF is the integral of that polynomial: panel j holds the mass m_j and the increasing polynomial Q_j with
F(e_j + h_j t) = F_j + m_j Q_j(t), 0 <= t <= 1. F_j and S_j = 1 - F_j are summed up separately, each from its own end.

Q_j is kept as Q_j(t) / t in powers of x = 2 t - 1: near the panel's left end it has relative precision, and the powers
do not cancel where the density changes by several nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from numpyro_kaem._numerics.quadrature import QuadratureRule, integrated_legendre

# The highest degree of a density on its panel: every power costs each draw a look-up.
MAX_DEGREE = 9


class CDFTable(NamedTuple):
    """The body [a, b] of a batch of normalised distributions, panel by panel, and the masses of their tails."""

    edges: Float[Array, "*batch_or_none num_edges"]
    lower: Float[Array, "*batch num_panels"]  # F at the left end of each panel
    upper: Float[Array, "*batch num_panels"]  # S = 1 - F at the right end of each panel, summed up from the right
    mass: Float[Array, "*batch num_panels"]
    # Coefficients of 1, x, x^2, ... of Q_j(t) / t, first axis the power; or one array for each.
    polynomials: Float[Array, "num_powers *batch num_panels"] | tuple[Float[Array, "*batch num_panels"], ...]
    lower_tail: Float[Array, "*batch"]
    upper_tail: Float[Array, "*batch"]
    log_mass: Float[Array, "*batch num_panels"]  # finite where the probability underflows, as are those of the tails
    log_tails: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]


def log_integral(
    log_density: Float[Array, "*batch num_panels num_nodes"],
    sizes: np.ndarray | Array,
    rule: QuadratureRule,
    log_lower_tail: Float[Array, "*batch"],
    log_upper_tail: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Log of the integral of an unnormalised density: its body by quadrature plus its two tails (see `build_table`)."""
    shapes = panel_shapes(log_density, rule)
    largest, mass, lower_tail, upper_tail = _masses(shapes, sizes, log_lower_tail, log_upper_tail)
    return largest + jnp.log(lower_tail + jnp.sum(mass, axis=-1) + upper_tail)


class _Shapes(NamedTuple):
    """Densities at the nodes of panels, each in units of its panel's average, and the logarithms of their largest."""

    density: Float[Array, "*batch num_panels num_nodes"]
    average: Float[Array, "*batch num_panels"]
    log_scale: Float[Array, "*batch num_panels"]


def panel_shapes(log_density: Float[Array, "*batch num_panels num_nodes"], rule: QuadratureRule) -> _Shapes:
    """Relative to the panel's own largest value: a panel of hardly any mass still has a shape, and finite gradients."""
    largest = jnp.max(lax.stop_gradient(log_density), axis=-1)
    scale = jnp.where(jnp.isneginf(largest), 0.0, largest)
    density = jnp.exp(log_density - scale[..., None])
    weights = rule.weights.astype(density.dtype)
    return _Shapes(density, jnp.matmul(density, weights, precision=lax.Precision.HIGHEST), largest)


def _masses(shapes: _Shapes, sizes, log_lower_tail, log_upper_tail):
    """The largest of all log-densities and log-masses, and in its units the masses of the panels and the tails."""
    tails = log_lower_tail, log_upper_tail
    largest = jnp.maximum(jnp.max(shapes.log_scale, axis=-1), jnp.maximum(*lax.stop_gradient(tails)))
    mass = sizes.astype(largest.dtype) * shapes.average * jnp.exp(shapes.log_scale - largest[..., None])
    return largest, mass, *(jnp.exp(tail - largest) for tail in tails)


def build_table(
    log_density: Float[Array, "*batch num_panels num_nodes"],
    edges: np.ndarray | Array,
    sizes: np.ndarray | Array,
    rule: QuadratureRule,
    log_lower_tail: Float[Array, "*batch"],
    log_upper_tail: Float[Array, "*batch"],
) -> CDFTable:
    """Tabulate the CDF of an unnormalised density, whose edges and sizes may lack the batch shape.

    The sizes of panels have digits that the differences of rounded edges have lost.
    """
    # Normalised by division: the rounding of log Z alone would scale every probability by up to 5e-7 in float32.
    shapes = panel_shapes(log_density, rule)
    largest, mass, lower_tail, upper_tail = _masses(shapes, sizes, log_lower_tail, log_upper_tail)
    total = lower_tail + jnp.sum(mass, axis=-1) + upper_tail
    lower_tail, upper_tail, mass = lower_tail / total, upper_tail / total, mass / total[..., None]
    before, after = _sums_on_either_side(mass)
    lower, upper = lower_tail[..., None] + before, upper_tail[..., None] + after

    # Without the barrier XLA would recompute the table inside every look-up.
    polynomials = panel_polynomials(shapes, rule)
    parts = (jnp.asarray(edges, mass.dtype), lower, upper, mass, polynomials, lower_tail, upper_tail)
    parts = lax.optimization_barrier(parts)
    # The logarithms are computed where they are asked for.
    empty = jnp.isneginf(shapes.log_scale)
    log_average = jnp.log(jnp.where(empty, 1.0, shapes.average)) + shapes.log_scale
    log_total = (largest + jnp.log(total))[..., None]
    log_size = jnp.log(jnp.where(sizes > 0, sizes, 1.0)).astype(mass.dtype)  # of panels that a kink has emptied, too
    log_mass = jnp.where(empty | (sizes <= 0), -jnp.inf, log_size + log_average - log_total)
    log_tails = log_lower_tail - log_total[..., 0], log_upper_tail - log_total[..., 0]
    return CDFTable(*parts, log_mass, log_tails)  # type: ignore[call-arg]  # a barrier returns as many as it is given


def _sums_on_either_side(mass: Float[Array, "*batch num_panels"]) -> tuple[Array, Array]:
    """Sums of what is to the left and to the right of each panel, each from its own end.

    Of blocks of panels, and of the panels of a block, as matrix products: a scan is made of many small operations.
    """
    num_panels, block = mass.shape[-1], 16
    blocks = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(0, -num_panels % block)])
    blocks = blocks.reshape(*mass.shape[:-1], -1, block)

    def sums(values):
        left = np.triu(np.ones((values.shape[-1], values.shape[-1])), 1)
        both = np.concatenate([left, left.T], axis=1).astype(mass.dtype)
        return jnp.split(jnp.matmul(values, both, precision=lax.Precision.HIGHEST), 2, axis=-1)

    return tuple(
        (within + of_blocks[..., None]).reshape(*mass.shape[:-1], -1)[..., :num_panels]
        for within, of_blocks in zip(sums(blocks), sums(jnp.sum(blocks, axis=-1)), strict=True)
    )


def panel_polynomials(shapes: _Shapes, rule: QuadratureRule) -> Float[Array, "num_powers ..."]:
    """Coefficients of 1, x, x^2, ... of Q(t) / t for the increasing polynomial Q of each panel, from 0 to 1."""
    dtype, average = shapes.density.dtype, shapes.average[..., None]
    degree = min(MAX_DEGREE, rule.nodes_per_panel - 1)
    density = jnp.moveaxis(shapes.density / jnp.where(average > 0, average, 1.0), -1, 0)
    # In two steps: Legendre coefficients fall off fast, so the large numbers of the second one do no harm.
    for matrix in (rule.legendre_projection(degree), integrated_legendre(degree)):
        density = jnp.tensordot(matrix.T.astype(dtype), density, 1, precision=lax.Precision.HIGHEST)
    return density


def table_masses(table: CDFTable, z: Float[Array, "num_rows n"]) -> tuple[Array, Array]:
    """F(z) and S(z) = 1 - F(z) for z inside the body, each summed up from its own end.

    A row for each distribution, whose batch dimensions are counted as one.
    """
    row, panel, share, rest = _shares(table, z)
    mass = take(table.mass, row, panel)
    both = take(table.lower, row, panel) + mass * share, take(table.upper, row, panel) + mass * rest
    # Not clipped by jnp.clip, which halves derivatives at its limits, and panel edges are numbers that people use.
    return tuple((p - lax.stop_gradient(p - jnp.clip(p, 0.0, 1.0))).reshape(z.shape) for p in both)


def table_log_masses(table: CDFTable, z: Float[Array, "num_rows n"]) -> tuple[Array, Array]:
    """Log F(z) and log S(z) as `table_masses` has them, finite where F(z) or S(z) underflows."""
    row, panel, share, rest = _shares(table, z)
    log_mass = take(table.log_mass, row, panel)

    def log_sum(log_tail, reverse, part):
        """Of the panels before the one of z, in the order that they are summed up in, and a part of that."""
        masses = jnp.flip(table.log_mass, -1) if reverse else table.log_mass
        terms = jnp.concatenate([log_tail[..., None], masses[..., :-1]], axis=-1)
        before = lax.cumlogsumexp(terms, axis=masses.ndim - 1)
        before = take(before, row, masses.shape[-1] - 1 - panel if reverse else panel)
        largest = lax.stop_gradient(jnp.maximum(before, log_mass))
        largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
        total = jnp.exp(before - largest) + jnp.exp(log_mass - largest) * part
        positive = total > 0
        return jnp.where(positive, largest + jnp.log(jnp.where(positive, total, 1.0)), -jnp.inf).reshape(z.shape)

    return log_sum(table.log_tails[0], False, share), log_sum(table.log_tails[1], True, rest)


def table_mass_between(
    table: CDFTable, low: Float[Array, "num_rows n"], high: Float[Array, "num_rows n"]
) -> Float[Array, "num_rows n"]:
    """F(high) - F(low) for low <= high inside of the body, with the digits of short intervals."""
    row, first, _, rest = _shares(table, low)
    _, last, share, _ = _shares(table, high)
    # Of the panels in between the smaller sums are taken: those from the nearer end of the body.
    below = take(table.lower, row, last) - take(table.lower, row, first) - take(table.mass, row, first)
    above = take(table.upper, row, first) - take(table.upper, row, last) - take(table.mass, row, last)
    between = jnp.where(take(table.lower, row, last) <= take(table.upper, row, first), below, above)
    between = jnp.where(last > first + 1, between, 0.0)
    apart = take(table.mass, row, first) * rest + between + take(table.mass, row, last) * share
    # In one panel Q(u) - Q(v) = (u - v) (P(u) + 2 v (P(u) - P(v)) / (x(u) - x(v))), with P(t) = Q(t) / t.
    left, right = take_edge(table.edges, row, first), take_edge(table.edges, row, first + 1)
    u, v = ((end.ravel() - left) / (right - left) for end in (high, low))
    powers = [take(power, row, first) for power in table.polynomials]
    value, slope = powers[-1], 0.0
    for coefficient in reversed(powers[:-1]):
        slope = slope * (2.0 * u - 1.0) + value
        value = value * (2.0 * v - 1.0) + coefficient
    # P(u) = P(v) + (x(u) - x(v)) slope
    chord = value + 2.0 * u * slope
    together = take(table.mass, row, first) * ((high.ravel() - low.ravel()) / (right - left)) * chord
    return jnp.maximum(jnp.where(first == last, together, apart), 0.0).reshape(low.shape)


def _shares(table: CDFTable, z: Float[Array, "num_rows n"]) -> tuple[Array, Array, Array, Array]:
    """The row and the panel of every point, and what shares of the panel's mass are below and above it."""
    starts = table.edges[..., :-1]
    row, z = lax.broadcasted_iota(jnp.int32, z.shape, 0).ravel(), z.ravel()
    row_of_starts = row if starts.ndim > 1 else jnp.zeros_like(row)
    panel = search_panels(padded(starts), row_of_starts, z, panel_depth(starts.shape[-1]))
    left, right = take_edge(table.edges, row, panel), take_edge(table.edges, row, panel + 1)
    powers = [take(power, row, panel) for power in table.polynomials]
    share = _polynomial(powers, (z - left) / (right - left))
    return row, panel, share, _rest(powers, (right - z) / (right - left))


def in_rows(values: Array, batch_shape: tuple[int, ...]) -> Float[Array, "num_rows n"]:
    """An array of shape sample_shape + batch_shape, a row for each distribution: its own part of a table."""
    num_rows = math.prod(batch_shape)
    order = _row_order(values.shape, batch_shape)
    return jnp.transpose(values, order).reshape(num_rows, values.size // max(num_rows, 1))


def out_of_rows(rows: Float[Array, "num_rows n"], batch_shape: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """The inverse of `in_rows`, for an array of the given shape."""
    order = _row_order(shape, batch_shape)
    return jnp.transpose(rows.reshape([shape[axis] for axis in order]), np.argsort(order).tolist())


def _row_order(shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> list[int]:
    """The axes of an array with those of the table first: along an axis of size one there, shape may be wider."""
    first = len(shape) - len(batch_shape)
    own = [first + axis for axis, size in enumerate(batch_shape) if size == shape[first + axis]]
    return own + [axis for axis in range(len(shape)) if axis not in own]


def take(values: Num[Array, "*batch columns"], row: Int[Array, " n"], column: Int[Array, " n"]) -> Array:
    """values[row, column], the batch dimensions of `values` counted as one."""
    return values.reshape(-1).at[row * values.shape[-1] + column].get(mode="promise_in_bounds")


def take_edge(edges: Float[Array, "..."], row: Int[Array, " n"], index: Int[Array, " n"]) -> Array:
    """edges[row, index], or edges[index] where all rows have the same."""
    return edges[index] if edges.ndim == 1 else take(edges, row, index)


def panel_depth(num_panels: int) -> int:
    """How often that many panels must be halved."""
    return max(num_panels - 1, 1).bit_length()


def padded(starts: Num[Array, "... num_panels"]) -> Array:
    """Starts of panels, with more that are never reached: a search takes steps of powers of two."""
    largest = jnp.inf if jnp.issubdtype(starts.dtype, jnp.inexact) else jnp.iinfo(starts.dtype).max
    padding = 2 ** panel_depth(starts.shape[-1])
    return jnp.pad(starts, [(0, 0)] * (starts.ndim - 1) + [(0, padding)], constant_values=largest)


def search_panels(
    starts: Num[Array, "*batch num_starts"],
    row: Int[Array, " n"],
    target: Num[Array, " n"],
    depth: int | Int[Array, ""],
    first: Int[Array, " n"] | int = 0,
) -> Int[Array, " n"]:
    """Index of the last panel that starts at or before the target, of the 2^depth panels from `first` on."""

    # This loop is written as such because XLA fuses unrolled ones with all that follows, and then repeats them for
    # every look-up.
    def halve(level, panel):
        candidate = panel + (1 << (depth - 1 - level))
        return jnp.where(take(starts, row, candidate) <= target, candidate, panel)

    return lax.fori_loop(0, depth, halve, jnp.broadcast_to(jnp.asarray(first, jnp.int32), target.shape))


def _polynomial(coefficients: list[Array], t: Array) -> Array:
    """Q(t) = t (c_0 + c_1 x + c_2 x^2 + ...) with x = 2 t - 1."""
    x, value = 2.0 * t - 1.0, coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value * t


def _rest(coefficients: list[Array], t: Array) -> Array:
    """Q(1) - Q(1 - t) with the digits of small t, which is t (P(x) + 2 sum_k c_k (1 + x + ... + x^(k-1)))."""
    x, tail, value, chord = 1.0 - 2.0 * t, 0.0, coefficients[-1], 0.0
    for coefficient, above in zip(reversed(coefficients[:-1]), reversed(coefficients[1:]), strict=True):
        tail = tail + above
        chord = chord * x + tail
        value = value * x + coefficient
    return t * (value + 2.0 * chord)
