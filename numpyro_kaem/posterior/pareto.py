"""Pareto smoothing: the largest importance weights of each datum, and the generalised Pareto law of their tail.

A. Vehtari et al., Pareto Smoothed Importance Sampling, Journal of Machine Learning Research 25(72), 2024.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

# With fewer particles the tail holds too few weights; nor is one fitted to fewer excesses than these.
_LEAST_PARTICLES, _LEAST_EXCESSES = 25, 5


def pareto_smooth(
    log_weights: Float[np.ndarray, "num_data num_particles"],
) -> tuple[Float[np.ndarray, "num_data num_particles"], Float[np.ndarray, " num_data"]]:
    """Log-weights whose largest are quantiles of the Pareto law fitted to them, at most the largest, and its shape k.

    k is inf where so few weights differ from zero that a tail cannot be fitted, -inf where the largest weights are all
    equal (the tail ends at once), NaN below 25 particles; then all weights are as they were.
    """
    num_data, num_particles = log_weights.shape
    smoothed, k = log_weights.copy(), np.full(num_data, np.nan)
    if num_particles < _LEAST_PARTICLES:
        return smoothed, k
    tail_size = int(np.ceil(min(0.2 * num_particles, 3.0 * num_particles**0.5)))
    for row, weights in enumerate(log_weights.astype(np.float64)):
        order = np.argsort(weights)
        lowest, largest = weights[order[-tail_size - 1]], weights[order[-1]]
        if lowest == -np.inf or largest == lowest:
            k[row] = np.inf if lowest == -np.inf else -np.inf
            continue
        # Relative to the largest, whatever their scale; those that are as large as the threshold are not above it.
        threshold = max(lowest - largest, np.log(np.finfo(float).tiny))
        tail = order[weights[order] - largest > threshold]
        excesses = np.exp(weights[tail] - largest) - np.exp(threshold)
        k[row], scale = _fit(excesses) if len(tail) >= _LEAST_EXCESSES else (np.inf, np.nan)
        if np.isfinite(k[row]):
            probability = (np.arange(len(tail)) + 0.5) / len(tail)
            quantiles = scale * np.expm1(-k[row] * np.log1p(-probability)) / k[row]
            smoothed[row, tail] = np.minimum(np.log(quantiles + np.exp(threshold)), 0.0) + largest
    return smoothed, k


def _fit(excesses: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Shape k and scale s of a generalised Pareto law, F(x) = 1 - (1 + k x / s)^(-1 / k), from its sorted draws.

    The posterior mean of b = -k / s over a grid of candidates, by J. Zhang and M. A. Stephens (Technometrics 51(3),
    2009), each with the k of largest likelihood; then k is drawn to 1 / 2 as ten more draws would do it.
    """
    n = len(excesses)
    num_candidates = 30 + int(n**0.5)
    quartile = excesses[int(n / 4 + 0.5) - 1]
    b = 1 / excesses[-1] + (1 - np.sqrt(num_candidates / (np.arange(num_candidates) + 0.5))) / (3 * quartile)
    shape = np.log1p(-b[:, None] * excesses).mean(1)
    b = np.sum(b * softmax(n * (np.log(-b / shape) - shape - 1)))
    shape = np.log1p(-b * excesses).mean()
    return (n * shape + 10 * 0.5) / (n + 10), -shape / b
