"""A picture of a prior: the learned density of every coordinate, its reference, quantiles and credible band."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from numpyro_kaem.checks import check_flag
from numpyro_kaem.reading.axes import BLUE, GREY, make_axes
from numpyro_kaem.reading.product import Product, as_product

_ENDS = 0.002  # what is left out on either side
_POINTS = 200


def plot_densities(
    prior: dist.Distribution | Callable,
    *,
    coordinates: Sequence[int | Sequence[int] | str] | None = None,
    component: int | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    draws: bool = False,
    level: float = 0.9,
    num_columns: int = 4,
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw the learned density of every coordinate.

    A line is p(z), an area in grey the reference that a `KAPrior` tilts, dots are quantiles.

    Args:
        prior: a product of one-dimensional distributions, as the other readers take it.
        coordinates: those to draw, in this order, by number, index or name; such as the `ranking` of `effects`. None
            for all.
        component: of a mixture of whole latent vectors, the one to draw.
        quantiles: probabilities of the quantiles that are marked.
        draws: whether the first batch axis of the prior is one of posterior draws, such as of the coefficients of its
            energy. The line is then the median of the densities at each point, and a quantile its median; a band goes
            from the (1 - level) / 2 quantile of the densities to the (1 + level) / 2 one.
        level: of the band.
        num_columns: of axes in a row of a new figure.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one for each coordinate; None for a new figure.

    Returns:
        The axes, one for each coordinate.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for coordinates that there are not, a prior that is no product, probabilities outside of (0, 1).

    Example:
        ```python
        import jax, numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy, plot_densities

        basis = BSpline(10, 3, (-3.0, 3.0))
        energy = UnivariateEnergy.init(jax.random.key(0), (6,), basis=basis, scale=1.0)
        axes = plot_densities(KAPrior(energy, dist.Normal(0.0, 1.0)), coordinates=[4, "z[1]"])
        assert [ax.get_title() for ax in axes] == ["z[4]", "z[1]"]
        ```
    """
    every = as_product(prior, component)
    if check_flag("draws", draws) and (component is not None or not every.shape):
        raise ValueError(
            "draws=True needs a product of one-dimensional distributions whose first batch axis is one of draws, got "
            f"batch shape {every.shape} and component={component!r}"
        )
    one = Product(every.factors, every.shape[1:]) if draws else every
    chosen = range(one.size) if coordinates is None else [one.index(coordinate) for coordinate in coordinates]
    if len(chosen) == 0:
        raise ValueError(f"coordinates must name one at least, got {coordinates!r}")
    for name, values in (("quantiles", quantiles), ("level", [level])):
        if not all(0.0 < value < 1.0 for value in values):
            raise ValueError(f"{name} must be probabilities between 0 and 1, got {values!r}")
    axes = make_axes(len(chosen), ax, figsize, num_columns)

    marks, points = _quantiles_and_points(every, one, quantiles)
    densities, reference = _densities(every, one, points), _reference(every)
    low, middle, high = np.quantile(densities, [0.5 - 0.5 * level, 0.5, 0.5 + 0.5 * level], axis=1)
    behind = None if reference is None else np.median(_densities(reference, one, points), axis=1)
    for at, d in zip(axes, chosen, strict=True):
        z = points[:, d]
        if behind is not None:
            at.fill_between(z, behind[:, d], color=GREY, alpha=0.4, linewidth=0, label="reference")
        if draws:
            at.fill_between(z, low[:, d], high[:, d], color=BLUE, alpha=0.3, linewidth=0, label=f"{level:.0%} band")
        (line,) = at.plot(z, middle[:, d], color=BLUE, label="median of the densities" if draws else "learned density")
        if len(marks):
            at.plot(marks[:, d], np.interp(marks[:, d], z, middle[:, d]), "o", color=BLUE, markersize=3.5)
        at.set_title(one.names[d], fontsize=10)
        at.set_yticks([])
        # From zero up to whatever else is drawn on these axes later.
        at.update_datalim([(z[0], 0.0)])
        line.sticky_edges.y.append(0.0)
        at.autoscale_view()
        at.spines[["left", "right", "top"]].set_visible(False)
    return axes


def _quantiles_and_points(every: Product, one: Product, quantiles: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of every coordinate, (len(quantiles), D), and where densities are computed, (points, D).

    These are evenly spaced, and where there is mass, inside of the support. With draws quantiles are medians of theirs.
    """
    u = np.linspace(_ENDS, 1.0 - _ENDS, _POINTS)
    z = np.asarray(_grid(every, jnp.asarray([0.0, *u, 1.0, *quantiles])), float)
    z = z.reshape(len(z), -1, one.size)
    dense, marks = z[: _POINTS + 2], z[_POINTS + 2 :]
    start, low, high, end = dense[0].min(0), dense[1].min(0), dense[-2].max(0), dense[-1].max(0)
    margin = 0.15 * (high - low)
    low, high = np.fmax(low - margin, start), np.fmin(high + margin, end)
    even = low + (high - low) * ((np.arange(_POINTS) + 0.5) / _POINTS)[:, None]
    return np.median(marks, axis=1), np.sort(np.concatenate([even, np.median(dense[1:-1], axis=1)]), axis=0)


def _densities(product: Product, one: Product, points: np.ndarray) -> np.ndarray:
    """At points, of shape (points, draws, D)."""
    num_draws = product.size // one.size
    log_densities = _log_prob(product, jnp.asarray(points, jnp.result_type(float)), num_draws)
    return np.exp(np.asarray(log_densities, float)).reshape(len(points), num_draws, one.size)


@jax.jit
def _grid(product: Product, u: Array) -> Array:
    return product.grid(u)


@partial(jax.jit, static_argnames="num_draws")
def _log_prob(product: Product, points: Array, num_draws: int) -> Array:
    """Of all draws at every point, a few points at a time: points times draws times coordinates may be many."""

    def at(z: Array) -> Array:
        return product.log_prob(jnp.tile(z, num_draws).reshape(product.shape))

    return jax.lax.map(at, points, batch_size=16)


def _reference(product: Product) -> Product | None:
    """What the densities are tilts of: that of a `KAPrior`, or of a `KAMixture` where its components share one."""
    factors = product.factors
    reference = getattr(factors, "reference", None)
    if reference is None:
        shared = getattr(getattr(factors, "components", None), "reference", None)
        reference = shared if getattr(shared, "batch_shape", None) == () else None
    return reference and dataclasses.replace(product, factors=reference.expand(factors.batch_shape))
