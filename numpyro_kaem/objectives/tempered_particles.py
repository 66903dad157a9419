"""Tempered SMC on the posterior of every datum of a batch, as a step of training runs it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.swarm import Plan, Swarm, Tuning, to_next_rung
from numpyro_kaem.posterior.target import Target


class Ascent(NamedTuple):
    """What a run of tempered SMC on B data leaves, rungs counted from the prior.

    Attributes:
        positions: of the N equally weighted particles at the posterior.
        log_evidence: log Z.
        temperatures: of every rung; 1 from the last on.
        log_likelihood_mean: of the particles at every rung.
        at_rung: their positions at every rung; None unless asked for.
        acceptance: mean over rungs.
        num_rungs: rungs above the prior.
        arrived: whether t = 1 was reached.
    """

    positions: Float[Array, "B N dim"]
    log_evidence: Float[Array, " B"]
    temperatures: Float[Array, "B K"]
    log_likelihood_mean: Float[Array, "B K"]
    at_rung: Float[Array, "B K N dim"] | None
    acceptance: Float[Array, ""]
    num_rungs: Int[Array, " B"]
    arrived: Bool[Array, " B"]


def ascend(
    key: PRNGKeyArray,
    target: Target,
    kernel: Kernel,
    plan: Plan,
    temperatures: Float[Array, " K"] | None,
    num_particles: int,
    keep_rungs: bool,
) -> Ascent:
    """Take particles of every datum from the prior to the posterior.

    Args:
        key: random key.
        target: what the particles move on.
        kernel: how they move.
        plan: with `target_ess`, ladders that adapt, each datum's for itself.
        temperatures: of the rungs, the prior's t = 0 first; None where they adapt.
        num_particles: N.
        keep_rungs: whether positions at every rung are returned.
    """
    num_rungs = plan.max_rungs + 1
    steps_above = None if temperatures is None else temperatures[1:]

    def of_datum(key, row):
        evaluate = partial(target.evaluate, row=row)
        key_draw, key_move = jax.random.split(key)
        keys = jax.random.split(key_draw, num_particles)
        particles = jax.vmap(lambda k: evaluate(target.draw(k, row)))(keys)
        zero = jnp.zeros((), particles.dtype)
        step_size = zero + kernel.initial_step_size(target.dim)
        swarm = Swarm(particles, zero, zero, step_size, jnp.arange(num_particles), zero, None)
        means = jnp.zeros(num_rungs, zero.dtype).at[0].set(particles.log_likelihood.mean())
        positions = jnp.zeros((num_rungs if keep_rungs else 0, *particles.position.shape), particles.position.dtype)
        if keep_rungs:
            positions = positions.at[0].set(particles.position)

        def is_below(carry):
            number, swarm, *_ = carry
            return (number < plan.max_rungs) & (swarm.temperature < 1.0)

        def climb(carry):
            number, swarm, reached, means, positions, acceptance = carry
            temperature = None if steps_above is None else steps_above[number].astype(zero.dtype)
            rung_keys = jax.vmap(partial(jax.random.fold_in, key_move))(4 * number + jnp.arange(4))
            swarm, rung = to_next_rung(rung_keys, evaluate, kernel, plan, swarm, Tuning(temperature))
            number = number + 1
            if keep_rungs:
                positions = positions.at[number].set(swarm.particles.position)
            means = means.at[number].set(swarm.particles.log_likelihood.mean())
            return (
                number,
                swarm,
                reached.at[number].set(swarm.temperature),
                means,
                positions,
                acceptance + rung.acceptance,
            )

        # Beyond the last rung the temperature stays at 1, which takes no part in sums over intervals.
        reached = jnp.ones(num_rungs, zero.dtype).at[0].set(0.0)
        carry = jnp.zeros((), int), swarm, reached, means, positions, zero
        number, swarm, reached, means, positions, acceptance = jax.lax.while_loop(is_below, climb, carry)
        return (
            swarm.particles.position,
            swarm.log_evidence,
            reached,
            means,
            positions,
            acceptance / number,
            number,
            swarm.temperature >= 1.0,
        )

    keys = jax.random.split(key, target.latent_model.num_data)
    positions, evidence, reached, means, at_rung, acceptance, number, arrived = jax.vmap(of_datum)(
        keys, target.latent_model.rows
    )
    return Ascent(
        positions, evidence, reached, means, at_rung if keep_rungs else None, acceptance.mean(), number, arrived
    )
