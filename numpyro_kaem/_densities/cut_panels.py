"""Quadrature panels that are cut where a density has kinks, which may be known at run time only."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from numpyro_kaem._densities.panels import Panels
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.energies import Basis


class CutPanels(NamedTuple):
    """Pieces of a domain's panels: each cut, at a kink that no rule of fixed order sees between its nodes, makes two.

    Where a kink lies outside of the domain or where panels meet, there is nothing to cut; for programs of one shape,
    some panel is cut all the same.
    """

    panels: Panels
    parents: Int[Array, "*batch num_pieces"]
    starts: Float[Array, "*batch num_pieces"]  # in the panel, from 0 to 1
    ends: Float[Array, "*batch num_pieces"]
    cut: Int[Array, "*batch twice_num_cuts"]  # the pieces on the left of the cuts, and then those on the right

    @classmethod
    def at(cls, kinks: Float[Array, "*batch num_cuts"], panels: Panels, basis: Basis, dtype) -> CutPanels:
        """Cut panels of a basis's domain at kinks, whose batch broadcasts with that of the basis's grid."""
        kinks = lax.stop_gradient(jnp.asarray(kinks))
        num_panels, num_cuts = len(panels.cells), kinks.shape[-1]
        (leading, rest), sizes = _left_ends(panels, basis, dtype), jnp.asarray(panels.sizes(basis))
        batch = jnp.broadcast_shapes(kinks.shape[:-1], leading.shape[:-1])
        kinks = jnp.broadcast_to(kinks, (*batch, num_cuts))
        parent = jnp.sum(kinks[..., None] >= (leading + rest)[..., None, :], axis=-1) - 1
        parent = jnp.clip(parent, 0, num_panels - 1)
        first, second, size = (_take(part, parent, -1) for part in (leading, rest, sizes))
        share = ((kinks - first) - second) / size

        # Pieces have a width that rounding leaves to them, and no two kinks the same place.
        eps = jnp.finfo(dtype).eps
        least = jnp.maximum(64.0 * eps, 8.0 * eps * jnp.abs(first + second) / size)
        inside = (share > least) & (share < 1.0 - least)
        parent, share = lax.sort((jnp.where(inside, parent, num_panels), jnp.where(inside, share, 0.0)), num_keys=2)
        least = jnp.max(least, axis=-1, keepdims=True)
        repeated = (jnp.diff(parent, prepend=-1) == 0) & (jnp.diff(share, prepend=0.0) <= least)
        idle = repeated | (parent == num_panels)
        parent = jnp.where(idle, np.arange(num_cuts) % num_panels, parent)
        share = jnp.where(idle, 0.6 - 0.2 * np.arange(num_cuts) / num_cuts, share).astype(share.dtype)
        parent, share = lax.sort((parent, share), num_keys=2)

        whole = jnp.broadcast_to(jnp.arange(num_panels, dtype=parent.dtype), (*batch, num_panels))
        right = parent + 1 + np.arange(num_cuts)
        parents, starts = lax.sort(
            (
                jnp.concatenate([whole, parent], axis=-1),
                jnp.concatenate([jnp.zeros_like(whole, share.dtype), share], axis=-1),
            ),
            num_keys=2,
        )
        following = jnp.concatenate([starts[..., 1:], jnp.zeros_like(starts[..., :1])], axis=-1)
        ends = jnp.where(following == 0.0, 1.0, following)
        return cls(panels, parents, starts, ends, jnp.concatenate([right - 1, right], axis=-1))

    def edges(self, basis: Basis) -> Array:
        """Where pieces meet: shape (*batch, num_pieces + 1)."""
        leading, rest = self._points(basis, self.starts[..., None], self.starts.dtype)
        end = jnp.broadcast_to(self.panels.edges(basis)[..., -1:], (*leading.shape[:-2], 1))
        return jnp.concatenate([(leading + rest)[..., 0], end], axis=-1)

    def sizes(self, basis: Basis) -> Array:
        """Widths of the pieces: shape (*batch, num_pieces)."""
        return _take(self.panels.sizes(basis), self.parents, -1) * (self.ends - self.starts)

    def nodes(self, basis: Basis, rule: QuadratureRule, dtype) -> tuple[Array, Array]:
        """Nodes rounded to a dtype, and what rounding took from them: shape (*batch, num_pieces, nodes_per_panel)."""
        leading, rest = self._points(basis, self._places(rule, self.starts, self.ends), dtype)
        rounded = (leading + rest).astype(dtype)
        return rounded, ((leading - rounded) + rest).astype(dtype)

    def refine(self, values: Float[Array, "*batch num_panels num_nodes"], rule: QuadratureRule) -> Array:
        """Values at the nodes of the pieces, of the polynomials through those at the nodes of the panels."""
        pieces = _take(values, self.parents[..., None], -2)
        starts, ends = (_take(part, self.cut, -1) for part in (self.starts, self.ends))
        places = self._places(rule, starts, ends).astype(values.dtype)
        projection = rule.legendre_projection(rule.nodes_per_panel - 1).astype(values.dtype)
        series = jnp.matmul(_take(pieces, self.cut[..., None], -2), projection, precision=lax.Precision.HIGHEST)
        refined = _legendre_series(series, 2.0 * places - 1.0)
        index = jnp.broadcast_to(self.cut[..., None], refined.shape)
        return jnp.put_along_axis(pieces, index, refined, axis=-2, inplace=False)

    def _places(self, rule, starts, ends):
        return starts[..., None] + (ends - starts)[..., None] * rule.unit_nodes

    def _points(self, basis, places, dtype):
        leading, rest = (_take(part, self.parents, -1) for part in _left_ends(self.panels, basis, dtype))
        sizes = _take(self.panels.sizes(basis), self.parents, -1)
        return leading[..., None], rest[..., None] + sizes[..., None] * places


def _left_ends(panels: Panels, basis: Basis, dtype) -> tuple[Array, Array]:
    """Where panels begin, each point as a number of the dtype and a small rest."""
    leading, rest = basis.points(panels.cells, panels.starts)
    rounded = leading.astype(dtype)
    return jnp.asarray(rounded), jnp.asarray((leading - rounded) + rest)


def _take(values: ArrayLike, index: Array, axis: int) -> Array:
    """`take_along_axis`, the leading axes broadcast."""
    values = jnp.asarray(values)
    rank = max(values.ndim, index.ndim)
    values, index = (part.reshape(*[1] * (rank - part.ndim), *part.shape) for part in (values, index))
    return jnp.take_along_axis(values, index, axis=axis)


def _legendre_series(coefficients: Float[Array, "... num_orders"], x: Float[Array, "... num_points"]) -> Array:
    """sum_k c_k P_k(x) for x in [-1, 1], by the recurrence of the Legendre polynomials."""
    before, polynomial, total = jnp.zeros_like(x), jnp.ones_like(x), 0.0
    for order in range(coefficients.shape[-1]):
        total = total + coefficients[..., order, None] * polynomial
        before, polynomial = polynomial, ((2 * order + 1) * x * polynomial - order * before) / (order + 1)
    return total
