"""Pick-freeze designs: pairs of points that swap one or two coordinates, and what the swaps do to a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem.reading.outputs import outputs_at, raise_not_finite
from numpyro_kaem.reading.product import Product

# Of SciPy's table of direction numbers, of which a point of the design takes two for each coordinate.
MOST_COORDINATES = 21_201 // 2


class Ratios(NamedTuple):
    """Shares of the variance with their standard errors, of shape (num_shares, num_swaps, num_outputs + 1).

    The last output is the whole one. `variance` is of shape (num_swaps, num_outputs + 1), and `mean` (num_outputs,).
    """

    shares: np.ndarray
    errors: np.ndarray
    variance: np.ndarray
    mean: np.ndarray


class Swaps(NamedTuple):
    """Of a chunk of points: moments of numerators and of the variance, and where the function was not finite."""

    numerator: Array
    numerator_squared: Array
    product: Array
    variance: Array
    variance_squared: Array
    mean: Array
    is_bad: Array


def points(seed: int, num_coordinates: int, num_samples: int, rows: int) -> Iterator[Float[np.ndarray, "rows 2 D"]]:
    """Scrambled Sobol points in the open cube, chunk by chunk: rows of pairs of points, whose numbers are no 0 or 1."""
    from scipy.stats.qmc import Sobol

    sobol = Sobol(2 * num_coordinates, scramble=True, seed=np.random.default_rng(seed))
    dtype = np.dtype(jnp.result_type(float))
    for _ in range(num_samples // rows):
        # Neighbouring dimensions of the sequence, the most even ones, are the two values of a coordinate.
        u = sobol.random(rows).reshape(rows, num_coordinates, 2).swapaxes(1, 2)
        yield np.minimum((u + 2.0**-31).astype(dtype), 1 - np.finfo(dtype).eps / 2).astype(dtype)


@jit_by_program
def ranges(function: Callable, product: Product, u: Float[Array, "m 2 D"]) -> Float[Array, " P"]:
    """How far every output moves: what it is divided by, so that its fourth powers neither over- nor underflow."""
    values = outputs_at(function, product.icdf(u[:, 0])).reshape(len(u), -1)
    width = jnp.max(values, axis=0) - jnp.min(values, axis=0)
    width = jnp.where(jnp.isfinite(width), width, 0.0)
    largest = jnp.max(width)
    return jnp.where(width > 0, width, jnp.where(largest > 0, largest, 1.0))


@jit_by_program
def swap_one(function: Callable, product: Product, u: Float[Array, "m 2 D"], scale: Float[Array, " P"]) -> Swaps:
    """First-order and total effects of every coordinate. Numerators are of shape (D, 2, P + 1)."""
    of, z_a, z_b, a, b = _values(function, product, u, scale)

    def swapped(i):
        a_swapped, b_swapped = of(*_exchange(product, z_a, z_b, jnp.arange(product.size) == i))
        first_order = 0.5 * (a - a_swapped) * (b_swapped - b)
        total = 0.25 * ((a - a_swapped) ** 2 + (b_swapped - b) ** 2)
        return _moments(scale, (first_order, total), a, b, a_swapped, b_swapped)

    return _with_means(jax.lax.map(swapped, jnp.arange(product.size)), scale, a, b)


@jit_by_program
def swap_two(
    function: Callable,
    product: Product,
    u: Float[Array, "m 2 D"],
    scale: Float[Array, " P"],
    coordinates: Int[Array, " k"],
    pairs: Int[Array, "num_pairs 2"],
) -> Swaps:
    """Second-order effects of pairs of places in `coordinates`. Numerators are of shape (num_pairs, 1, P + 1)."""
    of, z_a, z_b, a, b = _values(function, product, u, scale)
    number = jnp.arange(product.size)
    alone = jax.lax.map(lambda i: of(*_exchange(product, z_a, z_b, number == i)), coordinates)

    def swapped(pair):
        i, j = coordinates[pair]
        a_swapped, b_swapped = of(*_exchange(product, z_a, z_b, (number == i) | (number == j)))
        (a_i, b_i), (a_j, b_j) = ((side[place] for side in alone) for place in pair)
        numerator = 0.25 * ((a - a_i) - (a_j - a_swapped)) * ((b - b_i) - (b_j - b_swapped))
        return _moments(scale, (numerator,), a, b, a_swapped, b_swapped)

    return _with_means(jax.lax.map(swapped, pairs), scale, a, b)


def collect(
    program: Callable, function: Callable, product: Product, design: Iterator, scale: Array, *others: Array
) -> Ratios:
    """Run one of the above on all chunks of a design, and divide.

    With numerators n_k and variances v_k of the rows k the share is sum n / sum v, whose standard error is that of the
    mean of n_k - share v_k, over the mean of v_k: as if rows were independent.
    """
    sums, num_chunks, compiled = None, 0, None
    for u in design:
        u = jnp.asarray(u)
        compiled = compiled or program.compiled(function, product, u, scale, *others)
        chunk = jax.tree.map(np.asarray, compiled(function, product, u, scale, *others))
        if chunk.is_bad.any():
            _raise_at(product, u, chunk.is_bad, others)
        moments = [np.asarray(moment, np.float64) for moment in chunk[:-1]]
        sums = moments if sums is None else [sum_ + moment for sum_, moment in zip(sums, moments, strict=True)]
        num_chunks += 1
    n, n_squared, n_v, v, v_squared, mean = (sum_ / num_chunks for sum_ in sums)
    width = np.asarray(scale, np.float64)
    # A variance of no more than what rounding makes of a constant is none.
    rounding = 8 * np.finfo(chunk.mean.dtype).eps * np.abs(mean)
    v[:, :-1] *= v[:, :-1] > rounding**2
    v[:, -1] *= np.any(v[:, :-1] > 0, axis=1)
    some = np.where(v > 0, v, 1.0)[:, None]
    shares = np.where(v[:, None] > 0, n / some, 0.0)
    residual = n_squared - 2 * shares * n_v + shares**2 * v_squared[:, None]
    errors = np.sqrt(np.maximum(residual, 0.0) / (num_chunks * len(u))) / some
    return Ratios(
        np.moveaxis(shares, 1, 0),
        np.moveaxis(np.where(v[:, None] > 0, errors, 0.0), 1, 0),
        v * np.append(width, width.max(initial=0.0)) ** 2,
        mean * width,
    )


def _values(function, product, u, scale):
    """The function of both sides of pairs of latents, the latents, and their values."""

    def of(z_a, z_b):
        values = outputs_at(function, jnp.concatenate([z_a, z_b]))
        return jnp.split(values.reshape(len(values), -1) / scale, 2)

    z_a, z_b = product.icdf(u[:, 0]), product.icdf(u[:, 1])
    return of, z_a, z_b, *of(z_a, z_b)


def _exchange(product: Product, z_a: Array, z_b: Array, chosen: Array) -> tuple[Array, Array]:
    """Both latents with the values of the chosen coordinates exchanged."""
    chosen = chosen.reshape(product.shape)
    return jnp.where(chosen, z_b, z_a), jnp.where(chosen, z_a, z_b)


def _moments(scale: Array, numerators: tuple[Array, ...], a: Array, b: Array, a_swapped: Array, b_swapped: Array):
    """Means over rows of what `Swaps` has for one swap, where the variance is told from both pairs."""
    weights = (scale / jnp.max(scale)) ** 2

    def with_whole(values):
        return jnp.concatenate([values, jnp.sum(values * weights, axis=1, keepdims=True)], axis=1)

    variance = with_whole(0.25 * ((a - b) ** 2 + (a_swapped - b_swapped) ** 2))
    numerator = jnp.stack([with_whole(numerator) for numerator in numerators], axis=1)
    each = variance[:, None]
    moments = (numerator, numerator**2, numerator * each, variance, variance**2)
    is_bad = ~jnp.isfinite(jnp.concatenate([a_swapped, b_swapped])).all(axis=1)
    return *(jnp.mean(moment, axis=0) for moment in moments), is_bad


def _with_means(swaps: tuple, scale: Array, a: Array, b: Array) -> Swaps:
    """With the mean of the outputs, and a row before the swaps for values without one."""
    *moments, is_bad = swaps
    both = jnp.concatenate([a, b])
    is_bad = jnp.concatenate([~jnp.isfinite(both).all(axis=1)[None], is_bad])
    return Swaps(*moments, jnp.mean(both, axis=0), is_bad)


def _raise_at(product: Product, u: Array, is_bad: np.ndarray, others: tuple) -> None:
    """Raise the error that names the first latent whose output is not finite."""
    swap, row = (int(place[0]) for place in np.nonzero(is_bad))
    chosen = np.zeros(product.size, bool)
    if swap:
        chosen[np.asarray(others[0])[np.asarray(others[1])[swap - 1]] if others else swap - 1] = True
    z_a, z_b = _exchange(product, product.icdf(u[:, 0]), product.icdf(u[:, 1]), jnp.asarray(chosen))
    raise_not_finite(np.asarray(jnp.concatenate([z_a, z_b])[row]))
