"""Densities of the coordinates of a prior on quadrature nodes: what formulas are compared with."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from numpyro_kaem._densities.reference import support_ends
from numpyro_kaem.reading.families import Support
from numpyro_kaem.reading.product import Product

_NODES, _WEIGHTS = (
    0.5 * (part + shift) for part, shift in zip(np.polynomial.legendre.leggauss(6), (1, 0), strict=True)
)
# Probabilities of the quantiles between which panels lie: evenly in the log-odds, from 1e-6 to 1 - 1e-6.
_PROBABILITIES = expit(np.linspace(-13.8, 13.8, 81))
_EVEN, _BEYOND = 32, 24  # more edges between the quantiles, and beyond them on either side
_ROUNDS, _BISECTED = 6, 16  # of refinement, and panels of a coordinate in each
_ENOUGH = 2e-6  # of probability, by which a panel's mass may be off
_FAR_FROM_ONE = 0.01


@dataclasses.dataclass(frozen=True)
class LearnedDensity:
    """A density p of one coordinate on nodes.

    Attributes:
        z: nodes, float64.
        widths: their quadrature weights.
        log_p: log-densities there, normalised.
        support: of the density.
    """

    z: np.ndarray
    widths: np.ndarray
    log_p: np.ndarray
    support: Support

    @property
    def mass(self) -> np.ndarray:
        """Probabilities of the nodes; they sum to one."""
        return self.widths * np.exp(self.log_p)

    def divergences(self, log_q: np.ndarray) -> tuple[float, float]:
        """KL(p || q) in nats and the total variation 1/2 int |p - q|, of a normalised log-density q on the nodes.

        What of q the nodes do not hold counts in full.
        """
        mass, q = self.mass, self.widths * np.exp(log_q)
        with np.errstate(invalid="ignore"):
            lost = np.where(mass > 0.0, mass * (self.log_p - log_q), 0.0).sum()
        return max(float(lost), 0.0), 0.5 * float(np.abs(mass - q).sum() + abs(1.0 - q.sum()))


def learned_densities(product: Product, coordinates: list[int]) -> list[LearnedDensity]:
    """The densities of some coordinates of a prior.

    Panels lie between quantiles; those whose mass is not that of the CDF are halved.

    Raises:
        ValueError: for a density that is not finite, or does not integrate to one.
    """
    supports = _supports(product)
    low, high = _panels(product, supports)
    z, widths, log_p = _on_nodes(product, low, high)
    masses = _cdf(product, high) - _cdf(product, low)
    for _ in range(_ROUNDS):
        with np.errstate(over="ignore"):
            error = np.abs(np.sum(widths * np.exp(log_p), axis=1) - masses)
        if not np.nanmax(error) > _ENOUGH:
            break
        worst = np.argpartition(-error, _BISECTED, axis=0)[:_BISECTED]
        a, b, mass = (np.take_along_axis(of, worst, 0) for of in (low, high, masses))
        middle = 0.5 * (a + b)
        below = np.clip(_cdf(product, middle) - _cdf(product, a), 0.0, mass)
        halves = np.concatenate([a, middle]), np.concatenate([middle, b])
        finer = _on_nodes(product, *halves)
        for old, new in ((low, halves[0]), (high, halves[1]), (masses, np.concatenate([below, mass - below]))):
            np.put_along_axis(old, worst, new[:_BISECTED], 0)
        low, high = (np.concatenate([old, half[_BISECTED:]]) for old, half in zip((low, high), halves, strict=True))
        masses = np.concatenate([masses, mass - below])
        for old, new in zip((z, widths, log_p), finer, strict=True):
            np.put_along_axis(old, np.broadcast_to(worst[:, None], new[:_BISECTED].shape), new[:_BISECTED], 0)
        z, widths, log_p = (
            np.concatenate([old, new[_BISECTED:]]) for old, new in zip((z, widths, log_p), finer, strict=True)
        )
    return [_checked(product, d, z, widths, log_p, supports[d]) for d in coordinates]


def _checked(product: Product, d: int, z, widths, log_p, support: Support) -> LearnedDensity:
    z, widths, log_p = (np.ravel(part[..., d]) for part in (z, widths, log_p))
    used = (widths > 0.0) & (z > support.low) & (z < support.high)
    z, widths, log_p = z[used], widths[used], log_p[used]
    with np.errstate(over="ignore"):
        total = float(np.sum(widths * np.exp(log_p)))
    if not abs(total - 1.0) < _FAR_FROM_ONE:
        raise ValueError(
            f"prior must have a density that integrates to one, but that of {product.names[d]} has {total:.3g} between "
            "its quantiles: its parameters are not finite, or its cdf is not that of its log_prob"
        )
    return LearnedDensity(z, widths, log_p - np.log(total), support)


def _supports(product: Product) -> list[Support]:
    shape = product.factors.batch_shape
    ends = (np.broadcast_to(end, shape) for end in support_ends(product.factors))
    low, high = (np.ravel(end if product.component is None else end[product.component]) for end in ends)
    return [Support(*of) for of in zip(low.tolist(), high.tolist(), strict=True)]


def _panels(product: Product, supports: list[Support]) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the panels of every coordinate, (num_panels, D) each."""
    quantiles = np.asarray(product.grid(jnp.asarray(_PROBABILITIES)), np.float64)
    columns = []
    for q, support in zip(quantiles.T, supports, strict=True):
        median, inner = q[len(q) // 2], q[[20, -21]]
        columns.append(
            np.concatenate(
                [
                    q,
                    np.linspace(inner[0], inner[1], _EVEN + 2)[1:-1],
                    _beyond(q[0], support.low, median),
                    _beyond(q[-1], support.high, median),
                ]
            )
        )
    edges = np.sort(np.stack(columns, axis=-1).astype(product_dtype()).astype(np.float64), axis=0)
    return edges[:-1].copy(), edges[1:].copy()


def _beyond(last: float, end: float, median: float) -> np.ndarray:
    """Edges from the outermost quantile towards an end of the support, or away without one."""
    steps = np.arange(1, _BEYOND + 1)
    return end + (last - end) * 0.5**steps if np.isfinite(end) else median + (last - median) * 1.3**steps


def product_dtype():
    """The floating-point numbers that JAX computes with."""
    return jnp.result_type(float)


def _cdf(product: Product, z: np.ndarray) -> np.ndarray:
    return np.asarray(product.cdf(jnp.reshape(jnp.asarray(z), (len(z), *product.shape))), np.float64)


def _on_nodes(product: Product, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes of panels, their widths and log-densities: (num_panels, num_nodes, D) each."""
    size = (high - low)[:, None]
    z = (low[:, None] + size * _NODES[:, None]).astype(product_dtype())
    log_p = product.log_prob(jnp.reshape(jnp.asarray(z), (-1, *product.shape)))
    log_p = np.asarray(log_p, np.float64).reshape(z.shape)
    widths = size * _WEIGHTS[:, None]
    return z.astype(np.float64), widths, np.where(widths > 0.0, log_p, -np.inf)
