"""Chains at every rung of a ladder, and particles of tempered SMC, of every datum of a batch in a training step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.chains import Problem, half_spread
from numpyro_kaem.posterior.kernel import Kernel, ProposalKernel, Tuning
from numpyro_kaem.posterior.moves import move_or_draw, move_or_place
from numpyro_kaem.posterior.particles import Settings, at_prior, to_next_rung
from numpyro_kaem.posterior.proposal import is_excluded
from numpyro_kaem.posterior.swaps import propose_swaps
from numpyro_kaem.posterior.target import Point, Target
from numpyro_kaem.posterior.weights import draws_differ_by_datum, log_likelihood

# Pairs of first draws whose differences give the preconditioner, or one of each datum if these are more.
_PAIRS = 64
# Effective sample size of importance weights that chains can be compared with, and share of the data that must have it:
# of a few, chosen by chance, single chains tell nothing.
_TRUSTED, _SHARE_TRUSTED = 10.0, 0.1
# Of a step size that adapts: the gain of its logarithm at the first step, and the power of steps by which it fades.
_GAIN, _GAIN_POWER = 4.0, 0.75


class ChainRun(NamedTuple):
    """Where the chains of B data, C chains and K rungs went: their last points, and what they have met."""

    points: Point
    acceptance: Float[Array, " K"]
    swap_acceptance: Float[Array, ""]  # NaN for a single rung
    log_likelihood: Float[Array, "T B C K"]
    log_step_size: Float[Array, "B K"]  # mean over the last half
    mean: Float[Array, "B K dim"]  # of positions
    variance: Float[Array, "B K dim"]
    stuck: Float[Array, ""]  # share of chains at t = 1 that are where they started


class Adaptation(NamedTuple):
    """What step sizes and preconditioners have come to, of each datum's chains at each rung."""

    log_step_size: Float[Array, "B K"]
    scale: Float[Array, "B K dim"]
    age: Float[Array, " B"]  # steps that have already gone into a step size


def frozen_target(latent_model: LatentModel, kernel: Kernel) -> Target:
    """What chains move on: the model at parameters without gradients."""
    return Problem(latent_model.at(params=jax.lax.stop_gradient(latent_model.params))).target(kernel)


def at_each(function: Callable, elements: PyTree, rows: tuple) -> Any:
    """`function(element, row)` of every element `(B, N, ...)` and its datum's row."""
    return jax.vmap(lambda of_datum, row: jax.vmap(lambda element: function(element, row))(of_datum))(elements, rows)


class FirstDraws(NamedTuple):
    """All the draws from the prior, or a guide, that chains need, made in one call: that call is long to compile."""

    starts: Float[Array, "B C K dim"]
    lowest: Float[Array, "T B C dim"] | None  # for the rung that is the prior, if there is one
    scale: Float[Array, " dim"]  # spread of each coordinate, by which chains are preconditioned


def draw_first(
    key: PRNGKeyArray,
    target: Target,
    encoder: LatentModel | None,
    kernel: Kernel,
    num_chains: int,
    num_rungs: int,
    num_steps: int,
    exact: bool,
) -> FirstDraws:
    """Draws of every datum, apart for every use: from its prior, or, where there is one, from the guide."""
    num_data, dim = target.latent_model.num_data, target.dim
    num_pairs = -(-_PAIRS // num_data) if kernel.precondition and not kernel.whiten else 0
    num_starts, num_lowest = num_chains * num_rungs, num_steps * num_chains if exact else 0

    keys = jax.random.split(key, (num_data, num_starts + num_lowest + 2 * num_pairs))
    draws = at_each(target.draw if encoder is None else drawn_from(encoder, target), keys, target.latent_model.rows)
    starts, lowest, pairs = jnp.split(draws, [num_starts, num_starts + num_lowest], axis=1)
    # Differences do not know where a datum's draws lie.
    differences = (pairs[:, :num_pairs] - pairs[:, num_pairs:]).reshape(-1, dim) / 2**0.5
    scale = half_spread(jnp.where(jnp.isfinite(differences), differences, 0.0))
    lowest = jnp.moveaxis(lowest.reshape(num_data, num_steps, num_chains, dim), 1, 0) if exact else None
    return FirstDraws(starts.reshape(num_data, num_chains, num_rungs, dim), lowest, scale)


def drawn_from(encoder: LatentModel, target: Target) -> Callable[[Array, tuple], Array]:
    """One draw from a guide, in the flat coordinates of the chains."""
    return lambda key, row: target.position(encoder.draw_prior(key, *row), row)


class LogWeights(NamedTuple):
    """Of latents that stand for draws from a proposal q: log p(x | z), and log p(z) / q(z), which is zero of a prior.

    Both are densities of z itself; in other coordinates their ratio is the same.
    """

    log_likelihood: Float[Array, "*batch"]
    log_ratio: Float[Array, "*batch"]

    def at(self, temperature: Array | float) -> Float[Array, "*batch"]:
        """Log p(x | z)^t p(z) / q(z). A likelihood that is zero counts for nothing, at t = 0 as well."""
        log_weights = temperature * self.log_likelihood + self.log_ratio
        return jnp.where(self.log_likelihood > -jnp.inf, log_weights, -jnp.inf)


class ImportanceDraws(NamedTuple):
    """Draws from the prior or a guide, with their weights for the data."""

    positions: Float[Array, "_ S dim"]  # each datum's own, or one for all
    weights: LogWeights  # (B, S)
    num_trusted: float  # effective sample size with which chains can be compared

    def choose(
        self,
        key: PRNGKeyArray,
        temperatures: Float[Array, " K"],
        current: Float[Array, "B C K dim"],
        at_current: LogWeights,
    ) -> Float[Array, "B C K dim"]:
        """Where chains go on: each at a draw or where it is, by p(x | z)^t p(z) / q(z) at its rung t.

        A log-likelihood of -inf says of where it is that it has not started.

        Iterated sampling importance resampling leaves p_t invariant whatever the number of draws (Andrieu, Doucet and
        Holenstein, Journal of the Royal Statistical Society B 72(3), 2010).
        """
        num_data, num_draws = self.weights.log_likelihood.shape
        positions = jnp.broadcast_to(self.positions, (num_data, num_draws, self.positions.shape[-1]))

        def of_chain(key, temperature, current, at_current, positions, of_draws):
            log_weights = jax.tree.map(jnp.append, of_draws, at_current).at(temperature)
            # Where every likelihood is zero all draws are as good; and one that is zero is never chosen.
            log_weights = jnp.where(jnp.any(log_weights > -jnp.inf), log_weights, 0.0)
            chosen = jax.random.categorical(key, log_weights)
            return jnp.where(chosen < num_draws, positions[jnp.minimum(chosen, num_draws - 1)], current)

        of_rungs = jax.vmap(of_chain, (0, 0, 0, 0, None, None))
        of_chains = jax.vmap(of_rungs, (0, None, 0, 0, None, None))
        keys = jax.random.split(key, current.shape[:-1])
        return jax.vmap(of_chains, (0, None, 0, 0, 0, 0))(
            keys, temperatures, current, at_current, positions, self.weights
        )

    def gap(self, log_likelihood: Float[Array, "B C"]) -> Float[Array, ""]:
        """How far chains are, in nats, from what importance sampling says of E[log p(x | z)], mean over trusted data.

        Or over all, where the chains are below: too few draws say too little, and not too much. NaN where neither is.
        """
        weights = jax.nn.softmax(self.weights.at(1.0))
        expected = jnp.sum(jnp.where(weights > 0, weights * self.weights.log_likelihood, 0.0), -1)
        is_trusted = jnp.sum(weights**2, -1) <= 1 / self.num_trusted
        gaps = jnp.mean(log_likelihood, 1) - expected
        of_all = jnp.mean(gaps)
        of_trusted = jnp.where(is_trusted.mean() >= _SHARE_TRUSTED, jnp.mean(gaps, where=is_trusted), jnp.nan)
        return jnp.fmin(of_trusted, jnp.where(of_all < 0, of_all, jnp.nan))


def importance_draws(key: PRNGKeyArray, target: Target, num_draws: int) -> ImportanceDraws:
    """Draws from the prior, shared by the data unless the prior differs by datum."""
    model = target.model
    if draws_differ_by_datum(model):
        keys = jax.random.split(key, (model.num_data, num_draws))
        positions = at_each(target.draw, keys, model.rows)
        latents = jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), at_each(target.latents, positions, model.rows))
    else:
        row = model.first_row
        positions = jax.vmap(lambda k: target.draw(k, row))(jax.random.split(key, num_draws))[None]
        latents = jax.vmap(lambda u: target.latents(u, row))(positions[0])
    likelihood = log_likelihood(model, latents).T
    return ImportanceDraws(positions, LogWeights(likelihood, jnp.zeros_like(likelihood)), _TRUSTED)


def guide_draws(
    key: PRNGKeyArray, target: Target, encoder: LatentModel, num_draws: int, current: Float[Array, "B C K dim"] | None
) -> tuple[ImportanceDraws, LogWeights | None]:
    """Draws from a guide, of each datum its own, and the weights of where chains are, as of draws from it."""
    rows = target.model.rows
    keys = jax.random.split(key, (target.model.num_data, num_draws))
    latents = at_each(lambda k, row: encoder.draw_prior(k, *row), keys, rows)
    positions = at_each(target.position, latents, rows)
    if current is not None:
        # All are weighed at once: models are long to compile.
        others = latents_of(target, current.reshape(len(current), -1, current.shape[-1]))
        latents = jax.tree.map(lambda *z: jnp.concatenate(z, 1), latents, others)
    weights = guide_weights(target.model, encoder, latents)
    # They are few, and each is where the posterior is: half of them will do.
    of_draws = jax.tree.map(lambda x: x[:, :num_draws], weights)
    draws = ImportanceDraws(positions, of_draws, min(_TRUSTED, num_draws / 2))
    if current is None:
        return draws, None
    return draws, jax.tree.map(lambda x: x[:, num_draws:].reshape(current.shape[:-1]), weights)


def guide_weights(model: LatentModel, encoder: LatentModel, latents: dict[str, Array]) -> LogWeights:
    """Weights `(B, N)` of latents `(B, N, ...)` that stand for draws from a guide; what is broken has weight zero."""
    is_bounded = not all(site.is_unbounded for site in model.structure.latent_sites.values())

    def of_latents(z, row):
        prior, likelihood = model.log_parts(z, *row)
        ratio = prior - encoder.log_prior(z, *row)
        # Where a guide has no mass a chain may be, and has infinite weight there.
        is_sound = jnp.isfinite(likelihood) & (ratio > -jnp.inf)
        if is_bounded:
            is_sound &= ~is_excluded(model, encoder, z, *row)
        return LogWeights(jnp.where(is_sound, likelihood, -jnp.inf), jnp.where(is_sound, ratio, 0.0))

    return at_each(of_latents, latents, model.rows)


def run_chains(
    key: PRNGKeyArray,
    target: Target,
    kernel: Kernel,
    positions: Float[Array, "B C K dim"],
    temperatures: Float[Array, " K"],
    adaptation: Adaptation,
    lowest: Float[Array, "T B C dim"] | None,
    num_steps: int,
) -> ChainRun:
    """Move all chains, exchanging neighbouring rungs after each step; the prior's rung is at `lowest`, if there is one.

    Step sizes that adapt do so by datum and rung, by stochastic approximation whose gain fades.
    """
    num_data, num_chains, num_rungs, dim = positions.shape
    rows, dtype = target.latent_model.rows, positions.dtype
    temperatures, scale = temperatures.astype(dtype), adaptation.scale.astype(dtype)
    is_lowest = jnp.arange(num_rungs) == 0 if lowest is not None else jnp.zeros(num_rungs, bool)
    largest = jnp.log(kernel.largest_step_size(dim))
    center = positions.mean(1)
    # By a kernel that proposes, a step before the first puts the chains where they start: the model is compiled once,
    # inside of the loop.
    begins_inside = isinstance(kernel, ProposalKernel)

    def start(positions, row):
        return jax.vmap(jax.vmap(lambda u: target.evaluate(u, row)))(positions)

    def move(i, keys, points, step_size, lowest):
        def of_datum(keys, row, points, step_size, scale, places):
            tuning = Tuning(temperatures, step_size, scale)
            if isinstance(kernel, ProposalKernel):
                placing = places, is_lowest | (i < 0)
                return move_or_place(target, kernel, keys, row, points, tuning, placing)
            return move_or_draw(target, kernel, keys, row, points, tuning, places)

        places = lowest
        if begins_inside:
            places = positions if lowest is None else jnp.where(i < 0, positions, lowest[:, :, None])
        return jax.vmap(of_datum)(keys, rows, points, step_size, scale, places)

    def step(carry, at):
        points, log_step_size = carry
        i, lowest = at
        keys = jax.random.split(jax.random.fold_in(key, i), (num_data, num_chains * num_rungs + 1))
        move_keys = keys[:, 1:].reshape(num_data, num_chains, num_rungs)
        points, acceptance, _ = move(i, move_keys, points, jnp.exp(log_step_size), lowest)
        if kernel.adapts_step_size:
            gain = _GAIN / (1.0 + adaptation.age[:, None] + jnp.maximum(i, 0)) ** _GAIN_POWER
            gain = jnp.where((i < 0) | is_lowest, 0.0, gain)
            moved = log_step_size + gain * (acceptance - kernel.target_acceptance)
            log_step_size = jnp.minimum(moved, largest).astype(dtype)
        probability = jnp.nan
        if num_rungs > 1:
            swap = propose_swaps(keys[:, 0], points.log_likelihood, temperatures, i, i >= 0)
            points, probability = jax.tree.map(swap.exchange, points), jnp.mean(swap.probability)
        deviations = points.position - center[:, None]
        sums = deviations.sum(1), (deviations**2).sum(1)
        records = acceptance.mean(0), jnp.asarray(probability, dtype), points.log_likelihood, log_step_size, sums
        return (points, log_step_size), records

    steps = jnp.arange(num_steps)
    if begins_inside:
        points = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(start), positions, rows))
        steps, lowest = jnp.arange(-1, num_steps), jax.tree.map(lambda x: jnp.concatenate([x[:1], x]), lowest)
    else:
        points = jax.vmap(start)(positions, rows)
    (points, _), records = jax.lax.scan(step, (points, adaptation.log_step_size.astype(dtype)), (steps, lowest))
    acceptance, swaps, log_likelihoods, log_step_sizes, sums = jax.tree.map(lambda x: x[-num_steps:], records)
    mean, square = (x.sum(0) / (num_steps * num_chains) for x in sums)
    at_one = points.position[:, :, -1]
    return ChainRun(
        points,
        acceptance.mean(0),
        swaps.mean(),
        log_likelihoods,
        log_step_sizes[num_steps // 2 :].mean(0),
        center + mean,
        jnp.maximum(square - mean**2, 0.0),
        jnp.mean(jnp.all(at_one == positions[:, :, -1], -1)),
    )


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


def log_likelihood_at(target: Target, positions: Float[Array, "B C K dim"]) -> Float[Array, "B C K"]:
    """Log p(x | z) of chains; what is not a number counts as zero likelihood."""
    model = target.latent_model

    def of_chain(positions, row):
        return jax.vmap(lambda u: model.log_likelihood(target.unravel(u), *row, unconstrained=True))(positions)

    values = at_each(of_chain, positions, model.rows)
    return jnp.where(jnp.isfinite(values), values, -jnp.inf)


def latents_of(target: Target, positions: Float[Array, "B N dim"]) -> dict[str, Array]:
    """The latents, as the model knows them, `(B, N, ...)`, without gradients."""
    return jax.lax.stop_gradient(at_each(target.latents, positions, target.latent_model.rows))


def log_joint(latent_model: LatentModel, latents: dict[str, Array]) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Log p(z_bn) and log p(x_b | z_bn) of N particles of every datum."""
    return at_each(lambda z, row: latent_model.log_parts(z, *row), latents, latent_model.rows)


def log_guide(encoder: LatentModel, latents: dict[str, Array]) -> Float[Array, "B N"]:
    """Log q(z_bn | x_b) of N particles of every datum."""
    return at_each(lambda z, row: encoder.log_prior(z, *row), latents, encoder.rows)
