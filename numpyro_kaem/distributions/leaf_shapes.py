"""Distributions whose leaves have other shapes than when they were made.

`jax.vmap`, `jax.lax.scan` and `jax.tree.map` change the shapes of a distribution's leaves, and nothing else: its batch
shape stays as it was. NumPyro's own distributions compute with arrays of any shape that broadcast. A prior is made of
parts, of which an axis that is new to all leaves has to come in front of the batch axes of the widest part, and whose
batch shapes are those of the leaves.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from numpyro_kaem._densities.reference_tails import mass_below
from numpyro_kaem._numerics.grid import Grid
from numpyro_kaem.distributions.truncated import LearnedDistribution

Shape = tuple[int, ...]


def leaf_shapes(tree: PyTree) -> tuple[Shape, ...]:
    """Shapes of the leaves of a tree, a grid's among them whether it is static or not."""
    return tuple(
        (*leaf.batch_shape, leaf.num_points) if _is_grid(leaf) else jnp.shape(leaf)
        for leaf in jax.tree.leaves(tree, is_leaf=_is_grid)
    )


def _is_grid(node: Any) -> bool:
    return isinstance(node, Grid)


def new_axes(tree: PyTree, shapes: tuple[Shape, ...]) -> Shape:
    """Sizes of the leading axes that leaves have got since they had the given shapes."""
    pairs = zip(leaf_shapes(tree), shapes, strict=True)
    return jnp.broadcast_shapes(*(now[: max(len(now) - len(old), 0)] for now, old in pairs))


def settle(prior: LearnedDistribution, rank: int) -> LearnedDistribution:
    """A `KAPrior` with its new axes in front of `rank` batch axes, its reference of the batch shape that it has now."""
    if prior._is_settled:
        return prior
    now = leaf_shapes((prior.energy, prior.reference))
    if now == prior._leaf_shapes:
        prior._is_settled = True
        return prior
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(prior.energy, is_leaf=_is_grid)]
    of_energy, of_reference = prior._leaf_shapes[: len(paths)], prior._leaf_shapes[len(paths) :]
    # Axes of leaves behind those of the batch: of functions or points, of the components of a mixture.
    own = [path.endswith((".coefficients", ".grid")) for path in paths]
    if any(path.endswith(".log_scale") and shape for path, shape in zip(paths, now, strict=False)):
        raise NotImplementedError(
            "a learned scale of a basis is shared by the whole batch of an energy, so that priors with learned scales "
            "cannot be stacked or returned by jax.vmap; give scale= as a number, or keep the priors in a list"
        )
    rank_of_tables = table_rank(prior)
    settled = prior._copy()
    settled.energy = insert_axes(prior.energy, of_energy, [rank + n for n in own])
    own = max(max(map(len, of_reference), default=0) - len(prior.reference.batch_shape), 0)
    reference = insert_axes(prior.reference, of_reference, [rank + min(own, len(old)) for old in of_reference])
    settled.reference = _with_own_batch_shape(reference)
    settled._leaf_shapes = leaf_shapes((settled.energy, settled.reference))
    return settle_tables(settled, rank_of_tables, rank)


def table_rank(prior: LearnedDistribution) -> int:
    """Number of batch axes of the tables, when a `KAPrior` had its present batch shape."""
    num_energy_leaves = len(jax.tree.leaves(prior.energy, is_leaf=_is_grid))
    widest = max(map(len, prior._leaf_shapes[:num_energy_leaves]))  # of the coefficients
    return max(widest - 1, len(prior.reference.batch_shape))


def settle_tables(distribution, rank_of_tables: int, rank: int):
    """The distribution, its kept tables with their new axes in front of `rank` batch axes, of which there were less."""
    kept = distribution._kept_table
    if kept is not None and (num_new := kept.lower_tail.ndim - rank_of_tables) > 0:  # all leaves have all batch axes
        for name in ("_kept_table", "_kept_inverse", "_kept_constants"):
            tables = getattr(distribution, name)
            tables = jax.tree.map(lambda leaf: _insert(leaf, num_new, rank - rank_of_tables), tables)
            setattr(distribution, name, tables)
    return distribution


def insert_axes(tree: PyTree, shapes: tuple[Shape, ...], ranks: list[int]) -> PyTree:
    """Leaves with axes of size one behind their new ones, until as many axes as are given follow on these."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_grid)
    moved = []
    for leaf, now, old, rank in zip(leaves, leaf_shapes(tree), shapes, ranks, strict=True):
        counts = len(now) - len(old), rank - len(old)
        moved.append(Grid(leaf.shared, _insert(leaf.bits, *counts)) if _is_grid(leaf) else _insert(leaf, *counts))
    return jax.tree.unflatten(structure, moved)


def _insert(leaf, num_new: int, count: int):
    """Insert `count` axes after the `num_new` leading ones; a leaf without new axes stays."""
    return jnp.expand_dims(leaf, range(num_new, num_new + count)) if num_new > 0 and count > 0 else leaf


def _with_own_batch_shape(reference: dist.Distribution) -> dist.Distribution:
    reference = copy.copy(reference)
    if isinstance(reference, dist.TransformedDistribution):
        reference.base_dist = _with_own_batch_shape(reference.base_dist)
    half = jax.ShapeDtypeStruct((), jnp.result_type(float))
    reference._batch_shape = jax.eval_shape(mass_below, reference, half).shape
    return reference
