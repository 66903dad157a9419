"""Chains of every datum of a batch at every rung of a ladder, as a step of training runs them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.posterior.chains import move_datum, propose_swaps
from numpyro_kaem.posterior.importance import draws_differ_by_datum, log_likelihood
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.target import Point, Target

# Draws from the prior whose spread is the preconditioner.
_PRIOR_DRAWS = 64


class Walk(NamedTuple):
    """Where the chains of B data, C chains and K rungs went.

    Attributes:
        points: the last points.
        acceptance: mean acceptance by rung.
        swap_acceptance: mean probability with which neighbouring rungs were exchanged; NaN for a single rung.
        log_likelihood: after every step.
    """

    points: Point
    acceptance: Float[Array, " K"]
    swap_acceptance: Float[Array, ""]
    log_likelihood: Float[Array, "T B C K"]


def frozen_target(latent_model: LatentModel, kernel: Kernel) -> Target:
    """What chains move on: the model at parameters without gradients."""
    program = latent_model.program
    return Target(
        program.model,
        jax.lax.stop_gradient(program.params),
        program.data,
        program.model_kwargs,
        latent_model.plate,
        whiten=kernel.whiten,
        gradients=kernel.needs_gradients,
        rng_key=program.rng_key,
    )


def preconditioner(key: PRNGKeyArray, target: Target, kernel: Kernel) -> Float[Array, " dim"]:
    """The spread of each coordinate under the prior, of quantiles, because a prior need not have a variance."""
    if not kernel.precondition or kernel.whiten:
        return jnp.ones(target.dim)
    row = target.latent_model.program.first_row
    draws = jax.vmap(lambda k: target.draw(k, row))(jax.random.split(key, _PRIOR_DRAWS))
    low, high = jnp.quantile(draws, jnp.array([0.16, 0.84]), axis=0)
    return jnp.where(high > low, (high - low) / 2, 1.0)


def prior_starts(key: PRNGKeyArray, target: Target, num_chains: int, num_rungs: int) -> Float[Array, "B C K dim"]:
    """Exact draws from the prior for every chain."""
    num_data = target.latent_model.num_data
    keys = jax.random.split(key, (num_data, num_chains, num_rungs))

    def of_datum(keys, row):
        return jax.vmap(jax.vmap(lambda k: target.draw(k, row)))(keys)

    return jax.vmap(of_datum)(keys, target.latent_model.rows)


def importance_starts(
    key: PRNGKeyArray, target: Target, temperatures: Array, num_chains: int, num_draws: int
) -> Float[Array, "B C K dim"]:
    """Draws from the prior, shared by the data, resampled for each datum by p(x | z)^t at every rung t."""
    model = target.model
    num_data, rows = model.num_data, model.rows
    key_draw, key_choose = jax.random.split(key)
    if draws_differ_by_datum(model):
        keys = jax.random.split(key_draw, (num_data, num_draws))

        def of_datum(keys, row):
            positions = jax.vmap(lambda k: target.draw(k, row))(keys)
            return positions, jax.vmap(lambda u: target.latents(u, row))(positions)

        positions, latents = jax.vmap(of_datum, out_axes=(0, 1))(keys, rows)
    else:
        row = model.program.first_row
        positions = jax.vmap(lambda k: target.draw(k, row))(jax.random.split(key_draw, num_draws))
        latents = jax.vmap(lambda u: target.latents(u, row))(positions)
        positions = jnp.broadcast_to(positions, (num_data, *positions.shape))
    likelihoods = log_likelihood(model, latents).T

    def choose(key, positions, likelihoods):
        log_weights = jnp.where(temperatures[:, None] == 0, 0.0, temperatures[:, None] * likelihoods)
        # Where every likelihood is zero all draws are as good.
        log_weights = jnp.where(jnp.isfinite(likelihoods).any(), log_weights, 0.0)
        return positions[jax.random.categorical(key, log_weights, shape=(num_chains, len(temperatures)))]

    return jax.vmap(choose)(jax.random.split(key_choose, num_data), positions, likelihoods)


def walk(
    key: PRNGKeyArray,
    target: Target,
    kernel: Kernel,
    positions: Float[Array, "B C K dim"],
    temperatures: Float[Array, " K"],
    step_size: Float[Array, " K"],
    scale: Float[Array, " dim"],
    num_steps: int,
    exact: bool,
) -> Walk:
    """Move all chains by `num_steps` steps, exchanging neighbouring rungs after each.

    Args:
        key: random key.
        target: what chains move on.
        kernel: how they move.
        positions: where they start.
        temperatures: of the rungs.
        step_size: by rung.
        scale: preconditioner.
        num_steps: number of steps.
        exact: whether the lowest rung is the prior, t = 0, which is drawn afresh at every step.
    """
    num_data, _, num_rungs, _ = positions.shape
    rows, dtype = target.latent_model.rows, positions.dtype
    temperatures, step_size = temperatures.astype(dtype), step_size.astype(dtype)
    scale = jnp.broadcast_to(scale, (num_rungs, target.dim)).astype(dtype)
    move = partial(move_datum, target, kernel, temperatures, exact)

    def start(positions, row):
        return jax.vmap(jax.vmap(lambda u: target.evaluate(u, row)))(positions)

    def step(points, i):
        keys = jax.random.split(jax.random.fold_in(key, i), (2, num_data))
        points, acceptance, _ = jax.vmap(move, in_axes=(0, 0, 0, None, None))(keys[0], rows, points, step_size, scale)
        probability = jnp.nan
        if num_rungs > 1:
            swap = propose_swaps(keys[1], points.log_likelihood, temperatures, i, jnp.array(True))
            points, probability = jax.tree.map(swap.exchange, points), jnp.mean(swap.probability)
        return points, (acceptance.mean(0), jnp.asarray(probability, dtype), points.log_likelihood)

    points = jax.vmap(start)(positions, rows)
    points, (acceptance, swaps, log_likelihoods) = jax.lax.scan(step, points, jnp.arange(num_steps))
    return Walk(points, acceptance.mean(0), swaps.mean(), log_likelihoods)


def latents_of(target: Target, positions: Float[Array, "B N dim"]) -> dict[str, Array]:
    """The latents, as the model knows them, `(B, N, ...)`, without gradients."""

    def of_datum(positions, row):
        return jax.vmap(lambda u: target.latents(u, row))(positions)

    return jax.lax.stop_gradient(jax.vmap(of_datum)(positions, target.latent_model.rows))


def log_joint(latent_model: LatentModel, latents: dict[str, Array]) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Log p(x_b | z_bn) and log p(z_bn) of N particles of every datum."""

    def of_datum(z, row):
        return jax.vmap(lambda z: (latent_model.log_likelihood(z, *row), latent_model.log_prior(z, *row)))(z)

    return jax.vmap(of_datum)(latents, latent_model.rows)
