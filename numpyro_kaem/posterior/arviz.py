"""Conversion to ArviZ, for both of its lines: InferenceData (0.x) and xarray's DataTree (1.x)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_kaem.posterior.labels import Labels
from numpyro_kaem.posterior.predictive import constant_data, pointwise_density, predictive_draws, prior_draws
from numpyro_kaem.posterior.result import Posterior

_IS_ARVIZ_0 = version("arviz").startswith("0.")

# Size of a group of draws, beyond which their default number shrinks.
_MOST_NUMBERS = 10**7


def to_arviz(
    posterior: Posterior,
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    *,
    method: str = "systematic",
    num_prior_samples: int | None = None,
    num_predictive_samples: int | None = None,
    log_likelihood: bool = True,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Convert a Posterior to ArviZ.

    Chains and independent runs become ArviZ's chains. ArviZ knows no weights, so weighted particles are resampled
    first, into one chain. Runs of SMC stay chains, whatever their evidences: where these differ much, R-hat says that
    the chains must not be trusted together, and `Posterior.expectation` and `num_samples` weight the runs. The groups
    are

    - `posterior`: the latent and the deterministic sites, with dimensions (chain, draw, plate, ...);
    - `prior`: the latent sites, drawn from the prior for each datum, in one chain;
    - `posterior_predictive`: the observed sites, drawn from the model at draws of the posterior, which its
      coordinate `draw` counts;
    - `log_likelihood`: log p(x | z) of each draw and each element of an observed site (events, such as the vectors
      of `to_event(1)`, are elements), with masks and scales. Factors count as observed sites;
    - `sample_stats`: `lp`, log p(z) + log p(x | z) of each draw and datum; `log_evidence`,
      `log_evidence_std_error`, `ess`, `pareto_k`, `reached_target` and `divergences` of each datum; `temperature`,
      `acceptance`, `step_size`, `rung_ess`, `log_likelihood_mean`, `log_likelihood_std` and `swap_acceptance` (with
      the next rung; NaN at the last) of each datum and `rung`, and `round_trip_rate`; `log_weights` of each datum
      and `particle`. What a sampler has not is left out;
    - `observed_data`: the observed sites;
    - `constant_data`: the model's other positional arrays, by the names of its signature (the plate's name followed
      by `_value`).

    The data dimension is named after the plate, those of inner plates after these, all numbered from 0. A model with
    global latents has no data dimension, but every plate names its own: a site y of eight schools has dimensions
    (chain, draw, schools).

    `az.loo` of a model with latents per datum estimates the sum of `log_evidence` (a datum left out takes its latents
    with it), and does it worse than `log_evidence`. Copies of a resampled particle are neighbouring draws, so the
    effective sample size that `az.summary` shows counts them about once.

    Args:
        posterior: result of a sampler.
        key: JAX random key of resampling and of the draws from prior and model; None for `jax.random.key(0)`, so that
            the same Posterior gives the same draws.
        num_samples: resample this many draws per datum; None for all draws as they are or, where they have weights,
            as many as there are particles. The group `posterior` holds `num_data * num_samples` values of each latent.
        method: resampling method, see `Posterior.resample`.
        num_prior_samples: draws per datum of `prior`, 0 to leave it out; None for 500, or fewer where the group would
            have more than 10 million numbers.
        num_predictive_samples: draws per datum of `posterior_predictive`, evenly spaced in the chains, 0 to leave it
            out; None for all, or fewer where the group would have more than 10 million numbers.
        log_likelihood: whether to compute that group, and `lp`. It runs the model at every draw of every datum.
        coords: coordinate values of dimensions.
        dims: names of a variable's dimensions without plate, `{"z": ["coordinate"]}`, or of all after the data's.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with ArviZ 1.x. To write NetCDF files with
        `to_netcdf` the package h5netcdf or netCDF4 must be installed.

    Warns:
        RuntimeWarning: for an observed site whose distribution cannot be sampled; `posterior_predictive` lacks it.

    Raises:
        ValueError: for num_samples below 1, an unknown method, dims of the wrong length, and dims or coords of what
            there is not.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import MALA, ImportanceSampling, Langevin


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0]])
        posterior = ImportanceSampling(num_samples=2000).run(jax.random.key(0), model, {}, x)
        idata = posterior.to_arviz(num_samples=100, dims={"z": ["coordinate"]})
        assert idata.posterior["z"].dims == ("chain", "draw", "data", "coordinate")
        assert idata.log_likelihood["x"].shape == (1, 100, 3)
        assert idata.posterior_predictive["x"].shape == (1, 100, 3, 2)

        sampler = Langevin(MALA(), num_steps=500, num_chains=4, progress=False)
        chains = sampler.run(jax.random.key(0), model, {}, x)
        assert chains.to_arviz(num_prior_samples=0).posterior["z"].shape == (4, 500, 3, 2)
        ```
    """
    model = posterior.latent_model
    if model is None:
        raise ValueError(
            "posterior must know its model, but its latent_model is None, as after unpickling one whose model is "
            "defined inside of a function: define the model in a module, or convert before you pickle"
        )
    key = jax.random.key(0) if key is None else key
    draws = posterior
    by_chain = posterior.log_weights.reshape(posterior.num_data, posterior.num_chains, -1)
    is_weighted = bool(np.any(by_chain != by_chain[..., :1]))
    if is_weighted or num_samples is not None:
        draws = posterior.resample(key, posterior.num_particles if num_samples is None else num_samples, method)
    num_chains, num_draws = draws.num_chains, draws.num_particles // draws.num_chains
    # The next key after those that resampling splits off for the data.
    key_prior, key_predictive = jax.random.split(jax.random.fold_in(key, posterior.num_data))
    labels = Labels(model, coords, dims)
    groups = {"posterior": labels.draws(draws.latents | draws.deterministic, num_chains)}

    numbers = posterior.num_data * sum(map(math.prod, model.latent_shapes.values()))
    if most := _at_most(num_prior_samples, 500, numbers):
        groups["prior"] = labels.draws(prior_draws(model, key_prior, most), 1)

    numbers = sum(value.size for value in posterior.observed.values())
    if most := _at_most(num_predictive_samples, draws.num_particles, numbers):
        kept = np.linspace(0, num_draws - 1, min(num_draws, -(-most // num_chains))).round().astype(int)
        indices = (np.arange(num_chains)[:, None] * num_draws + kept).ravel()
        latents = {name: z[:, indices] for name, z in draws.latents.items()}
        replicated = predictive_draws(model, key_predictive, latents, posterior.observed)
        groups["posterior_predictive"] = labels.draws(replicated, num_chains, draw=kept)

    statistics = _statistics(posterior)
    variables = {name: labels.by_datum(value, ["rung"][: value.ndim - 1]) for name, value in statistics.items()}
    if is_weighted:
        variables["log_weights"] = labels.by_datum(posterior.log_weights, ["particle"])
    if log_likelihood:
        log_prior, terms = pointwise_density(model, draws.latents)
        variables["lp"] = labels.by_draw(log_prior + draws.log_likelihood, num_chains)
        groups["log_likelihood"] = labels.draws(terms, num_chains, lack_events=True)
    groups["sample_stats"] = labels.dataset(variables)

    observed = posterior.observed
    variables = {name: labels.by_datum(x, labels.of_site(name, x.ndim - 1)) for name, x in observed.items()}
    groups["observed_data"] = labels.dataset(variables)
    if constants := constant_data(model, observed):
        variables = {name: labels.by_datum(x, labels.of_array(name, x.ndim - 1)) for name, x in constants.items()}
        groups["constant_data"] = labels.dataset(variables)

    labels.check_names(
        {str(name) for group in groups.values() for name in group.data_vars},
        {str(dim) for group in groups.values() for dim in group.dims},
    )
    if _IS_ARVIZ_0:
        import arviz

        return arviz.InferenceData(**groups)
    import xarray as xr

    return xr.DataTree.from_dict(groups)


def _at_most(given: int | None, default: int, numbers_per_draw: int) -> int:
    """How many draws a group has: what is given, or by default what keeps it at a moderate size."""
    if numbers_per_draw == 0:
        return 0
    return min(default, max(1, _MOST_NUMBERS // numbers_per_draw)) if given is None else given


def _statistics(posterior: Posterior) -> dict[str, np.ndarray]:
    """What a sampler says of each datum, and of its rungs."""
    names = ("log_evidence", "log_evidence_std_error", "ess", "pareto_k", "reached_target", "divergences")
    statistics = {name: getattr(posterior, name) for name in names}
    rungs = posterior.rungs
    if rungs is not None:
        renamed = {"temperatures": "temperature", "ess": "rung_ess"}
        statistics |= {renamed.get(name, name): getattr(rungs, name) for name in rungs._fields[:6]}
        if rungs.temperatures.shape[1] > 1 and rungs.swap_acceptance is not None:
            last = np.full((posterior.num_data, 1), np.nan)
            statistics["swap_acceptance"] = np.concatenate([rungs.swap_acceptance, last], axis=1)
            statistics["round_trip_rate"] = rungs.round_trip_rate
    return {name: np.asarray(value) for name, value in statistics.items() if value is not None}
