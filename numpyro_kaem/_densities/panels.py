"""Panels of a domain: where the nodes of a quadrature rule lie, aligned with the cells of a basis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from numpyro_kaem._numerics.grid import array_module
from numpyro_kaem._numerics.quadrature import GaussLegendre, QuadratureRule, graded_edges
from numpyro_kaem.energies import Basis


def default_rule(dtype, basis: Basis) -> GaussLegendre:
    """The rule that holds the stated bounds for energies of a standard deviation of up to 5 nats, in float32 10."""
    is_fine = basis.steep_cells or np.dtype(dtype).itemsize > 4
    return GaussLegendre(10, 10 if is_fine else 4)


class Panels(NamedTuple):
    """Panels of a domain that is cut into cells, known when a program is traced even if the domain is not."""

    cells: np.ndarray  # of each panel
    starts: np.ndarray  # places in the cell, from 0 to 1
    widths: np.ndarray  # in units of the cell's

    @classmethod
    def lay_out(cls, rule: QuadratureRule, basis: Basis, low: float, high: float, resolution: float) -> Panels:
        """Cut each cell of the basis by the rule, and finer towards an end of the support (see `graded_edges`).

        Of a domain that is not the same for the whole batch, or not known now, each end is taken to be that of the
        support, unless the support is unbounded there.
        """
        breakpoints = basis.breakpoints
        if array_module(breakpoints) is not np:
            breakpoints = np.arange(basis.num_cells + 1.0)
            low = low if np.isinf(low) else 0.0
            high = high if np.isinf(high) else float(basis.num_cells)
            edges = graded_edges(rule.edges(breakpoints), low, high, resolution)
            # Wherever the domain lies, panels have ends that rounding tells apart.
            distance = np.minimum(edges, basis.num_cells - edges)
            edges = edges[(distance == 0) | (distance >= 16 * resolution)]
        else:
            edges = graded_edges(rule.edges(breakpoints), low, high, resolution)
        middles = 0.5 * (edges[:-1] + edges[1:])
        cells = np.clip(np.searchsorted(breakpoints, middles, side="right") - 1, 0, basis.num_cells - 1)
        width = np.diff(breakpoints)[cells]
        return cls(cells, (edges[:-1] - breakpoints[cells]) / width, np.diff(edges) / width)

    def places(self, rule: QuadratureRule) -> np.ndarray:
        """Places of the nodes in the cells, shape (num_panels, nodes_per_panel)."""
        return self.starts[:, None] + self.widths[:, None] * rule.unit_nodes

    def edges(self, basis: Basis) -> np.ndarray | Array:
        """Where panels meet: shape (*batch, num_panels + 1), the batch being that of the basis's grid."""
        leading, rest = basis.points(
            np.append(self.cells, self.cells[-1]), np.append(self.starts, self.starts[-1] + self.widths[-1])
        )
        return leading + rest

    def sizes(self, basis: Basis) -> np.ndarray | Array:
        """Widths of the panels: shape (*batch, num_panels)."""
        return basis.cell_widths()[..., self.cells] * self.widths

    def nodes(self, basis: Basis, rule: QuadratureRule, dtype) -> tuple[np.ndarray | Array, np.ndarray | Array]:
        """Nodes rounded to a dtype, and what rounding took from them: shape (*batch, num_panels, nodes_per_panel)."""
        leading, rest = basis.points(self.cells, self.places(rule))
        rounded = (leading + rest).astype(dtype)
        return rounded, ((leading - rounded) + rest).astype(dtype)

    def refine(self, values: Array, rule: QuadratureRule) -> Array:
        """Values at the nodes of these panels: as they are (see `CutPanels`)."""
        return values

    def places_and_ends(self, rule: QuadratureRule) -> tuple[np.ndarray, np.ndarray]:
        """Cells and places of all nodes in them, with the two ends of the domain last, as if each were a panel.

        Graded panels may begin a little further in, but energies beyond them are those of the ends of the domain.
        """
        ends = np.repeat([[0.0], [1.0]], rule.nodes_per_panel, axis=1)
        return np.append(self.cells, self.cells[[0, -1]]), np.concatenate([self.places(rule), ends])


def nodes_first(values: np.ndarray | Array, rank: int) -> np.ndarray | Array:
    """Values of shape (*batch, num_panels, num_nodes) as (num_panels num_nodes, *batch), the batch of a given rank."""
    *batch, num_panels, num_nodes = values.shape
    values = values.reshape(*[1] * (rank - len(batch)), *batch, num_panels * num_nodes)
    return array_module(values).moveaxis(values, -1, 0)
