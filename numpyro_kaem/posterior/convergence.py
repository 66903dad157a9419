"""Whether chains or runs agree with one another: rank-normalised R-hat, and lumps in a series."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

# Fewer draws of a chain tell nothing.
MIN_DRAWS = 4


def rank_rhat(series: Float[np.ndarray, "num_data num_chains num_draws *element"]) -> Float[np.ndarray, " num_data"]:
    """The largest rank-normalised split R-hat over the elements of a series, as ArviZ computes it.

    Each chain is split into halves, whose draws are replaced by normal quantiles of their ranks among all; R-hat is the
    square root of the variance of all over that within the halves. Of the draws and of their distances from the median
    the larger counts. Elements that never move do not count (1 where none moves). See A. Vehtari et al., Bayesian
    Analysis 16(2), 2021.
    """
    from numpyro.diagnostics import gelman_rubin
    from scipy.special import ndtri
    from scipy.stats import rankdata

    num_data, num_chains, num_draws = series.shape[:3]
    half = num_draws // 2
    # An odd number of draws loses the one in the middle.
    chains = series.reshape(num_data, num_chains, num_draws, -1).astype(float)
    halves = np.concatenate([chains[:, :, :half], chains[:, :, -half:]], axis=1)
    flat = np.moveaxis(halves, -1, 1).reshape(num_data, -1, 2 * num_chains * half)
    folded = np.abs(flat - np.median(flat, -1, keepdims=True))

    def of_ranks(values):
        # Normal quantiles of the ranks, ties sharing their mean rank (Blom's).
        scores = ndtri((rankdata(values, axis=-1) - 0.375) / (values.shape[-1] + 0.25))
        return gelman_rubin(np.moveaxis(scores.reshape(*scores.shape[:2], -1, half), (2, 3), (0, 1)))

    # NaN where halves of chains stand still at one place.
    rhat = np.fmax(of_ranks(flat), of_ranks(folded))
    return np.where(np.ptp(flat, axis=-1) > 0, rhat, 1.0).max(1, initial=1.0)


# Shares of draws in the lower of two lumps that are looked for; of rare upper lumps, the last.
_SHARES = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
_RARE = 0.95
# Draws that there must be around the median of either lump, and cells of the way between the medians.
_LEAST, _CELLS = 40, 12


def has_two_lumps(series: Float[np.ndarray, "*batch n"], *, rare_upper: bool = False) -> Bool[np.ndarray, "*batch"]:
    """Whether draws gather in two lumps with a gap between them, the upper one with a twentieth at most if it is rare.

    Between the medians of the draws below and above a threshold, a density of one lump is nowhere lower than at the
    lower of the two. Where a sixth of the way has less than a twentieth of what it would have with as many draws as lie
    around either median, there are two lumps. Draws that are not finite do not count.
    """
    series = np.asarray(series, float)
    most_above = 1.0 - _RARE if rare_upper else 1.0
    flat = np.sort(series.reshape(math.prod(series.shape[:-1]), series.shape[-1]), -1)
    gaps = [_has_gap(row[np.isfinite(row)], most_above) for row in flat]
    return np.array(gaps, bool).reshape(series.shape[:-1])


def _has_gap(draws: Float[np.ndarray, " n"], most_above: float) -> bool:
    """Whether sorted draws have a gap with at most a share of them above it."""
    if len(draws) < 2 * _LEAST:
        return False
    shares = _SHARES[_SHARES >= _RARE] if most_above < 1 else _SHARES
    low, high = np.quantile(draws, shares / 2), np.quantile(draws, (1 + shares) / 2)
    # From two cells below the lower median to two above the upper.
    edges = low + (high - low) * np.arange(-2, _CELLS + 3)[:, None] / _CELLS
    counts = np.diff(np.searchsorted(draws, edges), axis=0)
    pairs = counts[:-1] + counts[1:]
    around = np.minimum(pairs[0] + pairs[2], pairs[-1] + pairs[-3])
    inner = pairs[4:-4]
    emptiest = inner.argmin(0)
    columns = np.arange(len(shares))
    above = 1.0 - np.searchsorted(draws, edges[5 + emptiest, columns]) / len(draws)
    is_gap = inner[emptiest, columns] < 0.05 * around / 2
    return bool(np.any(is_gap & (around >= _LEAST) & (high > low) & (above <= most_above)))
