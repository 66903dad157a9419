"""Densities of unit-variance sources on the host: fitted by penalised maximum likelihood, and their scores.

A source has p(z) = pi0(z) exp(f(z)) / Z with a cubic spline f, as a `KAPrior`. All of it is NumPy in float64: nothing
is compiled for a shape of the data.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats
from scipy.interpolate import BSpline as ScipyBSpline
from scipy.interpolate import CubicSpline

from numpyro_kaem._densities.reference import check_reference, support_ends
from numpyro_kaem._fitting.exponential_family import (
    COARSE,
    RIDGE,
    Family,
    in_float64,
    maximise,
    measure,
    normalised,
    panel_nodes,
)
from numpyro_kaem.distributions import KAPrior
from numpyro_kaem.energies import BSpline, UnivariateEnergy

_DF = 5.0  # of the default reference
_SCALE = ((_DF - 2.0) / _DF) ** 0.5
PATH = 10.0 ** np.arange(-1.0, -8.0, -1.0)[:, None]  # of the smoothness
_REACH = np.linspace(-12.0, 12.0, 4_801)  # asinh of the points at which a reference is tabulated
_LONG_AGO = 50.0  # times a smoothness, by which the best one of every source exceeds it where the path ends
_BINS_OF_CELL = 16
_MARGIN = 0.03  # of the range, by which a domain exceeds it on either side
_QUANTILE = 0.005  # beyond 1.5 times its distance from the median there is no spline, but the reference


class TabulatedReference:
    """A reference in float64 on the host, by cubic splines in asinh(z) through its values at 4,801 points.

    None is for StudentT(5) with variance one. It comes from SciPy: nothing is compiled for it.
    """

    def __init__(self, reference: dist.Distribution | None = None):
        if reference is None:
            self.distribution, splines = dist.StudentT(_DF, 0.0, _SCALE), _default_splines()
        else:
            if reference.batch_shape or reference.event_shape or np.any(np.isfinite(support_ends(reference))):
                raise ValueError(
                    "reference must be one distribution with a density on the whole real line, such as "
                    f"StudentT(5.0, 0.0, 0.77), got {type(reference).__name__} of batch shape {reference.batch_shape} "
                    f"with support {reference.support}"
                )
            check_reference(reference)
            points = np.sinh(_REACH)
            with in_float64():
                values = measure(reference, points, points, points)
            self.distribution, splines = reference, _splines(*(np.asarray(value, np.float64) for value in values))
        self._log_prob, self._log_below, self._log_above = splines
        self._slope = self._log_prob.derivative()

    def log_prob(self, z: np.ndarray) -> np.ndarray:
        """Log-densities at points of any shape."""
        return self._log_prob(np.arcsinh(z))

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Derivatives of the log-density."""
        return self._slope(np.arcsinh(z)) / np.sqrt(1.0 + z * z)

    def log_tails(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Logarithms of the masses below low and above high, (num_sources, 2)."""
        return np.stack([self._log_below(np.arcsinh(low)), self._log_above(np.arcsinh(high))], axis=-1)


def _splines(log_prob: np.ndarray, below: np.ndarray, above: np.ndarray) -> tuple[CubicSpline, ...]:
    """Splines of a log-density and the logarithms of the masses below and above, from their values at the points."""
    logarithms = (log_prob, *(np.log(np.maximum(mass, 1e-300)) for mass in (below, above)))
    return tuple(CubicSpline(_REACH, values) for values in logarithms)


@functools.lru_cache(maxsize=1)
def _default_splines() -> tuple[CubicSpline, ...]:
    points, default = np.sinh(_REACH), stats.t(_DF, 0.0, _SCALE)
    return _splines(default.logpdf(points), default.cdf(points), default.sf(points))


class SourceDensities(NamedTuple):
    """The densities of some sources."""

    low: np.ndarray  # domains of the splines, (num_sources,)
    high: np.ndarray
    coefficients: np.ndarray  # (num_sources, num_basis)
    log_normalizer: np.ndarray
    smoothness: np.ndarray  # as it was given or chosen

    def reordered(self, order: np.ndarray) -> SourceDensities:
        """The same in another order."""
        return SourceDensities(*(values[order] for values in self))

    def energy(self, q: int) -> ScipyBSpline:
        """The spline of one source on its domain."""
        num_intervals = self.coefficients.shape[1] - 3
        places = np.arange(-3, num_intervals + 4) / num_intervals
        knots = self.low[q] + (self.high[q] - self.low[q]) * places
        return ScipyBSpline(knots, self.coefficients[q], 3)

    def log_prob(self, z: np.ndarray, reference: TabulatedReference) -> np.ndarray:
        """Log-densities of sources, (num_sources, n)."""
        energies = [self.energy(q)(np.clip(z[q], self.low[q], self.high[q])) for q in range(len(z))]
        return reference.log_prob(z) + np.array(energies).reshape(z.shape) - self.log_normalizer[:, None]

    def prior(self, reference: dist.Distribution) -> KAPrior:
        """The same as a NumPyro distribution, in JAX's default dtype."""
        num_sources, num_basis = self.coefficients.shape
        energy = UnivariateEnergy(
            base_weight=jnp.zeros(num_sources),
            spline_weight=jnp.ones(num_sources),
            coefficients=jnp.asarray(self.coefficients, float),
            basis=BSpline(num_basis - 3, 3, (jnp.asarray(self.low, float), jnp.asarray(self.high, float))),
        )
        return KAPrior(energy, reference)


class Bins(NamedTuple):
    """Samples of sources, sorted into bins."""

    bin_of: np.ndarray  # (num_sources, n)
    place: np.ndarray  # within the bin, from 0 to 1; clipped to the domain
    moments: np.ndarray  # means of place^0 to place^3 over all samples in a bin, (num_sources, num_bins, 4)
    outside: list[np.ndarray]  # of each source, the samples beyond its domain
    far: np.ndarray  # what these add to the mean log-density of the reference


class Fitted(NamedTuple):
    """Densities fitted to binned sources."""

    coefficients: np.ndarray  # in the eigenvectors of the roughness, (num_sources, 1, num_basis)
    log_normalizer: np.ndarray
    cubics: np.ndarray  # of log p + log Z on the bins, (num_sources, num_bins, 4)
    value: np.ndarray  # penalised mean log-likelihood of each source
    curvature: np.ndarray  # mean of -d^2 log p / dz^2


class _Unit(NamedTuple):
    """What splines of as many cells share, on the domain [0, 1], in the eigenvectors of the roughness."""

    nodes: np.ndarray
    widths: np.ndarray
    design: np.ndarray  # at the nodes and the two ends, (num_nodes + 2, num_basis)
    cubics: np.ndarray  # of the basis functions on the bins, (num_bins, 4, num_basis)
    eigenvalues: np.ndarray
    rotation: np.ndarray


@functools.lru_cache(maxsize=8)
def _unit(num_intervals: int) -> _Unit:
    """Quadrature panels, the basis at their nodes and on the bins, and the roughness."""
    num_bins = _BINS_OF_CELL * num_intervals
    knots, at = np.arange(-3, num_intervals + 4) / num_intervals, np.linspace(0.0, 1.0, num_bins + 1)
    splines = ScipyBSpline(knots, np.eye(num_intervals + 3), 3)
    nodes, widths = panel_nodes(at[None, :: _BINS_OF_CELL // COARSE.panels_per_interval], COARSE.nodes_per_panel)
    nodes, widths = nodes[0], widths[0]
    second = splines.derivative(2)(nodes) * np.sqrt(widths)[:, None]
    eigenvalues, rotation = np.linalg.eigh(second.T @ second)
    eigenvalues = np.where(eigenvalues > 1e-12 * eigenvalues[-1], eigenvalues, 0.0)
    cubics = np.moveaxis(_hermite(splines(at).T, splines.derivative()(at).T / num_bins), 0, -1)
    design = splines(np.append(nodes, [0.0, 1.0]))
    return _Unit(nodes, widths, design @ rotation, cubics @ rotation, eigenvalues, rotation)


def domains(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where splines of sources (num_sources, n) lie: on the samples and a margin, without what is far out."""
    levels = np.quantile(z, [0.0, _QUANTILE, 0.5, 1.0 - _QUANTILE, 1.0], axis=1)
    lowest, first, median, last, highest = levels
    low, high = np.maximum(lowest, median + 1.5 * (first - median)), np.minimum(highest, median + 1.5 * (last - median))
    # Samples that are nearly all the same leave no width.
    margin = np.maximum(_MARGIN * (high - low), 0.05)
    return low - margin, high + margin


class SourceModel:
    """Densities of sources on given domains, as functions of moments of the samples in 16 bins of every spline cell.

    On a bin the spline is a cubic: its mean is known from the number of samples there and the sums of the first three
    powers of their places, and so is the penalised likelihood

        mean_i log p(z_i) - 1/2 smoothness int f''(z)^2 dz.

    Without a smoothness each source has the one of a path that maximises Akaike's criterion, the log-likelihood minus
    the effective number of parameters, tr(H (H + smoothness P)^-1) with H the covariance of the basis functions. The
    path has shape (num_points, 1 or num_sources).
    """

    def __init__(
        self,
        z: np.ndarray,
        reference: TabulatedReference,
        num_intervals: int,
        smoothness: float | None = None,
        path: np.ndarray = PATH,
    ):
        self._unit, self._reference = _unit(num_intervals), reference
        self._low, self._high = domains(z)
        width = (self._high - self._low)[:, None]
        log_measure = reference.log_prob(self._low[:, None] + width * self._unit.nodes)
        log_measure = log_measure + np.log(width * self._unit.widths)
        tails = reference.log_tails(self._low, self._high)
        self._at_ends = reference.log_prob(np.stack([self._low, self._high]))
        self._family = Family(np.concatenate([log_measure, tails], axis=1), self._unit.design[None])
        self._step = width[:, 0] / (_BINS_OF_CELL * num_intervals)
        edges = self._low[:, None] + width * np.linspace(0.0, 1.0, _BINS_OF_CELL * num_intervals + 1)
        self._base = _hermite(reference.log_prob(edges), reference.slope(edges) * self._step[:, None])
        eigenvalues = self._unit.eigenvalues / width**3
        self._start = np.zeros((len(z), 1, len(self._unit.eigenvalues)))
        if smoothness is None:
            path = np.broadcast_to(path, (len(path), len(z)))
            statistics = self._statistics(self.bins(z))
            self.smoothness, self._start = _choose(self._family, statistics, eigenvalues, z.shape[1], path)
        else:
            self.smoothness = np.full(len(z), smoothness)
        self._precision = self.smoothness[:, None] * eigenvalues + RIDGE

    def bins(self, z: np.ndarray) -> Bins:
        """Sort sources (num_sources, n) into bins."""
        num_sources, n = z.shape
        num_bins = self._base.shape[1]
        bin_of, place = np.empty(z.shape, np.intp), np.empty(z.shape)
        moments, outside, far = np.empty((num_sources, num_bins, 4)), [], np.empty(num_sources)
        for q in range(num_sources):
            at = (z[q] - self._low[q]) / self._step[q]
            out = np.flatnonzero((at < 0.0) | (at > num_bins))
            outside.append(out)
            np.clip(at, 0.0, num_bins, out=at)
            bin_of[q] = np.minimum(at.astype(np.intp), num_bins - 1)
            place[q] = at - bin_of[q]
            power = np.ones(n)
            for order in range(4):
                moments[q, :, order] = np.bincount(bin_of[q], power, num_bins)
                power *= place[q]
            # What the reference has beyond the domain in place of at its end.
            ends = np.where(z[q, out] < self._low[q], self._at_ends[0, q], self._at_ends[1, q])
            far[q] = np.sum(self._reference.log_prob(z[q, out]) - ends) / n
        return Bins(bin_of, place, moments / n, outside, far)

    def _statistics(self, bins: Bins) -> np.ndarray:
        """Means of the basis functions in the eigenvectors of the roughness, (num_sources, 1, num_basis)."""
        return np.einsum("qbo,bog->qg", bins.moments, self._unit.cubics)[:, None]

    def fit(self, bins: Bins, start: np.ndarray | None = None) -> Fitted:
        """The densities of greatest penalised likelihood."""
        statistics = self._statistics(bins)
        start = self._start if start is None else start
        # The last step leaves about the square of the tolerance, in nats.
        coefficients, _ = maximise(self._family, statistics, self._precision, start, tolerance=1e-7)
        log_normalizer = normalised(self._family, coefficients)[0][:, 0]
        cubics = self._base + np.einsum("bog,qg->qbo", self._unit.cubics, coefficients[:, 0])
        value = np.einsum("qbo,qbo->q", bins.moments, cubics) + bins.far - log_normalizer
        value -= 0.5 * np.sum(self._precision * coefficients[:, 0] ** 2, axis=1)
        curvature = (
            -np.einsum("qbo,qbo->q", bins.moments[..., :2], cubics[..., 2:] * np.array([2.0, 6.0])) / self._step**2
        )
        return Fitted(coefficients, log_normalizer, cubics, value, curvature)

    def scores(self, z: np.ndarray, bins: Bins, fitted: Fitted) -> np.ndarray:
        """-d log p / dz of all sources at their samples."""
        scores = np.empty(z.shape)
        for q, (place, out) in enumerate(zip(bins.place, bins.outside, strict=True)):
            of_bins = fitted.cubics[q, :, 1:] * (np.array([1.0, 2.0, 3.0]) / -self._step[q])
            first, second, third = of_bins[bins.bin_of[q]].T
            scores[q] = (third * place + second) * place + first
            scores[q, out] = -self._reference.slope(z[q, out])
        return scores

    def densities(self, fitted: Fitted) -> SourceDensities:
        """What has been fitted, without the model."""
        coefficients = fitted.coefficients[:, 0] @ self._unit.rotation.T
        return SourceDensities(self._low, self._high, coefficients, fitted.log_normalizer, self.smoothness)


def _hermite(value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Cubics on unit bins through values and slopes at their ends, (..., num_bins, 4), lowest power first."""
    left, right, rise = slope[..., :-1], slope[..., 1:], np.diff(value)
    return np.stack([value[..., :-1], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise], axis=-1)


def _choose(
    family: Family, statistics: np.ndarray, eigenvalues: np.ndarray, n: int, path: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The smoothness of each source by Akaike's criterion, along a path from smooth to rough, and its coefficients.

    The path has shape (num_points, num_sources).
    """
    coefficients, design = np.zeros_like(statistics), family.design[0]
    best, chosen, kept = np.full(len(statistics), -np.inf), path[0], coefficients
    for smoothness in path:
        precision = smoothness[:, None] * eigenvalues + RIDGE
        coefficients, _ = maximise(family, statistics, precision, coefficients, tolerance=1e-3)
        log_z, probability = normalised(family, coefficients)
        centered = design - probability @ design
        hessian = np.swapaxes(centered * probability[:, 0, :, None], 1, 2) @ centered
        penalised = hessian + precision[:, None] * np.eye(design.shape[1])
        parameters = np.trace(np.linalg.solve(penalised, hessian), axis1=1, axis2=2)
        criterion = np.sum(coefficients * statistics, axis=-1)[:, 0] - log_z[:, 0] - parameters / n
        better = criterion > best
        best, chosen = np.where(better, criterion, best), np.where(better, smoothness, chosen)
        kept = np.where(better[:, None, None], coefficients, kept)
        if np.all(chosen > _LONG_AGO * smoothness):
            break  # rougher ones have not been better for long
    return chosen, kept
