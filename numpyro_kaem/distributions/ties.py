"""Samples with ties: counts, scores, rounded values, atoms, repeated draws.

Equal samples are no draws of a density, and the held-out likelihood of a density that is infinite at them is infinite:
cross-validation would choose the roughest fit. What a tie means depends on where it comes from.

- Values on a lattice (counts, scores, rounded numbers) stand for what was rounded to them: each is spread evenly over
  its step.
- A value that many samples share (an atom) is spread over half the way to its neighbours, or a little more.
- Others are repetitions of one draw (a bootstrap, a chain that stood still): they share a fold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MANY = 8  # samples of one value, from which on it counts as an atom
_MOST_LEVELS = 100_000  # of a lattice


class Sample(NamedTuple):
    """Samples of one coordinate with their weights and folds, sorted.

    Attributes:
        points: the samples; where they were spread, points that stand for them.
        weights: summing to one.
        folds: the fold of each.
        added_variance: what spreading has added to the variance.
        step: distance of the values of a lattice, 0 for others.
        num_levels: number of distinct samples.
    """

    points: np.ndarray
    weights: np.ndarray
    folds: np.ndarray
    added_variance: float
    step: float
    num_levels: int

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        mean = self.weights @ self.points
        return float(mean), float(np.sqrt(self.weights @ (self.points - mean) ** 2))


def untie(z: np.ndarray, weights: np.ndarray, folds: np.ndarray, spread: bool, support: tuple[float, float]) -> Sample:
    """Sort the samples of one coordinate, and take ties apart.

    Args:
        z: samples, (num_samples,).
        weights: summing to one; samples without weight are left out.
        folds: the fold of each sample.
        spread: whether to take ties apart; otherwise they stay as they are.
        support: ends of what samples are spread over.
    """
    present = np.flatnonzero(weights > 0)
    order = present[np.argsort(z[present], kind="stable")]
    z, weights, folds = z[order], weights[order], folds[order]
    starts = np.flatnonzero(np.append(True, np.diff(z) > 0))
    if not spread or len(starts) == len(z) or len(starts) < 2:
        return Sample(z, weights, folds, 0.0, 0.0, len(starts))

    levels, counts = z[starts], np.diff(np.append(starts, len(z)))
    level = np.repeat(np.arange(len(starts)), counts)
    step = _lattice_step(levels)
    half = np.full(len(levels), 0.5 * step) if step else _half_widths(levels, counts)
    is_spread = half[level] > 0
    num_folds = folds.max() + 1
    # Repetitions share a fold, which is that of one of them.
    folds = np.where(is_spread, folds, folds[starts][level])
    whole = Sample(z[~is_spread], weights[~is_spread], folds[~is_spread], 0.0, step, len(levels))
    if not is_spread.any():
        return whole

    masses = np.zeros((num_folds, len(levels)))
    np.add.at(masses, (folds[is_spread], level[is_spread]), weights[is_spread])
    points, source, share = _spread(levels, half, (levels[-1] - levels[0]) / 400.0, support)
    masses = masses[:, source] * share
    used = masses > 0
    points = np.concatenate([whole.points, np.broadcast_to(points, masses.shape)[used]])
    order = np.argsort(points, kind="stable")
    return Sample(
        points[order],
        np.concatenate([whole.weights, masses[used]])[order],
        np.concatenate([whole.folds, np.broadcast_to(np.arange(num_folds)[:, None], masses.shape)[used]])[order],
        float(weights @ half[level] ** 2 / 3.0),
        step,
        len(levels),
    )


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
    counts = np.where(half > 0, np.clip(np.ceil(2.0 * half / spacing), 4, 400), 0).astype(int)
    source = np.repeat(np.arange(len(levels)), counts)
    place = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts) + 0.5
    points = levels[source] + half[source] * (2.0 * place / counts[source] - 1.0)
    inside = (points >= support[0]) & (points <= support[1])
    points, source = points[inside], source[inside]
    return points, source, 1.0 / np.bincount(source, minlength=len(levels))[source]
