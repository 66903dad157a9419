"""The penalised marginal likelihood of a prior's coefficients, and its maximum.

With L_ij the likelihood of datum i at node j and p_j the mass of the prior there,

    l(c) = 1/w sum_i w_i log sum_j p_j(c) L_ij,   w = sum_i w_i,   p_j(c) proportional to exp(log_measure_j + c . B_j).

With the posteriors P_ij = p_j L_ij / sum_j p_j L_ij and their means m_i = sum_j P_ij B_j its gradient is the mean of
m_i - m(p), and its Hessian the mean covariance of B under the posteriors less that under the prior. Both take two
products of the matrix L with a narrow one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from numpyro_kaem._fitting.exponential_family import RIDGE
from numpyro_kaem.measurements.rows import LikelihoodRows

_DECADES = np.arange(2.0, -9.5, -1.0)
_TIE = 0.05  # nats of all data
_LOST = 3.0  # nats of all data, by which two decades in a row are worse than the best, for no more to be tried
_OPEN = 1e-6  # relative curvature of directions that data and penalty leave open, which move little
_FLOOR = 80.0  # nats below the largest mass of a node, where single precision ends


class Family(NamedTuple):
    """Exponential families on the nodes, with a diagonal penalty."""

    log_measure: np.ndarray  # (num_nodes,)
    design: np.ndarray  # (num_nodes, num_features)
    roughness: np.ndarray  # (num_features,), eigenvalues of the penalty

    def log_masses(self, c: np.ndarray) -> np.ndarray:
        """Normalised log-masses of the nodes."""
        value = self.log_measure + self.design @ c
        largest = value.max()
        return value - (largest + np.log(np.sum(np.exp(value - largest))))


class Sums(NamedTuple):
    """What a pass over the data adds up, for each fold."""

    weight: np.ndarray  # (num_folds,)
    log_likelihood: np.ndarray  # (num_folds,), relative to the scale of the rows
    posterior: np.ndarray  # (num_folds, num_nodes)
    outer: np.ndarray  # (num_folds, num_features, num_features), of the posterior means of the features


class Fit(NamedTuple):
    """A maximum, and how sharp it is."""

    coefficients: np.ndarray
    log_likelihood: float  # mean, relative to the scale of the rows
    precision: np.ndarray  # (num_features, num_features), minus the Hessian of the penalised mean log-likelihood
    smoothness: float
    score: float  # by which the smoothness was chosen
    sums: Sums
    converged: bool


def log_evidence(rows: LikelihoodRows, log_masses: np.ndarray) -> np.ndarray:
    """Log sum_j p_j L_ij relative to the scale of each row."""
    masses = _masses(log_masses)
    result = np.empty(len(rows))
    for part, block in rows:
        result[part] = np.log(block @ masses.astype(block.dtype))
    return result + log_masses.max()


def sums_of(rows: LikelihoodRows, family: Family, c: np.ndarray, folds: list[slice] | None = None) -> Sums:
    """One pass over the data; folds are runs of blocks."""
    log_masses = family.log_masses(c)
    masses = _masses(log_masses)
    num_nodes, num_features = family.design.shape
    folds = [slice(0, len(rows))] if folds is None else folds
    sums = Sums(
        np.zeros(len(folds)),
        np.zeros(len(folds)),
        np.zeros((len(folds), num_nodes)),
        np.zeros((len(folds), num_features, num_features)),
    )
    starts = np.array([fold.start for fold in folds])
    columns = np.concatenate([masses[:, None], masses[:, None] * family.design], axis=1)
    for part, block in rows:
        product = np.asarray(block @ columns.astype(block.dtype), np.float64)
        evidence, weights = product[:, 0], rows.weights[part]
        means = product[:, 1:] / evidence[:, None]
        inverse = weights / evidence
        log_values = weights * np.log(evidence)
        cuts = np.clip(starts - part.start, 0, part.stop - part.start)
        cuts = np.append(cuts, part.stop - part.start)
        for fold in np.flatnonzero(np.diff(cuts)):
            of = slice(cuts[fold], cuts[fold + 1])
            sums.weight[fold] += weights[of].sum()
            sums.log_likelihood[fold] += log_values[of].sum()
            sums.posterior[fold] += masses * (inverse[of].astype(block.dtype) @ block[of])
            sums.outer[fold] += (means[of] * weights[of, None]).T @ means[of]
    sums.log_likelihood[...] += sums.weight * log_masses.max()
    return sums


def _masses(log_masses: np.ndarray) -> np.ndarray:
    return np.exp(np.maximum(log_masses - log_masses.max(), -_FLOOR))


def _slopes(sums: Sums, family: Family, c: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The penalised mean log-likelihood, its gradient, and minus its Hessian."""
    weight = sums.weight.sum()
    value = sums.log_likelihood.sum() / weight - 0.5 * np.sum(penalty * c**2)
    prior = np.exp(family.log_masses(c))
    posterior = sums.posterior.sum(axis=0) / weight
    mean, change = prior @ family.design, posterior - prior
    gradient = change @ family.design - penalty * c
    precision = sums.outer.sum(axis=0) / weight - mean[:, None] * mean
    precision -= family.design.T @ (change[:, None] * family.design)
    # The mean of the posterior means is that of the prior at a maximum only.
    return float(value), gradient, precision + np.diag(penalty)


def maximise(
    rows: LikelihoodRows,
    family: Family,
    smoothness: float,
    start: np.ndarray,
    *,
    sums: Sums | None = None,
    folds: list[slice] | None = None,
    tolerance: float = 1e-7,
    most_steps: int = 60,
) -> Fit:
    """Maximise l(c) - 1/2 sum_g penalty_g c_g^2 by Newton's method, damped where the problem is not concave.

    It ends where twice the gain that is left, in nats for a datum, is below the tolerance.
    """
    penalty = smoothness * family.roughness + RIDGE
    c = start
    sums = sums_of(rows, family, c, folds) if sums is None else sums
    value, gradient, precision = _slopes(sums, family, c, penalty)
    converged = False
    for _ in range(most_steps):
        step, decrement = _newton_step(gradient, precision, penalty)
        if decrement < tolerance:
            converged = True
            break
        length = 1.0
        while True:
            trial = c + length * step
            trial_sums = sums_of(rows, family, trial, folds)
            moved = _slopes(trial_sums, family, trial, penalty)
            # Rounding of single precision hides gains below 1e-7.
            if moved[0] >= value + 1e-4 * length * decrement - 1e-7:
                break
            length *= 0.4
            if length < 1e-4:
                break
        if length < 1e-4:
            converged = decrement < 1e-5
            break
        c, sums, (value, gradient, precision) = trial, trial_sums, moved
    log_likelihood = float(sums.log_likelihood.sum() / sums.weight.sum())
    return Fit(c, log_likelihood, precision, smoothness, np.nan, sums, converged)


def _newton_step(gradient: np.ndarray, precision: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """The step, with curvatures of the wrong sign turned about, and twice the gain that it promises."""
    size = np.sqrt(np.maximum(np.abs(np.diag(precision)), penalty) + RIDGE)
    scaled, gradient = precision / size[:, None] / size, gradient / size
    factor, failed = dpotrf(scaled, lower=1)
    if not failed and np.min(np.diag(factor)) ** 2 > _OPEN:
        step = dpotrs(factor, gradient, lower=1)[0]
    else:
        values, vectors = np.linalg.eigh(scaled)
        step = vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), _OPEN))
    return step / size, float(step @ gradient)


def evidence(fit: Fit, family: Family) -> float:
    """Log-evidence of a smoothness by Laplace's method, up to a constant:

    the coefficients have a normal prior with the penalty as precision, and a normal posterior. A direction in which
    that is wider than the prior counts nothing: there the likelihood is not concave, and far from normal.
    """
    weight = fit.sums.weight.sum()
    penalty = fit.smoothness * family.roughness + RIDGE
    scale = 1.0 / np.sqrt(penalty)
    values = np.linalg.eigvalsh(fit.precision * scale[:, None] * scale)
    determinant = np.sum(np.log(np.maximum(values, 1.0)))
    return float(weight * (fit.log_likelihood - 0.5 * np.sum(penalty * fit.coefficients**2)) - 0.5 * determinant)


def cross_validated(fit: Fit, rows: LikelihoodRows, family: Family, folds: list[slice]) -> np.ndarray:
    """Held-out log-likelihoods of the folds, from one Newton step away from the fit to all data."""
    penalty = fit.smoothness * family.roughness + RIDGE
    scores = np.empty(len(folds))
    left = []
    for fold in range(len(folds)):
        rest = Sums(*(np.delete(part, fold, axis=0) for part in fit.sums))
        _, gradient, precision = _slopes(rest, family, fit.coefficients, penalty)
        left.append(_masses_without(family, fit.coefficients + _newton_step(gradient, precision, penalty)[0]))
    scores[:] = 0.0
    for part, block in rows:
        for fold, of in enumerate(folds):
            start, stop = max(of.start, part.start), min(of.stop, part.stop)
            if start < stop:
                inside = slice(start - part.start, stop - part.start)
                masses, largest = left[fold]
                value = np.log(block[inside] @ masses.astype(block.dtype)) + largest
                scores[fold] += rows.weights[start:stop] @ value
    return scores


def _masses_without(family: Family, c: np.ndarray) -> tuple[np.ndarray, float]:
    log_masses = family.log_masses(c)
    return _masses(log_masses), float(log_masses.max())


def choose(rows: LikelihoodRows, family: Family, criterion: str, folds: list[slice], start: np.ndarray) -> Fit:
    """The maximum for the smoothness of greatest evidence or held-out likelihood.

    A path from smooth to rough by decades, each fit starting from the one before, and half a decade beside the best.
    """
    # A hundredth of a nat of all data decides nothing.
    tolerance = float(np.clip(0.02 / rows.weights.sum(), 1e-7, 1e-5))

    def scored(decade: float, start: np.ndarray) -> Fit:
        fit = maximise(rows, family, float(10.0**decade), start, folds=folds, tolerance=tolerance)
        if criterion == "evidence":
            return fit._replace(score=evidence(fit, family))
        return fit._replace(score=float(cross_validated(fit, rows, family, folds).sum()))

    path: list[Fit] = []
    for decade in _DECADES:
        path.append(scored(decade, path[-1].coefficients if path else start))
        if len(path) > 2 and max(fit.score for fit in path[-2:]) < max(fit.score for fit in path) - _LOST:
            break  # rougher ones are worse
    best = max(range(len(path)), key=lambda at: path[at].score)
    path += [scored(_DECADES[best] + half, path[best].coefficients) for half in (0.5, -0.5)]
    highest = max(fit.score for fit in path)
    # Where the data do not tell two apart, the smoother one.
    return max((fit for fit in path if fit.score >= highest - _TIE), key=lambda fit: fit.smoothness)
