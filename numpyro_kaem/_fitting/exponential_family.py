"""Fitting the coefficients of a tilted reference: a concave problem of few dimensions per coordinate.

With the basis B fixed, the densities p(z) = pi0(z) exp(c . B(z)) / Z(c) of one coordinate are an exponential family.
Data enter through the mean m of B alone, and the penalised log-likelihood per sample

    c . m - log Z(c) - 1/2 c' P c

is concave: Newton's method finds its maximum. Everything here is float64 on the host, batched over coordinates.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import numpy as np

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem._densities.reference_tails import mass_below, survival
from numpyro_kaem._numerics.grid import Grid
from numpyro_kaem._numerics.quadrature import GaussLegendre, QuadratureRule
from numpyro_kaem.energies import Basis

# Interpolation through its nodes is exact for the polynomials of every B-spline.
COARSE = GaussLegendre(6, 2)
_GRADED_PANELS = 20

# A precision of the coefficients so small that it only decides what the data leave open: a cell without samples, and
# the directions in which a combination of basis functions is constant.
RIDGE = 1e-7


@dataclasses.dataclass(frozen=True)
class Family:
    """The exponential families of some coordinates, on the nodes of their quadrature panels."""

    # Logs of the masses that the reference puts on the nodes, and on the two tails in the last two places.
    log_measure: np.ndarray  # (num_coordinates, num_nodes + 2)
    # The basis at the nodes and the two ends; the first axis is 1 where all coordinates share it.
    design: np.ndarray  # (num_coordinates or 1, num_nodes + 2, num_basis)

    def __getitem__(self, coordinates) -> Family:
        design = self.design if len(self.design) == 1 else self.design[coordinates]
        return Family(self.log_measure[coordinates], design)

    def rotated(self, rotation: np.ndarray) -> Family:
        """The same families in other bases: matrices of shape (num_coordinates or 1, num_basis, num_basis)."""
        return Family(self.log_measure, self.design @ rotation)


class Families:
    """The exponential families of coordinates by a quadrature rule; without tails, restricted to the domain.

    Breakpoints of the bases, edges and nodes of the panels and the widths that the nodes count have the coordinates as
    first axis.
    """

    def __init__(self, density: Density, rule: QuadratureRule = COARSE, tails: bool = True):
        self._basis, batch_shape = density.energy.basis, density.shape
        breakpoints = np.asarray(self._basis.breakpoints, np.float64)
        size = breakpoints.shape[-1]
        self.breakpoints = np.broadcast_to(breakpoints, (*batch_shape, size)).reshape(-1, size)
        is_bounded = [bool(np.any(np.isfinite(end))) for end in support_ends(density.reference)]
        self.edges = panel_edges(self.breakpoints, is_bounded[0], is_bounded[1], rule.panels_per_interval)
        self.nodes, self.widths = panel_nodes(self.edges, len(rule.unit_nodes))
        self._ends = self.breakpoints[:, [0, -1]]
        with in_float64(), np.errstate(divide="ignore"):
            reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), density.reference)
            points = [values.T.reshape(-1, *batch_shape) for values in (self.nodes, *self._ends.T[..., None])]
            values = zip(measure(reference, *points), points, strict=True)
            measures = [np.broadcast_to(value, at.shape).reshape(len(at), -1).T for value, at in values]
            log_reference, below, above = measures[0], np.log(measures[1]), np.log(measures[2])
        if not tails:
            below, above = np.full_like(below, -np.inf), np.full_like(above, -np.inf)
        self._log_measure = np.concatenate([log_reference + np.log(self.widths), below, above], axis=1)

    @property
    def reference_mass(self) -> np.ndarray:
        """What of its mass the reference has in each domain."""
        return np.exp(self._log_measure[:, :-2]).sum(axis=1)

    def __getitem__(self, coordinates: slice) -> Family:
        points = np.concatenate([self.nodes, self._ends], axis=1)
        return Family(self._log_measure[coordinates], design_matrix(self._basis, points, coordinates))


@jax.jit  # called one by one, the many small operations would each be compiled
def measure(reference, nodes, low, high):
    """Log-densities of a reference at the nodes, and its masses below low and above high."""
    return reference.log_prob(nodes), mass_below(reference, low), survival(reference, high)


def in_float64():
    """Context in which JAX computes in float64, whatever its default, within this thread."""
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)  # type: ignore[attr-defined]


def design_matrix(basis: Basis, points: np.ndarray, coordinates: slice = slice(None)) -> np.ndarray:
    """The basis at points (num_coordinates, num_points), in float64: (num_coordinates, num_points, num_basis).

    Where the bases of the coordinates are one, moved and stretched, the points lie at the same places of each, and the
    first axis is 1.
    """

    def on(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
        with in_float64():
            return np.asarray(eqx.tree_at(lambda basis: basis.grid, widened, Grid.of(grid)).design_matrix(points))

    widened = jax.tree.map(lambda leaf: leaf if leaf.dtype.kind == "i" else np.asarray(leaf, np.float64), basis)
    if basis.stretched:
        low, high = (np.ravel(np.asarray(end, np.float64))[0] for end in basis.domain)
        return on(np.array([0.0, 1.0]), (points[0] - low) / (high - low))[None]
    knots = np.asarray(basis.grid.points, np.float64)
    knots = np.broadcast_to(knots.reshape(-1, knots.shape[-1]), (len(points), knots.shape[-1]))
    return np.stack([on(*of_one) for of_one in zip(knots[coordinates], points[coordinates], strict=True)])


def panel_edges(breakpoints: np.ndarray, bounded_below: bool, bounded_above: bool, panels_per_cell: int) -> np.ndarray:
    """Cut cells into panels; next to an end of the support, where pi0 may be singular, into ever narrower ones."""
    widths = np.diff(breakpoints, axis=1)
    fractions = np.arange(panels_per_cell) / panels_per_cell
    inner = (breakpoints[:, :-1, None] + widths[..., None] * fractions).reshape(len(breakpoints), -1)
    halvings = 0.5 ** np.arange(_GRADED_PANELS, 0, -1) / panels_per_cell
    first = breakpoints[:, :1] + widths[:, :1] * halvings if bounded_below else breakpoints[:, :0]
    last = breakpoints[:, -1:] - widths[:, -1:] * halvings[::-1] if bounded_above else breakpoints[:, :0]
    return np.concatenate([inner[:, :1], first, inner[:, 1:], last, breakpoints[:, -1:]], axis=1)


def panel_nodes(edges: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of all panels and their weights, (num_coordinates, num_panels * num_nodes) each."""
    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(num_nodes)
    half = 0.5 * np.diff(edges, axis=1)[..., None]
    nodes = edges[:, :-1, None] + half * (1.0 + unit_nodes)
    return nodes.reshape(len(edges), -1), (half * unit_weights).reshape(len(edges), -1)


def compress(z: np.ndarray, weights: np.ndarray, folds: np.ndarray, num_folds: int, edges: np.ndarray) -> np.ndarray:
    """Replace the samples of every fold by signed masses on the nodes of the coarse rule's panels.

    On each panel the masses have the weighted moments of the samples up to degree five. So the mean of a function
    that is such a polynomial there, as every spline is, is exact; of others it is as good as interpolation at six
    points of half a cell. Samples beyond the domain are moved to its ends.
    """
    num_panels, num_nodes = len(edges) - 1, COARSE.nodes_per_panel
    x = np.clip(z, edges[0], edges[-1])
    panel = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, num_panels - 1)
    place = 2.0 * (x - edges[panel]) / np.diff(edges)[panel] - 1.0
    slot, size = folds * num_panels + panel, num_folds * num_panels
    moments = np.empty((size, num_nodes))
    before, current = np.zeros_like(place), np.ones_like(place)
    for order in range(num_nodes):
        moments[:, order] = np.bincount(slot, weights * current, size)
        before, current = current, ((2 * order + 1) * place * current - order * before) / (order + 1)
    # Moments of Legendre polynomials to node masses: the columns are the interpolation polynomials' coefficients.
    return (moments @ COARSE.legendre_projection(num_nodes - 1).T).reshape(num_folds, -1)


def maximise(
    family: Family,
    statistics: np.ndarray,
    precision: np.ndarray,
    start: np.ndarray,
    center: np.ndarray | float = 0.0,
    tolerance: float = 1e-18,
    most_steps: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximise c . m - log Z(c) - 1/2 sum_g precision_g (c_g - center_g)^2 by Newton's method with step halving.

    The means m have shape (D, K, G) for D coordinates, K data sets and G basis functions, the precision (D, G). The
    data sets are the folds of one: near each other, so that they can share a Hessian. It ends where the squared Newton
    decrement, twice the gain that is left, is below the tolerance. Returned are the coefficients, (D, K, G), and for
    each coordinate whether they are the maximum's, within 1e-8 nats or the tolerance.
    """
    coefficients = start.copy()
    center = np.broadcast_to(center, start.shape)
    active, left = np.arange(len(start)), np.full(len(start), np.inf)
    value, probability = _objective(start, statistics, precision, center, family)
    for _ in range(most_steps):
        of = family[active]
        c, m, penalty, origin = coefficients[active], statistics[active], precision[active], center[active]
        mean = probability @ of.design
        gradient = m - mean - penalty[:, None] * (c - origin)
        # One Hessian for all data sets of a coordinate, that of their mean density.
        average, center_of_mass = _mean_of_sets(probability), _mean_of_sets(mean)
        weighted = np.swapaxes(of.design, 1, 2) * average[:, None]
        hessian = weighted @ of.design - center_of_mass[:, :, None] * center_of_mass[:, None]
        diagonal = np.maximum(np.einsum("dgg->dg", hessian), 0.0) + penalty
        np.einsum("dgg->dg", hessian)[...] = diagonal
        scale = 1.0 / np.sqrt(diagonal)  # with a diagonal of one the matrix is well conditioned for any penalty
        scaled = hessian * scale[:, :, None] * scale[:, None]
        solution = np.linalg.solve(scaled, np.swapaxes(scale[:, None] * gradient, 1, 2))
        direction = scale[:, None] * np.swapaxes(solution, 1, 2)
        decrement = np.einsum("dkg,dkg->dk", gradient, direction)
        largest = decrement.max(axis=1)

        step = np.ones_like(decrement)
        for _ in range(40):
            moved = c + step[..., None] * direction
            trial, probability = _objective(moved, m, penalty, origin, of)
            # Below 1e-8 the gain drowns in rounding, and the full step is known to be right.
            too_long = ~(trial >= value + 1e-4 * step * decrement) & (decrement > 1e-8)
            if not too_long.any():
                break
            step = np.where(too_long, 0.5 * step, step)
        coefficients[active] = np.where(too_long[..., None], c, moved)
        left[active] = largest
        # Where no step is short enough, none will be.
        goes_on = (largest > tolerance) & ~too_long.any(axis=1)
        active, value, probability = active[goes_on], trial[goes_on], probability[goes_on]
        if len(active) == 0:
            break
    return coefficients, left < max(tolerance, 1e-8)


def nearest_energy(family: Family, log_density: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Coefficients nearest, by least squares under a density at the nodes, to what tilts the reference into it."""
    share = np.exp(log_density - log_density.max(axis=-1, keepdims=True)) * widths
    # A little everywhere, which settles the energy where there is next to no density.
    share = share / share.sum(axis=-1, keepdims=True) + 1e-6 * widths / widths.sum(axis=-1, keepdims=True)
    share = share / share.sum(axis=-1, keepdims=True)
    energy = log_density + np.log(widths) - family.log_measure[:, :-2]
    energy = (energy - np.sum(share * energy, axis=-1, keepdims=True))[..., None]
    design = family.design[:, :-2]
    centered = design - share[:, None] @ design
    weighted = np.swapaxes(centered, 1, 2) * share[:, None]
    normal = weighted @ centered + 1e-12 * np.eye(design.shape[-1])
    return np.linalg.solve(normal, weighted @ energy)[..., 0]


def normalised(family: Family, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log Z of coefficients (D, K, G), shape (D, K), and probabilities of nodes and tails, (D, K, num_nodes + 2)."""
    probability = coefficients @ np.swapaxes(family.design, 1, 2)
    probability += family.log_measure[:, None]
    largest = probability.max(axis=-1, keepdims=True)
    probability -= largest
    np.exp(probability, out=probability)
    total = probability.sum(axis=-1, keepdims=True)
    probability /= total
    return (np.log(total) + largest)[..., 0], probability


def _objective(c, m, precision, center, family) -> tuple[np.ndarray, np.ndarray]:
    """The penalised log-likelihood, and the probabilities of nodes and tails."""
    log_z, probability = normalised(family, c)
    roughness = np.einsum("dg,dkg->dk", precision, (c - center) ** 2)
    return np.einsum("dkg,dkg->dk", c, m) - log_z - 0.5 * roughness, probability


def _mean_of_sets(values: np.ndarray) -> np.ndarray:
    """Over the data sets, most often one, (D, K, ...)."""
    return values[:, 0] if values.shape[1] == 1 else values.mean(axis=1)
