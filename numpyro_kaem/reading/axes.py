"""What all pictures are made with: axes, colours that everyone can tell apart, and data as tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem.checks import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# The palette of M. Okabe and K. Ito (2002), which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
BLUE, ORANGE = COLOURS[:2]
GREY = "0.6"
_WIDEST = 11.0  # inches that a notebook or a page shows
_TILE = 0.75


def pyplot() -> Any:
    """`matplotlib.pyplot`.

    Raises:
        ImportError: without Matplotlib.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need Matplotlib: pip install 'numpyro_kaem[reading]'") from error
    return plt


def make_axes(
    number: int,
    ax: Any,
    figsize: Sequence[float | int] | None,
    num_columns: int,
    size: tuple[float, float] = (2.8, 2.2),
) -> np.ndarray:
    """So many axes in a row: those of `ax`, or of a new figure, in which `size` is that of one of them.

    Raises:
        ValueError: where `ax` holds other things or fewer, and for a `figsize` that is not of a new figure.
    """
    plt = pyplot()
    if ax is None:
        columns = min(number, check_count("num_columns", num_columns, 1))
        rows = -(-number // columns)
        figsize = figsize or (min(size[0] * columns, _WIDEST), size[1] * rows)
        _, grid = plt.subplots(rows, columns, figsize=figsize, layout="constrained", squeeze=False)
        for unused in grid.ravel()[number:]:
            unused.remove()
        return grid.ravel()[:number]
    if figsize is not None:
        raise ValueError(f"figsize is of a new figure, but ax is given: leave one of them out, got figsize={figsize}")
    from matplotlib.axes import Axes

    given = np.ravel(np.array(ax, dtype=object))
    if strange := [type(one).__name__ for one in given if not isinstance(one, Axes)]:
        raise ValueError(f"ax must be Matplotlib's axes or an array of them, got {strange[0]}")
    if len(given) < number:
        raise ValueError(f"ax must hold {number} axes for this picture, got {len(given)}")
    return given[:number]


def taken(name: str, value: Any, origin: str, *fields: str) -> list[Any]:
    """Fields of an object.

    Raises:
        TypeError: for an object without them, which says where one with them comes from.
    """
    if missing := [field for field in fields if not hasattr(value, field)]:
        raise TypeError(f"{name} must be what {origin} returns, but a {type(value).__name__} has no {missing[0]}")
    return [getattr(value, field) for field in fields]


def checked_data(name: str, values: ArrayLike | Sequence, axes: str = "num_data") -> np.ndarray:
    """Data of shape (axes, *event) as an array of NumPy.

    Raises:
        ValueError: for no data, and where they are not finite or no numbers.
    """
    values = np.asarray(values)
    if values.ndim < axes.count(",") + 1 or values.size == 0:
        raise ValueError(f"{name} must be of shape ({axes}, *event) with something in it, got shape {values.shape}")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, got {values.dtype}")
    values = values.astype(float)
    if bad := np.count_nonzero(~np.isfinite(values)):
        raise ValueError(f"{name} must be finite, but {bad} of {values.size} numbers are infinite or NaN")
    return values


def kind_of(name: str, event: tuple[int, ...]) -> str:
    """How a datum of a shape is drawn: as a "number", "pair", "curve" or "image".

    Raises:
        ValueError: for a shape that is none of these.
    """
    if event in {(), (1,)}:
        return "number"
    if len(event) == 1:
        return "pair" if event == (2,) else "curve"
    if len(event) == 2 or (len(event) == 3 and event[-1] in {1, 3, 4}):
        return "image"
    raise ValueError(
        f"{name} must be numbers, pairs, curves (n,) or images (height, width) or (height, width, 1, 3 or 4 channels), "
        f"got data of shape {event}: pass one channel, such as [..., 0], or reshape them"
    )


def colour_limits(values: np.ndarray, vmin: float | int | None, vmax: float | int | None) -> tuple[float, float]:
    """Ends of a colour scale: as given; 0 and 1 of numbers between them; the range of others."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    return low if vmin is None else vmin, high if vmax is None else vmax


def scaled(images: np.ndarray, event: tuple[int, ...], vmin: float | int | None, vmax: float | int | None) -> tuple:
    """Images as Matplotlib takes them, a single channel without its axis or colours from 0 to 1; and their scale."""
    if len(event) == 3 and event[-1] == 1:
        images = images[..., 0]
    low, high = colour_limits(images, vmin, vmax)
    if len(event) == 2 or event[-1] == 1:
        return images, (low, high)
    if vmin is None and vmax is None and low >= 0.0 and 1.0 < high <= 255.0:
        low, high = 0.0, 255.0
    return np.clip((images - low) / ((high - low) or 1.0), 0.0, 1.0), (0.0, 1.0)


def tile_size(rows: int, columns: int, aspect: float = 1.0) -> tuple[float, float]:
    """Of a figure of tiles, in inches; `aspect` is height over width of one."""
    width = float(np.clip(_TILE * columns, 2.0, _WIDEST))
    return width, width / columns * rows * aspect + 0.2


def draw_images(
    ax: Axes,
    images: np.ndarray,
    cmap: Any,
    limits: tuple[float, float],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> AxesImage:
    """Draw images that are `scaled`, (rows, columns, height, width) or with channels; those of NaN stay empty."""
    rows, columns, height, width = images.shape[:4]
    gap = max(1, height // 16, width // 16)
    canvas = np.full((rows, height + gap, columns, width + gap, *images.shape[4:]), np.nan)
    canvas[:, :height, :, :width] = np.moveaxis(images, 1, 2)
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), *images.shape[4:])[:-gap, :-gap]
    if canvas.ndim == 3:
        canvas = np.where(np.isnan(canvas), 1.0, canvas)
    image = ax.imshow(canvas, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_yticks([(height + gap) * row + (height - 1) / 2 for row in range(len(row_names))], row_names)
    ax.set_xticks([(width + gap) * column + (width - 1) / 2 for column in range(len(column_names))], column_names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def draw_curves(ax: Axes, curves: np.ndarray, limits: tuple[float, float], **style: Any) -> None:
    """Draw curves, of shape (num_curves, columns, n), as tiles of one scale."""
    from matplotlib.collections import LineCollection

    low, high = limits
    rows, columns, size = curves.shape
    row, column = np.indices((rows, columns))
    x = column[..., None] + 0.05 + 0.9 * np.linspace(0.0, 1.0, size)
    y = row[..., None] + 0.95 - 0.9 * (curves - low) / ((high - low) or 1.0)
    segments = np.stack([x, y], axis=-1).reshape(-1, size, 2)
    shown = np.isfinite(segments).all((1, 2))
    ax.add_collection(LineCollection(list(segments[shown]), **style))
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_bundle(ax: Axes, curves: np.ndarray, positions: np.ndarray) -> None:
    """Draw curves over each other, each in the colour of its position between 0 and 1."""
    colours = pyplot().get_cmap("viridis")(0.92 * np.asarray(positions))  # the last of the scale is too light on white
    for curve, colour in zip(curves, colours, strict=True):
        ax.plot(curve, color=colour, linewidth=1.2)


def draw_numbers(ax: Axes, x: np.ndarray, numbers: np.ndarray) -> None:
    """Draw numbers, or the elements of vectors, against x."""
    for values, colour in zip(numbers.reshape(len(x), -1).T, COLOURS, strict=False):
        ax.plot(x, values, ".-", color=colour)


def in_rows(values: np.ndarray, columns: int) -> np.ndarray:
    """Data in so many columns, with NaN in places of the last row that are left."""
    rows = -(-len(values) // columns)
    padded = np.full((rows * columns, *values.shape[1:]), np.nan)
    padded[: len(values)] = values
    return padded.reshape(rows, columns, *values.shape[1:])
