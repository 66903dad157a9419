"""Parts put together: their shapes must fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_kaem.generators import SequenceDecoder
from numpyro_kaem.kaem.likelihoods import Likelihood, OwnLikelihood, likelihood_by_name
from numpyro_kaem.kaem.model import Parts
from numpyro_kaem.kaem.nnx import as_equinox
from numpyro_kaem.kaem.priors import generator_input


def compose(
    prior: Any,
    generator: Any,
    likelihood: str | Callable,
    encoder: Any,
    shape: Sequence[int] | None,
    noise: float | None,
    num_categories: int | None,
) -> tuple[Parts, tuple[int, ...]]:
    """The parts of a model, and the shape of its data; a ValueError names all where they do not fit."""
    generator, encoder = as_equinox(generator), as_equinox(encoder)
    drawn = Parts(prior, generator, None).drawn
    z = jax.ShapeDtypeStruct((2, *drawn.prior.event_shape), jnp.result_type(float))
    given = jax.eval_shape(lambda z: generator_input(drawn.prior, z), z)
    is_sequence = isinstance(generator, SequenceDecoder)
    made = (generator.length, generator.vocabulary_size) if is_sequence else _output_shape(drawn, z, given)
    if isinstance(likelihood, str):
        if likelihood == "categorical":
            shape, num_categories = made[:-1] if shape is None else shape, num_categories or made[-1]
        likelihood = likelihood_by_name(likelihood, tuple(made if shape is None else shape), noise, num_categories)
    elif not isinstance(likelihood, Likelihood):
        likelihood = OwnLikelihood(as_equinox(likelihood))
    if isinstance(likelihood, Likelihood) and math.prod(made) != likelihood.output_size:
        raise ValueError(
            f"prior has latents of shape {z.shape[1:]}, of which generator {type(generator).__name__} makes {made}, "
            f"but the likelihood of data of shape {likelihood.shape} takes {likelihood.output_shape}"
        )
    parts = Parts(prior, generator, likelihood, encoder)
    drawn = parts.drawn
    x = jax.eval_shape(lambda z, key: drawn.conditional(z).sample(key), z, jax.random.key(0))
    return parts, x.shape[1:]


def _output_shape(drawn: Parts, z: Any, given: Any) -> tuple[int, ...]:
    """What the generator makes of the latents of a datum."""
    try:
        return jax.eval_shape(drawn.generator, given).shape[1:]
    except Exception as error:
        raise ValueError(
            f"prior has latents of shape {z.shape[1:]}, of which the generator is given {given.shape[1:]}, but "
            f"{type(drawn.generator).__name__} does not take them: {error}"
        ) from error
