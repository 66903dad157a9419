"""Generators and encoders that suit data of a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.generators import MLP, ConvDecoder, ConvEncoder, SequenceDecoder, SequenceEncoder
from numpyro_kaem.kaem.likelihoods import Likelihood

# Grids of less than this are for perceptrons.
_SMALLEST_IMAGE = 8
# Of the logarithm of a posterior's scale.
_LARGEST = 20.0


class Flat(eqx.Module):
    """A module of vectors, given data of more axes."""

    module: Callable
    num_axes: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... size"]:
        """The module's output for data whose last axes are put in one."""
        return self.module(x.reshape(*x.shape[: x.ndim - self.num_axes], -1))


def default_generator(
    key: PRNGKeyArray, in_size: int, likelihood: Likelihood, hidden_sizes: Sequence[int]
) -> eqx.Module:
    """A `ConvDecoder` for images with channels, else an `MLP`."""
    shape = likelihood.output_shape
    if _is_image(shape):
        return ConvDecoder(key, in_size, shape)
    return MLP(key, in_size, likelihood.output_size, hidden_sizes)


def default_encoder(
    key: PRNGKeyArray, likelihood: Likelihood, latent_size: int, generator: Any, hidden_sizes: Sequence[int]
) -> eqx.Module:
    """The counterpart of a generator: location and log-scale of each latent, from data as a likelihood encodes them."""
    out_size, shape = 2 * latent_size, likelihood.output_shape
    if isinstance(generator, SequenceDecoder):
        return SequenceEncoder(
            key,
            generator.vocabulary_size,
            generator.length,
            out_size,
            width=generator.position_embedding.shape[-1],
            num_layers=len(generator.blocks),
            end_token=generator.end_token,
        )
    if _is_image(shape):
        return ConvEncoder(key, shape, out_size)
    return Flat(MLP(key, math.prod(shape), out_size, tuple(hidden_sizes)[::-1]), len(shape))


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and min(shape[:2]) >= _SMALLEST_IMAGE


def located(output: Float[Array, "... two_latent_size"]) -> tuple[Array, Array]:
    """Location and log-scale of latents, the halves of an encoder's output.

    A scale whose square underflows has a gradient that is not finite. Log-scales end at +-20, and have the gradient of
    these ends beyond them, which brings them back.
    """
    loc, log_scale = jnp.split(output, 2, axis=-1)
    return loc, log_scale + jax.lax.stop_gradient(jnp.clip(log_scale, -_LARGEST, _LARGEST) - log_scale)
