"""Paths through latents: a coordinate through its quantiles, and from one latent to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem.checks import check_count, check_flag
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.outputs import check_finite, output_shape, outputs_at, raise_not_finite
from numpyro_kaem.reading.product import Product, as_product

# Steps of the grid on which lengths are measured, for every step of a path.
_FINE = 16
_ALONG = ("cdf", "linear", "slerp")


@dataclass(frozen=True, eq=False)
class Traversal:
    """Coordinates, each slid through its quantiles. Returned by `traverse`.

    Arrays are NumPy's. C coordinates, from the one that changes the output most to the one that does least; T points.

    Attributes:
        coordinates: their numbers in a flat latent.
        names: of the coordinates.
        probabilities: of the points, F(z), of shape (C, T).
        z: latents, of shape (C, T, *latent).
        outputs: what the function makes of them, of shape (C, T, *output).
        change: length of the path of outputs, where the distance of two is the root of the mean of the squares of
            their differences, of shape (C,).
    """

    coordinates: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: Float[np.ndarray, "C T"]
    z: Float[np.ndarray, "C T ..."]
    outputs: Float[np.ndarray, "C T ..."]
    change: Float[np.ndarray, " C"]


@dataclass(frozen=True, eq=False)
class Interpolation:
    """A path from one latent to another, or many. Returned by `interpolate`.

    Attributes:
        z: latents, of shape (*pairs, T, *latent); the first and the last are those that were given.
        outputs: what the function makes of them, of shape (*pairs, T, *output); None without one.
        weights: how far each point is on the way, from 0 to 1, of shape (*pairs, T).
    """

    z: Float[np.ndarray, "..."]
    outputs: Float[np.ndarray, "..."] | None
    weights: Float[np.ndarray, "..."]


def traverse(
    prior: dist.Distribution | Callable,
    function: Callable,
    coordinates: int | str | Sequence | None = None,
    *,
    at: ArrayLike | None = None,
    num_points: int = 9,
    quantiles: tuple[float, float] = (0.02, 0.98),
    even: bool = False,
    through: str | None = None,
    component: int | None = None,
) -> Traversal:
    """Slide coordinates through their quantiles, one by one, while the others are held where they are.

    Points are even in probability, not in z: the path goes slowly where there is much mass, and passes over regions
    where there is none.

    Args:
        prior: a product of one-dimensional distributions, such as `kaem.prior`, or a mixture of those.
        function: from latents (n, *latent) to outputs (n, *output), of JAX operations, such as `kaem.decode`.
        coordinates: which, by number, index or name, or a list of those; None for all.
        at: the latent that is held; None for the medians.
        num_points: of each path, T, at least 2.
        quantiles: probabilities of the first and the last point.
        even: whether points are evenly spaced along the path of outputs instead, as it is on a fine grid. Where the
            output jumps from one point of that grid to the next, there is no point in between.
        through: "modes" to stop at the modes of the densities: for each, the nearest point is moved onto it.
        component: of a mixture of whole latent vectors, the one whose quantiles are taken.

    Returns:
        Paths and outputs, the coordinate that changes the output most first.

    Raises:
        TypeError: if function is none.
        ValueError: for a prior whose coordinates are not independent, coordinates that there are not, an `at` of
            another shape, numbers out of range, and a function whose output does not fit or is not finite.

    Example:
        ```python
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import traverse

        paths = traverse(dist.Normal(jnp.zeros(2), 1.0), lambda z: z @ jnp.array([[1.0], [3.0]]), num_points=5)
        assert paths.names == ("z[1]", "z[0]") and paths.outputs.shape == (2, 5, 1)
        ```
    """
    product = as_product(prior, component)
    output_shape(function, product)
    num_points = check_count("num_points", num_points, 2)
    low, high = _checked_quantiles(quantiles)
    if check_flag("even", even) and through is not None:
        raise ValueError("even spaces points along the path of outputs, and through moves them to modes: give one")
    if through not in (None, "modes"):
        raise ValueError(f'through must be None or "modes", got {through!r}')
    if coordinates is None:
        coordinates = range(product.size)
    elif isinstance(coordinates, int | str | np.integer):
        coordinates = [coordinates]
    numbers = np.array([product.index(coordinate) for coordinate in coordinates], int)
    if len(numbers) == 0 or len(set(numbers)) < len(numbers):
        raise ValueError(f"coordinates must be one or more different ones, got {list(coordinates)}")
    held = product.icdf(jnp.full(product.size, 0.5)) if at is None else jnp.asarray(at, jnp.result_type(float))
    if held.shape != product.shape:
        raise ValueError(f"at must be a latent, of shape {product.shape}, got {held.shape}")
    if not jnp.isfinite(held).all():
        raise ValueError(f"at must be finite, got {at}")

    fine = jnp.linspace(low, high, _FINE * (num_points - 1) + 1)
    lengths, is_bad = map(np.asarray, _lengths(function, product, held, jnp.asarray(numbers), fine))
    if is_bad.any():
        path, point = np.argwhere(is_bad)[0]
        raise_not_finite(np.asarray(_path_of(product, held, numbers[path], fine[point : point + 1]))[0])
    change = lengths[:, -1]
    order = np.argsort(-change, kind="stable")
    numbers, lengths, change = numbers[order], lengths[order], change[order]
    even_steps = np.linspace(0.0, 1.0, num_points)
    if even:
        probabilities = np.stack([_at_lengths(length, even_steps) for length in lengths])
        probabilities = low + (high - low) * probabilities
    else:
        probabilities = np.tile(low + (high - low) * even_steps, (len(numbers), 1))
    if through == "modes":
        found = modes(prior, component)
        probabilities = np.stack([_onto(row, found[d]) for row, d in zip(probabilities, numbers, strict=True)])
    z, outputs = map(np.asarray, _slid(function, product, held, jnp.asarray(numbers), jnp.asarray(probabilities)))
    flat = (-1, *product.shape)
    check_finite(outputs.reshape(len(numbers) * num_points, *outputs.shape[2:]), z.reshape(flat))
    names = tuple(product.names[d] for d in numbers)
    return Traversal(tuple(map(int, numbers)), names, probabilities, z, outputs, change)


def interpolate(
    z_a: ArrayLike,
    z_b: ArrayLike,
    along: str = "cdf",
    *,
    prior: dist.Distribution | Callable | None = None,
    function: Callable | None = None,
    num_points: int = 9,
    even: bool = False,
    component: int | None = None,
) -> Interpolation:
    r"""A path from one latent to another.

    - "cdf": straight in the normal scores $\Phi^{-1}(F_d(z_d))$ of the coordinates. Where a density is small the path
      is fast, so no point lies in an empty region, and coordinates that are normal move straight. (Straight in $F_d$
      itself, a path would leave ends that are in the tails in one leap.)
    - "linear": straight in z.
    - "slerp": on a great circle about zero, its radius changing evenly, in normal scores too: so the path stays where a
      prior of many coordinates has its mass. Without a `prior` it is a circle in z, as for a standard normal one. From
      a point to the opposite one, where great circles have no direction of their own, it turns towards the coordinate
      that is nearest to zero; from or to zero, and with one coordinate, it is straight.

    From datum to datum the ends are draws from posteriors or their means,
    `kaem.posterior(key, x).expectation(lambda latents: latents["z"])`, which is of shape (num_data, *latent).

    Args:
        z_a: where paths begin, of shape (*latent); with a prior also (*pairs, *latent), for many at once.
        z_b: where they end.
        along: "cdf", "linear" or "slerp".
        prior: a product of one-dimensional distributions, or a mixture of those; "cdf" needs it.
        function: from latents (n, *latent) to outputs (n, *output), of JAX operations; None for latents alone.
        num_points: of a path, both ends among them, at least 2.
        even: whether points are evenly spaced along the path of outputs, as it is on a fine grid.
        component: of a mixture of whole latent vectors, the one whose distribution functions are taken.

    Returns:
        Paths, whose ends are z_a and z_b to the last digit.

    Raises:
        TypeError: if function is none.
        ValueError: for an unknown `along`, "cdf" without a prior, shapes that do not fit, ends that are not finite or
            not in the support, and a function whose output does not fit or is not finite.

    Example:
        ```python
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import KAPrior, interpolate

        sample = jnp.concatenate([jnp.linspace(-2.3, -1.7, 100), jnp.linspace(1.7, 2.3, 100)])
        prior = KAPrior.from_samples(sample).expand((1,))
        path = interpolate(jnp.array([-2.0]), jnp.array([2.0]), prior=prior, num_points=8)
        assert path.z.shape == (8, 1) and (abs(path.z) > 1.0).all()
        ```
    """
    if along not in _ALONG:
        raise ValueError(f"along must be one of {_ALONG}, got {along!r}")
    num_points = check_count("num_points", num_points, 2)
    dtype = jnp.result_type(float)
    ends = [jnp.asarray(end, dtype) for end in (z_a, z_b)]
    if prior is None:
        if along == "cdf":
            raise ValueError('along="cdf" needs the prior whose distribution functions are meant, such as kaem.prior')
        if component is not None:
            raise ValueError("component is of a prior: give prior, too")
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"z_a and z_b must have one shape, got {ends[0].shape} and {ends[1].shape}")
        product = Product(dist.Normal(jnp.zeros(ends[0].shape), 1.0), ends[0].shape)
    else:
        product = as_product(prior, component)
    pairs = _checked_ends(ends, product, prior is not None and along != "linear")
    if check_flag("even", even) and function is None:
        raise ValueError("even=True needs the function along whose outputs points are spaced")
    if function is not None:
        output_shape(function, product)
    flat = [jnp.broadcast_to(end, (*pairs, *product.shape)).reshape(-1, *product.shape) for end in ends]
    weights = np.tile(np.linspace(0.0, 1.0, num_points), (len(flat[0]), 1))
    scored = prior is not None
    if even:
        fine = jnp.linspace(0.0, 1.0, _FINE * (num_points - 1) + 1)
        lengths, is_bad = map(np.asarray, _path_lengths(function, product, *flat, fine, along, scored))
        if is_bad.any():
            pair, point = np.argwhere(is_bad)[0]
            ends = (end[pair] for end in flat)
            raise_not_finite(np.asarray(_one_path(product, *ends, fine[point : point + 1], along, scored))[0])
        weights = np.stack([_at_lengths(length, weights[0]) for length in lengths])
    z = np.asarray(_between(product, *flat, jnp.asarray(weights, dtype), along, scored))
    outputs = None
    if function is not None:
        points = z.reshape(-1, *product.shape)
        outputs = np.asarray(_outputs(function, jnp.asarray(points)))
        check_finite(outputs, points)
        outputs = outputs.reshape(*pairs, num_points, *outputs.shape[1:])
    return Interpolation(z.reshape(*pairs, num_points, *product.shape), outputs, weights.reshape(*pairs, num_points))


# Checks ---------------------------------------------------------------------------------------------------------------


def _checked_quantiles(quantiles: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, quantiles)
    except (TypeError, ValueError):
        low = high = np.nan
    if not 0.0 < low < high < 1.0:
        raise ValueError(f"quantiles must be two rising probabilities between 0 and 1, got {quantiles!r}")
    return low, high


def _checked_ends(ends: list[Array], product: Product, in_support: bool) -> tuple[int, ...]:
    """The shape of the pairs of ends."""
    rank, leading = len(product.shape), []
    for name, end in zip(("z_a", "z_b"), ends, strict=True):
        lead = end.shape[: max(end.ndim - rank, 0)]
        if end.shape[len(lead) :] != product.shape:
            raise ValueError(f"{name} must end in the shape of a latent, {product.shape}, got {end.shape}")
        if not jnp.isfinite(end).all():
            raise ValueError(f"{name} must be finite, got {end}")
        if in_support and not jnp.isfinite(product.log_prob(end)).all():
            raise ValueError(f"{name} must be in the support of the prior, got {end}")
        leading.append(lead)
    try:
        return np.broadcast_shapes(*leading)
    except ValueError:
        raise ValueError(
            f"z_a and z_b must have leading axes that broadcast, got {leading[0]} and {leading[1]} before the latent's"
        ) from None


# Traversals -----------------------------------------------------------------------------------------------------------


def _path_of(product: Product, held: Array, number: Array, u: Array) -> Array:
    """The held latent with one coordinate at its quantiles."""
    moved = product.icdf(jnp.broadcast_to(u[:, None], (len(u), product.size)))
    return jnp.where((jnp.arange(product.size) == number).reshape(product.shape), moved, held)


@jit_by_program
def _lengths(function: Callable, product: Product, held: Array, numbers: Int[Array, " C"], u: Float[Array, " F"]):
    """How long the path of outputs of every coordinate is up to each of its points, of shape (C, F)."""
    return jax.lax.map(lambda d: _length(outputs_at(function, _path_of(product, held, d, u))), numbers)


@jit_by_program
def _slid(function: Callable, product: Product, held: Array, numbers: Int[Array, " C"], u: Float[Array, "C T"]):
    """Latents and outputs of the paths of coordinates."""

    def slid(number_and_u):
        z = _path_of(product, held, *number_and_u)
        return z, outputs_at(function, z)

    return jax.lax.map(slid, (numbers, u.astype(held.dtype)))


def _length(outputs: Float[Array, "F ..."]) -> tuple[Float[Array, " F"], Bool[Array, " F"]]:
    """How long a path is up to each of its points, and where it is not finite."""
    outputs = outputs.reshape(len(outputs), -1)
    steps = jnp.sqrt(jnp.mean(jnp.diff(outputs, axis=0) ** 2, axis=1))
    return jnp.concatenate([jnp.zeros_like(steps[:1]), jnp.cumsum(steps)]), ~jnp.isfinite(outputs).all(axis=1)


def _at_lengths(lengths: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Where a path, from 0 to 1, has these shares of its length; as it is where it has none."""
    positions = np.linspace(0.0, 1.0, len(lengths))
    if not lengths[-1] > 0:
        return shares
    return np.interp(shares * lengths[-1], lengths, positions)


def _onto(probabilities: np.ndarray, found: list) -> np.ndarray:
    """Probabilities, of which those next to modes are moved onto them, the modes of most mass first."""
    moved, is_free = probabilities.copy(), np.ones(len(probabilities), bool)
    for mode in sorted(found, key=lambda mode: -mode.mass)[: len(moved)]:
        place = np.argmin(np.where(is_free, np.abs(probabilities - mode.probability), np.inf))
        moved[place], is_free[place] = mode.probability, False
    return np.sort(moved)


# Interpolations -------------------------------------------------------------------------------------------------------


def _one_path(product: Product, z_a: Array, z_b: Array, weights: Array, along: str, scored: bool) -> Array:
    """Points between two latents, of shape (T, *latent)."""
    in_scores = scored and along != "linear"
    ends = [product.normal_scores(z) if in_scores else z.reshape(product.size) for z in (z_a, z_b)]
    t = weights[:, None]
    points = _slerp(*ends, t) if along == "slerp" else (1.0 - t) * ends[0] + t * ends[1]
    z = product.from_normal_scores(points) if in_scores else points.reshape(-1, *product.shape)
    lead = (-1, *[1] * len(product.shape))
    return jnp.where(weights.reshape(lead) <= 0, z_a, jnp.where(weights.reshape(lead) >= 1, z_b, z))


def _slerp(a: Float[Array, " D"], b: Float[Array, " D"], t: Float[Array, "T 1"]) -> Float[Array, "T D"]:
    """Directions on the great circle from a to b, with norms that change evenly."""
    norm_a, norm_b = jnp.linalg.norm(a), jnp.linalg.norm(b)
    straight = (1.0 - t) * a + t * b
    if a.size == 1:
        return straight
    some = (norm_a > 0) & (norm_b > 0)
    unit_a, unit_b = a / jnp.where(some, norm_a, 1.0), b / jnp.where(some, norm_b, 1.0)
    cosine = jnp.dot(unit_a, unit_b)
    across = unit_b - cosine * unit_a
    sine = jnp.linalg.norm(across)
    angle = jnp.arctan2(sine, cosine)
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(unit_a)), a.size, dtype=a.dtype)
    axis = axis - jnp.dot(axis, unit_a) * unit_a
    # Closer than rounding to a multiple of pi, what is left of b across a has no direction.
    across = jnp.where(sine > 8 * jnp.finfo(a.dtype).eps, across, axis)
    across = across / jnp.maximum(jnp.linalg.norm(across), jnp.finfo(a.dtype).tiny)
    direction = jnp.cos(t * angle) * unit_a + jnp.sin(t * angle) * across
    return jnp.where(some, ((1.0 - t) * norm_a + t * norm_b) * direction, straight)


@jit_by_program
def _path_lengths(function, product: Product, z_a: Array, z_b: Array, weights: Array, along: str, scored: bool):
    """How long the path of outputs is up to each of its points, for every pair."""
    return jax.lax.map(
        lambda ends: _length(outputs_at(function, _one_path(product, *ends, weights, along, scored))), (z_a, z_b)
    )


@jit_by_program
def _between(product: Product, z_a: Array, z_b: Array, weights: Float[Array, "N T"], along: str, scored: bool):
    """Points of all pairs."""
    return jax.vmap(lambda *one: _one_path(product, *one, along, scored))(z_a, z_b, weights)


@jit_by_program
def _outputs(function: Callable, z: Shaped[Array, "n ..."]):
    return outputs_at(function, z)
