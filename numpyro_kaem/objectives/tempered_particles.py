"""Tempered SMC on the posterior of every datum of a batch, as a step of training runs it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_kaem.posterior.kernel import Tuning
from numpyro_kaem.posterior.particles import Settings, at_prior, to_next_rung
from numpyro_kaem.posterior.target import Target


class ParticleRun(NamedTuple):
    """What a run of tempered SMC on B data leaves, rungs counted from the prior."""

    positions: Float[Array, "*B N dim"]
    log_evidence: Float[Array, "*B"]
    temperatures: Float[Array, "*B K"]  # 1 from the last rung on
    log_likelihood_mean: Float[Array, "*B K"]
    at_rung: Float[Array, "*B K N dim"] | None  # positions, if asked for
    acceptance: Float[Array, "*B"]  # mean over rungs
    num_rungs: Int[Array, "*B"]  # above the prior
    arrived: Bool[Array, "*B"]  # at t = 1


def run_particles(
    key: PRNGKeyArray,
    target: Target,
    settings: Settings,
    temperatures: Float[Array, " K"] | None,
    num_particles: int,
    keep_rungs: bool,
) -> ParticleRun:
    """Take particles of every datum from the prior to the posterior; without temperatures each datum finds its own."""
    num_rungs = settings.max_rungs + 1

    def of_datum(key, row):
        evaluate = partial(target.evaluate, row=row)
        key_draw, key_move = jax.random.split(key)
        keys = jax.random.split(key_draw, num_particles)
        state = at_prior(jax.vmap(lambda k: evaluate(target.draw(k, row)))(keys), settings.kernel)
        zero, position = state.temperature, state.points.position
        # Beyond the last rung the temperature stays at 1, which takes no part in sums over intervals.
        reached = jnp.ones(num_rungs, zero.dtype).at[0].set(0.0)
        means = jnp.zeros(num_rungs, zero.dtype).at[0].set(state.points.log_likelihood.mean())
        positions = jnp.zeros((num_rungs, *position.shape), position.dtype).at[0].set(position) if keep_rungs else None

        def is_below(carry):
            number, state, *_ = carry
            return (number < settings.max_rungs) & (state.temperature < 1.0)

        def climb(carry):
            number, state, reached, means, positions, acceptance = carry
            temperature = None if temperatures is None else temperatures[number + 1].astype(zero.dtype)
            state, rung = to_next_rung(key_move, number, evaluate, settings, state, Tuning(temperature))
            number = number + 1
            reached = reached.at[number].set(state.temperature)
            means = means.at[number].set(state.points.log_likelihood.mean())
            positions = jax.tree.map(lambda x: x.at[number].set(state.points.position), positions)
            return number, state, reached, means, positions, acceptance + rung.acceptance

        carry = jnp.zeros((), int), state, reached, means, positions, zero
        number, state, reached, means, positions, acceptance = jax.lax.while_loop(is_below, climb, carry)
        at_end, log_evidence, arrived = state.points.position, state.log_evidence, state.temperature >= 1.0
        return ParticleRun(at_end, log_evidence, reached, means, positions, acceptance / number, number, arrived)

    keys = jax.random.split(key, target.latent_model.num_data)
    return jax.vmap(of_datum)(keys, target.latent_model.rows)
