"""The particles behind `TemperedSMC`, as compiled functions of arrays.

Between two rungs the particles of a run are equally weighted at its temperature. A step finds the next temperature on
them, weighs them for it, resamples them and moves them there, so that they are equally weighted again. The resampling
and the weights of persistent sampling are BlackJAX's.
"""

from __future__ import annotations

from collections.abc import Callable
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
from numpyro_kaem.posterior.kernel import Evaluate, Kernel, Move, Tuning, choose
from numpyro_kaem.posterior.target import Flaws, Point, count_invalid, fenced, map_batched, tempered

# In place of -inf, of which BlackJAX's products with a temperature of zero would make NaN.
_IMPOSSIBLE = -1e30
# Halvings of the interval of log temperatures, wide as from 1e-12 to 1: to 1e-10 of it.
_BISECTIONS = 40
# Before the particles of a rung move, a few of them find the step size, by as many steps.
_PILOTS, _PILOT_STEPS, _PILOT_GAIN = 64, 12, 2.0


class Settings(NamedTuple):
    """What does not change in a run, most of it as in `TemperedSMC`."""

    kernel: Kernel
    target_ess: float | None  # None for a fixed ladder
    num_mcmc_steps: int
    max_rungs: int
    resampling: str = "systematic"
    waste_free: bool = False
    persistent: bool = False
    batch_size: int = 0  # particles of a run that move at once; 0 for all
    runs_at_once: int = 0  # runs of a datum that do; 0 for all

    @property
    def chain_length(self) -> int:
        """Particles that one resampled particle leaves: the states on its way, or where it ends."""
        return self.num_mcmc_steps + 1 if self.waste_free else 1


class ParticleState(NamedTuple):
    """A run's particles, equally weighted at its temperature."""

    points: Point
    temperature: Float[Array, ""]
    log_evidence: Float[Array, ""]
    step_size: Float[Array, ""]
    ancestor: Int[Array, " N"]  # the draw of the prior from which each descends
    noise: Float[Array, ""]  # what rounding in resampling has added to `relative_variance`
    history: Any  # BlackJAX's state of persistent sampling, with the particles of all rungs, or None


class Rung(NamedTuple):
    """What a step from a rung tells: `ess`, log-likelihoods and `weight_variance` of it, and else of the next rung."""

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


def _log_likelihood(point: Point) -> Array:
    return jnp.maximum(point.log_likelihood, _IMPOSSIBLE)


@partial(jit_by_value, compiler_options=RUN_ONCE)
def start(
    problem: Problem, settings: Settings, rows: tuple, keys: Array, num_particles: int
) -> tuple[ParticleState, Flaws]:
    """Particles of the runs `(B, R)`, by as many keys, at exact draws from the prior, and what is wrong with them."""
    from blackjax.smc import persistent_sampling

    target = problem.target(settings.kernel)

    def of_run(key, row):
        def draw(key):
            position, at_end = target.draw_and_tell(key, row)
            return target.evaluate_raw(position, row), at_end

        keys = jax.random.split(jax.random.fold_in(key, AT_START), num_particles)
        drawn, at_end = map_batched(draw, settings.batch_size, keys)
        points, invalid = count_invalid(drawn)
        state = at_prior(points, settings.kernel)
        if settings.persistent:
            history = persistent_sampling.init(points, _log_likelihood, settings.max_rungs)
            state = state._replace(history=history)
        return state, Flaws(invalid, at_end.sum(0), jnp.asarray(num_particles))

    def of_datum(keys, row):
        return map_batched(lambda key: of_run(key, row), settings.runs_at_once, keys)

    return map_batched(of_datum, 0, keys, rows)


def at_prior(points: Point, kernel: Kernel) -> ParticleState:
    """The state of particles that are draws from the prior."""
    zero = jnp.zeros((), points.dtype)
    num_particles, dim = points.position.shape
    step_size = zero + kernel.initial_step_size(dim)
    return ParticleState(points, zero, zero, step_size, jnp.arange(num_particles), zero, None)


@partial(jit_by_value, first_donated=6, compiler_options=LOOP)
def advance(
    problem: Problem, settings: Settings, rows: tuple, keys: Array, number: Array, tuning: Tuning, state: ParticleState
) -> tuple[ParticleState, Rung]:
    """Take runs `(B, R)`, by as many keys, to the rung of a number and a tuning; those at t = 1 stay as they are."""
    target = problem.target(settings.kernel)

    def of_run(key, row, state, tuning):
        evaluate = fenced(partial(target.evaluate, row=row), number)
        new, rung = to_next_rung(key, number, evaluate, settings, state, tuning)
        return choose(state.temperature >= 1.0, state, new), rung

    def of_datum(keys, row, state, tuning):
        of_runs = partial(of_run, row=row, tuning=tuning)
        return map_batched(lambda key, state: of_runs(key, state=state), settings.runs_at_once, keys, state)

    return map_batched(of_datum, 0, keys, rows, state, tuning)


def to_next_rung(
    key: Array, number: Array, evaluate: Evaluate, settings: Settings, state: ParticleState, tuning: Tuning
) -> tuple[ParticleState, Rung]:
    """Take a run's particles to the rung of a number, finding out what of its tuning is not known."""
    kernel, length = settings.kernel, settings.chain_length

    @jax.jit  # traced once for both of its uses
    def step(key: Array, point: Point, tuning: Tuning) -> Move:
        return kernel.step(key, point, *tuning, evaluate)

    keys = jax.vmap(partial(jax.random.fold_in, key))(4 * number + jnp.arange(4))
    key_order, key_draw, key_tune, key_move = keys
    target_ess, log_likelihood = settings.target_ess, state.points.log_likelihood
    temperature = tuning.temperature if target_ess is None else next_temperature(state, target_ess)
    num_particles = len(log_likelihood)
    is_possible = jnp.any(jnp.isfinite(log_likelihood))
    log_weights = jnp.where(is_possible, _log_weights(state, temperature), 0.0)
    increment = logsumexp(log_weights) - jnp.log(num_particles)
    weights = jax.nn.softmax(log_weights)
    local_weights = weights
    if settings.persistent:
        # Of all the particles that history holds, those of the last rung are what the next one's scale is taken from.
        of_last_rung = _log_weights(state._replace(history=None), temperature)
        local_weights = jax.nn.softmax(jnp.where(is_possible, of_last_rung, 0.0))
    scale = _spread(local_weights, state.points, kernel) if tuning.scale is None else tuning.scale
    ancestors = _resample(settings.resampling, key_order, key_draw, weights, num_particles // length)
    chosen = jax.tree.map(lambda x: x[ancestors], _all_points(state))
    is_tuned = tuning.step_size is not None
    tuning = Tuning(temperature, tuning.step_size if is_tuned else state.step_size, scale)
    if kernel.adapts_step_size and not is_tuned:
        tuning = tuning._replace(step_size=_tune(key_tune, step, settings, chosen, tuning))
    moved, acceptance, divergent = _move(key_move, step, settings, chosen, tuning)
    zero = jnp.zeros_like(temperature)
    variance, relative, ancestor, noise, history = zero, zero, state.ancestor, zero, None
    if settings.persistent:
        _, log_evidence = _persistent_weights(state.history, temperature)
        history = _remember(state.history, moved, temperature, log_evidence)
    else:
        log_evidence = state.log_evidence + increment
        variance = jnp.where(state.temperature > 0, weight_variance(weights, length), weight_variance(weights))
        relative = relative_variance(weights, state.ancestor, state.noise)
        counts = jnp.bincount(ancestors, length=num_particles) * length
        noise = state.noise + jnp.mean((counts - num_particles * weights) ** 2)
        ancestor = state.ancestor[ancestors]
        ancestor = jnp.concatenate([ancestor, jnp.repeat(ancestor, length - 1)])
    log_evidence = jnp.where(is_possible, log_evidence, -jnp.inf)
    rung = Rung(
        temperature=temperature,
        ess=jnp.where(is_possible, 1.0 / jnp.sum(weights**2), 0.0),
        log_likelihood_mean=log_likelihood.mean(),
        log_likelihood_std=jnp.std(log_likelihood, where=jnp.isfinite(log_likelihood)),
        weight_variance=variance,
        relative_variance=relative,
        acceptance=acceptance.mean(),
        divergences=divergent.sum(),
        step_size=tuning.step_size,
        scale=scale,
    )
    return ParticleState(moved, temperature, log_evidence, tuning.step_size, ancestor, noise, history), rung


def weight_variance(weights: Array, chain_length: int = 1) -> Array:
    """Variance of N times the weights, of chains' means where particles come in chains as waste-free SMC has them."""
    if chain_length > 1:
        num_chains = len(weights) // chain_length
        first, others = weights[:num_chains, None], weights[num_chains:].reshape(num_chains, -1)
        weights = jnp.concatenate([first, others], 1).sum(1)
    # Of N / chain_length independent means, as if of N.
    return chain_length * jnp.maximum(len(weights) * jnp.sum(weights**2) - 1.0, 0.0)


def relative_variance(weights: Array, ancestor: Int[Array, " N"], noise: Array) -> Array:
    """Relative variance of a run's estimate of the evidence, times N, to first order in 1 / N: N sum_i s_i^2 - 1.

    s_i is the share of the descendants of the prior's draw i: where moves mix slowly, lucky families grow. Subtracted
    is `noise`, the rounding of resampling: the mean square of the numbers of children minus their expectations,
    summed over rungs. With multinomial resampling it is the estimate of Lee and Whiteley (Biometrika 105(3), 2018).
    """
    num_particles = len(weights)
    shares = jax.ops.segment_sum(weights, ancestor, num_particles)
    return num_particles * jnp.sum(shares**2) - 1.0 - noise


def _log_weights(state: ParticleState, temperature: Array) -> Array:
    """Log-weights that take the particles (of all rungs, where they are kept) from their temperature to another."""
    if state.history is None:
        return tempered(state.points.log_likelihood, temperature - state.temperature)
    log_weights, _ = _persistent_weights(state.history, temperature)
    # BlackJAX has the lowest number for what has no weight.
    return jnp.where(log_weights < 0.5 * _IMPOSSIBLE, -jnp.inf, log_weights).ravel()


def _persistent_weights(history: Any, temperature: Array) -> tuple[Array, Array]:
    """BlackJAX's log-weights of the particles of all rungs at a new temperature, and the log-evidence there."""
    from blackjax.smc.persistent_sampling import compute_log_persistent_weights

    number = history.iteration + 1
    schedule = history.tempering_schedule.at[number].set(temperature)
    return compute_log_persistent_weights(
        history.persistent_log_likelihoods, history.persistent_log_Z, schedule, number
    )


def _remember(history: Any, points: Point, temperature: Array, log_evidence: Array) -> Any:
    """BlackJAX's history with the particles of a further rung."""
    number = history.iteration + 1
    values = points, _log_likelihood(points), log_evidence, temperature
    kept = jax.tree.map(lambda old, new: old.at[number].set(new), tuple(history)[:4], values)
    return type(history)(*kept, number)


def _all_points(state: ParticleState) -> Point:
    """The particles that weights are of."""
    if state.history is None:
        return state.points
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state.history.persistent_particles)


def next_temperature(state: ParticleState, target_ess: float) -> Array:
    """The temperature at which that share of the possible particles is effective, or 1."""
    temperature = state.temperature

    def log_ess(t):
        log_weights = _log_weights(state, t)
        return 2.0 * logsumexp(log_weights) - logsumexp(2.0 * log_weights)

    goal = jnp.log(target_ess * jnp.sum(jnp.isfinite(state.points.log_likelihood)))
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
    """BlackJAX's resampling of particles in random order."""
    from blackjax.smc import resampling

    # In order, systematic resampling would couple particles that waste-free and persistent sampling keep together.
    order = jnp.argsort(jax.random.bits(key_order, weights.shape))
    return order[getattr(resampling, name)(key_draw, weights[order], num_samples)]


def _tune(key: Array, step: Callable, settings: Settings, chosen: Point, tuning: Tuning) -> Array:
    """The step size of the kernel's best acceptance rate at the next rung, by stochastic approximation."""
    kernel, num_chosen = settings.kernel, len(chosen.log_prior)
    # Resampled by their order, as if so many had been asked for.
    num_pilots = min(_PILOTS, num_chosen)
    pilots = jax.tree.map(lambda x: x[np.arange(num_pilots) * num_chosen // num_pilots], chosen)
    largest = jnp.log(kernel.largest_step_size(tuning.scale.size))
    keys = jax.random.split(key, (_PILOT_STEPS, num_pilots))

    def move_pilots(i, state):
        points, log_step_size = state
        at = tuning._replace(step_size=jnp.exp(log_step_size))
        moves = map_batched(lambda key, point: step(key, point, at), settings.batch_size, keys[i], points)
        error = moves.acceptance.mean() - kernel.target_acceptance
        log_step_size += _PILOT_GAIN * error / (1.0 + i / 3.0)
        return moves.point, jnp.minimum(log_step_size, largest)

    _, log_step_size = jax.lax.fori_loop(0, _PILOT_STEPS, move_pilots, (pilots, jnp.log(tuning.step_size)))
    return jnp.exp(log_step_size)


def _move(key: Array, step: Callable, settings: Settings, chosen: Point, tuning: Tuning) -> tuple[Point, Array, Array]:
    """Where chains from the chosen points lead, or all points on their way; acceptance, and what diverged."""

    def along(point, key):
        move = step(key, point, tuning)
        on_the_way = move.point if settings.waste_free else None
        return move.point, (on_the_way, move.acceptance, move.divergent)

    def chain(key, point):
        return jax.lax.scan(along, point, jax.random.split(key, settings.num_mcmc_steps))

    keys = jax.random.split(jax.random.split(key)[0], len(chosen.log_prior))
    points, (on_the_way, acceptance, divergent) = map_batched(chain, settings.batch_size, keys, chosen)
    if settings.waste_free:
        points = jax.tree.map(lambda x, y: jnp.concatenate([x, y.reshape(-1, *y.shape[2:])]), chosen, on_the_way)
    return points, acceptance, divergent


def _spread(weights: Array, points: Point, kernel: Kernel) -> Float[Array, " dim"]:
    """Standard deviations of the weighted particles, the kernel's preconditioner."""
    positions = points.position
    if not kernel.precondition:
        return jnp.ones(positions.shape[-1], positions.dtype)
    mean = weights @ positions
    variance = weights @ (positions - mean) ** 2
    return jnp.where(jnp.isfinite(variance) & (variance > 0), jnp.sqrt(variance), 1.0)


@partial(jit_by_value, compiler_options=RUN_ONCE)
def first_temperature(state: ParticleState, target_ess: float) -> Float[Array, " B"]:
    """The first temperature above zero of each datum's first run."""
    first_runs = jax.tree.map(lambda leaf: leaf[:, 0], state)
    return jax.vmap(partial(next_temperature, target_ess=target_ess))(first_runs)


@partial(jit_by_value, compiler_options=RUN_ONCE)
def effective_size(ancestor: Int[Array, "B R N"], latents: dict[str, Array], chain_length: int) -> Float[Array, "B R"]:
    """Effective sample size of equally weighted particles for the mean of their latents, the smallest of all elements.

    The variance of a mean is that of the sums over families, of common descent or chains of waste-free SMC; as they are
    taken from the particles' own mean, divided by 1 - sum_i s_i^2, with s_i the share of family i. One family is worth
    one draw.
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
