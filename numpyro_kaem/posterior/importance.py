"""Importance sampling, with the prior or a guide as proposal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem._compilation.options import LOOP
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.checks import check_positive
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior import diagnostics, weights
from numpyro_kaem.posterior.pareto import pareto_smooth
from numpyro_kaem.posterior.proposal import check_guide, read_guide
from numpyro_kaem.posterior.result import Posterior
from numpyro_kaem.posterior.sampler import Sampler


def _count_bad(values: Float[Array, "num_samples num_data"]) -> Int[Array, " num_data"]:
    """How many values of each datum are NaN or +inf."""
    return jnp.sum(jnp.isnan(values) | (values == jnp.inf), axis=0)


class Weighted(NamedTuple):
    """Weighted draws, before smoothing, on the host; `log_sums` are those of `_log_sums`."""

    draws: dict[str, np.ndarray]  # (S, ...), or (S, B, ...) where every datum has its own
    log_likelihood: Float[np.ndarray, "B S"]
    log_weights: Float[np.ndarray, "B S"]
    log_sums: Float[np.ndarray, "2 B"]


@partial(jit_by_value, compiler_options=LOOP)
def _weigh(
    latent_model: LatentModel, encoder: LatentModel | None, num_samples: int, chunk_size: int | None, key: PRNGKeyArray
) -> tuple:
    """Draws, log-likelihoods, log-weights where these differ, and how many of both cannot be used."""
    by_datum = None if encoder is None else latent_model.plate is not None
    draws = weights.sample_prior(encoder or latent_model, key, num_samples, by_datum)
    at_draws = channels_last(partial(weights.log_likelihood, latent_model))
    likelihood = weights.map_chunks(at_draws, draws, chunk_size)
    if encoder is None:
        return draws, likelihood.T, None, _count_bad(likelihood), None
    log_ratio = weights.map_chunks(partial(weights.log_proposal_ratio, latent_model, encoder), draws, chunk_size)
    # Outside of its prior's support a model need not have a likelihood.
    likelihood = jnp.where(log_ratio == -jnp.inf, -jnp.inf, likelihood)
    return draws, likelihood.T, (likelihood + log_ratio).T, _count_bad(likelihood), _count_bad(log_ratio)


def _log_sums(log_weights: Float[np.ndarray, "num_data num_particles"]) -> Float[np.ndarray, "2 num_data"]:
    """Logarithms of the sums of weights and of their squares, by datum."""
    largest = log_weights.max(1)
    largest = np.where(largest == -np.inf, 0.0, largest)
    relative = np.exp(log_weights.astype(np.float64) - largest[:, None])
    with np.errstate(divide="ignore"):
        return np.log([relative.sum(1), (relative**2).sum(1)]) + np.stack([largest, 2 * largest])


def _effective_sample_size(log_sums: Float[np.ndarray, "2 num_data"]) -> Float[np.ndarray, " num_data"]:
    """ESS = (sum w)^2 / sum w^2, which is 0 where all weights are zero."""
    log_sum, log_sum_of_squares = log_sums
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.exp(2 * log_sum - log_sum_of_squares))


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceSampling(Sampler):
    """Posterior by importance sampling with the prior, or an encoder, as proposal.

    S draws z_s from the prior are shared by all data (each datum has its own where the prior depends on the
    data) and weighted by the likelihood, w_bs = p(x_b | z_s). With a guide q, each datum has draws z_bs ~ q(z | x_b)
    of its own, and

        w_bs = p(z_bs) p(x_b | z_bs) / q(z_bs | x_b),

    zero where z_bs is outside of the prior's support; the closer q is to the posterior, the more equal they are. q must
    reach wherever the posterior does, and should have the wider tails. Per datum, with ESS = (sum_s w_bs)^2 / sum_s
    w_bs^2,

        log p(x_b) ~ log mean_s w_bs,   standard error sqrt(1 / ESS - 1 / S)  (delta method).

    Errors of different data are correlated where their draws are the same. The estimate of p(x_b) is
    unbiased for a fixed S; that of its logarithm is too low by about half its squared standard error.

    With `target_ess`, batches of `num_samples` draws are added until every datum has that ESS, or `max_samples` draws
    are used; `reached_target` then says which data have it. All data keep all draws. The ESS is itself an estimate,
    which is too large where the draws have missed the posterior: see `pareto_k`.

    With `pareto_smoothed`, the largest weights of each datum are replaced by the quantiles of a generalised Pareto
    distribution fitted to them, at most the largest. Evidence and ESS are those of the smoothed weights: the estimate
    of p(x_b) has finite variance also where the weights have none, and is biased downwards.

    Args:
        num_samples: number of draws S, at least 1; with `target_ess`, of a batch.
        chunk_size: draws whose likelihoods are computed at once; None for all. It bounds the memory, apart
            from the S x B matrix of weights that is returned, and does not change the result.
        plate: name of the data plate, where the model has several.
        target_ess: ESS that each datum's weights should reach, before smoothing; None to stop after one batch.
        max_samples: most draws to use, in whole batches; by default 100 batches.
        pareto_smoothed: whether to smooth the weights (25 draws or more are needed; otherwise they stay as they are).
        progress: whether to show a progress bar, with `target_ess`.
        guide: NumPyro guide q(z | x) to draw from, with the model's arguments and latent sites; None for the prior.
        guide_params: constrained values of the guide's parameter sites, such as `fit(...).guide_params`.

    Raises:
        ValueError: for numbers out of range, a target_ess above max_samples, max_samples without target_ess,
            guide_params without a guide.

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

    num_samples: int
    chunk_size: int | None = None
    plate: str | None = None
    _: KW_ONLY
    target_ess: float | int | None = None
    max_samples: int | None = None
    pareto_smoothed: bool = False
    progress: bool = True
    guide: Callable | None = None
    guide_params: dict[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._set_counts(num_samples=1)
        check_guide(self.guide, self.guide_params)
        if self.target_ess is not None:
            self._set(target_ess=check_positive("target_ess", self.target_ess))
        elif self.max_samples is not None:
            raise ValueError(f"max_samples={self.max_samples} needs a target_ess; without one, num_samples are drawn")
        self._set_counts(max_samples=self.num_samples)
        if (self.target_ess or 0.0) > (most := self.max_batches * self.num_samples):
            raise ValueError(
                f"target_ess must be at most max_samples in whole batches of num_samples, {most}, got {self.target_ess}"
            )

    @property
    def max_batches(self) -> int:
        """Most batches of draws."""
        if self.target_ess is None:
            return 1
        return 100 if self.max_samples is None else self.max_samples // self.num_samples

    def _draw(self, key: PRNGKeyArray, latent_model: LatentModel) -> tuple[LatentModel, str | None, Weighted]:
        encoder = read_guide(self.guide, self.guide_params, latent_model)
        num_data, source = latent_model.num_data, "prior" if self.guide is None else "guide"
        keys = [key] if self.target_ess is None else jax.random.split(key, self.max_batches)
        goal, batches, log_sums = self.target_ess or 0.0, [], np.full((2, num_data), -np.inf)
        bar = tqdm(total=len(keys), unit="batch", disable=not self.progress or self.target_ess is None)
        with interrupts() as interrupted, bar:
            for batch_key in keys:
                draws, likelihood, log_weights, bad_likelihood, bad_ratio = jax.device_get(
                    _weigh(latent_model, encoder, self.num_samples, self.chunk_size, batch_key)
                )
                if self.guide is None:
                    log_weights = likelihood
                else:
                    diagnostics.check_log_ratio(bad_ratio, self.num_samples)
                diagnostics.check_log_likelihood(bad_likelihood, np.arange(num_data), self.num_samples, source)
                batches.append((draws, likelihood, log_weights))
                log_sums = np.logaddexp(log_sums, _log_sums(log_weights))
                ess = _effective_sample_size(log_sums)
                bar.update()
                bar.set_postfix_str(f"{len(batches) * self.num_samples} draws, ESS {ess.min():.0f}")
                if interrupted or np.all(ess >= goal):
                    break
        unfinished = None
        if interrupted and np.any(ess < goal):
            unfinished = f"{len(batches)} batches of draws, before every datum had its ESS"
        all_draws, all_likelihoods, all_log_weights = zip(*batches, strict=True)
        draws = jax.tree.map(lambda *z: np.concatenate(z), *all_draws)
        likelihood = np.concatenate(all_likelihoods, axis=1)
        log_weights = likelihood if self.guide is None else np.concatenate(all_log_weights, axis=1)
        return latent_model, unfinished, Weighted(draws, likelihood, log_weights, log_sums)

    def _posterior(self, latent_model: LatentModel, results: Weighted, **common: Any) -> Posterior:
        draws, likelihood, log_weights, log_sums = results
        num_data, num_samples = log_weights.shape
        source = "prior draws" if self.guide is None else "draws from the guide"
        diagnostics.warn_if_impossible(log_sums[0] == -np.inf, f"at each of {num_samples} {source}", latent_model)
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
            log_weights, _ = pareto_smooth(raw_log_weights)
            log_sums = _log_sums(log_weights)
        ess = _effective_sample_size(log_sums)
        with np.errstate(divide="ignore"):
            std_error = np.sqrt(np.maximum(1.0 / ess - 1.0 / num_samples, 0.0))
        by_datum = weights.draws_differ_by_datum(latent_model) if self.guide is None else latent_model.plate is not None
        return Posterior(
            latents={
                name: np.swapaxes(z, 0, 1) if by_datum else np.broadcast_to(z, (num_data, *z.shape))
                for name, z in draws.items()
            },
            log_weights=log_weights,
            log_likelihood=likelihood,
            log_evidence=(log_sums[0] - np.log(num_samples)).astype(log_weights.dtype),
            log_evidence_std_error=std_error,
            ess=ess,
            shares_draws=not by_datum,
            proposal_log_weights=raw_log_weights,
            reached_target=reached_target,
            latent_model=latent_model,
            **common,
        )
