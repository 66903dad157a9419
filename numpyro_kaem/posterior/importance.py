"""Importance sampling with the prior as proposal, and the weights that it shares with `ImportanceMLE`.

The functions here take a `LatentModel` and are pure: they are jitted, differentiated and scanned by their
callers. Draws have the draw axis S first; where the prior depends on the data a data axis B follows it,
otherwise all data share the same draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.pairwise import pairwise_log_likelihood
from numpyro_kaem.posterior.diagnostics import check_log_likelihood, warn_if_impossible
from numpyro_kaem.posterior.result import Posterior

# Runs of the model that are held at once where it must run for every pair of a draw and a datum.
_PAIRS_AT_ONCE = 2**12


def draws_differ_by_datum(latent_model: LatentModel) -> bool:
    """Whether every datum needs draws of its own, because the prior depends on it."""
    return latent_model.plate is not None and latent_model.prior_depends_on_data


def sample_prior(latent_model: LatentModel, key: PRNGKeyArray, num_samples: int) -> dict[str, Array]:
    """Draw S latents, the same for all data where the prior does not depend on them.

    Returns:
        For each latent site `(num_samples, *shape)`, or `(num_samples, num_data, *shape)` where the prior
        depends on the data.
    """
    if not draws_differ_by_datum(latent_model):
        return latent_model.sample_prior(key, num_samples)
    keys = jax.random.split(key, latent_model.num_data)
    return jax.vmap(lambda k, *x: latent_model.sample_prior(k, num_samples, *x), out_axes=1)(keys, *latent_model.rows)


def log_prior(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "num_samples _"]:
    """Prior log p(z_s): `(num_samples, 1)`, or `(num_samples, num_data)` where it depends on the data."""
    if not draws_differ_by_datum(latent_model):
        return jax.vmap(latent_model.log_prior)(draws)[:, None]
    return jax.vmap(lambda z: jax.vmap(latent_model.log_prior)(z, *latent_model.rows))(draws)


def negative_phase(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "*num_data"]:
    """Zero, with the gradient of log Z of the unnormalised latent sites, the draws being the negative samples:

        mean_s [ log p~(z_s) - stop_gradient(log p~(z_s)) ],   grad log Z = E_p[grad log p~(z)].

    Maximum likelihood subtracts it from log p~ of every datum. The draws carry no gradient.

    Args:
        latent_model: the model; without unnormalised sites the result is a constant zero.
        draws: as from `sample_prior`, S of them.

    Returns:
        A scalar; where the prior depends on the data, one number for each datum.
    """
    if not latent_model.unnormalized_sites:
        return jnp.zeros(())
    draws, log_density = jax.lax.stop_gradient(draws), latent_model.unnormalized_log_prior
    if draws_differ_by_datum(latent_model):
        values = jax.vmap(lambda z: jax.vmap(log_density)(z, *latent_model.rows))(draws)
    else:
        values = jax.vmap(log_density)(draws)
    return jnp.mean(values - jax.lax.stop_gradient(values), axis=0)


def log_likelihood(latent_model: LatentModel, draws: dict[str, Array]) -> Float[Array, "num_samples num_data"]:
    """Likelihood log p(x_b | z_s) of every datum at every draw (or at its own draws)."""
    if latent_model.plate is None:
        return jax.vmap(latent_model.log_likelihood)(draws)[:, None]
    if not draws_differ_by_datum(latent_model):
        return pairwise_log_likelihood(latent_model, draws)

    @jax.checkpoint
    def of_datum(pair):
        z, row = pair
        return jax.vmap(lambda z: latent_model.log_likelihood(z, *row))(z)

    num_samples = len(jax.tree.leaves(draws)[0])
    by_datum = jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), draws)
    batch_size = min(latent_model.num_data, max(1, _PAIRS_AT_ONCE // num_samples))
    return jax.lax.map(of_datum, (by_datum, latent_model.rows), batch_size=batch_size).T


def map_chunks(function: Callable, draws: PyTree, chunk_size: int | None) -> Float[Array, "rows num_data"]:
    """Apply a function of draws to `chunk_size` of them at a time and join the results along the first axis.

    Nothing inside of a chunk is kept for the backward pass, so memory does not grow with the number of draws.
    """
    num_samples = len(jax.tree.leaves(draws)[0])
    if chunk_size is None or chunk_size >= num_samples:
        return function(draws)
    function = jax.checkpoint(function)
    whole = num_samples - num_samples % chunk_size
    chunks = jax.tree.map(lambda z: z[:whole].reshape(-1, chunk_size, *z.shape[1:]), draws)
    joined = jax.lax.map(function, chunks)
    joined = joined.reshape(-1, joined.shape[-1])
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

    def sums(chunk):
        log_weights = log_likelihood(latent_model, chunk[0]) + chunk[1]
        return jnp.stack([log_sum_exp(log_weights), log_sum_exp(2 * jax.lax.stop_gradient(log_weights))])

    log_sums = map_chunks(sums, (draws, log_ratio), chunk_size)
    log_sum, log_sum_of_squares = log_sum_exp(log_sums[::2]), log_sum_exp(log_sums[1::2])
    ess = jnp.exp(2 * jax.lax.stop_gradient(log_sum) - log_sum_of_squares)
    return log_sum - jnp.log(num_samples), jnp.where(log_sum == -jnp.inf, 0.0, ess)


def observed_values(latent_model: LatentModel) -> dict[str, Array]:
    """Values of the observed sites of every datum, `(num_data, ...)`; factors have none."""
    program = latent_model.program
    latents, _ = program.staged.args

    def observed(_, row):
        values = program.staged.evaluate(lambda outputs: outputs["observed"], latents, program.lead(row))
        return {name: value for name, value in values.items() if value.size}

    axis = None if latent_model.plate is None else 0
    return jax.vmap(observed, in_axes=(0, axis))(jnp.arange(latent_model.num_data), latent_model.rows)


def _log_sums(log_weights: Float[np.ndarray, "num_data num_particles"]) -> Float[np.ndarray, "2 num_data"]:
    """Logarithms of the sums of weights and of their squares, by datum."""
    largest = log_weights.max(1)
    largest = np.where(largest == -np.inf, 0.0, largest)
    weights = np.exp(log_weights.astype(np.float64) - largest[:, None])
    with np.errstate(divide="ignore"):
        return np.log([weights.sum(1), (weights**2).sum(1)]) + np.stack([largest, 2 * largest])


def _effective_sample_size(log_sums: Float[np.ndarray, "2 num_data"]) -> Float[np.ndarray, " num_data"]:
    """ESS = (sum w)^2 / sum w^2, which is 0 where all weights are zero."""
    log_sum, log_sum_of_squares = log_sums
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.exp(2 * log_sum - log_sum_of_squares))


class ImportanceSampling:
    """Posterior by importance sampling with the prior as proposal.

    S draws z_s from the prior are shared by all data (each datum has its own where the prior depends on the
    data) and weighted by the likelihood, w_bs = p(x_b | z_s). Per datum, with ESS = (sum_s w_bs)^2 / sum_s
    w_bs^2,

        log p(x_b) ~ log mean_s w_bs,   standard error sqrt(1 / ESS - 1 / S)  (delta method).

    Errors of different data are correlated, because their draws are the same. The estimate of p(x_b) is
    unbiased for a fixed S; that of its logarithm is too low by about half its squared standard error.

    With `target_ess`, batches of `num_samples` draws are added until every datum has that ESS, or `max_samples` draws
    are used. All data keep all draws. The ESS is itself an estimate, which is too large where the draws have missed
    the posterior: see `pareto_k`.

    With `pareto_smoothed`, the largest weights of each datum are replaced by the quantiles of a generalised Pareto
    distribution fitted to them, at most the largest. Evidence and ESS are those of the smoothed weights: the estimate
    of p(x_b) has finite variance also where the weights have none, and is biased downwards.

    Args:
        num_samples: number of prior draws S, at least 1; with `target_ess`, of a batch.
        chunk_size: draws whose likelihoods are computed at once; None for all. It bounds the memory, apart
            from the S x B matrix of weights that is returned, and does not change the result.
        plate: name of the data plate, where the model has several.
        target_ess: ESS that each datum's weights should reach, before smoothing; None to stop after one batch.
        max_samples: most draws to use, in whole batches; by default 100 batches.
        pareto_smoothed: whether to smooth the weights (25 draws or more are needed; otherwise they stay as they are).

    Raises:
        ValueError: for numbers out of range, a target_ess above max_samples, max_samples without target_ess.

    References:
        A. Vehtari et al., Pareto Smoothed Importance Sampling, Journal of Machine Learning Research 25(72), 2024.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import ImportanceSampling


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0]])
        posterior = ImportanceSampling(num_samples=2000).run(jax.random.key(0), model, {}, x)
        assert posterior.latents["z"].shape == (3, 2000, 2)
        exact = dist.Normal(0.0, jnp.sqrt(1.25)).log_prob(x).sum(-1)
        assert jnp.allclose(posterior.log_evidence, exact, atol=0.2)

        posterior = ImportanceSampling(2000, target_ess=400).run(jax.random.key(0), model, {}, x)
        assert posterior.reached_target.all() and posterior.ess.min() >= 400
        ```
    """

    def __init__(
        self,
        num_samples: int,
        chunk_size: int | None = None,
        plate: str | None = None,
        *,
        target_ess: float | int | None = None,
        max_samples: int | None = None,
        pareto_smoothed: bool = False,
    ):
        self.num_samples = check_count("num_samples", num_samples, 1)
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size, 1)
        self.plate, self.pareto_smoothed = plate, pareto_smoothed
        self.target_ess = None if target_ess is None else check_positive("target_ess", float(target_ess))
        if self.target_ess is None:
            if max_samples is not None:
                raise ValueError(f"max_samples={max_samples} needs a target_ess; without one, num_samples are drawn")
            self.max_batches = 1
            return
        max_samples = 100 * self.num_samples if max_samples is None else max_samples
        self.max_batches = check_count("max_samples", max_samples, self.num_samples) // self.num_samples
        if self.target_ess > self.max_batches * self.num_samples:
            raise ValueError(
                f"target_ess must be at most max_samples in whole batches of num_samples, "
                f"{self.max_batches * self.num_samples}, got {target_ess}"
            )

    def run(
        self, key: PRNGKeyArray, model: Callable, params: dict[str, Any], *data: Any, **model_kwargs: Any
    ) -> Posterior:
        """Sample the posterior of every datum.

        Args:
            key: JAX random key.
            model: NumPyro model.
            params: constrained values of its parameter sites, `{}` where it has none.
            *data: positional arguments of the model.
            **model_kwargs: keyword arguments of the model.

        Returns:
            Weighted draws, evidence and diagnostics of every datum.

        Warns:
            RuntimeWarning: if a datum has likelihood zero at every draw, its `log_evidence` is -inf; if a datum falls
                short of `target_ess`, `reached_target` says which.

        Raises:
            ValueError: where LatentModel cannot read the model, or a parameter is unknown or missing; for a
                log-likelihood that is NaN or +inf.
        """
        latent_model = LatentModel(model, params, *data, plate=self.plate, **model_kwargs)

        @eqx.filter_jit
        def weigh(key, params, data, model_kwargs):
            # The model is read again, so that parameters and data are arguments of the compiled function.
            latent_model = LatentModel(model, params, *data, plate=self.plate, check=False, **model_kwargs)
            draws = sample_prior(latent_model, key, self.num_samples)
            log_weights = map_chunks(partial(log_likelihood, latent_model), draws, self.chunk_size)
            bad = jnp.sum(jnp.isnan(log_weights) | (log_weights == jnp.inf), axis=0)
            return draws, log_weights.T, bad

        num_data = latent_model.num_data
        keys = [key] if self.target_ess is None else jax.random.split(key, self.max_batches)
        batches, log_sums = [], np.full((2, num_data), -np.inf)
        for batch_key in keys:
            draws, log_weights, bad = jax.device_get(weigh(batch_key, params, data, model_kwargs))
            check_log_likelihood(bad, np.arange(num_data), self.num_samples)
            batches.append((draws, log_weights))
            log_sums = np.logaddexp(log_sums, _log_sums(log_weights))
            if self.target_ess is not None and np.all(_effective_sample_size(log_sums) >= self.target_ess):
                break
        all_draws, all_log_weights = zip(*batches, strict=True)
        draws = {name: np.concatenate([batch[name] for batch in all_draws]) for name in all_draws[0]}
        return self._posterior(latent_model, draws, np.concatenate(all_log_weights, axis=1), log_sums)

    def _posterior(
        self, latent_model: LatentModel, draws: dict[str, np.ndarray], log_weights: np.ndarray, log_sums: np.ndarray
    ) -> Posterior:
        num_data, num_samples = log_weights.shape
        warn_if_impossible(log_sums[0] == -np.inf, f"at each of {num_samples} prior draws")
        reached_target = None
        if self.target_ess is not None:
            reached_target = _effective_sample_size(log_sums) >= self.target_ess
            if short := np.flatnonzero(~reached_target).tolist():
                warnings.warn(
                    f"{len(short)} of {num_data} data have an ESS below target_ess={self.target_ess:g} after "
                    f"{num_samples} draws, the first at indices {short[:5]} (`reached_target` has all): raise "
                    "max_samples, or sample these with TemperedSMC or ParallelTempering",
                    RuntimeWarning,
                    stacklevel=3,
                )
        raw_log_weights = log_weights
        if self.pareto_smoothed:
            # ArviZ is slow to import, and few need it here.
            from numpyro_kaem.arviz import pareto_smooth

            log_weights = pareto_smooth(raw_log_weights)
            log_sums = _log_sums(log_weights)
        ess = _effective_sample_size(log_sums)
        with np.errstate(divide="ignore"):
            std_error = np.sqrt(np.maximum(1.0 / ess - 1.0 / num_samples, 0.0))
        by_datum = draws_differ_by_datum(latent_model)
        return Posterior(
            latents={
                name: np.swapaxes(z, 0, 1) if by_datum else np.broadcast_to(z, (num_data, *z.shape))
                for name, z in draws.items()
            },
            log_weights=log_weights,
            log_likelihood=raw_log_weights,
            log_evidence=(log_sums[0] - np.log(num_samples)).astype(log_weights.dtype),
            log_evidence_std_error=std_error,
            ess=ess,
            observed=jax.device_get(observed_values(latent_model)),
            plate=latent_model.plate,
            proposal_log_weights=raw_log_weights,
            reached_target=reached_target,
            latent_model=latent_model,
        )
