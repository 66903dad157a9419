"""Priors that NumPyro's `scan` has stacked along time.

`scan` returns distributions whose parameters have a leading axis that the batch shape does not know of yet, and asks
`promote_batch_shape` to make up for it. NumPyro's default knows parameters by their names in `arg_constraints`; an
energy, a reference or a mixture's components are more than an array.

`vmap_over(prior, energy=0)`, which names the axes of a distribution for `jax.vmap`, works as NumPyro has it: axes are
numbers, or trees like the argument.
"""

from __future__ import annotations

import copy

import jax.numpy as jnp
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.ka_mixture import KAMixture
from numpyro_kaem.distributions.ka_prior import KAPrior
from numpyro_kaem.distributions.leaf_shapes import new_axes


@promote_batch_shape.register
def _(prior: KAPrior) -> KAPrior:
    return _promoted(prior, _new_axes_of(prior))


@promote_batch_shape.register
def _(mixture: KAMixture) -> KAMixture:
    of_logits = new_axes(mixture.logits, (mixture._logits_shape,))
    return _promoted(mixture, jnp.broadcast_shapes(_new_axes_of(mixture.components), of_logits))


@promote_batch_shape.register
def _(prior: DeepKAPrior) -> DeepKAPrior:
    raise NotImplementedError(
        "a DeepKAPrior cannot be a site inside of NumPyro's scan: its energy may be any function, which knows of no "
        "time axis; take a KAPrior, or write the loop in Python"
    )


def _new_axes_of(prior: KAPrior) -> tuple[int, ...]:
    return new_axes((prior.energy, prior.reference), prior._leaf_shapes)


def _promoted(distribution: KAPrior | KAMixture, axes: tuple[int, ...]) -> KAPrior | KAMixture:
    promoted = copy.copy(distribution._settled())
    promoted._batch_shape = axes + distribution.batch_shape
    if distribution._expanded_shape is not None:
        promoted._expanded_shape = axes + distribution._expanded_shape
    return promoted
