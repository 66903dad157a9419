"""The search for independent sources: a start, then steps of the profile likelihood, between which domains move."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numpyro_kaem.separation.source_densities import PATH, SourceDensities, SourceModel, TabulatedReference
from numpyro_kaem.separation.unmixing import evaluate, fixed_point_start, maximise_likelihood

_START_ROWS = 10_000  # rows that the start and the first round look at
_START_STEPS = 30
_FIRST_TOLERANCE = 0.1  # of the rounds before the last, in units of chance, 1 / sqrt(n)
_NEARBY = np.array([[10.0], [1.0], [0.1]])  # smoothnesses to choose from in terms of that of the round before
_FEW_STEPS = 8  # of the rounds before the last, after which domains and smoothness are chosen anew


class Separation(NamedTuple):
    """Unit-variance sources of whitened data, in no stated order, and how the search for them ended."""

    unmixing: np.ndarray
    sources: np.ndarray  # (num_sources, n)
    densities: SourceDensities
    num_steps: int
    gradient: float  # the largest element of the relative gradient
    converged: bool


def separate(
    white: np.ndarray,
    reference: TabulatedReference,
    *,
    num_intervals: int,
    smoothness: float | None,
    most_steps: int,
    tolerance: float,
    rng: np.random.RandomState,
) -> Separation:
    """Maximise the likelihood of whitened data (num_sources, n) in the unmixing matrix and in the densities."""
    num_sources, n = white.shape
    start = rng.normal(size=(num_sources, num_sources))
    some = white if n <= _START_ROWS else white[:, rng.choice(n, _START_ROWS, replace=False)]
    unmixing = fixed_point_start(some, start, _START_STEPS, 1e-3)
    num_steps, path = 0, PATH[::2]
    enough = max(tolerance, _FIRST_TOLERANCE / n**0.5)
    rounds = [(white, _FEW_STEPS, enough), (white, most_steps, tolerance)]
    for rows, most, until in rounds if some is white else [(some, _FEW_STEPS, enough), *rounds]:
        unmixing, sources = standardised(unmixing, unmixing @ rows)
        model = SourceModel(sources, reference, num_intervals, smoothness, path)
        point = evaluate(unmixing, sources, model)
        point, steps, converged = maximise_likelihood(point, model, min(most, most_steps - num_steps), until)
        # What was chosen for sources that were still mixed says nothing of those to come.
        path = np.clip(_NEARBY * model.smoothness, PATH[-1], PATH[0]) if converged else PATH
        unmixing, num_steps = point.unmixing, num_steps + steps
    gradient, fitted, sources = float(np.max(np.abs(point.gradient))), point.fitted, point.sources
    if np.any(_third_moments(sources) < 0.0):
        unmixing, sources = standardised(unmixing, sources)
        model = SourceModel(sources, reference, num_intervals, smoothness, path)
        fitted = model.fit(model.bins(sources))
    return Separation(unmixing, sources, model.densities(fitted), num_steps, gradient, converged)


def standardised(unmixing: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows scaled to sources of variance one, whose third moment is positive."""
    scale = np.sqrt(np.mean(sources**2, axis=1))
    factor = np.where(_third_moments(sources) < 0.0, -1.0, 1.0) / scale
    return factor[:, None] * unmixing, factor[:, None] * sources


def _third_moments(sources: np.ndarray) -> np.ndarray:
    """Of each source; a product of three is far quicker than a power."""
    return np.mean(sources * sources * sources, axis=1)
