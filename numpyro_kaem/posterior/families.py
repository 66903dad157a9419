"""Families of particles, which descend from the same draw of the prior: what they leave of so many particles."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from numpyro_kaem._compilation.options import RUN_ONCE
from numpyro_kaem._compilation.programs import jit_by_value


def weight_variance(weights: Array, chain_length: int = 1) -> Array:
    """Variance of N times the weights, of chains' means where particles come in chains as waste-free SMC has them."""
    if chain_length > 1:
        num_chains = len(weights) // chain_length
        first, others = weights[:num_chains, None], weights[num_chains:].reshape(num_chains, -1)
        weights = jnp.concatenate([first, others], 1).sum(1)
    # Of N / chain_length independent means, as if of N.
    return chain_length * jnp.maximum(len(weights) * jnp.sum(weights**2) - 1.0, 0.0)


def relative_variance(weights: Array, ancestor: Int[Array, " N"], noise: Array) -> Array:
    """Relative variance of a run's estimate of the evidence, times N.

    Independent particles would leave every draw of the prior the same share of the weights, up to their own variance.
    Where moves mix slowly lucky families grow, rung by rung: with s_i the share of the descendants of draw i, it is
    N sum_i s_i^2 - 1. That counts the rounding of resampling too, which tells nothing of the evidence: the mean square
    of the numbers of children minus their expectations, summed over rungs, is subtracted as `noise`. To first order in
    1 / N; with multinomial resampling that is the estimate of Lee and Whiteley (Biometrika 105(3), 2018).
    """
    num_particles = len(weights)
    shares = jax.ops.segment_sum(weights, ancestor, num_particles)
    return num_particles * jnp.sum(shares**2) - 1.0 - noise


@partial(jit_by_value, compiler_options=RUN_ONCE)
def effective_size(ancestor: Int[Array, "B R N"], latents: dict[str, Array], chain_length: int) -> Float[Array, "B R"]:
    """Effective sample size of equally weighted particles for the mean of their latents, the smallest of all elements.

    The variance of a mean is that of the sums over families: of common descent, or chains of waste-free SMC. Taken from
    the particles' own mean it is too small by the factor 1 - sum_i s_i^2, with s_i the share of family i; a single
    family is worth one draw.
    """

    def of_run(family: Array, values: Float[Array, "N D"]) -> Array:
        num_particles = len(values)
        if chain_length > 1:
            first = jnp.arange(num_particles // chain_length)
            family = jnp.concatenate([first, jnp.repeat(first, chain_length - 1)])
        centred = values - values.mean(0)
        sums = jax.ops.segment_sum(centred, family, num_particles)
        sizes = jax.ops.segment_sum(jnp.ones_like(centred[:, 0]), family, num_particles)
        lost = jnp.sum((sizes / num_particles) ** 2)
        squares, of_families = jnp.sum(centred**2, 0), jnp.sum(sums**2, 0) / (1.0 - lost)
        ess = num_particles * jnp.min(jnp.where(of_families > squares, squares / of_families, 1.0))
        return jnp.where(sizes.max() == num_particles, 1.0, jnp.maximum(ess, 1.0))

    elements = [z.reshape(*ancestor.shape, -1) for z in latents.values()]
    return jax.vmap(jax.vmap(of_run))(ancestor, jnp.concatenate(elements, -1))
