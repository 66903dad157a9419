"""Nearest training examples of what a model draws, and whether draws are nearer to them than other data are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

# Differences of rows that are held at once.
_AT_ONCE = 2**24
_NUM_CLOSEST = 12
# The share of other data that draws are counted against as copies.
COPY_LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Nearest:
    r"""Distances from draws to the training data, against those from data that the model has not seen.

    If draws are distributed as data are, and nothing else of the training data is in them, then a draw is as likely to
    be nearer to its nearest training example than a new datum is to its own as the other way round:

    $$\text{share} = P(d_\text{draw} < d_\text{other}) + \tfrac12 P(d_\text{draw} = d_\text{other}) = \tfrac12,$$

    with the Mann-Whitney standard error $\sqrt{(n + m + 1) / 12 n m}$ of n draws and m other data. A model that copies
    has a share near 1 (data-copying, Meehan, Chaudhuri and Dasgupta 2020), one that draws noise or blur a share near 0.

    Attributes:
        index: of the nearest training example of each draw.
        distance: to it: root mean square of the differences of all numbers of a datum.
        other: the same distances of other data.
        is_held_out: whether the other data are held-out ones; else they are training data, to the rest of these.
    """

    index: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " m"]
    is_held_out: bool

    @property
    def closest(self) -> Int[np.ndarray, " k"]:
        """The 12 draws that are nearest to a training example, the nearest first."""
        return np.argsort(self.distance, kind="stable")[:_NUM_CLOSEST]

    @property
    def share(self) -> float:
        """Of pairs of a draw and another datum in which the draw is nearer to training data; 0.5 is expected."""
        others = np.sort(self.other)
        below, upto = (np.searchsorted(others, self.distance, side) for side in ("left", "right"))
        return float(1.0 - 0.5 * np.mean(below + upto) / len(others))

    @property
    def share_error(self) -> float:
        """Standard error of the share where 0.5 is true."""
        n, m = len(self.distance), len(self.other)
        return math.sqrt((n + m + 1) / (12 * n * m))

    @property
    def copies(self) -> float:
        """Share of draws that are nearer to a training example than 95 in 100 other data are; 0.05 is expected."""
        return float(np.mean(self.distance < np.quantile(self.other, COPY_LEVEL)))

    @property
    def copies_error(self) -> float:
        """Standard error of that share where 0.05 is true, of the draws and of the quantile of other data."""
        return math.sqrt(COPY_LEVEL * (1 - COPY_LEVEL) * (1 / len(self.distance) + 1 / len(self.other)))


def nearest(
    draws: Num[np.ndarray, "n ..."], train: Num[np.ndarray, "num_train ..."], held_out: np.ndarray | None = None
) -> Nearest:
    """Compare draws with training data, and how near these are to held-out data, or to each other without any.

    Raises:
        ValueError: for fewer than two training data, shapes that differ, and values that are not finite.
    """
    arrays = {"draws": draws, "train": train, "held_out": held_out}
    flat = {name: _rows(name, values) for name, values in arrays.items() if values is not None}
    sizes = {values.shape[1] for values in flat.values()}
    if len(sizes) > 1 or len(flat["train"]) < 2 or not all(map(len, flat.values())):
        shapes = {name: np.shape(values) for name, values in arrays.items() if values is not None}
        raise ValueError(f"there must be at least two training data, and all of one shape, got {shapes}")
    center = flat["train"].mean(axis=0)
    flat = {name: values - center for name, values in flat.items()}
    index, distance = _nearest(flat["draws"], flat["train"])
    if held_out is not None:
        _, other = _nearest(flat["held_out"], flat["train"])
    else:
        # Of many training data as many as there are draws say as much.
        rows = np.linspace(0, len(train) - 1, min(len(train), 4 * len(draws))).astype(int)
        _, other = _nearest(flat["train"][rows], flat["train"], rows)
    return Nearest(index, distance, other, held_out is not None)


def _rows(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float32)
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


def _nearest(
    points: np.ndarray, train: np.ndarray, own: np.ndarray | None = None
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Index of the nearest training row of every point, other than its own, and the distance to it."""
    squares = np.sum(train**2, axis=1)
    index = np.empty(len(points), int)
    chunk = max(1, _AT_ONCE // len(train))
    for start in range(0, len(points), chunk):
        some = slice(start, start + chunk)
        # |p - t|^2 without |p|^2, which is the same for all.
        squared = squares - 2.0 * points[some] @ train.T
        if own is not None:
            squared[np.arange(len(squared)), own[some]] = np.inf
        index[some] = np.argmin(squared, axis=1)
    # Differences themselves, so that a copy has distance zero.
    return index, np.sqrt(np.mean((points - train[index]) ** 2, axis=1, dtype=float))
