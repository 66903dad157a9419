"""The population of chains behind `Langevin` and `ParallelTempering`, as compiled functions of arrays.

Axes are B data, C chains, K rungs, in this order. Everything that a datum does depends on its own key and its own row.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from numpyro_kaem._compilation.options import LOOP, RUN_ONCE
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.kernel import Kernel, Tuning, choose
from numpyro_kaem.posterior.moves import move_or_draw
from numpyro_kaem.posterior.swaps import propose_swaps
from numpyro_kaem.posterior.target import Flaws, Point, Target, count_invalid, map_batched

# Draws of a datum whose spread is the first preconditioner.
_SPREAD_DRAWS = 64
# In place of the number of a step, for the keys of first points. Of a key itself, JAX's `split` would make keys that
# steps have, which are made by `fold_in`.
AT_START = 2**31


class Problem(NamedTuple):
    """A model, and at how many points of a datum it is evaluated at once: what compiled functions know a target by."""

    latent_model: LatentModel
    batch_size: int = 0

    def target(self, kernel: Kernel) -> Target:
        """The target in the coordinates of a kernel."""
        return Target(*self, whiten=kernel.whiten, gradients=kernel.needs_gradients)


class Settings(NamedTuple):
    """What does not change while chains run; they are `exact` if the lowest rung is drawn from the prior, t = 0."""

    kernel: Kernel
    temperatures: Float[Array, " K"]
    exact: bool
    num_chains: int
    num_draws: int
    swap_every: int = 1
    thin: int = 1


class ChainState(NamedTuple):
    """State, tuning and records of the chains of B data; means and counts are since the last reset."""

    points: Point
    from_prior: Bool[Array, "B C K"]  # of a chain that was at the lowest rung more recently than at the highest
    averaging: Any  # BlackJAX's
    step_size: Float[Array, "B K"]
    scale: Float[Array, "B K dim"]
    moments: tuple[Array, Array, Array]  # number, mean and sum of squared deviations of a window's positions
    acceptance: Float[Array, "B K"]
    divergences: Int[Array, " B"]
    swaps: Float[Array, "B pairs"]
    round_trips: Int[Array, " B"]
    steps: Int[Array, ""]
    positions: Float[Array, "B C S dim"]
    log_likelihood: Float[Array, "B C S K"]


def _dual_averaging():
    from blackjax.optimizers.dual_averaging import dual_averaging

    return dual_averaging()


def _begin_averaging(step_size: Array) -> Any:
    """Dual averaging from a step size on, as arrays that a loop can carry."""
    begin, _, _ = _dual_averaging()
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, step_size.dtype), step_size.shape), begin(step_size))


@partial(jit_by_value, compiler_options=RUN_ONCE)
def start(
    problem: Problem, settings: Settings, rows: tuple, keys: Array, encoder: LatentModel | None = None
) -> tuple[ChainState, Flaws]:
    """Chains at exact draws from the prior or else from a guide, and what is wrong with these."""
    kernel, num_chains, num_draws = settings.kernel, settings.num_chains, settings.num_draws
    target = problem.target(kernel)
    num_data, num_rungs = len(keys), len(settings.temperatures)
    draw = target.draw_and_tell
    if encoder is not None:

        def draw(key, row):
            z = encoder.sample_prior(key, 1, *row)
            # Of a guide, what is out of the prior's support moves inside.
            return target.position(jax.tree.map(lambda leaf: leaf[0], z), row), jnp.zeros(target.dim, bool)

    def of_datum(key, row):
        num_points = num_chains * num_rungs
        num_drawn = num_points + (_SPREAD_DRAWS if kernel.precondition and not kernel.whiten else 0)
        keys = jax.random.split(jax.random.fold_in(key, AT_START), num_drawn)
        draws, at_end = jax.vmap(lambda k: draw(k, row))(keys)
        evaluated = map_batched(lambda u: target.evaluate_raw(u, row), target.batch_size, draws[:num_points])
        points, invalid = count_invalid(evaluated)
        return points, half_spread(draws[num_points:]), Flaws(invalid, at_end.sum(0), jnp.asarray(num_drawn))

    points, scale, flaws = map_batched(of_datum, 0, keys, rows)
    points = jax.tree.map(lambda x: x.reshape(num_data, num_chains, num_rungs, *x.shape[2:]), points)
    dtype = points.position.dtype
    step_size = jnp.full((num_data, num_rungs), kernel.initial_step_size(target.dim), dtype)
    scale = jnp.broadcast_to(scale[:, None], (num_data, num_rungs, target.dim))
    state = ChainState(
        points=points,
        from_prior=jnp.zeros((num_data, num_chains, num_rungs), bool),
        averaging=_begin_averaging(step_size),
        step_size=step_size,
        scale=scale,
        moments=(jnp.zeros((), dtype), jnp.zeros_like(scale), jnp.zeros_like(scale)),
        acceptance=jnp.zeros_like(step_size),
        divergences=jnp.zeros(num_data, int),
        swaps=jnp.zeros((num_data, num_rungs - 1), dtype),
        round_trips=jnp.zeros(num_data, int),
        steps=jnp.zeros((), int),
        positions=jnp.zeros((num_data, num_chains, num_draws, target.dim), dtype),
        log_likelihood=jnp.zeros((num_data, num_chains, num_draws, num_rungs), points.log_likelihood.dtype),
    )
    return state, flaws


def half_spread(draws: Float[Array, "N dim"]) -> Float[Array, " dim"]:
    """Half of what lies between the quantiles at one standard deviation of a normal law; 1 where nothing does."""
    if len(draws) == 0:
        return jnp.ones(draws.shape[-1], draws.dtype)
    # Quantiles, because a prior or guide need not have a variance.
    low, high = jnp.quantile(draws, jnp.array([0.16, 0.84]), axis=0)
    return jnp.where(high > low, (high - low) / 2, 1.0)


# How far to go and whether to adapt are arguments, so that a whole run, with its warm-up and its progress bar, is one
# compiled function. The state's memory is given to its successor.
@partial(jit_by_value, first_donated=5, compiler_options=LOOP)
def advance(
    problem: Problem, settings: Settings, rows: tuple, keys: Array, span: tuple[Array, Array, Array], state: ChainState
) -> ChainState:
    """Advance all chains by a span of steps: its first (negative in warm-up), its end, and whether they adapt."""
    first, last, adapting = span
    kernel, temperatures, exact, num_chains, _, swap_every, thin = settings
    target = problem.target(kernel)
    update_average = _dual_averaging()[1]
    num_rungs = len(temperatures)

    def move(key, row, points, step_size, scale):
        keys = jax.random.split(key, (num_chains, num_rungs + 1))
        draws = jax.vmap(lambda k: target.draw(k, row))(keys[:, -1]) if exact else None
        tuning = Tuning(temperatures, step_size, scale)
        return move_or_draw(target, kernel, keys[:, :-1], row, points, tuning, draws)

    def body(i, p: ChainState) -> ChainState:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        pair = jax.vmap(jax.random.split)(step_keys)
        points, acceptance, divergences = map_batched(move, 0, pair[:, 0], rows, p.points, p.step_size, p.scale)
        # Latents in float32 may meet data and temperatures in float64.
        acceptance = acceptance.astype(p.acceptance.dtype)
        p = p._replace(points=points)
        if num_rungs > 1:
            p = _swap(pair[:, 1], p, temperatures, i, swap_every)
        steps = p.steps + 1
        if kernel.adapts_step_size or kernel.precondition:
            p = p._replace(moments=choose(adapting, _add(p.moments, p.points.position), p.moments))
        if kernel.adapts_step_size:
            updated = update_average(p.averaging, kernel.target_acceptance - acceptance)
            averaging = choose(adapting, updated, p.averaging)
            largest = kernel.largest_step_size(target.dim)
            step_size = jnp.where(adapting, jnp.minimum(jnp.exp(averaging.log_x), largest), p.step_size)
            p = p._replace(averaging=averaging, step_size=step_size)
        index = jnp.maximum(i, 0) // thin
        return p._replace(
            acceptance=p.acceptance + (acceptance - p.acceptance) / steps,
            divergences=p.divergences + divergences,
            steps=steps,
            positions=p.positions.at[:, :, index].set(p.points.position[:, :, -1]),
            log_likelihood=p.log_likelihood.at[:, :, index].set(p.points.log_likelihood),
        )

    return jax.lax.fori_loop(first, last, body, state)


def _swap(keys: Array, p: ChainState, temperatures: Array, i: Array, swap_every: int) -> ChainState:
    """Exchange neighbouring rungs every `swap_every` steps, and keep count."""
    swap = propose_swaps(keys, p.points.log_likelihood, temperatures, i // swap_every, (i + 1) % swap_every == 0)
    from_prior = swap.exchange(p.from_prior)
    arrived = from_prior[..., -1]
    from_prior = from_prior.at[..., -1].set(False).at[..., 0].set(True)
    # The number of attempts of each pair so far, this one included.
    attempts = jnp.maximum((p.steps // swap_every + 2) // 2, 1).astype(p.swaps.dtype)
    probability = swap.probability.mean(1).astype(p.swaps.dtype)
    return p._replace(
        points=jax.tree.map(swap.exchange, p.points),
        from_prior=from_prior,
        swaps=jnp.where(swap.is_turn, p.swaps + (probability - p.swaps) / attempts, p.swaps),
        round_trips=p.round_trips + arrived.sum(-1),
    )


def _add(moments: tuple, positions: Float[Array, "B C K dim"]) -> tuple:
    """Welford's update of mean and sum of squares by the positions of all chains."""
    count, mean, squares = moments
    num_chains = positions.shape[1]
    of_chains, total = positions.mean(1), count + num_chains
    delta = of_chains - mean
    within = jnp.sum((positions - of_chains[:, None]) ** 2, 1)
    return total, mean + delta * num_chains / total, squares + within + delta**2 * count * num_chains / total


@partial(jit_by_value, compiler_options=RUN_ONCE)
def end_window(kernel: Kernel, state: ChainState) -> ChainState:
    """The preconditioner that the positions of a warm-up window suggest; the step size's search begins anew."""
    count, _, squares = state.moments
    scale = state.scale
    if kernel.precondition:
        # Shrunk towards the present scale, as five more positions of that spread would.
        variance = (squares + 5.0 * scale**2) / (count + 5.0)
        new = jnp.sqrt(jnp.maximum(variance, jnp.finfo(scale.dtype).tiny))
        scale = jnp.where(jnp.isfinite(new), new, scale)
    # A step size that suited the old scale, on average over coordinates, suits the new one.
    return _reset(state)._replace(
        averaging=_begin_averaging(state.step_size), scale=scale, moments=jax.tree.map(jnp.zeros_like, state.moments)
    )


@partial(jit_by_value, compiler_options=RUN_ONCE)
def end_warmup(kernel: Kernel, state: ChainState) -> ChainState:
    """Freeze the average of the step sizes."""
    if kernel.adapts_step_size:
        largest = kernel.largest_step_size(state.scale.shape[-1])
        state = state._replace(step_size=jnp.minimum(jnp.exp(state.averaging.log_x_avg), largest))
    return _reset(state)


def _reset(p: ChainState) -> ChainState:
    counts = {name: getattr(p, name) for name in ("acceptance", "divergences", "swaps", "round_trips", "steps")}
    return p._replace(**jax.tree.map(jnp.zeros_like, counts))


@partial(jit_by_value, compiler_options=RUN_ONCE)
def latents_along(problem: Problem, kernel: Kernel, rows: tuple, positions: Float[Array, "B C N dim"]) -> dict:
    """The latents `(B, C N, ...)`, as the model knows them, of C N positions of each datum."""
    target = problem.target(kernel)
    positions = positions.reshape(len(positions), -1, positions.shape[-1])

    def of_datum(positions, row):
        return map_batched(lambda u: target.latents(u, row), target.batch_size, positions)

    return map_batched(of_datum, 0, positions, rows)
