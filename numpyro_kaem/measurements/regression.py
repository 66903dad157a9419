"""Coefficients of covariates by the marginal likelihood, beside the prior of what they leave.

With l_i' = d log p(data_i | theta) / d theta the score of datum i is E[l_i'] x_i for beta, E under its posterior, and
E[l_i' exp(s_i . gamma) e] s_i for gamma; it is m_i - m(p) for the coefficients of the prior. All are moved at once, by
steps with the sum of squares of the scores in the place of the Hessian (Berndt, Hall, Hall and Hausman 1974).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numpyro_kaem._fitting.exponential_family import RIDGE
from numpyro_kaem.measurements.marginal_likelihood import Fit
from numpyro_kaem.measurements.nodes import basis_at
from numpyro_kaem.measurements.problem import LaidOut, Problem
from numpyro_kaem.measurements.rows import is_narrow, local_points

_MOST_STEPS = 100


class Slopes(NamedTuple):
    """The penalised mean log-likelihood, its gradient and the mean square of the scores, and the penalty."""

    value: float
    gradient: np.ndarray
    squares: np.ndarray


def learn_covariates(
    problem: Problem, criterion: str, smoothness: float | None, num_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the covariates of location and scale, and their standard errors."""
    coefficients = _start(problem)
    for _ in range(2):  # the second time with a smoothness chosen for what the covariates leave
        laid_out = problem.laid_out(coefficients)
        fit = laid_out.fit(criterion, smoothness, num_folds)
        coefficients, errors = _maximise(problem, laid_out, fit, coefficients)
    return coefficients, errors


def _start(problem: Problem) -> np.ndarray:
    """Least squares of the effects of greatest likelihood on the covariates of location, and one scale."""
    covariates = problem.covariates
    coefficients = np.zeros(len(covariates.coefficients))
    intervals = problem.intervals
    known = np.isfinite(intervals.error) & np.isfinite(intervals.center) & (problem.weights > 0)
    num_location = covariates.location.shape[1]
    if num_location == 0 or known.sum() < 2 * num_location + 2:
        return coefficients
    center, error = intervals.center[known], intervals.error[known]
    variance = error**2 + max(np.median(np.abs(center - np.median(center))) ** 2, 1e-6 * np.median(error) ** 2)
    root = np.sqrt(problem.weights[known] / variance)
    design = np.concatenate([np.ones((len(center), 1)), covariates.location[known]], axis=1)
    coefficients[:num_location] = np.linalg.lstsq(design * root[:, None], center * root, rcond=None)[0][1:]
    return coefficients


def _maximise(problem: Problem, laid_out: LaidOut, fit: Fit, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    penalty = np.append(fit.smoothness * laid_out.family.roughness + RIDGE, np.zeros(len(coefficients)))
    at = np.append(fit.coefficients, coefficients)
    slopes = _slopes(problem, laid_out, at, penalty)
    total = problem.weights.sum()
    for _ in range(_MOST_STEPS):
        information = slopes.squares + np.diag(penalty)
        size = 1.0 / np.sqrt(np.diag(information) + RIDGE)
        scaled = information * size[:, None] * size + 1e-9 * np.eye(len(at))
        step = size * np.linalg.solve(scaled, size * slopes.gradient)
        gain = float(step @ slopes.gradient)
        if gain < 1e-3 / total or gain < 1e-10:
            break
        length = 1.0
        while length > 1e-3:
            moved = _slopes(problem, laid_out, at + length * step, penalty)
            if moved.value >= slopes.value + 1e-4 * length * gain:
                break
            length *= 0.5
        else:
            break
        at, slopes = at + length * step, moved
    information = slopes.squares + np.diag(penalty)
    size = 1.0 / np.sqrt(np.diag(information) + RIDGE)
    covariance = np.linalg.inv(information * size[:, None] * size + 1e-9 * np.eye(len(at))) * size[:, None] * size
    count = len(coefficients)
    return at[-count:], np.sqrt(np.diag(covariance)[-count:] / total)


def _slopes(problem: Problem, laid_out: LaidOut, at: np.ndarray, penalty: np.ndarray) -> Slopes:
    """One pass over the data."""
    family, nodes = laid_out.family, laid_out.nodes
    num_features = family.design.shape[1]
    covariates = problem.covariates.with_coefficients(at[num_features:])
    measurements = covariates.applied(problem.measurements)
    intervals = problem.intervals.moved(covariates, laid_out.intervals.support)
    log_masses = family.log_masses(at[:num_features])
    log_density = log_masses[: len(nodes.body)] - np.log(nodes.widths)
    prior_mean = np.exp(log_masses) @ family.design
    value, total = 0.0, problem.weights.sum()
    gradient, squares = np.zeros(len(at)), np.zeros((len(at), len(at)))
    for rows in measurements.chunks():
        # By e, as the measurements are of e.
        log_joint, slope = measurements.with_slopes(nodes.nodes[None], rows)
        log_joint = log_joint + log_masses
        largest = log_joint.max(axis=1, keepdims=True)
        posterior = np.exp(log_joint - largest)
        evidence = posterior.sum(axis=1, keepdims=True)
        posterior /= evidence
        log_evidence = (np.log(evidence) + largest)[:, 0]
        means = posterior @ family.design
        by_shift = np.sum(posterior * slope, axis=1)
        by_scale = np.sum(posterior * slope * nodes.nodes, axis=1)
        narrow = is_narrow(intervals[rows], nodes.body)
        if narrow.any():
            index = rows.start + np.flatnonzero(narrow)
            _, points, log_masses_there = local_points(measurements, intervals, index)
            few = measurements.take(index)
            slope_there = np.concatenate([few.with_slopes(points[part], part)[1] for part in few.chunks()])
            joint = log_masses_there + np.interp(points, nodes.body, log_density)
            highest = joint.max(axis=1, keepdims=True)
            share = np.exp(joint - highest)
            log_evidence[narrow] = (np.log(share.sum(axis=1, keepdims=True)) + highest)[:, 0]
            share /= share.sum(axis=1, keepdims=True)
            size = laid_out.density.energy.basis.num_basis
            basis = basis_at(laid_out.density, points.ravel()).reshape(*points.shape, size)
            means[narrow] = np.einsum("ip,ipk->ik", share, basis) @ laid_out.axes[:size]
            by_shift[narrow] = np.sum(share * slope_there, axis=1)
            by_scale[narrow] = np.sum(share * slope_there * points, axis=1)
        weights = problem.weights[rows]
        scale = covariates.scale[rows]
        scores = np.concatenate(
            [
                means - prior_mean,
                (by_shift / scale)[:, None] * covariates.location[rows],
                by_scale[:, None] * covariates.spread[rows],
            ],
            axis=1,
        )
        value += weights @ log_evidence
        gradient += weights @ scores
        squares += (scores * weights[:, None]).T @ scores
    value = float(value / total - 0.5 * np.sum(penalty * at**2))
    return Slopes(value, gradient / total - penalty * at, squares / total)
