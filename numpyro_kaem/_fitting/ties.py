"""Samples with ties: counts, scores, rounded values, atoms, repeated draws.

Equal samples are no draws of a density, and the held-out likelihood of a density that is infinite at them is infinite:
cross-validation would choose the roughest fit. What a tie means depends on where it comes from.

- Values on a lattice (counts, scores, rounded numbers) stand for what was rounded to them: each is spread evenly over
  its step.
- A value that many samples share (an atom) is spread over half the way to its neighbours, or a little more.
- Others are repetitions of one draw (a bootstrap, a chain that stood still): they share a fold.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

_MANY = 8  # samples of one value, from which on it counts as an atom
_MOST_LEVELS = 100_000  # of a lattice


class Sample(NamedTuple):
    """Samples of one coordinate with their weights and folds, sorted; where they were spread, points in their place."""

    points: np.ndarray
    weights: np.ndarray  # summing to one
    folds: np.ndarray
    levels: np.ndarray  # the distinct samples
    half_widths: np.ndarray  # over how much on either side of it each level was spread
    masses: np.ndarray  # of the levels
    step: float  # distance of the values of a lattice, 0 for others

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        mean = self.weights @ self.points
        return float(mean), float(np.sqrt(self.weights @ (self.points - mean) ** 2))

    @property
    def added_variance(self) -> float:
        """What spreading has added to the variance."""
        return float(self.masses @ self.half_widths**2 / 3.0)

    def cdf_bounds(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What lies below z for certain, and what may: a level that was spread may be anywhere in its interval."""

        def mass(ends: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
            order = np.argsort(ends)
            return np.append(0.0, np.cumsum(self.masses[order]))[np.searchsorted(ends[order], z, side)]

        return mass(self.levels + self.half_widths, "left"), mass(self.levels - self.half_widths, "right")


def untie(z: np.ndarray, weights: np.ndarray, folds: np.ndarray, spread: bool, support: np.ndarray) -> Sample:
    """Sort the samples of one coordinate that have weight, and where asked spread ties inside of the support."""
    present = np.flatnonzero(weights > 0)
    order = present[np.argsort(z[present], kind="stable")]
    z, weights, folds = z[order], weights[order], folds[order]
    starts = np.flatnonzero(np.append(True, np.diff(z) > 0))
    levels, masses = z[starts], np.add.reduceat(weights, starts)
    counts = np.diff(np.append(starts, len(z)))
    half: np.ndarray = np.zeros(len(levels))
    step = 0.0
    if 1 < len(levels) < len(z):
        step = _lattice_step(levels)
        if spread:
            half = np.full(len(levels), 0.5 * step) if step else _half_widths(levels, counts)
    if not spread or len(levels) == len(z):
        return Sample(z, weights, folds, levels, half, masses, step)

    level = np.repeat(np.arange(len(levels)), counts)
    is_spread = half[level] > 0
    # Repetitions share a fold, which is that of one of them.
    whole = z[~is_spread], weights[~is_spread], folds[starts][level][~is_spread]
    if not is_spread.any():
        return Sample(*whole, levels, half, masses, step)
    of_folds = np.zeros((folds.max() + 1, len(levels)))
    np.add.at(of_folds, (folds[is_spread], level[is_spread]), weights[is_spread])
    points, source, share = _spread(levels, half, (levels[-1] - levels[0]) / 400.0, support)
    of_folds = of_folds[:, source] * share
    fold, at = np.nonzero(of_folds)
    spread_out = points[at], of_folds[fold, at], fold
    points, weights, folds = (np.concatenate(pair) for pair in zip(whole, spread_out, strict=True))
    order = np.argsort(points, kind="stable")
    return Sample(points[order], weights[order], folds[order], levels, half, masses, step)


def _lattice_step(levels: np.ndarray) -> float:
    """The distance of which all distances of sorted levels are multiples, or 0."""
    gaps = np.diff(levels)
    step = gaps.min()
    if (levels[-1] - levels[0]) / step > _MOST_LEVELS:
        return 0.0
    # The smallest gap of rounded numbers is the worst one to measure by.
    step = gaps.sum() / np.round(gaps / step).sum()
    return float(step) if np.all(np.abs(gaps / step - np.round(gaps / step)) < 0.02) else 0.0


def _half_widths(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Over how much on either side each level is spread: atoms half the way to the nearer neighbour, at least."""
    gaps = np.diff(levels)
    nearer = np.minimum(np.append(gaps[0], gaps), np.append(gaps, gaps[-1]))
    quartiles = np.quantile(levels, [0.25, 0.75])
    least = min(levels[-1] - levels[0], 4.0 * (quartiles[1] - quartiles[0])) / 80.0
    return np.where(counts >= _MANY, np.maximum(0.5 * nearer, least), 0.0)


def _spread(levels, half, spacing, support) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points over the intervals of all levels, the level of each, and its share of that level's mass."""
    least = np.clip(20_000 // len(levels), 4, 64)  # knots may be much closer than an even spacing of them
    counts = np.where(half > 0, np.clip(np.ceil(2.0 * half / spacing), least, 400), 0).astype(int)
    source = np.repeat(np.arange(len(levels)), counts)
    place = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts) + 0.5
    points = levels[source] + half[source] * (2.0 * place / counts[source] - 1.0)
    inside = (points >= support[0]) & (points <= support[1])
    points, source = points[inside], source[inside]
    return points, source, 1.0 / np.bincount(source, minlength=len(levels))[source]
