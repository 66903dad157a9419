"""Chains of every datum of a batch at every rung of a ladder, as a step of training runs them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.posterior.chains import move_or_place, move_or_replace, propose_swaps
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.target import Point, Target
from numpyro_kaem.posterior.weights import draws_differ_by_datum, log_likelihood

# Pairs of draws from the prior whose differences give the preconditioner, or one of each datum if these are more.
_PRIOR_PAIRS = 64


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


class PriorDraws(NamedTuple):
    """All the draws from the prior that a walk needs, made in one call: that call is long to compile.

    Attributes:
        starts: for every chain.
        lowest: for the rung that is the prior, at every step; None where there is no such rung.
        scale: preconditioner, the spread of each coordinate under the prior.
    """

    starts: Float[Array, "B C K dim"]
    lowest: Float[Array, "T B C dim"] | None
    scale: Float[Array, " dim"]


def draw_prior(
    key: PRNGKeyArray, target: Target, kernel: Kernel, num_chains: int, num_rungs: int, num_steps: int, exact: bool
) -> PriorDraws:
    """Exact draws from the prior of every datum, apart for every use."""
    num_data, dim = target.latent_model.num_data, target.dim
    num_pairs = -(-_PRIOR_PAIRS // num_data) if kernel.precondition and not kernel.whiten else 0
    num_starts, num_lowest = num_chains * num_rungs, num_steps * num_chains if exact else 0

    def of_datum(keys, row):
        return jax.vmap(lambda k: target.draw(k, row))(keys)

    keys = jax.random.split(key, (num_data, num_starts + num_lowest + 2 * num_pairs))
    draws = jax.vmap(of_datum)(keys, target.latent_model.rows)
    starts, lowest, pairs = jnp.split(draws, [num_starts, num_starts + num_lowest], axis=1)
    scale = jnp.ones(dim, draws.dtype)
    if num_pairs:
        # Differences do not know where a datum's prior lies, and quantiles need no variance.
        differences = (pairs[:, :num_pairs] - pairs[:, num_pairs:]).reshape(-1, dim) / 2**0.5
        low, high = jnp.quantile(differences, jnp.array([0.16, 0.84]), axis=0)
        scale = jnp.where(high > low, (high - low) / 2, 1.0)
    lowest = jnp.moveaxis(lowest.reshape(num_data, num_steps, num_chains, dim), 1, 0) if exact else None
    return PriorDraws(starts.reshape(num_data, num_chains, num_rungs, dim), lowest, scale)


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
    draws: PriorDraws,
    num_steps: int,
) -> Walk:
    """Move all chains by `num_steps` steps, exchanging neighbouring rungs after each.

    Args:
        key: random key.
        target: what chains move on.
        kernel: how they move.
        positions: where they start.
        temperatures: of the rungs.
        step_size: by rung.
        draws: where the lowest rung, if it is the prior, is at every step; and the preconditioner.
        num_steps: number of steps.
    """
    num_data, num_chains, num_rungs, dim = positions.shape
    rows, dtype = target.latent_model.rows, positions.dtype
    temperatures, step_size = temperatures.astype(dtype), step_size.astype(dtype)
    scale = jnp.broadcast_to(draws.scale, (num_rungs, dim)).astype(dtype)
    lowest = draws.lowest
    is_lowest = jnp.arange(num_rungs) == 0 if lowest is not None else jnp.zeros(num_rungs, bool)

    def start(positions, row):
        return jax.vmap(jax.vmap(lambda u: target.evaluate(u, row)))(positions)

    def move(i, keys, points, lowest):
        if kernel.evaluates_once:
            places = positions if lowest is None else jnp.where(i < 0, positions, lowest[:, :, None])
            over_data = jax.vmap(partial(move_or_place, target, kernel, temperatures), (0, 0, 0, None, None, 0, None))
            return over_data(keys, rows, points, step_size, scale, places, is_lowest | (i < 0))
        axes = (0, 0, 0, None, None, None if lowest is None else 0)
        over_data = jax.vmap(partial(move_or_replace, target, kernel, temperatures), axes)
        return over_data(keys, rows, points, step_size, scale, lowest)

    def step(points, at):
        i, lowest = at
        keys = jax.random.split(jax.random.fold_in(key, i), (num_data, num_chains * num_rungs + 1))
        move_keys = keys[:, 1:].reshape(num_data, num_chains, num_rungs)
        points, acceptance, _ = move(i, move_keys, points, lowest)
        probability = jnp.nan
        if num_rungs > 1:
            swap = propose_swaps(keys[:, 0], points.log_likelihood, temperatures, i, i >= 0)
            points, probability = jax.tree.map(swap.exchange, points), jnp.mean(swap.probability)
        return points, (acceptance.mean(0), jnp.asarray(probability, dtype), points.log_likelihood)

    steps = jnp.arange(num_steps)
    if kernel.evaluates_once:
        # A step before the first puts the chains where they start: the model is compiled once, inside of the loop.
        points = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(start), positions, rows))
        steps, lowest = jnp.arange(-1, num_steps), jax.tree.map(lambda x: jnp.concatenate([x[:1], x]), lowest)
    else:
        points = jax.vmap(start)(positions, rows)
    points, records = jax.lax.scan(step, points, (steps, lowest))
    acceptance, swaps, log_likelihoods = jax.tree.map(lambda x: x[-num_steps:], records)
    return Walk(points, acceptance.mean(0), swaps.mean(), log_likelihoods)


def latents_of(target: Target, positions: Float[Array, "B N dim"]) -> dict[str, Array]:
    """The latents, as the model knows them, `(B, N, ...)`, without gradients."""

    def of_datum(positions, row):
        return jax.vmap(lambda u: target.latents(u, row))(positions)

    return jax.lax.stop_gradient(jax.vmap(of_datum)(positions, target.latent_model.rows))


def log_joint(latent_model: LatentModel, latents: dict[str, Array]) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Log p(z_bn) and log p(x_b | z_bn) of N particles of every datum."""

    def of_datum(z, row):
        return jax.vmap(lambda z: latent_model.log_parts(z, *row))(z)

    return jax.vmap(of_datum)(latents, latent_model.rows)
