"""Composite quadrature rules on panels that are aligned with the cells of a basis."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np

from numpyro_kaem.checks import check_count


class QuadratureRule(abc.ABC):
    """Abstract composite rule: every cell of the basis is cut into panels that carry the same nodes and weights."""

    panels_per_interval: int
    nodes_per_panel: int

    def __post_init__(self):
        check_count("nodes_per_panel", self.nodes_per_panel, 2)
        check_count("panels_per_interval", self.panels_per_interval, 1)

    @property
    @abc.abstractmethod
    def unit_nodes(self) -> np.ndarray:
        """Nodes of the rule on [0, 1]."""

    @property
    @abc.abstractmethod
    def weights(self) -> np.ndarray:
        """Weights of the rule on [0, 1]; they sum to one."""

    @abc.abstractmethod
    def legendre_projection(self, degree: int) -> np.ndarray:
        """Matrix (node, order) from a function's values at a panel's nodes to its Legendre coefficients on [0, 1]."""

    def edges(self, breakpoints: np.ndarray) -> np.ndarray:
        """Panel edges for the given breakpoints: shape (num_panels + 1,), float64."""
        fractions = np.arange(self.panels_per_interval) / self.panels_per_interval
        inner = breakpoints[:-1, None] + fractions * np.diff(breakpoints)[:, None]
        return np.append(inner.ravel(), breakpoints[-1])

    def nodes(self, edges: np.ndarray) -> np.ndarray:
        """Nodes of every panel: shape (num_panels, nodes_per_panel)."""
        return edges[:-1, None] + np.diff(edges)[:, None] * self.unit_nodes


@dataclasses.dataclass(frozen=True)
class GaussLegendre(QuadratureRule):
    """Composite Gauss-Legendre quadrature.

    Every cell of the basis (a knot interval) is cut into `panels_per_interval` equal panels, and each panel carries
    the `nodes_per_panel`-point Gauss-Legendre rule, exact for polynomials of degree 2 nodes_per_panel - 1. On a panel
    over which the log-density changes by d nats the rule's relative error is about
    d^(2n) (n!)^4 / ((2n + 1) ((2n)!)^3): for n = 8 and d = 1.5 below 1e-15. What limits the exactness of quantiles is
    the density between the nodes, taken for a polynomial of degree n - 1, at most 9.

    Args:
        nodes_per_panel: nodes of a panel, at least 2.
        panels_per_interval: panels of a cell of the basis, at least 1. More are needed for rough energies.

    Raises:
        ValueError: for a number out of range.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import GaussLegendre

        rule = GaussLegendre(nodes_per_panel=8, panels_per_interval=10)
        edges = rule.edges(np.array([0.0, 1.0, 2.0]))
        nodes = rule.nodes(edges)
        assert nodes.shape == (20, 8)
        assert np.isclose(np.sum(rule.weights * np.exp(nodes) * np.diff(edges)[:, None]), np.exp(2.0) - 1.0)
        ```
    """

    nodes_per_panel: int = 10
    panels_per_interval: int = 10

    @property
    def unit_nodes(self) -> np.ndarray:
        """Nodes of the rule on [0, 1]."""
        return 0.5 * (np.polynomial.legendre.leggauss(self.nodes_per_panel)[0] + 1.0)

    @property
    def weights(self) -> np.ndarray:
        """Weights of the rule on [0, 1]; they sum to one."""
        return 0.5 * np.polynomial.legendre.leggauss(self.nodes_per_panel)[1]

    def legendre_projection(self, degree: int) -> np.ndarray:
        """Matrix (node, order) from a function's values at a panel's nodes to its Legendre coefficients on [0, 1]."""
        columns = [
            (2 * order + 1) * self.weights * np.polynomial.Legendre.basis(order, [0.0, 1.0])(self.unit_nodes)
            for order in range(degree + 1)
        ]
        return np.stack(columns, axis=-1)


@dataclasses.dataclass(frozen=True)
class Trapezoid(QuadratureRule):
    """Composite trapezoid rule.

    Every cell of the basis is cut into `panels_per_interval` equal panels, over each of which the density is taken to
    be linear. The error of a smooth density falls as the square of a panel's width, while `GaussLegendre` is exact to
    rounding with a tenth of the nodes: this rule is there for comparison with published work.

    Args:
        panels_per_interval: panels of a cell of the basis, at least 1.

    Raises:
        ValueError: for a number out of range.

    Example:
        ```python
        import jax
        import numpyro.distributions as dist
        from numpyro_kaem import RBF, KAPrior, Trapezoid, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), basis=RBF(20, (-3.0, 3.0)), scale=1.0)
        log_normalizer = jax.jit(lambda prior: prior.log_normalizer)
        fine = log_normalizer(KAPrior(energy, dist.Normal(0.0, 1.0)))
        rough = log_normalizer(KAPrior(energy, dist.Normal(0.0, 1.0), quadrature=Trapezoid(64)))
        assert abs(float(fine - rough)) < 1e-4
        ```
    """

    panels_per_interval: int = 64
    nodes_per_panel = 2  # the ends of the panel; no field, as it is of other rules

    @property
    def unit_nodes(self) -> np.ndarray:
        """The ends of [0, 1]."""
        return np.array([0.0, 1.0])

    @property
    def weights(self) -> np.ndarray:
        """One half each."""
        return np.array([0.5, 0.5])

    def legendre_projection(self, degree: int) -> np.ndarray:
        """Matrix (node, order): the line through the values at both ends."""
        return np.array([[0.5, -0.5], [0.5, 0.5]])[:, : degree + 1]


def graded_edges(edges: np.ndarray, low: float, high: float, resolution: float) -> np.ndarray:
    """Refine panels towards an end of the support that lies close; one that is infinite or NaN is left alone.

    No rule of fixed order follows a density that is singular there (a Gamma's) or infinitely flat (a log-normal's). The
    distance to the end grows by at most sqrt(2) from edge to edge. Where panels reach the end itself, what remains
    after 80 cuts, 1e-12 of the distance, is left to the tail, whose mass the reference knows in closed form.
    """

    def towards(end: float, edges: np.ndarray) -> np.ndarray:
        if not np.isfinite(end):
            return edges
        distances = np.abs(edges - end)
        close = int(np.sum(distances[1:] > np.sqrt(2.0) * distances[:-1]))  # panels that are too wide for their place
        if close == 0:
            return edges
        cuts = distances[close] * 0.5 ** np.arange(40, 0, -0.5)
        cuts = cuts[cuts > max(distances[0], 16 * resolution * abs(end))]
        edges = edges[1:] if distances[0] == 0 else edges
        return np.append(end + np.sign(edges[-1] - end) * cuts, edges)

    return np.sort(towards(high, np.sort(towards(low, edges))[::-1]))


def integrated_legendre(degree: int) -> np.ndarray:
    """Matrix (order, power) of integrals of the Legendre polynomials on [0, 1] from 0 to t, over t, in 2 t - 1.

    Powers of a place that is counted from the middle: those of t itself would cancel where a density falls steeply.
    """
    powers = np.zeros((degree + 1, degree + 1))
    for order in range(degree + 1):
        integral = np.polynomial.Legendre.basis(order).integ(lbnd=-1.0).convert(kind=np.polynomial.Polynomial)
        powers[order, : order + 1] = (integral // np.polynomial.Polynomial([1.0, 1.0])).coef
    return powers
