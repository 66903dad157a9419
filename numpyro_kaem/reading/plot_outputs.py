"""Pictures of what a model makes: samples, reconstructions, and what happens along paths through its latents.

Data of shape (height, width), or with 1, 3 or 4 channels last, are images; of shape (n,) curves, (2,) pairs, ()
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem.checks import check_count
from numpyro_kaem.reading.axes import (
    BLUE,
    GREY,
    checked_data,
    draw_bundle,
    draw_curves,
    draw_images,
    draw_numbers,
    in_rows,
    kind_of,
    make_axes,
    scaled,
    taken,
    tile_size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_samples(
    samples: ArrayLike | Sequence,
    *,
    num_columns: int | None = None,
    cmap: Any = "gray_r",
    vmin: float | int | None = None,
    vmax: float | int | None = None,
    figsize: Sequence[float | int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw data, or samples: images and curves as tiles of one scale, pairs as a scatter, numbers as a histogram.

    Args:
        samples: shape (num_samples, *event), such as `kaem.sample` returns; or (rows, columns, height, width) with
            `num_columns` of their own: reshape them to (-1, height, width). Colours are from 0 to 1 or from 0 to 255.
        num_columns: of tiles; None for about as many as there are rows.
        cmap: Matplotlib's colour map, of images with one channel.
        vmin: lower end of the scale of images; None for 0 where all are between 0 and 1, else their minimum.
        vmax: its upper end.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for samples of other shapes, or that are not finite.

    Example:
        ```python
        import jax
        from numpyro_kaem import plot_samples

        ax = plot_samples(jax.random.uniform(jax.random.key(0), (12, 8, 8)), num_columns=4)
        assert ax.images[0].get_array().shape == (3 * 9 - 1, 4 * 9 - 1)
        ```
    """
    samples = checked_data("samples", samples, "num_samples")
    kind = kind_of("samples", samples.shape[1:])
    if kind in {"number", "pair"}:
        (ax,) = make_axes(1, ax, figsize, 1, (4.0, 3.2))
        if kind == "number":
            ax.hist(samples.ravel(), min(60, max(5, int(len(samples) ** 0.5))), density=True, color=BLUE)
            ax.set_ylabel("density")
        else:
            ax.plot(*samples.T, ".", color=BLUE, markersize=3, alpha=max(0.2, min(1.0, 300 / len(samples))))
        return ax
    columns = round(np.ceil(len(samples) ** 0.5)) if num_columns is None else num_columns
    columns = min(len(samples), check_count("num_columns", columns, 1))
    (ax,) = make_axes(1, ax, figsize, 1, tile_size(-(-len(samples) // columns), columns, _aspect(samples.shape[1:])))
    if kind == "image":
        images, limits = scaled(samples, samples.shape[1:], vmin, vmax)
        draw_images(ax, in_rows(images, columns), cmap, limits)
    else:
        draw_curves(ax, in_rows(samples, columns), (samples.min(), samples.max()), color=BLUE, linewidth=1.0)
    return ax


def plot_reconstructions(
    x: ArrayLike | Sequence,
    reconstructed: ArrayLike | Sequence,
    *,
    num_columns: int = 10,
    cmap: Any = "gray_r",
    vmin: float | int | None = None,
    vmax: float | int | None = None,
    figsize: Sequence[float | int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw data with their reconstructions: images below them, curves over them, numbers against them.

    Args:
        x: data, shape (num_data, *event).
        reconstructed: of the same shape, such as `kaem.reconstruct` returns.
        num_columns: of tiles.
        cmap: Matplotlib's colour map, of images with one channel.
        vmin: lower end of the scale of images; None for 0 where all are between 0 and 1, else their minimum.
        vmax: its upper end.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for arrays of different shapes, of other shapes than these, or that are not finite.

    Example:
        ```python
        import jax
        from numpyro_kaem import plot_reconstructions

        x = jax.random.uniform(jax.random.key(0), (6, 8, 8))
        ax = plot_reconstructions(x, 0.5 * x)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "model"]
        ```
    """
    x, reconstructed = checked_data("x", x), checked_data("reconstructed", reconstructed)
    if x.shape != reconstructed.shape:
        raise ValueError(f"reconstructed must have the shape of x, {x.shape}, got {reconstructed.shape}")
    kind = kind_of("x", x.shape[1:])
    if kind in {"number", "pair"}:
        (ax,) = make_axes(1, ax, figsize, 1, (3.4, 3.2))
        ax.axline((x.min(), x.min()), slope=1.0, color=GREY, linewidth=1.0)
        ax.plot(x.ravel(), reconstructed.ravel(), ".", color=BLUE, markersize=4)
        ax.set(xlabel="data", ylabel="model")
        return ax
    columns = min(len(x), check_count("num_columns", num_columns, 1))
    rows = -(-len(x) // columns)
    if kind == "curve":
        limits = min(x.min(), reconstructed.min()), max(x.max(), reconstructed.max())
        (ax,) = make_axes(1, ax, figsize, 1, tile_size(rows, columns, _aspect(x.shape[1:])))
        draw_curves(ax, in_rows(x, columns), limits, color=GREY, linewidth=2.5, label="data")
        draw_curves(ax, in_rows(reconstructed, columns), limits, color=BLUE, linewidth=1.0, label="model")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    else:
        (ax,) = make_axes(1, ax, figsize, 1, tile_size(2 * rows, columns, _aspect(x.shape[1:])))
        images, limits = scaled(np.stack([x, reconstructed], axis=1), x.shape[1:], vmin, vmax)
        tiles = np.moveaxis(in_rows(images, columns), 2, 1)
        draw_images(ax, tiles.reshape(2 * rows, *tiles.shape[2:]), cmap, limits, row_names=("data", "model") * rows)
    return ax


def plot_traversals(
    traversal: Any,
    *,
    coordinates: Sequence[int | str] | None = None,
    num_columns: int | None = None,
    cmap: Any = "gray_r",
    vmin: float | int | None = None,
    vmax: float | int | None = None,
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw what each coordinate does: outputs while it goes through its quantiles and all others stay.

    Images are a row for each coordinate, above their probabilities, which several rows may share; curves lie over each
    other, dark at low probabilities and light at high ones; numbers are drawn against the probability.

    Args:
        traversal: what `traverse` returns.
        coordinates: those to draw, in this order, by number or name; None for all of the traversal, in its order.
        num_columns: of axes in a row of a new figure; None for 1 of images, 4 of curves and numbers.
        cmap: Matplotlib's colour map, of images with one channel.
        vmin: lower end of the scale of images; None for 0 where all are between 0 and 1, else their minimum.
        vmax: its upper end.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one for each coordinate; None for a new figure.

    Returns:
        The axes, one for each coordinate.

    Raises:
        ImportError: without Matplotlib.
        TypeError: for what is no traversal.
        ValueError: for coordinates that it has not, and for outputs that cannot be drawn.

    Example:
        ```python
        import jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import plot_traversals, traverse

        prior = dist.Normal(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])).to_event(1)
        axes = plot_traversals(traverse(prior, lambda z: z[..., None] * z[..., None, :]))
        assert [ax.get_yticklabels()[0].get_text() for ax in axes] == ["z[2]", "z[1]", "z[0]"]
        ```
    """
    fields = "coordinates", "names", "probabilities", "outputs"
    numbers, names, probabilities, outputs = taken("traversal", traversal, "`traverse`", *fields)
    outputs, probabilities = checked_data("outputs", outputs, "coordinates, steps"), np.asarray(probabilities, float)
    places = {key: place for place, keys in enumerate(zip(map(int, numbers), names, strict=True)) for key in keys}
    chosen = list(names) if coordinates is None else list(coordinates)
    if not chosen or any(coordinate not in places for coordinate in chosen):
        raise ValueError(f"coordinates must be some of the traversal's, {', '.join(names)}, got {coordinates!r}")
    chosen = [places[coordinate] for coordinate in chosen]
    titles, positions = [names[place] for place in chosen], probabilities[chosen]
    scale = {"cmap": cmap, "vmin": vmin, "vmax": vmax}
    return _draw_paths(outputs[chosen], positions, titles, "probability", scale, num_columns, figsize, ax)


def plot_interpolation(
    interpolation: Any,
    *,
    num_columns: int | None = None,
    cmap: Any = "gray_r",
    vmin: float | int | None = None,
    vmax: float | int | None = None,
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw the outputs on the way from one latent to another.

    Images are a row for each way; curves lie over each other, dark at the start and light at the end; numbers are drawn
    against how far they are on the way.

    Args:
        interpolation: what `interpolate` returns.
        num_columns: of axes in a row of a new figure; None for 1 of images, 4 of curves and numbers.
        cmap: Matplotlib's colour map, of images with one channel.
        vmin: lower end of the scale of images; None for 0 where all are between 0 and 1, else their minimum.
        vmax: its upper end.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one for each pair of latents; None for a new figure.

    Returns:
        The axes, one for each pair of latents.

    Raises:
        ImportError: without Matplotlib.
        TypeError: for what is no interpolation.
        ValueError: for one without outputs, and for outputs that cannot be drawn.

    Example:
        ```python
        import jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import interpolate, plot_interpolation

        prior = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        way = interpolate(jnp.zeros(3), jnp.ones(3), prior=prior, function=lambda z: z[..., None] * z[..., None, :])
        (ax,) = plot_interpolation(way)
        ```
    """
    outputs, weights = taken("interpolation", interpolation, "`interpolate`", "outputs", "weights")
    if outputs is None:
        raise ValueError("interpolation must have outputs: give `interpolate` the function that makes them")
    weights = np.asarray(weights, float)
    outputs = np.reshape(outputs, (-1, weights.shape[-1], *np.shape(outputs)[weights.ndim :]))
    outputs = checked_data("outputs", outputs, "pairs, steps")
    titles, scale = [""] * len(outputs), {"cmap": cmap, "vmin": vmin, "vmax": vmax}
    positions = weights.reshape(outputs.shape[:2])
    return _draw_paths(outputs, positions, titles, "way", scale, num_columns, figsize, ax)


def _draw_paths(
    outputs: np.ndarray,
    positions: np.ndarray,
    titles: Sequence[str],
    label: str,
    scale: dict[str, Any],
    num_columns: int | None,
    figsize: Sequence[float | int] | None,
    ax: Any,
) -> np.ndarray:
    """Outputs (paths, steps, *event) and how far they are, from 0 to 1 (paths, steps), on axes for each path."""
    event = outputs.shape[2:]
    kind = kind_of("outputs", event)
    size, columns = (2.8, 2.2), 4
    if kind == "image":
        size, columns = tile_size(1, outputs.shape[1], _aspect(event)), 1
        outputs, limits = scaled(outputs, event, scale["vmin"], scale["vmax"])
    axes = make_axes(len(outputs), ax, figsize, columns if num_columns is None else num_columns, size)
    differ = ax is not None or np.any(positions != positions[-1])
    for number, (at, title, path, position) in enumerate(zip(axes, titles, outputs, positions, strict=True)):
        if kind == "image":
            steps = [f"{u:.3g}" for u in position] if differ or number == len(axes) - 1 else ()
            draw_images(at, path[None], scale["cmap"], limits, [title], steps)
            continue
        at.set_title(title, fontsize=10)
        if kind == "curve":
            draw_bundle(at, path, position)
        else:
            draw_numbers(at, position, path)
            at.set_xlabel(label)
    return axes


def _aspect(event: tuple[int, ...]) -> float:
    """Height over width of images, or of tiles of curves."""
    return event[0] / event[1] if len(event) > 1 else 0.8
