"""The particles behind `TemperedSMC`, as compiled functions of arrays, around BlackJAX's SMC kernels.

Between two rungs the particles of a run are equally weighted at its temperature. A step finds the next temperature on
them, weighs them for it, resamples them and moves them there, so that they are equally weighted again. BlackJAX's
kernels move first and weigh last; they are given weights at the temperature at which they move, and weigh for no more.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from numpyro_kaem._compilation.options import LOOP, RUN_ONCE
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem.posterior.chains import AT_START, Problem
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.target import Flaws, Point, count_invalid, fenced, map_batched, tempered

# In place of -inf, of which BlackJAX's products with a temperature of zero would make NaN.
_IMPOSSIBLE = -1e30
# Halvings of the interval of log temperatures, wide as from 1e-12 to 1: to 1e-10 of it.
_BISECTIONS = 40
# Before the particles of a rung move, a few of them find the step size, by as many steps.
_PILOTS, _PILOT_STEPS, _PILOT_GAIN = 64, 12, 2.0


class Swarm(NamedTuple):
    """A run's particles, equally weighted at its temperature.

    Attributes:
        particles: N points.
        temperature: t.
        log_evidence: log Z_t so far.
        step_size: of the kernel.
        ancestor: from which draw of the prior a particle descends.
        noise: what rounding in resampling has added to the variance of descendants, see `_relative_variance`.
        history: BlackJAX's state of persistent sampling, with the particles of all rungs; None without.
    """

    particles: Point
    temperature: Float[Array, ""]
    log_evidence: Float[Array, ""]
    step_size: Float[Array, ""]
    ancestor: Int[Array, " N"]
    noise: Float[Array, ""]
    history: Any


class Rung(NamedTuple):
    """What a step from a rung to the next tells.

    Attributes:
        temperature: of the next rung.
        ess: effective sample size of the weights with which the particles left the last.
        log_likelihood_mean, log_likelihood_std: at the last rung.
        weight_variance: relative variance of the weights.
        relative_variance: of the estimate of the evidence up to the next rung, times N; see `_relative_variance`.
        acceptance: of the moves at the next rung.
        divergences: number of them.
        step_size: with which they were made.
        scale: preconditioner with which they were made.
    """

    temperature: Float[Array, ""]
    ess: Float[Array, ""]
    log_likelihood_mean: Float[Array, ""]
    log_likelihood_std: Float[Array, ""]
    weight_variance: Float[Array, ""]
    relative_variance: Float[Array, ""]
    acceptance: Float[Array, ""]
    divergences: Int[Array, ""]
    step_size: Float[Array, ""]
    scale: Float[Array, " dim"]


class Tuning(NamedTuple):
    """What a run need not find for itself, because another one has.

    Attributes:
        temperature: of the next rung; None where the plan's `target_ess` puts it.
        step_size, scale: of the kernel there; None where the particles tell.
    """

    temperature: Float[Array, "*B"] | None
    step_size: Float[Array, "*B"] | None = None
    scale: Float[Array, "*B dim"] | None = None


class Plan(NamedTuple):
    """What does not change in a run: all but the first is static.

    Attributes:
        target_ess: share of the particles that the next temperature keeps effective; None for a fixed ladder.
        num_mcmc_steps: moves of a particle per rung.
        resampling: name of BlackJAX's resampling function.
        waste_free, persistent: which of BlackJAX's variants.
        max_rungs: room in the history of persistent sampling.
        batch_size: particles of a run that move at once; 0 for all.
        runs_at_once: runs of a datum that do; 0 for all.
    """

    target_ess: float | None
    num_mcmc_steps: int
    resampling: str
    waste_free: bool
    persistent: bool
    max_rungs: int
    batch_size: int
    runs_at_once: int = 0


class Course(NamedTuple):
    """What does not change in a run.

    Attributes:
        problem, kernel, plan: what is sampled, and how.
        rows: positional data, `(B, ...)`.
        keys: of the runs, `(B, R)`.
    """

    problem: Problem
    kernel: Kernel
    plan: Plan
    rows: tuple
    keys: Array


class _Carried(NamedTuple):
    """A kernel's state as BlackJAX's SMC wants it: what it takes for the position is the whole point."""

    position: Point


def _log_likelihood(point: Point) -> Array:
    return jnp.maximum(point.log_likelihood, _IMPOSSIBLE)


@partial(jit_by_value, compiler_options=RUN_ONCE)
def start(
    problem: Problem, kernel: Kernel, plan: Plan, rows: tuple, keys: Array, num_particles: int
) -> tuple[Swarm, Flaws]:
    """Exact draws from the prior for runs `(B, R)` of keys, and what is wrong with them."""
    from blackjax.smc import persistent_sampling

    target = problem.target(kernel)

    def of_run(key, row):
        def draw(key):
            position, at_end = target.draw_and_tell(key, row)
            return target.evaluate_raw(position, row), at_end

        keys = jax.random.split(jax.random.fold_in(key, AT_START), num_particles)
        drawn, at_end = map_batched(draw, plan.batch_size, keys)
        particles, invalid = count_invalid(drawn)
        zero = jnp.zeros((), particles.dtype)
        step_size = zero + kernel.initial_step_size(target.dim)
        history = None
        if plan.persistent:
            history = persistent_sampling.init(particles, _log_likelihood, plan.max_rungs)
        swarm = Swarm(particles, zero, zero, step_size, jnp.arange(num_particles), zero, history)
        return swarm, Flaws(invalid, at_end.sum(0), jnp.asarray(num_particles))

    def of_datum(keys, row):
        return map_batched(lambda key: of_run(key, row), plan.runs_at_once, keys)

    return map_batched(of_datum, 0, keys, rows)


@partial(jit_by_value, first_donated=1, compiler_options=LOOP)
def advance(course_and_rung: tuple[Course, Array, Tuning], swarm: Swarm) -> tuple[Swarm, Rung]:
    """Take runs `(B, R)` to their next rung; those at t = 1 stay as they are.

    Args:
        course_and_rung: the course; the number of the rung, which makes the random numbers new; what is known of it, by
            datum.
        swarm: to be advanced.
    """
    course, number, tuning = course_and_rung
    problem, kernel, plan, rows, keys = course
    target = problem.target(kernel)

    def of_run(key, row, swarm, tuning):
        evaluate = fenced(partial(target.evaluate, row=row), number)
        keys = jax.vmap(partial(jax.random.fold_in, key))(4 * number + jnp.arange(4))
        new, rung = to_next_rung(keys, evaluate, kernel, plan, swarm, tuning)
        done = swarm.temperature >= 1.0
        return jax.tree.map(lambda new, old: jnp.where(done, old, new), new, swarm), rung

    def of_datum(keys, row, swarm, tuning):
        of_runs = partial(of_run, row=row, tuning=tuning)
        return map_batched(lambda key, swarm: of_runs(key, swarm=swarm), plan.runs_at_once, keys, swarm)

    return map_batched(of_datum, 0, keys, rows, swarm, tuning)


def to_next_rung(keys, evaluate, kernel: Kernel, plan: Plan, swarm: Swarm, tuning: Tuning) -> tuple[Swarm, Rung]:
    """Take a run's particles to their next rung, by four keys, finding out what of its tuning is not known."""

    @jax.jit  # traced once for both of its uses
    def step(key, point, temperature, step_size, scale):
        return kernel.step(key, point, temperature, step_size, scale, evaluate)

    key_order, key_draw, key_tune, key_move = keys
    temperature = tuning.temperature
    log_likelihood = swarm.particles.log_likelihood
    num_particles = len(log_likelihood)
    log_weights_at = partial(_log_weights, swarm)
    possible = jnp.sum(jnp.isfinite(log_likelihood))
    if plan.target_ess is not None:
        temperature = next_temperature(log_weights_at, swarm.temperature, plan.target_ess * possible)
    log_weights = jnp.where(possible > 0, log_weights_at(temperature), 0.0)
    increment = logsumexp(log_weights) - jnp.log(num_particles)
    weights = jax.nn.softmax(log_weights)
    # Of all the particles that history holds, those of the last rung are what the next one's scale is taken from.
    local_weights = weights if not plan.persistent else _last_rung_weights(swarm, temperature)
    scale = _spread(local_weights, swarm.particles, kernel) if tuning.scale is None else tuning.scale
    length = plan.num_mcmc_steps + 1 if plan.waste_free else 1
    ancestors = _resample(plan.resampling, key_order, key_draw, weights, num_particles // length)
    step_size = swarm.step_size if tuning.step_size is None else tuning.step_size
    if kernel.adapts_step_size and tuning.step_size is None:
        step_size = _tune(key_tune, step, kernel, plan, swarm, ancestors, temperature, scale)

    parameters = {"temperature": temperature, "step_size": step_size, "scale": scale}
    parameters = {name: value[None] for name, value in parameters.items()}
    moved, history, moves = _move(key_move, step, plan, swarm, weights, ancestors, temperature, parameters)
    zero = jnp.zeros_like(temperature)
    variance, relative_variance, ancestor, noise = zero, zero, swarm.ancestor, zero
    if plan.persistent:
        log_evidence = history.log_Z
    else:
        log_evidence = swarm.log_evidence + increment
        variance = jnp.where(swarm.temperature > 0, _weight_variance(weights, length), _weight_variance(weights))
        relative_variance = _relative_variance(swarm, weights)
        counts = jnp.bincount(ancestors, length=num_particles) * length
        noise = swarm.noise + jnp.mean((counts - num_particles * weights) ** 2)
        ancestor = swarm.ancestor[ancestors]
        ancestor = jnp.concatenate([ancestor, jnp.repeat(ancestor, length - 1)])
    log_evidence = jnp.where(possible > 0, log_evidence, -jnp.inf)
    finite = jnp.isfinite(log_likelihood)
    rung = Rung(
        temperature=temperature,
        ess=jnp.where(possible > 0, 1.0 / jnp.sum(weights**2), 0.0),
        log_likelihood_mean=log_likelihood.mean(),
        log_likelihood_std=jnp.std(log_likelihood, where=finite),
        weight_variance=variance,
        relative_variance=relative_variance,
        acceptance=moves.acceptance.mean(),
        divergences=moves.divergent.sum(),
        step_size=step_size,
        scale=scale,
    )
    return Swarm(moved, temperature, log_evidence, step_size, ancestor, noise, history), rung


def _log_weights(swarm: Swarm, temperature: Array) -> Array:
    """Log-weights that take the particles (of all rungs, where they are kept) from their temperature to another."""
    if swarm.history is None:
        return tempered(swarm.particles.log_likelihood, temperature - swarm.temperature)
    from blackjax.smc.persistent_sampling import compute_log_persistent_weights

    history = swarm.history
    iteration = history.iteration + 1
    log_weights, _ = compute_log_persistent_weights(
        history.persistent_log_likelihoods,
        history.persistent_log_Z,
        history.tempering_schedule.at[iteration].set(temperature),
        iteration,
    )
    # BlackJAX has the lowest number for what has no weight.
    return jnp.where(log_weights < 0.5 * _IMPOSSIBLE, -jnp.inf, log_weights).ravel()


def _weight_variance(weights: Array, chain_length: int = 1) -> Array:
    """Variance of N times the weights, of chains' means where particles come in chains as waste-free SMC has them."""
    if chain_length > 1:
        num_chains = len(weights) // chain_length
        first, others = weights[:num_chains, None], weights[num_chains:].reshape(num_chains, -1)
        weights = jnp.concatenate([first, others], 1).sum(1)
    # Of N / chain_length independent means, as if of N.
    return chain_length * jnp.maximum(len(weights) * jnp.sum(weights**2) - 1.0, 0.0)


def _last_rung_weights(swarm: Swarm, temperature: Array) -> Array:
    log_weights = (temperature - swarm.temperature) * swarm.particles.log_likelihood
    return jax.nn.softmax(jnp.where(jnp.isfinite(log_weights).any(), log_weights, 0.0))


def next_temperature(log_weights_at, temperature: Array, target_ess: Array) -> Array:
    """The temperature at which the effective sample size falls to `target_ess`, or 1."""

    def log_ess(t):
        log_weights = log_weights_at(t)
        return 2.0 * logsumexp(log_weights) - logsumexp(2.0 * log_weights)

    goal = jnp.log(target_ess)
    smallest = jnp.log(jnp.maximum(1e-12, 4.0 * jnp.finfo(temperature.dtype).eps * temperature))
    largest = jnp.log1p(-temperature)

    def halve(i, bounds):
        low, high = bounds
        # The first to be tried is t = 1. NaN, where every likelihood is zero, is not less.
        middle = jnp.where(i == 0, largest, 0.5 * (low + high))
        enough = ~(log_ess(jnp.where(i == 0, 1.0, temperature + jnp.exp(middle))) < goal)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 1 + _BISECTIONS, halve, (smallest, largest))
    return jnp.where(low == largest, 1.0, jnp.minimum(temperature + jnp.exp(low), 1.0))


def _resample(name: str, key_order: Array, key_draw: Array, weights: Array, num_samples: int) -> Int[Array, " M"]:
    """BlackJAX's resampling of particles in random order.

    Systematic resampling in order would couple particles that waste-free and persistent sampling keep together.
    """
    from blackjax.smc import resampling

    order = jnp.argsort(jax.random.bits(key_order, weights.shape))
    return order[getattr(resampling, name)(key_draw, weights[order], num_samples)]


def _tune(key, step, kernel: Kernel, plan: Plan, swarm: Swarm, ancestors: Array, temperature, scale) -> Array:
    """The step size of the kernel's best acceptance rate at the next rung, by stochastic approximation."""
    # Resampled by their order, as if so many had been asked for.
    num_pilots = min(_PILOTS, len(ancestors))
    chosen = ancestors[np.arange(num_pilots) * len(ancestors) // num_pilots]
    particles = swarm.particles
    if plan.persistent:
        particles = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), swarm.history.persistent_particles)
    largest = jnp.log(kernel.largest_step_size(scale.size))

    keys = jax.random.split(key, (_PILOT_STEPS, num_pilots))

    def move_pilots(i, state):
        points, log_step_size = state

        def move(key, point):
            return step(key, point, temperature, jnp.exp(log_step_size), scale)

        moves = map_batched(move, plan.batch_size, keys[i], points)
        error = moves.acceptance.mean() - kernel.target_acceptance
        log_step_size += _PILOT_GAIN * error / (1.0 + i / 3.0)
        return moves.point, jnp.minimum(log_step_size, largest)

    points = jax.tree.map(lambda x: x[chosen], particles)
    _, log_step_size = jax.lax.fori_loop(0, _PILOT_STEPS, move_pilots, (points, jnp.log(swarm.step_size)))
    return jnp.exp(log_step_size)


def _move(key, step, plan, swarm, weights, ancestors, temperature, parameters):
    """By BlackJAX: the resampled particles at the next rung, the history with them and the kernel's moves."""
    from blackjax.smc import persistent_sampling, tempered
    from blackjax.smc.base import update_and_take_last
    from blackjax.smc.waste_free import waste_free_smc

    def carry_on(key, state, _, temperature, step_size, scale):
        move = step(key, state.position, temperature, step_size, scale)
        return _Carried(move.point), move._replace(point=None)

    arguments = (
        lambda point: point.log_prior,
        _log_likelihood,
        carry_on,
        lambda point, _: _Carried(point),
        lambda key, weights, num_samples: ancestors,
    )
    num_steps, strategy = plan.num_mcmc_steps, update_and_take_last
    if plan.waste_free:
        num_steps, strategy = None, waste_free_smc(len(swarm.particles.log_prior), plan.num_mcmc_steps + 1)
    if plan.persistent:
        move = persistent_sampling.build_kernel(*arguments, strategy, batch_size=plan.batch_size)
        history, info = move(key, swarm.history, num_steps, temperature, parameters)
        return history.particles, history, info.update_info
    move = tempered.build_kernel(*arguments, strategy, batch_size=plan.batch_size)
    state = tempered.TemperedSMCState(swarm.particles, weights, temperature)
    state, info = move(key, state, num_steps, temperature, parameters)
    return state.particles, None, info.update_info


def _spread(weights: Array, particles: Point, kernel: Kernel) -> Float[Array, " dim"]:
    """Standard deviations of the weighted particles, the kernel's preconditioner."""
    positions = particles.position
    if not kernel.precondition:
        return jnp.ones(positions.shape[-1], positions.dtype)
    mean = weights @ positions
    variance = weights @ (positions - mean) ** 2
    return jnp.where(jnp.isfinite(variance) & (variance > 0), jnp.sqrt(variance), 1.0)


def _relative_variance(swarm: Swarm, weights: Array) -> Array:
    """Relative variance of a run's estimate of the evidence, times N.

    Independent particles would leave every draw of the prior the same share of the weights, up to their own variance.
    Where moves mix slowly lucky families grow, rung by rung: with s_i the share of the descendants of draw i, it is
    N sum_i s_i^2 - 1. That counts the rounding of resampling too, which tells nothing of the evidence: the mean square
    of the numbers of children minus their expectations is subtracted. To first order in 1 / N; with multinomial
    resampling that is the estimate of Lee and Whiteley (Biometrika 105(3), 2018).
    """
    num_particles = len(weights)
    shares = jax.ops.segment_sum(weights, swarm.ancestor, num_particles)
    return num_particles * jnp.sum(shares**2) - 1.0 - swarm.noise


@partial(jit_by_value, compiler_options=RUN_ONCE)
def effective_size(swarm: Swarm, latents: dict[str, Array], chain_length: int) -> Float[Array, "B R"]:
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

    elements = [z.reshape(*swarm.ancestor.shape, -1) for z in latents.values()]
    return jax.vmap(jax.vmap(of_run))(swarm.ancestor, jnp.concatenate(elements, -1))


@partial(jit_by_value, compiler_options=RUN_ONCE)
def first_temperature(swarm: Swarm, target_ess: float) -> Float[Array, " B"]:
    """The first temperature above zero of each datum's first run."""

    def of_run(run: Swarm) -> Array:
        possible = jnp.sum(jnp.isfinite(run.particles.log_likelihood))
        return next_temperature(partial(_log_weights, run), run.temperature, target_ess * possible)

    return jax.vmap(of_run)(jax.tree.map(lambda leaf: leaf[:, 0], swarm))
