"""Where the learned prior starts: a Normal or StudentT of greatest marginal likelihood, and where effects lie then."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import gammaln

from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem._fitting.ties import Sample
from numpyro_kaem.measurements.likelihood import Measurements
from numpyro_kaem.measurements.marginal_likelihood import log_evidence
from numpyro_kaem.measurements.nodes import log_density_of
from numpyro_kaem.measurements.rows import Intervals, LikelihoodRows

_MOST_DATA = 5_000  # that the start is fitted to: the tilt is fitted to all
_NUM_NODES = 400
_DEGREES_OF_FREEDOM = (8.0, 4.0, 2.5, 1.5, 1.0)


class Start(NamedTuple):
    """A parametric prior, and where the posteriors under it lie."""

    reference: dist.Distribution
    sample: Sample  # the mean of the posteriors, as weighted points
    point_weight: float


def location_and_width(measurements: Measurements, intervals: Intervals, weights: np.ndarray) -> tuple[float, float]:
    """The middle of the effects of greatest likelihood, and how far the better half of the data tell them apart."""
    error = intervals.error
    known = np.isfinite(error) & np.isfinite(intervals.center) & (error < 20.0 * np.median(error))
    if known.sum() >= 2:
        center = intervals.center[known]
        first, middle, third = np.quantile(center, [0.25, 0.5, 0.75])
        return float(middle), float(max(third - first, np.median(error[known])))
    # No datum has a maximum of its own, as hits in a single attempt have none: one effect for all of them.
    grid = np.sinh(np.linspace(-12.0, 12.0, 241))
    total = sum(
        weights[rows] @ np.maximum(measurements.log_likelihood(grid[None], rows), -1e6)
        for rows in measurements.chunks()
    )
    at = int(np.argmax(total))
    inside = grid[total > total[at] - 2.0]
    return float(grid[at]), float(max(inside.max() - inside.min(), 0.1) * np.sqrt(weights.sum()) / 2.0)


def start_of(
    measurements: Measurements,
    intervals: Intervals,
    weights: np.ndarray,
    reference: dist.Distribution | None,
    point_mass: float | None,
) -> Start:
    """The Normal of greatest marginal likelihood, or a StudentT where it is enough better, or the given reference.

    With many data it is fitted to those in front, whose order is random.
    """
    from scipy.optimize import minimize  # which takes long to import

    few = slice(0, _MOST_DATA)
    measurements, intervals, weights = measurements.take(few), intervals[few], weights[few]
    middle, width = location_and_width(measurements, intervals, weights)
    known = np.isfinite(intervals.error)
    low = min(np.min(intervals.low[known], initial=middle), middle - 6.0 * width)
    high = max(np.max(intervals.high[known], initial=middle), middle + 6.0 * width)
    if reference is not None:
        low, high = (float(end) for end in np.clip([low, high], *(np.ravel(end)[0] for end in support_ends(reference))))
    # Dense in the middle, and as wide as the data; midpoints, for a density may be infinite at an end of its support.
    ends = np.linspace(np.arcsinh((low - middle) / width), np.arcsinh((high - middle) / width), _NUM_NODES + 1)
    t = 0.5 * (ends[1:] + ends[:-1])
    nodes = middle + width * np.sinh(t)
    widths = width * np.cosh(t) * (t[1] - t[0])
    points = nodes if point_mass is None else np.append(nodes, point_mass)
    rows = LikelihoodRows.of(measurements, intervals, points, widths, weights)
    total = weights.sum()
    if reference is not None:
        shares = np.array([1.0, 0.0]) if point_mass is None else np.array([0.5, 0.5])
        with np.errstate(divide="ignore"):
            given = np.log(shares[0]) + log_density_of(reference, nodes) + np.log(widths)
            masses = given if point_mass is None else np.append(given, np.log(shares[1]))
        return Start(reference, _as_sample(nodes, _posterior(rows, masses)[: len(nodes)], total), shares[1])
    least = 0.05 * np.median(intervals.error[known]) if known.any() else 0.05 * width

    def log_masses(parameters, df):
        center, size = middle + width * parameters[0], least + width * np.exp(parameters[1])
        log_density = _log_density((nodes - center) / size, df) - np.log(size) + np.log(widths)
        if point_mass is None:
            return log_density
        share = np.array([np.logaddexp(0.0, parameters[2]), np.logaddexp(0.0, -parameters[2])])
        return np.append(log_density - share[0], -share[1])

    def loss(parameters, df):
        with np.errstate(all="ignore"):
            value = log_masses(parameters, df)
            score = weights @ log_evidence(rows, value) / total
        return -score if np.isfinite(score) else 1e10

    def fitted(df, at):
        found = minimize(loss, at, (df,), method="Nelder-Mead", options={"xatol": 3e-3, "fatol": 1e-6 + 1e-2 / total})
        return -found.fun, df, found.x

    best = fitted(np.inf, np.array([0.0, -0.5, 0.0][: 2 + (point_mass is not None)]))
    normal = best
    for df in _DEGREES_OF_FREEDOM:
        other = fitted(df, best[2])
        if other[0] <= best[0]:
            break
        best = other
    # A parameter more costs half a logarithm of the number of data.
    if (best[0] - normal[0]) * total < 0.5 * np.log(total) + 1.0:
        best = normal
    _, df, parameters = best
    center, size = middle + width * parameters[0], least + width * np.exp(parameters[1])
    reference = dist.Normal(*_numbers(center, size)) if np.isinf(df) else dist.StudentT(*_numbers(df, center, size))
    posterior = _posterior(rows, log_masses(parameters, df))
    point_weight = 0.0 if point_mass is None else 1.0 / (1.0 + np.exp(-parameters[2]))
    return Start(reference, _as_sample(nodes, posterior[: len(nodes)], total), float(point_weight))


def _numbers(*values: float):
    return (jnp.asarray(value, float) for value in values)


def _log_density(x: np.ndarray, df: float) -> np.ndarray:
    if np.isinf(df):
        return -0.5 * x**2 - 0.5 * np.log(2.0 * np.pi)
    constant = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * np.log(df * np.pi)
    return constant - 0.5 * (df + 1.0) * np.log1p(x**2 / df)


def _posterior(rows: LikelihoodRows, log_masses: np.ndarray) -> np.ndarray:
    """The mean of the posteriors of all data."""
    masses = np.exp(log_masses - log_masses.max())
    total = np.zeros(len(masses))
    for part, block in rows:
        evidence = block @ masses.astype(block.dtype)
        total += masses * ((rows.weights[part] / evidence).astype(block.dtype) @ block)
    return total / total.sum()


def _as_sample(nodes: np.ndarray, masses: np.ndarray, total: float) -> Sample:
    """Points with weights, without those far out that have less than a tenth of a datum beyond them."""
    masses = masses / masses.sum()
    below, above = np.cumsum(masses), np.cumsum(masses[::-1])[::-1]
    least = min(0.1 / total, 1e-3)
    kept = (below > least) & (above > least)
    points, weights = nodes[kept], masses[kept]
    weights = weights / weights.sum()
    return Sample(points, weights, np.zeros(len(points), int), points, np.zeros(len(points)), weights, 0.0)
