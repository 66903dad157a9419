"""The unmixing matrix of greatest profile likelihood, and a start for it.

With whitened data X of shape (num_sources, n), Y = W X and s_q the standard deviation of Y_q, the mean log-likelihood
is

    L(W) = log|det W| - sum_q log s_q + sum_q max_p mean log p(Y_q / s_q),

with a density p that is the best one for every W. So its derivatives are those for a density that stays (the envelope
theorem), and the scales of the sources, which a density of another scale makes up for, are no variables. At s = 1 the
negative L has, for W <- (I + E) W, the gradient

    N_qr = G_qr - (G_qq - 1) C_qr - [q = r],   G = psi(Y) Y' / n,   C = Y Y' / n,   psi = -d log p / dz,

with zeros on the diagonal. Where sources are independent the Hessian couples E_qr with E_rq alone, in blocks of two:
L-BFGS starts from these (Ablin, Cardoso and Gramfort 2018).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from numpyro_kaem.separation.source_densities import Fitted, SourceModel

_MEMORY = 10
_LEAST_CURVATURE = 0.01
_MOST_HALVINGS = 12


class Point(NamedTuple):
    """An unmixing matrix, and what is known of the likelihood there."""

    unmixing: np.ndarray
    sources: np.ndarray  # (num_sources, n), of unit variance
    fitted: Fitted
    value: float  # penalised mean log-likelihood of a row
    gradient: np.ndarray  # of its negative
    blocks: np.ndarray  # approximate second derivatives in E_qr


def evaluate(unmixing: np.ndarray, sources: np.ndarray, model: SourceModel, start: np.ndarray | None = None) -> Point:
    """Fit the densities to the sources of an unmixing matrix, from coefficients to start with."""
    num_sources, n = sources.shape
    covariance = sources @ sources.T / n
    scale = np.sqrt(np.diag(covariance))
    unmixing, sources = unmixing / scale[:, None], sources / scale[:, None]
    covariance /= scale[:, None] * scale
    bins = model.bins(sources)
    fitted = model.fit(bins, start)
    products = model.scores(sources, bins, fitted) @ sources.T / n
    gradient = products - (np.diag(products) - 1.0)[:, None] * covariance
    np.fill_diagonal(gradient, 0.0)
    value = np.linalg.slogdet(unmixing)[1] + np.sum(fitted.value)
    return Point(
        unmixing, sources, fitted, float(value), gradient, np.repeat(fitted.curvature[:, None], num_sources, 1)
    )


def _solve(blocks: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The inverse of the approximate Hessian, made positive, times a matrix."""
    # [[a, 1], [1, b]] for E_qr and E_rq, moved until its smaller eigenvalue is positive.
    smaller = 0.5 * (blocks + blocks.T) - np.sqrt(0.25 * (blocks - blocks.T) ** 2 + 1.0)
    moved = blocks + np.maximum(_LEAST_CURVATURE - smaller, 0.0)
    determinant = moved * moved.T - 1.0
    np.fill_diagonal(determinant, 1.0)
    solution = (moved.T * gradient - gradient.T) / determinant
    np.fill_diagonal(solution, 0.0)
    return solution


def maximise_likelihood(point: Point, model: SourceModel, most_steps: int, tolerance: float) -> tuple[Point, int, bool]:
    """Steps of preconditioned L-BFGS; returned are the last point, their number, and whether none is left to be taken.

    It ends where no element of the gradient exceeds the tolerance, or no step gains.
    """
    identity = np.eye(len(point.unmixing))
    memory: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_MEMORY)
    for steps in range(most_steps):
        if np.max(np.abs(point.gradient)) <= tolerance:
            return point, steps, True
        direction = _direction(point, memory)
        descent = np.sum(direction * point.gradient)
        length = 1.0
        for _ in range(_MOST_HALVINGS):
            factor = identity + length * direction
            trial = evaluate(factor @ point.unmixing, factor @ point.sources, model, point.fitted.coefficients)
            if trial.value >= point.value - 1e-4 * length * descent:
                break
            length *= 0.5
        else:
            if not memory:
                return point, steps, True
            memory.clear()
            continue
        moved, change = length * direction, trial.gradient - point.gradient
        product = np.sum(moved * change)
        if product > 1e-12 * np.sum(moved**2):
            memory.append((moved, change, product))
        point = trial
    return point, most_steps, bool(np.max(np.abs(point.gradient)) <= tolerance)


def _direction(point: Point, memory: deque[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Minus the approximate inverse Hessian times the gradient, by L-BFGS's two loops."""
    direction, shares = point.gradient, []
    for moved, change, product in reversed(memory):
        shares.append(np.sum(moved * direction) / product)
        direction = direction - shares[-1] * change
    direction = _solve(point.blocks, direction)
    for (moved, change, product), share in zip(memory, reversed(shares), strict=True):
        direction = direction + (share - np.sum(change * direction) / product) * moved
    return -direction


def fixed_point_start(white: np.ndarray, start: np.ndarray, most_steps: int, tolerance: float) -> np.ndarray:
    """A rotation after some fixed-point steps of FastICA (Hyvarinen 1999), symmetric, with the contrast log cosh.

    Its steps lead to sources with lighter tails than a Normal as well as to those with heavier ones.
    """
    n = white.shape[1]
    rotation = _orthogonal(start)
    for _ in range(most_steps):
        score = np.tanh(rotation @ white)
        new = _orthogonal(score @ white.T / n - (1.0 - np.mean(score**2, axis=1))[:, None] * rotation)
        moved = np.max(np.abs(np.abs(np.sum(new * rotation, axis=1)) - 1.0))
        rotation = new
        if moved < tolerance:
            break
    return rotation


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal matrix nearest to a matrix."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right
