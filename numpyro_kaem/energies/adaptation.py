"""Grids that follow samples, and functions refitted on a new grid."""

from __future__ import annotations

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_kaem._numerics.grid import Grid
from numpyro_kaem.energies.basis import Basis
from numpyro_kaem.energies.splines import BSpline

SomeBasis = TypeVar("SomeBasis", bound=Basis)

# Of a cell, where old and new functions are compared: more places than a spline has functions there.
_PLACES = 0.5 + 0.5 * np.polynomial.legendre.leggauss(8)[0]

# Share of the samples on either side of the range over which evenly spaced knots are spread.
_MARGIN = 0.01


def with_points(basis: SomeBasis, points: Float[Array, "*batch num_points"]) -> SomeBasis:
    """The basis on other knots (of a B-spline) or another domain."""
    if isinstance(basis, BSpline):
        return BSpline.from_knots(points, basis.degree)  # type: ignore[return-value]  # of the class that was given
    return eqx.tree_at(lambda b: b.grid, basis, Grid.of(points))


def adapted_basis(basis: SomeBasis, z: Array, weights: Array, uniform_fraction: float) -> SomeBasis:
    """The basis on a domain that covers the samples that count, with the knots of a B-spline towards their quantiles.

    Samples and weights have shape (num_samples, *batch); `uniform_fraction` is the share of evenly spaced knots.
    """
    points = movable_points(basis)
    first, last = (
        jnp.broadcast_to(jnp.asarray(end, z.dtype), z.shape[1:]) for end in (points[..., 0], points[..., -1])
    )
    counted = weights > 0
    low = jnp.minimum(first, jnp.min(jnp.where(counted, z, jnp.inf), axis=0))
    high = jnp.maximum(last, jnp.max(jnp.where(counted, z, -jnp.inf), axis=0))
    shares = jnp.linspace(0.0, 1.0, points.shape[-1], dtype=z.dtype)
    new = jnp.stack([low, high], axis=-1)
    if isinstance(basis, BSpline):
        # Evenly spaced knots go where most samples are: over a range that one outlier has extended they would all be
        # far from the others.
        ends = _quantiles(z, weights, jnp.array([_MARGIN, 1.0 - _MARGIN], z.dtype))
        inner = [jnp.clip(end, low, high) for end in ends]
        inner = jnp.minimum(first, inner[0]), jnp.maximum(last, inner[1])
        even = inner[0][..., None] + (inner[1] - inner[0])[..., None] * shares
        # Where the domain is extended, three intervals go to the old end: without, one wide interval could have to bend
        # from the function's slope to what lies beyond, and would overshoot.
        width = (last - first) / basis.num_cells
        share = 3.0 / basis.num_cells * jnp.maximum(jnp.sum(weights, axis=0), jnp.finfo(z.dtype).tiny)
        steps = jnp.linspace(-0.5, 2.5, 9, dtype=z.dtype).reshape(-1, *[1] * first.ndim)
        for extended, end, outwards in ((low < first, first, -width), (high > last, last, width)):
            z = jnp.concatenate([z, jnp.clip(end + outwards * steps, low, high)])
            added = jnp.where(extended, share / len(steps), 0.0)
            weights = jnp.concatenate([weights, jnp.broadcast_to(added, (len(steps), *added.shape))])
        inner = jnp.moveaxis(_quantiles(z, weights, shares[1:-1]), 0, -1)
        knots = jnp.concatenate([low[..., None], inner, high[..., None]], axis=-1)
        new = uniform_fraction * even + (1.0 - uniform_fraction) * knots
    # Without a sample that counts nothing moves.
    old = jnp.broadcast_to(jnp.asarray(points, z.dtype), new.shape)
    new = jnp.where(jnp.any(counted, axis=0)[..., None], new, old)
    return with_points(basis, new.at[..., 0].set(low).at[..., -1].set(high))


def movable_points(basis: Basis) -> np.ndarray | Array:
    """What an adaptation moves: the knots of a B-spline, else the ends of the domain."""
    return basis.knots if isinstance(basis, BSpline) else basis.grid.points


def _quantiles(z: Array, weights: Array, shares: Array) -> Array:
    """Weighted quantiles along the first axis: shape shares.shape + z.shape[1:]."""

    def of_one(z, weights):
        order = jnp.argsort(z)
        z, weights = z[order], weights[order]
        before = jnp.cumsum(weights) - 0.5 * weights
        return jnp.interp(shares * jnp.sum(weights), before, z)

    flat = (array.reshape(array.shape[0], -1) for array in (jnp.where(weights > 0, z, 0.0), weights))
    return jax.vmap(of_one, in_axes=1, out_axes=1)(*flat).reshape(*shares.shape, *z.shape[1:])


def comparison_points(basis: Basis) -> Float[Array, "*batch num_points"]:
    """Points in and between the cells of the basis, at which a function is carried over from one basis to another."""
    breakpoints = jnp.asarray(basis.breakpoints)
    widths = breakpoints[..., 1:] - breakpoints[..., :-1]
    points = breakpoints[..., :-1, None] + widths[..., None] * _PLACES.astype(breakpoints.dtype)
    return jnp.concatenate([points.reshape(*points.shape[:-2], -1), breakpoints], axis=-1)


def least_squares(
    design: Float[Array, "... num_points num_basis"],
    values: Float[Array, "... num_points"],
    weights: Float[Array, "... num_points"],
) -> Float[Array, "... num_basis"]:
    """Coefficients c that minimise the weighted squares of design c - values, by an orthogonal factorisation.

    A ridge of the size of rounding errors decides what the points leave open; iterative refinement undoes its bias.
    """
    num_points, num_basis = design.shape[-2:]
    batch = jnp.broadcast_shapes(design.shape[:-2], values.shape[:-1], weights.shape[:-1])
    design = jnp.broadcast_to(design * jnp.sqrt(weights)[..., None], (*batch, num_points, num_basis))
    values = values * jnp.sqrt(weights)
    ridge = 10.0 * float(jnp.finfo(design.dtype).eps) * np.sqrt(num_points / num_basis)
    penalty = jnp.broadcast_to(ridge * jnp.eye(num_basis, dtype=design.dtype), (*batch, num_basis, num_basis))
    orthogonal, triangular = jnp.linalg.qr(jnp.concatenate([design, penalty], axis=-2))
    orthogonal = orthogonal[..., :num_points, :]

    def solve(residual):
        projected = jnp.einsum("...pg,...p->...g", orthogonal, residual, precision="highest")
        return jax.scipy.linalg.solve_triangular(triangular, projected[..., None])[..., 0]

    coefficients = solve(values)
    return coefficients + solve(values - jnp.einsum("...pg,...g->...p", design, coefficients, precision="highest"))
