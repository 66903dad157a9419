"""Priors that NumPyro's `scan` has stacked along time.

`scan` returns distributions whose parameters have a leading axis that the batch shape does not know of yet, and asks
`promote_batch_shape` to make up for it. NumPyro's default knows parameters by their names in `arg_constraints`; an
energy, a reference or a mixture's components are more than an array.

`vmap_over(prior, energy=0)`, which names the axes of a distribution for `jax.vmap`, works as NumPyro has it: axes are
numbers, or trees like the argument.
"""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.ka_mixture import KAMixture
from numpyro_kaem.distributions.ka_prior import KAPrior


@promote_batch_shape.register
def _(prior: KAPrior) -> KAPrior:
    stacked, new_axes = _stack_prior(prior, len(prior.batch_shape))
    stacked._batch_shape = new_axes + prior.batch_shape
    return stacked


@promote_batch_shape.register
def _(mixture: KAMixture) -> KAMixture:
    rank = len(mixture.batch_shape) + 1  # with the component axis
    stacked = copy.copy(mixture)
    stacked.components, of_components = _stack_prior(mixture.components, rank)
    new_of_logits = mixture.logits.ndim - mixture._logits_ndim
    stacked.logits = _insert(mixture.logits, new_of_logits, rank - mixture._logits_ndim)
    stacked._logits_ndim = stacked.logits.ndim
    new_axes = jnp.broadcast_shapes(of_components, mixture.logits.shape[:new_of_logits])
    stacked._batch_shape = new_axes + mixture.batch_shape
    return stacked


@promote_batch_shape.register
def _(prior: DeepKAPrior) -> DeepKAPrior:
    raise NotImplementedError(
        "a DeepKAPrior cannot be a site inside of NumPyro's scan: its energy may be any function, which knows of no "
        "time axis; take a KAPrior, or write the loop in Python"
    )


def _stack_prior(prior: KAPrior, rank: int) -> tuple[KAPrior, tuple[int, ...]]:
    """The prior with its new leading axes moved in front of `rank` batch axes, and the sizes of the new ones."""
    num_energy_leaves = len(jax.tree.leaves(prior.energy))
    energy_ndims, reference_ndims = prior._leaf_ndims[:num_energy_leaves], prior._leaf_ndims[num_energy_leaves:]
    new_of_energy, new_of_reference = _new_axes(prior.energy, energy_ndims), _new_axes(prior.reference, reference_ndims)
    energy_rank = len(prior.energy.batch_shape) - len(new_of_energy)

    stacked, reference = copy.copy(prior), copy.copy(prior.reference)
    if new_of_energy:
        stacked.energy = _insert_in_leaves(prior.energy, energy_ndims, [rank - energy_rank] * num_energy_leaves)
    if new_of_reference:
        reference = _insert_in_leaves(reference, reference_ndims, [rank - ndim for ndim in reference_ndims])
        padding = (1,) * (rank - len(reference.batch_shape))
        reference._batch_shape = new_of_reference + padding + reference.batch_shape
    stacked.reference = reference
    stacked._leaf_ndims = tuple(jnp.ndim(leaf) for leaf in jax.tree.leaves((stacked.energy, reference)))
    stacked._batch_shape = jnp.broadcast_shapes(stacked.energy.batch_shape, reference.batch_shape)
    return stacked, jnp.broadcast_shapes(new_of_energy, new_of_reference)


def _new_axes(tree: PyTree, ndims: tuple[int, ...]) -> tuple[int, ...]:
    leaves = jax.tree.leaves(tree)
    return jnp.broadcast_shapes(
        *(leaf.shape[: leaf.ndim - n] for leaf, n in zip(map(jnp.asarray, leaves), ndims, strict=True))
    )


def _insert_in_leaves(tree: PyTree, ndims: tuple[int, ...], counts: list[int]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    new = [_insert(leaf, jnp.ndim(leaf) - n, count) for leaf, n, count in zip(leaves, ndims, counts, strict=True)]
    return jax.tree.unflatten(structure, new)


def _insert(leaf, num_new: int, count: int):
    """Insert `count` axes of size one after the `num_new` leading ones; a leaf without new axes stays."""
    return jnp.expand_dims(leaf, range(num_new, num_new + count)) if num_new else leaf
