"""The prior of effects on quadrature nodes: an exponential family with tails, and a point mass if there is one."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem._densities.reference_tails import log_mass_above, log_mass_below
from numpyro_kaem._fitting.exponential_family import Families, design_matrix, in_float64, panel_nodes
from numpyro_kaem._numerics.quadrature import GaussLegendre

NODES_PER_PANEL = 6
_GROWTH, _TAIL_PANELS = 1.6, 50  # of the panels of a tail, of which there are no more
_NEGLIGIBLE = 20.0  # nats by which what lies beyond the panels is less than the tail


@dataclasses.dataclass(frozen=True)
class PriorNodes:
    """Densities p(z) = pi0(z) exp(c . B(z)) / Z on the nodes of panels, those of the tails included.

    A point mass is one more node, the last, with a feature of its own: its logit is one more coefficient.
    """

    edges: np.ndarray  # (num_panels + 1,)
    nodes: np.ndarray  # (num_nodes,), NODES_PER_PANEL on every panel, and the point mass
    widths: np.ndarray  # of the intervals that the nodes of the panels stand for
    log_measure: np.ndarray  # log pi0 times the weights of the nodes; 0 for the point mass
    design: np.ndarray  # (num_nodes, num_features)

    @property
    def body(self) -> np.ndarray:
        """The nodes that are no point mass."""
        return self.nodes[: len(self.widths)]

    @classmethod
    def of(cls, density: Density, panels_per_cell: int, point_mass: float | None) -> PriorNodes:
        """Panels of the cells of a basis, and of what the reference has on either side."""
        families = Families(density, GaussLegendre(NODES_PER_PANEL, panels_per_cell))
        body = families.edges[0]
        edges = np.unique(np.concatenate([_tail(density, body, False), body, _tail(density, body, True)]))
        nodes, widths = (values[0] for values in panel_nodes(edges[None], NODES_PER_PANEL))
        design = basis_at(density, nodes)
        log_measure = log_density_of(density.reference, nodes) + np.log(widths)
        if point_mass is not None:
            nodes, log_measure = np.append(nodes, point_mass), np.append(log_measure, 0.0)
            at_point = np.zeros((1, design.shape[1] + 1))
            at_point[0, -1] = 1.0
            design = np.concatenate([np.pad(design, ((0, 0), (0, 1))), at_point])
        return cls(edges, nodes, widths, log_measure, design)


def basis_at(density: Density, points: np.ndarray) -> np.ndarray:
    """The basis at points, which beyond its domain is what it is at the ends: (num_points, num_basis)."""
    low, high = (float(end) for end in density.energy.basis.domain)
    return design_matrix(density.energy.basis, np.clip(points, low, high)[None])[0]


def log_density_of(reference: dist.Distribution, points: np.ndarray) -> np.ndarray:
    """The log-density of a reference, in float64."""
    with in_float64(), np.errstate(divide="ignore"):
        reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), reference)
        return np.asarray(_log_prob(reference, points))


def _tail(density: Density, body: np.ndarray, above: bool) -> np.ndarray:
    """Edges of ever wider panels outwards from the body, until next to nothing of the reference is beyond."""
    end, width = (body[-1], body[-1] - body[-2]) if above else (body[0], body[1] - body[0])
    bound = float(np.ravel(support_ends(density.reference)[int(above)])[0])
    distances = max(width, 1e-3 * (body[-1] - body[0])) * np.cumsum(_GROWTH ** np.arange(_TAIL_PANELS))
    edges = end + distances if above else end - distances
    inside = edges < bound if above else edges > bound
    edges = np.append(edges[inside], bound if np.isfinite(bound) and bound != end else [])
    with in_float64():
        reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), density.reference)
        log_mass = np.asarray(_log_masses(reference, np.append(end, edges), above))
    return edges[: int(np.sum(log_mass > log_mass[0] - _NEGLIGIBLE))]


@partial(jax.jit, static_argnums=2)
def _log_masses(reference, points, above):
    return (log_mass_above if above else log_mass_below)(reference, points)


@jax.jit
def _log_prob(reference, points):
    return reference.log_prob(points)
