"""The problem of empirical Bayes, laid out on nodes, and its solution."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem._fitting.default_shape import NUM_INTERVALS, Shape, default_basis
from numpyro_kaem._fitting.fit import untilted_density
from numpyro_kaem._fitting.smoothing import penalty_axes
from numpyro_kaem.energies import Basis, BSpline
from numpyro_kaem.measurements.covariates import Covariates
from numpyro_kaem.measurements.likelihood import Measurements
from numpyro_kaem.measurements.marginal_likelihood import Family, Fit, choose, maximise
from numpyro_kaem.measurements.nodes import PriorNodes
from numpyro_kaem.measurements.posteriors import LearnedPrior
from numpyro_kaem.measurements.rows import Intervals, LikelihoodRows, is_narrow
from numpyro_kaem.measurements.start import start_of

_MOST_TO_CHOOSE = 5_000  # data that the smoothness is chosen by
_MOST_PANELS = 4  # of a cell, for likelihoods that are narrower than the cells
_FEW_NARROW = 0.1  # the share of data that may be too narrow for the nodes


def support_of(reference: dist.Distribution | None) -> tuple[float, float]:
    """The ends of the support of effects."""
    if reference is None:
        return -np.inf, np.inf
    low, high = (float(np.ravel(end)[0]) for end in support_ends(reference))
    return low, high


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is given, the data in random order."""

    measurements: Measurements
    intervals: Intervals  # of the effects
    weights: np.ndarray
    covariates: Covariates
    reference: dist.Distribution | None
    basis: Basis | None
    point_mass: float | None

    def laid_out(self, coefficients: np.ndarray) -> LaidOut:
        """The problem for coefficients of the covariates: a reference, a basis, and nodes where the effects are."""
        covariates = self.covariates.with_coefficients(coefficients)
        measurements = covariates.applied(self.measurements)
        intervals = self.intervals.moved(covariates, support_of(self.reference))
        start = start_of(measurements, intervals, self.weights, self.reference, self.point_mass)
        support = np.array([support_of(start.reference)])
        basis, penalised = self.basis, self.basis
        sample = start.sample
        if basis is None:
            shape = Shape.of(sample)
            basis, penalised = default_basis([shape], support, ()), BSpline(NUM_INTERVALS, 3, (0.0, 1.0))
        density = untilted_density(basis, start.reference, ())
        breakpoints = np.asarray(basis.breakpoints, np.float64).reshape(1, -1)
        if self.basis is None:  # in the coordinate in which its knots are even
            places = np.linspace(0.0, 1.0, NUM_INTERVALS + 1)
            sample = sample._replace(points=np.interp(sample.points, breakpoints[0], places))
            breakpoints = places[None]
        eigenvalues, rotation = penalty_axes(penalised, breakpoints, np.array([sample.moments()[1]]))
        panels = 1
        nodes = PriorNodes.of(density, panels, self.point_mass)
        while panels < _MOST_PANELS and np.mean(is_narrow(intervals, nodes.body)) > _FEW_NARROW:
            panels *= 2
            nodes = PriorNodes.of(density, panels, self.point_mass)
        start_at = np.zeros(nodes.design.shape[1])
        axes, roughness = np.eye(len(start_at)), np.zeros(len(start_at))
        size = rotation.shape[-1]
        axes[:size, :size], roughness[:size] = rotation[0], eigenvalues[0]
        if self.point_mass is not None:
            start_at[-1] = np.log(start.point_weight) - np.log1p(-start.point_weight)
        family = Family(nodes.log_measure, nodes.design @ axes, roughness)
        return LaidOut(self, covariates, measurements, intervals, density, nodes, family, axes, start_at)


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """The problem on nodes, in the axes in which the penalty is diagonal."""

    problem: Problem
    covariates: Covariates
    measurements: Measurements  # of e, where there are covariates
    intervals: Intervals
    density: Density
    nodes: PriorNodes
    family: Family
    axes: np.ndarray  # coefficients = axes @ those of the family
    start: np.ndarray

    def rows(self, most: int | None = None) -> LikelihoodRows:
        """The likelihood on the nodes, of all data or the first of them."""
        few = slice(0, most)
        return LikelihoodRows.of(
            self.measurements if most is None else self.measurements.take(few),
            self.intervals[few],
            self.nodes.nodes,
            self.nodes.widths,
            self.problem.weights[few],
        )

    def fit(self, criterion: str, smoothness: float | None, num_folds: int) -> Fit:
        """The maximum for the smoothness that is given or chosen."""
        start = self.start
        num_data = len(self.measurements)
        rows = self.rows()
        if smoothness is None:
            few = min(num_data, _MOST_TO_CHOOSE)
            some = rows if few == num_data else self.rows(few)
            cuts = np.linspace(0, few, num_folds + 1).astype(int)
            folds = [slice(int(first), int(last)) for first, last in itertools.pairwise(cuts)]
            chosen = choose(some, self.family, criterion, folds, start)
            # With n data the best smoothness of one falls as n^(-4/5).
            start, smoothness = chosen.coefficients, chosen.smoothness * (few / num_data) ** 0.8
        return maximise(rows, self.family, smoothness, start, tolerance=1e-9)

    def learned(self, fit: Fit) -> LearnedPrior:
        """The prior of a fit."""
        values, vectors = np.linalg.eigh(fit.precision)
        vectors = self.axes @ vectors
        covariance = (vectors / np.maximum(values, 1e-8)) @ vectors.T / self.problem.weights.sum()
        log_masses = self.family.log_masses(fit.coefficients)
        coefficients = self.axes @ fit.coefficients
        return LearnedPrior(self.density, self.nodes, coefficients, covariance, log_masses, self.problem.point_mass)
