"""The posterior of each effect under the learned prior: moments, distribution functions and their inverses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.polynomial import polynomial

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem.measurements.likelihood import Measurements
from numpyro_kaem.measurements.nodes import NODES_PER_PANEL, PriorNodes, basis_at, log_density_of
from numpyro_kaem.measurements.rows import Intervals, is_narrow, local_points

_BISECTIONS = 32
_NARROW = 3.0  # as for the likelihood, but a panel has to follow the posterior's density


@dataclasses.dataclass(frozen=True)
class LearnedPrior:
    """The learned density on its nodes, and how well its coefficients are known."""

    density: Density  # untilted
    nodes: PriorNodes
    coefficients: np.ndarray  # those of the basis, and the logit of the point mass
    covariance: np.ndarray  # of the coefficients
    log_masses: np.ndarray  # of the nodes, normalised
    point_mass: float | None

    @property
    def support(self) -> tuple[float, float]:
        """The ends of the reference's support."""
        low, high = (float(np.ravel(end)[0]) for end in support_ends(self.density.reference))
        return low, high

    @property
    def slab_weight(self) -> float:
        """The mass of the continuous part."""
        return 1.0 if self.point_mass is None else float(-np.expm1(self.log_masses[-1]))

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log-density of the continuous part, times its weight."""
        basis = self.coefficients[: self.density.energy.basis.num_basis]
        log_normaliser = self.nodes.log_measure[0] + self.nodes.design[0] @ self.coefficients - self.log_masses[0]
        return log_density_of(self.density.reference, points) + basis_at(self.density, points) @ basis - log_normaliser

    def log_density_error(self, points: np.ndarray) -> np.ndarray:
        """Standard error of the log-density of the continuous part, normalised, by the delta method."""
        size = self.density.energy.basis.num_basis
        masses = np.exp(self.log_masses[: len(self.nodes.widths)])
        mean = (masses / masses.sum()) @ self.nodes.design[: len(masses), :size]
        slope = basis_at(self.density, points) - mean
        return np.sqrt(np.maximum(np.einsum("pk,kl,pl->p", slope, self.covariance[:size, :size], slope), 0.0))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Posteriors of some data: masses of intervals, and the density inside of each as a polynomial."""

    rows: np.ndarray
    log_evidence: np.ndarray
    masses: np.ndarray  # (num_rows, num_points), of the continuous part
    points: np.ndarray  # (1 or num_rows, num_points)
    point: np.ndarray  # (num_rows,), probability of the point mass
    edges: np.ndarray  # (1 or num_rows, num_pieces + 1), NODES_PER_PANEL points between two

    def moments(self, point_mass: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation."""
        mean = np.sum(self.masses * self.points, axis=1) + self.point * point_mass
        square = np.sum(self.masses * (self.points - mean[:, None]) ** 2, axis=1)
        return mean, np.sqrt(square + self.point * (point_mass - mean) ** 2)

    @property
    def _cumulative(self) -> np.ndarray:
        of_pieces = self.masses.reshape(len(self.masses), -1, NODES_PER_PANEL).sum(axis=2)
        return np.concatenate([np.zeros((len(of_pieces), 1)), np.cumsum(of_pieces, axis=1)], axis=1)

    def _polynomials(self, piece: np.ndarray) -> np.ndarray:
        """The mass of pieces, (num_rows, num_values), up to a share of their width: coefficients first."""
        of_pieces = self.masses.reshape(len(self.masses), -1, NODES_PER_PANEL)
        values = of_pieces[np.arange(len(piece))[:, None], piece]
        return np.moveaxis(values @ _INTEGRALS, -1, 0)

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Mass of the continuous part below z, shape (num_rows,)."""
        edges = np.broadcast_to(self.edges, (len(self.masses), self.edges.shape[1]))
        piece = np.clip(np.sum(edges <= z[:, None], axis=1) - 1, 0, edges.shape[1] - 2)[:, None]
        low, high = (np.take_along_axis(edges, piece + shift, axis=1) for shift in (0, 1))
        share = np.clip((z[:, None] - low) / (high - low), 0.0, 1.0)
        below = np.take_along_axis(self._cumulative, piece, axis=1)
        inside = polynomial.polyval(share, self._polynomials(piece), tensor=False)
        return np.clip(below + inside, 0.0, 1.0)[:, 0]

    def quantile(self, mass: np.ndarray) -> np.ndarray:
        """Where the continuous part has the given masses below, shape (num_rows, num_values)."""
        cumulative = self._cumulative
        edges = np.broadcast_to(self.edges, cumulative.shape)
        mass = np.clip(mass, 0.0, cumulative[:, -1:])
        # One search for all rows, which are two apart.
        row = np.arange(len(mass))[:, None]
        after = np.searchsorted((cumulative + 2.0 * row).ravel(), mass + 2.0 * row, side="right")
        piece = np.clip(after - 1 - row * cumulative.shape[1], 0, cumulative.shape[1] - 2)
        left = mass - np.take_along_axis(cumulative, piece, axis=1)
        low, high, inside = np.zeros(mass.shape), np.ones(mass.shape), self._polynomials(piece)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            is_below = polynomial.polyval(middle, inside, tensor=False) < left
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        start, end = (np.take_along_axis(edges, piece + shift, axis=1) for shift in (0, 1))
        return start + (end - start) * 0.5 * (low + high)


def posterior_pieces(measurements: Measurements, intervals: Intervals, prior: LearnedPrior) -> Iterator[Pieces]:
    """The posteriors of all data, in parts: on the nodes of the prior, or on points of their own where narrow."""
    num_nodes, has_point = len(prior.nodes.widths), prior.point_mass is not None
    body = prior.nodes.body
    for rows in measurements.chunks():
        index = np.arange(rows.start, rows.stop)
        narrow = is_narrow(intervals[rows], body, _NARROW)
        log_joint = measurements.log_likelihood(prior.nodes.nodes[None], rows) + prior.log_masses
        at_point = log_joint[:, -1] if has_point else np.full(len(index), -np.inf)
        if not narrow.all():
            wide = ~narrow
            yield _pieces(index[wide], log_joint[wide, :num_nodes], at_point[wide], body[None], prior.nodes.edges[None])
        if narrow.any():
            edges, points, log_masses = local_points(measurements, intervals, index[narrow])
            log_prior = prior.log_density(points.ravel()).reshape(points.shape)
            yield _pieces(index[narrow], log_prior + log_masses, at_point[narrow], points, edges)


def _pieces(rows, log_joint, at_point, points, edges) -> Pieces:
    largest = np.maximum(log_joint.max(axis=1), at_point)
    masses, point = np.exp(log_joint - largest[:, None]), np.exp(at_point - largest)
    total = masses.sum(axis=1) + point
    return Pieces(rows, np.log(total) + largest, masses / total[:, None], points, point / total, edges)


def _integral_polynomials() -> np.ndarray:
    """From the start of a panel: the integrals of the polynomials that are one at one node, over that node's weight."""
    unit, weights = np.polynomial.legendre.leggauss(NODES_PER_PANEL)
    unit, weights = 0.5 * (unit + 1.0), 0.5 * weights
    columns = []
    for node in range(NODES_PER_PANEL):
        others = np.delete(unit, node)
        basis = polynomial.polyfromroots(others) / np.prod(unit[node] - others)
        columns.append(polynomial.polyint(basis) / weights[node])
    return np.stack(columns)


_INTEGRALS = _integral_polynomials()
