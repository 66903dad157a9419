"""Expectations under densities, by quadrature: nodes in z on the body, in probability in the tails."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.inverse_table import TAIL_RULE
from numpyro_kaem._densities.panels import nodes_first
from numpyro_kaem._densities.tail_panels import quantile_in_tail


def expectation(density, function: Callable[[Array], Array]) -> Float[Array, "*batch_and_more"]:
    """E[function(z)], the function applied to points of shape (num_points, *batch)."""
    z, mass, _ = points(density)
    return jnp.sum(_terms(function, z, mass), axis=0)


@compiled
def entropy(density) -> Float[Array, "*batch"]:
    """Differential entropy -E[log p(z)]."""
    density = density.prepared()
    return expectation(density, lambda z: -density.log_density(z))


@compiled
def mean_and_variance(density) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Mean and variance.

    A density is a bounded multiple of its reference's, so that its moments are finite where the reference's are.
    """
    density = density.prepared()
    if isinstance(density, Density) and density.log_proportions is None and type(density.reference) is dist.Normal:
        return _with_normal_tails(density)
    z, mass, tails = points(density)
    mean = _moment(lambda z: z, z, mass, tails)
    mean = _finite_where(mean, density, "mean")
    variance = _moment(lambda z: (z - mean) ** 2, z, mass, tails)
    return mean, _finite_where(variance, density, "variance")


def _with_normal_tails(density: Density) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Mean and variance, those of the tails in closed form, which costs much less than nodes there.

    Beyond a distance a of standard deviations the excess t - a of a normal t has the moments h - a and 1 - a (h - a),
    with the hazard h of t at a.
    """
    (z, mass), reference, table = _body_points(density), density.reference, density.table
    tails = []
    for end, side, tail in zip(density.body, (-1.0, 1.0), (table.lower_tail, table.upper_tail), strict=True):
        distance = side * (jnp.asarray(end, density.dtype) - reference.loc) / reference.scale
        distance = jnp.where(tail > 0, distance, 0.0)  # so far out that nothing is there, the hazard has no digits
        hazard = jnp.exp(jax.scipy.stats.norm.logpdf(distance) - jax.scipy.special.log_ndtr(-distance))
        first = reference.scale * (hazard - distance)
        second = reference.scale**2 * (1.0 - distance * (hazard - distance))
        tails.append((end, side * first, second, tail))
    mean = jnp.sum(z * mass, axis=0) + sum(tail * (end + first) for end, first, _, tail in tails)
    variance = jnp.sum((z - mean) ** 2 * mass, axis=0) + sum(
        tail * ((end - mean) ** 2 + 2.0 * (end - mean) * first + second) for end, first, second, tail in tails
    )
    return mean, variance


def _terms(function, z, mass):
    # Where there is no mass the function need not be finite.
    return jnp.where(mass == 0, 0.0, function(z) * mass)


def _moment(function, z, mass, tails: tuple[int, int, int]):
    """E[function(z)] for a function like a power of z in the tails: that of a heavy tail is a slow series of octaves.

    What is left of it is a r / (1 - r), with its last term a and the ratio r of the last two; from a ratio of one on
    there is no such moment.
    """
    terms = _terms(function, z, mass)
    total = jnp.sum(terms, axis=0)
    if tails[0]:
        num_nodes = tails[0] * tails[1] * tails[2]
        octaves = jnp.sum(terms[-num_nodes:].reshape(*tails, *terms.shape[1:]), axis=2)
        last, before = octaves[:, -1], octaves[:, -2]
        counts = jnp.isfinite(last) & (jnp.abs(last) > jnp.finfo(z.dtype).eps * jnp.abs(total))
        ratio = jnp.where(counts, last, 0.5) / jnp.where(counts, before, 1.0)
        converges = ratio < 1.0 - 100.0 * jnp.finfo(z.dtype).eps
        left = jnp.where(converges, ratio / jnp.where(converges, 1.0 - ratio, 1.0), jnp.inf)
        total = total + jnp.sum(jnp.where(counts, last * left, 0.0), axis=0)
    return total


def _finite_where(moment, density, name: str):
    """The moment, or the reference's where NumPyro knows that to be infinite or undefined."""
    if density.is_bounded:
        return moment
    reference = density.reference
    try:
        with np.errstate(all="ignore"):  # of NumPy's numbers
            known = getattr(reference, name) if reference.batch_shape == () else 0.0
    except (NotImplementedError, ImportError, AttributeError):
        return moment
    return jnp.where(jnp.isfinite(known), moment, jnp.asarray(known, moment.dtype))


@singledispatch
def points(density) -> tuple[Array, Array, tuple[int, int, int]]:
    """Points and their probabilities, both of shape (num_points, *batch), those of the tails last.

    With them, the numbers of tails, of the octaves of each, which end with the farthest, and of nodes in an octave.
    """
    density = density.prepared()
    dtype, shape = density.dtype, density.shape

    def column(values):
        return jnp.asarray(values, dtype).reshape(-1, *[1] * len(shape))

    parts, masses = ([part] for part in _body_points(density))
    numbers = (0, 0, 0)
    if density.has_tails:
        table = density.table
        # Octaves of the probability to the body's end, where the bulk of the reference may lie further out; then
        # octaves of the probability beyond.
        num_far, num_near = (60, 24) if dtype == jnp.float32 else (100, 52)
        near, far = 0.5 ** np.arange(num_near, 1, -1)[:, None], 0.5 ** np.arange(2, num_far + 1)[:, None]
        far, near, nearest = far * (1.0 + TAIL_RULE.unit_nodes), near * (1.0 + TAIL_RULE.unit_nodes), near[:1]
        rest = np.concatenate([nearest * TAIL_RULE.unit_nodes, near, 1.0 - far])
        share = np.concatenate([1.0 - nearest * TAIL_RULE.unit_nodes, 1.0 - near, far])
        sizes = 0.5 ** np.concatenate([[num_near], np.arange(num_near, 1, -1), np.arange(2, num_far + 1)])
        numbers = (2, *share.shape)
        share, rest, weights = column(share), column(rest), column(sizes[:, None] * TAIL_RULE.weights)
        low, high = density.body
        for tail, end, below in (table.lower_tail, low, True), (table.upper_tail, high, False):
            below = jnp.asarray(below)
            z, mass = quantile_in_tail(density, share, rest, below), tail * weights
            usable = (mass > 0) & jnp.isfinite(z)
            if density.tails_invert:  # nodes of a fixed share of the tail, which move with the parameters
                safe_share, safe_rest = (jnp.where(usable, part, 0.5) for part in (share, rest))
                z = quantile_in_tail(density, safe_share, safe_rest, below)
            else:  # bisection has no derivatives: nodes stay in place, and the density at them changes
                z, mass = jax.lax.stop_gradient((jnp.where(usable, z, end), mass))
                log_density = density.log_density(z)
                mass = mass * jnp.exp(log_density - jax.lax.stop_gradient(log_density))
            parts.append(z)
            masses.append(jnp.where(usable, mass, 0.0))
    z, mass = (jnp.concatenate([jnp.broadcast_to(p, (len(p), *shape)) for p in of]) for of in (parts, masses))
    return z, mass, numbers


def _body_points(density: Density) -> tuple[Array | np.ndarray, Array]:
    """Those of the body."""
    rule, pieces, basis, dtype, rank = density.rule, density.pieces, density.basis, density.dtype, len(density.shape)
    z = nodes_first(pieces.nodes(basis, rule, dtype)[0], rank)
    weights = nodes_first(pieces.sizes(basis)[..., None] * rule.weights, rank).astype(dtype)
    return z, jnp.exp(density.log_density(z)) * weights
