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
from jaxtyping import Array

from numpyro_kaem.bases import Basis, BSpline
from numpyro_kaem.distributions.ka_prior import KAPrior
from numpyro_kaem.distributions.reference import support_ends
from numpyro_kaem.distributions.tails import mass_below, survival

_NODES = 6  # of a panel: interpolation through them is exact for the polynomials of every B-spline
_PANELS_PER_CELL = 2
_UNIT_NODES, _UNIT_WEIGHTS = np.polynomial.legendre.leggauss(_NODES)  # on [-1, 1]
_GRADED_PANELS = 20

# A precision of the coefficients so small that it only decides what the data leave open: a cell without samples, and
# the directions in which a combination of basis functions is constant.
RIDGE = 1e-7


@dataclasses.dataclass(frozen=True)
class Family:
    """The exponential families of all coordinates, on the nodes of their quadrature panels.

    Attributes:
        log_measure: logs of the masses that the reference puts on the nodes, and on the two tails in the last two
            places: (num_coordinates, num_nodes + 2).
        design: the basis at the nodes and the two ends: (num_coordinates, num_nodes + 2, num_basis).
    """

    log_measure: np.ndarray
    design: np.ndarray

    def block(self, coordinates: slice) -> Family:
        """The families of some of the coordinates."""
        return Family(self.log_measure[coordinates], self.design[coordinates])

    def rotated(self, rotation: np.ndarray) -> Family:
        """The same families in other bases: matrices of shape (num_coordinates, num_basis, num_basis)."""
        return dataclasses.replace(self, design=self.design @ rotation)


def family_of(prior: KAPrior, tails: bool = True) -> tuple[Family, np.ndarray, np.ndarray]:
    """The exponential families of a prior's coordinates; without tails, restricted to the domain.

    Returns:
        The families, the breakpoints of their bases, and the edges of the panels, by coordinate.
    """
    basis, batch_shape = prior.energy.basis, prior.batch_shape
    breakpoints = cells(basis, batch_shape)
    edges = panel_edges(breakpoints, *(bool(np.any(np.isfinite(end))) for end in support_ends(prior.reference)))
    nodes, widths = panel_nodes(edges)
    low, high = breakpoints[:, 0], breakpoints[:, -1]

    with in_float64(), np.errstate(divide="ignore"):
        reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), prior.reference)
        points = [values.T.reshape(-1, *batch_shape) for values in (nodes, low[:, None], high[:, None])]
        values = zip(_measure(reference, *points), points, strict=True)
        measures = [np.broadcast_to(value, at.shape).reshape(len(at), -1).T for value, at in values]
        log_reference, below, above = measures[0], np.log(measures[1]), np.log(measures[2])
    if not tails:
        below, above = np.full_like(below, -np.inf), np.full_like(above, -np.inf)
    points = np.concatenate([nodes, low[:, None], high[:, None]], axis=1)
    log_measure = np.concatenate([log_reference + np.log(widths), below, above], axis=1)
    return Family(log_measure, design_matrix(basis, points, batch_shape)), breakpoints, edges


@jax.jit  # called one by one, the many small operations would each be compiled
def _measure(reference, nodes, low, high):
    return reference.log_prob(nodes), mass_below(reference, low), survival(reference, high)


def cells(basis: Basis, batch_shape: tuple[int, ...]) -> np.ndarray:
    """Breakpoints of the basis for every coordinate, (num_coordinates, num_cells + 1)."""
    breakpoints = np.asarray(basis.breakpoints, np.float64)
    size = breakpoints.shape[-1]
    return np.broadcast_to(breakpoints, (*batch_shape, size)).reshape(-1, size)


def in_float64():
    """Context in which JAX computes in float64, whatever its default, within this thread."""
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)


def design_matrix(basis: Basis, points: np.ndarray, batch_shape: tuple[int, ...]) -> np.ndarray:
    """The basis at points (num_coordinates, num_points): (num_coordinates, num_points, num_basis), float64."""
    with in_float64():
        values = np.asarray(_evaluate(basis, points.T.reshape(-1, *batch_shape)))
    return np.moveaxis(values.reshape(*points.T.shape, -1), 0, 1)


@eqx.filter_jit  # called one by one, the many small operations would each be compiled
def _evaluate(basis: Basis, points: Array) -> Array:
    return basis(points)


def panel_edges(breakpoints: np.ndarray, bounded_below: bool, bounded_above: bool) -> np.ndarray:
    """Cut cells into panels; next to an end of the support, where pi0 may be singular, into ever narrower ones."""
    widths = np.diff(breakpoints, axis=1)
    fractions = np.arange(_PANELS_PER_CELL) / _PANELS_PER_CELL
    inner = (breakpoints[:, :-1, None] + widths[..., None] * fractions).reshape(len(breakpoints), -1)
    halvings = 0.5 ** np.arange(_GRADED_PANELS, 0, -1) / _PANELS_PER_CELL
    first = breakpoints[:, :1] + widths[:, :1] * halvings if bounded_below else breakpoints[:, :0]
    last = breakpoints[:, -1:] - widths[:, -1:] * halvings[::-1] if bounded_above else breakpoints[:, :0]
    return np.concatenate([inner[:, :1], first, inner[:, 1:], last, breakpoints[:, -1:]], axis=1)


def panel_nodes(edges: np.ndarray, num_nodes: int = _NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of all panels and their weights, (num_coordinates, num_panels * num_nodes) each."""
    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(num_nodes)
    half = 0.5 * np.diff(edges, axis=1)[..., None]
    nodes = edges[:, :-1, None] + half * (1.0 + unit_nodes)
    return nodes.reshape(len(edges), -1), (half * unit_weights).reshape(len(edges), -1)


def compress(z: np.ndarray, weights: np.ndarray, folds: np.ndarray, num_folds: int, edges: np.ndarray) -> np.ndarray:
    """Replace the samples of every fold by signed masses on the panels' nodes.

    On each panel the masses have the weighted moments of the samples up to degree five. So the mean of a function
    that is such a polynomial there, as every spline is, is exact; of others it is as good as interpolation at six
    points of half a cell.

    Args:
        z: samples, (num_samples, num_coordinates); those beyond the domain are moved to its ends.
        weights: of shape (num_samples,) or that of z.
        folds: the fold of each sample, (num_samples,).
        num_folds: number of folds.
        edges: panel edges, (num_coordinates, num_panels + 1).

    Returns:
        Masses of shape (num_coordinates, num_folds, num_nodes).
    """
    num_coordinates, num_panels = edges.shape[0], edges.shape[1] - 1
    orders = np.arange(_NODES)
    # Moments of Legendre polynomials to node masses: the columns are the interpolation polynomials' coefficients.
    to_nodes = ((2 * orders + 1) / 2)[:, None] * np.polynomial.legendre.legvander(_UNIT_NODES, _NODES - 1).T
    to_nodes = to_nodes * _UNIT_WEIGHTS
    masses = np.empty((num_coordinates, num_folds, num_panels * _NODES))
    for coordinate, edge in enumerate(edges):
        x = np.clip(z[:, coordinate], edge[0], edge[-1])
        weight = weights if weights.ndim == 1 else weights[:, coordinate]
        panel = np.clip(np.searchsorted(edge, x, side="right") - 1, 0, num_panels - 1)
        place = 2.0 * (x - edge[panel]) / np.diff(edge)[panel] - 1.0
        slot = folds * num_panels + panel
        size = num_folds * num_panels
        moments = np.empty((size, _NODES))
        before, current = np.zeros_like(place), np.ones_like(place)
        for order in orders:
            moments[:, order] = np.bincount(slot, weight * current, size)
            before, current = current, ((2 * order + 1) * place * current - order * before) / (order + 1)
        masses[coordinate] = (moments @ to_nodes).reshape(num_folds, -1)
    return masses


def roughness(basis: Basis, breakpoints: np.ndarray, scale: np.ndarray, batch_shape: tuple[int, ...]) -> np.ndarray:
    """Matrices P with c' P c = scale^3 int_a^b f''(z)^2 dz, the roughness of f as a function of z / scale.

    Splines of degree 0 and 1 have no second derivative to integrate: there the second differences of the coefficients
    stand for it, as in P-splines (Eilers and Marx 1996).

    Returns:
        Shape (num_coordinates, num_basis, num_basis).
    """
    if isinstance(basis, BSpline) and basis.degree < 2:
        places = 0.5 * (breakpoints[:, :-1] + breakpoints[:, 1:]) if basis.degree == 0 else breakpoints
        places = places / scale[:, None]
        gaps, num_basis = np.diff(places, axis=1), places.shape[1]
        if num_basis < 3:
            return np.zeros((len(places), num_basis, num_basis))
        span = places[:, 2:] - places[:, :-2]
        weights = np.sqrt(span / 2.0)
        rows = np.zeros((len(places), num_basis - 2, num_basis))
        index = np.arange(num_basis - 2)
        rows[:, index, index] = 2.0 * weights / (gaps[:, :-1] * span)
        rows[:, index, index + 1] = -2.0 * weights / (gaps[:, :-1] * gaps[:, 1:])
        rows[:, index, index + 2] = 2.0 * weights / (gaps[:, 1:] * span)
        return np.swapaxes(rows, 1, 2) @ rows
    # Central differences at four nodes of a cell, none of them closer to its ends than the step: there the functions
    # are smooth on the scale of the cell, and for cubics it is exact.
    nodes, weights = panel_nodes(breakpoints, 4)
    step = np.repeat(0.05 * np.diff(breakpoints, axis=1), 4, axis=1)
    below, middle, above = (design_matrix(basis, nodes + shift * step, batch_shape) for shift in (-1, 0, 1))
    second = (below - 2.0 * middle + above) * ((scale[:, None] / step) ** 2 * np.sqrt(weights / scale[:, None]))[
        ..., None
    ]
    return np.swapaxes(second, 1, 2) @ second


def maximise(
    family: Family,
    statistics: np.ndarray,
    precision: np.ndarray,
    start: np.ndarray,
    center: np.ndarray | float = 0.0,
    tolerance: float = 1e-18,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximise c . m - log Z(c) - 1/2 sum_g precision_g (c_g - center_g)^2 by Newton's method with step halving.

    Of several data sets they are the folds of one: near each other, so that they can share a Hessian.

    Args:
        family: the families, of D coordinates and G basis functions.
        statistics: the means m, (D, K, G) for K data sets.
        precision: diagonal penalty, (D, G), positive.
        start: coefficients to start from, (D, K, G).
        center: where the penalty vanishes.
        tolerance: stop where the squared Newton decrement, twice the gain that is left, is below it.

    Returns:
        The coefficients, (D, K, G), and log Z at them, (D, K).
    """
    coefficients = start.copy()
    center = np.broadcast_to(center, start.shape)
    log_normalizer = np.empty(start.shape[:2])
    active = np.arange(len(start))
    for _ in range(200):
        design, measure = family.design[active], family.log_measure[active, None]
        c, m, penalty, origin = coefficients[active], statistics[active], precision[active], center[active]
        value, log_z, probability = _objective(c, m, penalty[:, None], origin, design, measure)
        mean = probability @ design
        gradient = m - mean - penalty[:, None] * (c - origin)
        # One Hessian for all data sets of a coordinate, that of their mean density.
        average, center_of_mass = probability.mean(axis=1), mean.mean(axis=1)
        weighted = np.swapaxes(design, 1, 2) * average[:, None]
        hessian = weighted @ design - center_of_mass[:, :, None] * center_of_mass[:, None]
        diagonal = np.maximum(np.einsum("dgg->dg", hessian), 0.0) + penalty
        np.einsum("dgg->dg", hessian)[...] = diagonal
        scale = 1.0 / np.sqrt(diagonal)  # with a diagonal of one the matrix is well conditioned for any penalty
        scaled = hessian * scale[:, :, None] * scale[:, None]
        solution = np.linalg.solve(scaled, np.swapaxes(scale[:, None] * gradient, 1, 2))
        direction = scale[:, None] * np.swapaxes(solution, 1, 2)
        decrement = np.sum(gradient * direction, axis=-1)

        step = np.ones_like(decrement)
        for _ in range(40):
            trial, _, _ = _objective(c + step[..., None] * direction, m, penalty[:, None], origin, design, measure)
            # Below 1e-8 the gain drowns in rounding, and the full step is known to be right.
            too_long = (trial < value + 1e-4 * step * decrement) & (decrement > 1e-8)
            if not too_long.any():
                break
            step = np.where(too_long, 0.5 * step, step)
        coefficients[active] = c + step[..., None] * direction
        log_normalizer[active] = log_z
        moving = np.any(decrement > tolerance, axis=1)
        active = active[moving]
        if len(active) == 0:
            break
    return coefficients, log_normalizer


def _objective(c, m, precision, center, design, log_measure):
    """The penalised log-likelihood, log Z, and the probabilities of nodes and tails, which sum to one."""
    exponent = c @ np.swapaxes(design, 1, 2) + log_measure
    largest = exponent.max(axis=-1, keepdims=True)
    probability = np.exp(exponent - largest)
    total = probability.sum(axis=-1, keepdims=True)
    log_z = (np.log(total) + largest)[..., 0]
    value = np.sum(c * m, axis=-1) - log_z - 0.5 * np.sum(precision * (c - center) ** 2, axis=-1)
    return value, log_z, probability / total


def cross_validate(
    family: Family, fold_sums: np.ndarray, fold_weights: np.ndarray, eigenvalues: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the smoothness of each coordinate by the held-out log-likelihood.

    A path from smooth to rough, each fit starting from the one before; it ends where no coordinate has gained for four
    steps, unless all of the path has been as flat as it is at its smooth end, where every fit is the reference.
    Chosen is the smoothest fit that loses less than a quarter of a standard error against the best one.

    Args:
        family: the families, in the eigenvectors of the roughness.
        fold_sums: weighted sums of the basis functions over each fold, (D, K, G).
        fold_weights: weights of the folds, (D, K), summing to one over K.
        eigenvalues: of the roughness, (D, G).

    Returns:
        The smoothness of each coordinate, (D,), and its mean held-out log-likelihood relative to the reference's, (D,).
    """
    num_folds = fold_sums.shape[1]
    rest = 1.0 - fold_weights
    usable = (fold_weights > 1e-12) & (rest > 1e-12)
    train = (fold_sums.sum(1, keepdims=True) - fold_sums) / np.where(usable, rest, 1.0)[..., None]
    train = np.where(usable[..., None], train, fold_sums.sum(1, keepdims=True))
    coefficients = np.zeros_like(fold_sums)
    path = 10.0 ** np.arange(2.0, -10.5, -0.5)
    scores = []
    for smoothness in path:
        precision = smoothness * eigenvalues + RIDGE
        # A gain of 1e-10 nats per sample decides nothing.
        coefficients, log_z = maximise(family, train, precision, coefficients, tolerance=1e-10)
        held_out = np.sum(fold_sums * coefficients, axis=-1) - fold_weights * log_z
        scores.append(np.where(usable, held_out, 0.0))
        total = np.sum(scores, axis=-1)
        best = np.argmax(total, axis=0)
        highest = np.max(total, axis=0)
        past_flat_end = (highest - total[0] > 1e-4) | (highest - total[-1] > 1e-3)
        if np.all((len(scores) - 1 - best >= 4) & past_flat_end):
            break
    scores = np.array(scores)
    loss = np.take_along_axis(scores, best[None, :, None], axis=0) - scores  # (path, D, K)
    error = np.std(loss, axis=-1, ddof=1) * np.sqrt(num_folds)
    # Where the curve is flat, chance decides which point is the best one: the smoothest that is hardly worse is taken.
    chosen = np.argmax(loss.sum(axis=-1) <= 0.25 * error, axis=0)
    gain = np.take_along_axis(scores.sum(axis=-1), chosen[None], axis=0)[0]
    # With n samples the best smoothness per sample falls as n^(-4/5), and the folds leave out one in num_folds.
    return path[chosen] * (1.0 - 1.0 / num_folds) ** 0.8, gain
