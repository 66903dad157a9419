"""A picture of effects: how much of the output's variance each coordinate explains, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numpyro_kaem.checks import check_count
from numpyro_kaem.reading.axes import BLUE, ORANGE, make_axes, taken


def plot_effects(
    effects: Any,
    *,
    num_coordinates: int = 20,
    num_maps: int = 0,
    num_columns: int = 4,
    cmap: Any = "viridis",
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw the effects of coordinates: Sobol indices of the whole output, ranked; and maps, where it is an image.

    A long bar is the total index, a short one in front of it the first-order index: what lies between them is shared
    with other coordinates. Lines are of two standard errors either way.

    Args:
        effects: what `effects` returns.
        num_coordinates: how many of the first in the ranking get bars.
        num_maps: how many of the first in the ranking get a map of the variance that goes with them, the total index
            times the output's variance, all on one scale: an image for outputs of shape (height, width), or with
            channels, over which it is summed; a curve for outputs of shape (n,), with that of the first-order index.
            (Of an output that hardly varies, shares say nothing.)
        num_columns: of axes in a row of a new figure.
        cmap: Matplotlib's colour map, of maps.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one, and one for each map; None for a new figure.

    Returns:
        The axes: that of the bars, and one for each map.

    Raises:
        ImportError: without Matplotlib.
        TypeError: for what are no effects.
        ValueError: for numbers out of range, and maps of outputs that have none.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import effects, plot_effects

        prior = dist.Normal(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])).to_event(1)
        found = effects(jax.random.key(0), prior, lambda z: z[..., None] * z[..., None, :], num_samples=256)
        bars, first_map, second_map = plot_effects(found, num_maps=2)
        assert first_map.get_title() == "z[2]"
        ```
    """
    first, total, ranking, names = taken(
        "effects", effects, "`effects`", "whole_first_order", "whole_total", "ranking", "names"
    )
    first_error, total_error = taken("effects", effects, "`effects`", "whole_first_order_se", "whole_total_se")
    ranking = np.asarray(ranking, int)
    shown = ranking[: check_count("num_coordinates", num_coordinates, 1)]
    mapped = ranking[: check_count("num_maps", num_maps, 0)]
    maps = _maps(effects, mapped) if len(mapped) else {}
    axes = make_axes(1 + len(mapped), ax, figsize, num_columns, (3.4, max(2.4, 0.22 * len(shown) + 0.8)))

    bars, places = axes[0], np.arange(len(shown))
    for values, errors, height, shift, colour, label in (
        (total, total_error, 0.8, -0.3, ORANGE, "total"),
        (first, first_error, 0.4, 0.0, BLUE, "first order"),
    ):
        bars.barh(places, np.asarray(values)[shown], height, color=colour, label=label)
        errors = 2.0 * np.asarray(errors)[shown]
        bars.errorbar(
            np.asarray(values)[shown], places + shift, xerr=errors, fmt="none", ecolor="black", elinewidth=0.8
        )
    bars.set_yticks(places, [names[d] for d in shown], fontsize=8)
    bars.set(xlabel="share of the variance", ylim=(len(shown) - 0.4, -0.6), xlim=(0.0, None))
    bars.spines[["right", "top"]].set_visible(False)
    bars.legend(loc="lower right", frameon=False, fontsize=8)

    image, highest = None, max((float(values.max()) for values in maps.values()), default=0.0) or 1.0
    for at, d, values in zip(axes[1:], mapped, maps.get("total", ()), strict=False):
        at.set_title(names[d], fontsize=10)
        if values.ndim == 1:
            at.plot(values, color=ORANGE)
            at.plot(maps["first order"][list(mapped).index(d)], color=BLUE)
            at.set(ylim=(0.0, 1.05 * highest), xlabel="output")
        else:
            image = at.imshow(values, cmap=cmap, vmin=0.0, vmax=highest)
            at.set(xticks=[], yticks=[])
    if image is not None and ax is None:
        axes[0].figure.colorbar(image, ax=list(axes[1:]), shrink=0.8, label="variance that goes with it")
    return axes


def _maps(effects: Any, mapped: np.ndarray) -> dict[str, np.ndarray]:
    """Variances of every output that go with some coordinates, by the kind of index."""
    total, first, variance = taken("effects", effects, "`effects`", "total", "first_order", "variance")
    variance = np.asarray(variance, float)
    if variance.ndim not in {1, 2, 3}:
        raise ValueError(f"num_maps must be 0 for outputs of shape {variance.shape}, which are no curve or image")
    maps = {name: np.asarray(of, float)[mapped] * variance for name, of in (("total", total), ("first order", first))}
    return {name: values.sum(-1) for name, values in maps.items()} if variance.ndim == 3 else maps
