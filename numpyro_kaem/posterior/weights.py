"""Importance weights of draws from the prior or a guide: what `ImportanceSampling` and `ImportanceMLE` share.

The functions here are pure: their callers jit, differentiate and scan them. Draws have the draw axis S first; where
every datum has its own (by default where the prior depends on the data) the data axis B follows, else all data share
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from numpyro_kaem._numerics.sharding import spread
from numpyro_kaem.models.dependence import output
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.models.pairwise import pairwise_log_likelihood
from numpyro_kaem.posterior.proposal import is_excluded

# Runs of the model that are held at once where it must run for every pair of a draw and a datum.
_PAIRS_AT_ONCE = 2**12


def draws_differ_by_datum(latent_model: LatentModel) -> bool:
    """Whether every datum needs draws of its own, because the prior depends on it."""
    return latent_model.plate is not None and latent_model.prior_depends_on_data


def sample_prior(
    latent_model: LatentModel, key: PRNGKeyArray, num_samples: int, by_datum: bool | None = None
) -> dict[str, Array]:
    """S latents, for every datum its own if `by_datum`; None for `draws_differ_by_datum`."""
    if not (draws_differ_by_datum(latent_model) if by_datum is None else by_datum):
        return latent_model.sample_prior(key, num_samples)
    keys = jax.random.split(key, latent_model.num_data)
    return jax.vmap(lambda k, *x: latent_model.sample_prior(k, num_samples, *x), out_axes=1)(keys, *latent_model.rows)


def _have_data_axis(latent_model: LatentModel, draws: dict[str, Array]) -> bool:
    return any(draws[name].ndim == len(shape) + 2 for name, shape in latent_model.latent_shapes.items())


def log_prior(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "num_samples _"]:
    """Prior log p(z_s): `(num_samples, 1)`, or `(num_samples, num_data)` where every datum has its own draws."""
    return _at_draws(latent_model.log_prior, latent_model, draws)


def negative_phase(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "*num_data"]:
    """Zero, with the gradient of log Z of the unnormalised latent sites, the draws being the negative samples:

        mean_s [ log p~(z_s) - stop_gradient(log p~(z_s)) ],   grad log Z = E_p[grad log p~(z)].

    Maximum likelihood subtracts it from log p~ of every datum, for each of which there is one where the prior depends
    on the data. The draws carry no gradient.
    """
    if not latent_model.unnormalized_sites:
        return jnp.zeros(())
    draws, log_density = jax.lax.stop_gradient(draws), latent_model.unnormalized_log_prior
    if draws_differ_by_datum(latent_model):
        values = jax.vmap(lambda z: jax.vmap(log_density)(z, *latent_model.rows))(draws)
    else:
        values = jax.vmap(log_density)(draws)
    return jnp.mean(values - jax.lax.stop_gradient(values), axis=0)


def _at_draws(function: Callable, latent_model: LatentModel, draws: dict[str, Array]) -> Shaped[Array, "num_samples _"]:
    """A function of the latents, and the row, of a datum at every draw."""
    if not _have_data_axis(latent_model, draws):
        return jax.vmap(function)(draws)[:, None]
    return jax.vmap(lambda z: jax.vmap(function)(z, *latent_model.rows))(draws)


def log_likelihood(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "num_samples num_data"]:
    """Likelihood log p(x_b | z_s) of every datum at every draw, or at its own draws."""
    if latent_model.plate is None:
        return jax.vmap(latent_model.log_likelihood)(draws)[:, None]
    if not _have_data_axis(latent_model, draws):
        return pairwise_log_likelihood(latent_model, draws)

    @jax.checkpoint
    def of_datum(pair):
        z, row = pair
        return jax.vmap(lambda z: latent_model.log_likelihood(z, *row))(z)

    num_samples = len(jax.tree.leaves(draws)[0])
    by_row = jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), draws)
    batch_size = min(latent_model.num_data, max(1, _PAIRS_AT_ONCE // num_samples))
    return jax.lax.map(of_datum, (by_row, latent_model.rows), batch_size=batch_size).T


def log_proposal_ratio(
    latent_model: LatentModel, encoder: LatentModel, draws: dict[str, Array]
) -> Float[Array, "num_samples num_data"]:
    """Ratio log p(z_bs) - log q(z_bs | x_b) at draws from a guide q; -inf outside of the prior's support."""
    ratio = log_prior(latent_model, draws) - log_prior(encoder, draws)
    excluded = _at_draws(partial(is_excluded, latent_model, encoder), latent_model, draws)
    return jnp.where(excluded, -jnp.inf, ratio)


def map_chunks(function: Callable, draws: PyTree, chunk_size: int | None) -> Float[Array, "rows num_data"]:
    """Apply a function of draws to `chunk_size` of them at a time and join the results along the first axis."""
    num_samples = len(jax.tree.leaves(draws)[0])
    if chunk_size is None or chunk_size >= num_samples:
        return function(draws)
    # Nothing inside of a chunk is kept for the backward pass, so memory does not grow with the number of draws.
    function = jax.checkpoint(function)
    whole = num_samples - num_samples % chunk_size
    chunks = jax.tree.map(lambda z: z[:whole].reshape(-1, chunk_size, *z.shape[1:]), draws)
    joined = jnp.concatenate(jax.lax.map(function, chunks))
    if whole == num_samples:
        return joined
    return jnp.concatenate([joined, function(jax.tree.map(lambda z: z[whole:], draws))])


def log_sum_exp(values: Float[Array, "rows num_data"]) -> Float[Array, " num_data"]:
    """Reduce the first axis by log-sum-exp; columns that are -inf throughout have gradient zero, not NaN."""
    empty = jnp.all(values == -jnp.inf, axis=0)
    return jnp.where(empty, -jnp.inf, logsumexp(jnp.where(empty, 0.0, values), axis=0))


def log_evidence(
    latent_model: LatentModel,
    key: PRNGKeyArray,
    num_samples: int,
    chunk_size: int | None = None,
    proposal: LatentModel | None = None,
) -> tuple[Float[Array, " num_data"], Float[Array, " num_data"]]:
    """Evidence log 1/S sum_s p(x_b | z_s) r(z_s) per datum, with r(z) = p(z) / stop_gradient(p(z)) = 1, and the ESS.

    The draws carry no gradient; by r the parameters of the prior receive the score
    sum_s w_bs grad log p(z_s). Where p is known up to a constant only, the mean of that score over the draws is
    subtracted (`negative_phase`), for sum_s w_bs grad log p~(z_s) - mean_s grad log p~(z_s).

    `proposal` is the same model at parameters without gradients: given one, JAX does not trace the pathwise gradients
    of the draws only to drop them.
    """
    draws = jax.lax.stop_gradient(sample_prior(proposal or latent_model, key, num_samples))
    log_density = log_prior(latent_model, draws)
    log_ratio = log_density - jax.lax.stop_gradient(log_density) - negative_phase(latent_model, draws)

    # Where every datum has its own draws, those are where the datum is.
    divide = (lambda tree: tree) if draws_differ_by_datum(latent_model) else spread

    def sums(chunk):
        chunk = divide(chunk)
        log_weights = divide(log_likelihood(latent_model, chunk[0])) + chunk[1]
        return jnp.stack([log_sum_exp(log_weights), log_sum_exp(2 * jax.lax.stop_gradient(log_weights))])

    log_sums = map_chunks(sums, (draws, log_ratio), chunk_size)
    log_sum, log_sum_of_squares = log_sum_exp(log_sums[::2]), log_sum_exp(log_sums[1::2])
    ess = jnp.exp(2 * jax.lax.stop_gradient(log_sum) - log_sum_of_squares)
    return log_sum - jnp.log(num_samples), jnp.where(log_sum == -jnp.inf, 0.0, ess)


def observed_values(latent_model: LatentModel) -> dict[str, Array]:
    """Values of the observed sites of every datum, `(num_data, ...)`; factors have none."""
    # Those that depend on latents, such as what is imputed, are no data.
    names = [
        name for name in latent_model.observed_names if not latent_model.depends_on_latents(output("observed", name))
    ]

    def observed(_, row):
        datum = latent_model.lead(row)
        values = latent_model.evaluate(lambda out: {name: out["observed"][name] for name in names}, None, datum)
        return {name: value for name, value in values.items() if value.size}

    axis = None if latent_model.plate is None else 0
    return jax.vmap(observed, in_axes=(0, axis))(jnp.arange(latent_model.num_data), latent_model.rows)
