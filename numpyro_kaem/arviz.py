"""Conversion to ArviZ, for both of its lines: InferenceData (0.x) and xarray's DataTree (1.x).

ArviZ is imported when a function is called, not when this module is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_kaem.posterior.result import Posterior

_IS_ARVIZ_0 = version("arviz").startswith("0.")


def pareto_k(log_weights: Float[np.ndarray, "num_data num_particles"]) -> Float[np.ndarray, " num_data"]:
    """Shape k-hat of the generalised Pareto distribution fitted to the largest weights of each datum.

    Args:
        log_weights: unnormalised log importance weights.

    Returns:
        k-hat of each row: inf where so few weights differ from zero that a tail cannot be fitted, -inf where
        the largest weights are all equal (the tail ends at once), NaN below 25 particles.

    References:
        A. Vehtari et al., Pareto Smoothed Importance Sampling, Journal of Machine Learning Research 25(72),
        2024.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem.arviz import pareto_k

        weights = 1.0 + np.random.default_rng(0).pareto(2.0, size=(1, 20_000))  # a tail of shape 1 / 2
        assert abs(pareto_k(np.log(weights))[0] - 0.5) < 0.1
        ```
    """
    num_data, num_particles = log_weights.shape
    if num_particles < 25:
        return np.full(num_data, np.nan)
    tail_size = int(np.ceil(min(0.2 * num_particles, 3.0 * num_particles**0.5)))
    tail = np.partition(log_weights, -tail_size - 1, axis=1)[:, -tail_size - 1 :].astype(np.float64)
    k = np.full(num_data, np.inf)
    fits = np.isfinite(tail.min(1))
    k[fits] = -np.inf
    fits &= tail.max(1) > tail.min(1)
    if fits.any():
        k[fits] = _fit_pareto_k(log_weights[fits].astype(np.float64))
    return k


def _fit_pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """k-hat by the installed ArviZ."""
    if _IS_ARVIZ_0:
        import arviz

        return arviz.psislw(log_weights)[1]
    from arviz_stats.base import array_stats

    # ArviZ 1.x takes log-likelihoods here and negates them into the log-weights of leave-one-out.
    return array_stats.psislw(-log_weights, axis=-1)[1]


def posterior_samples(idata: Any, var_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read variables of a posterior, chains one after the other.

    Args:
        idata: `arviz.InferenceData` (ArviZ 0.x), `xarray.DataTree` (1.x), the dataset of a posterior, or a dict of
            arrays with leading axes (chain, draw) such as `mcmc.get_samples(group_by_chain=True)`.
        var_names: names of variables.

    Returns:
        Arrays of shape (num_chains * num_draws, *shape) by name, in the order of var_names.

    Raises:
        TypeError: for another type of idata.
        ValueError: without a posterior, or without one of the variables (those that there are are listed).

    Example:
        ```python
        import numpy as np
        from numpyro_kaem.arviz import posterior_samples

        draws = {"beta": np.zeros((4, 100, 3)), "sigma": np.ones((4, 100))}  # 4 chains of 100 draws
        assert posterior_samples(draws, ["beta"])["beta"].shape == (400, 3)
        ```
    """
    group = _posterior_group(idata)
    present = sorted(str(name) for name in group)
    if len(var_names) == 0:
        raise ValueError(f"var_name must name at least one variable, got none; the posterior has {present}")
    if len(set(var_names)) < len(var_names):
        raise ValueError(f"var_name must name each variable once, got {list(var_names)}")
    missing = [name for name in var_names if name not in present]
    if missing:
        raise ValueError(f"var_name {missing} not in the posterior, which has {present}")
    samples = {}
    for name in var_names:
        variable = group[name]
        if hasattr(variable, "dims"):
            if not {"chain", "draw"} <= set(variable.dims):
                raise ValueError(f"variable {name!r} must have dimensions chain and draw, got {variable.dims}")
            variable = variable.transpose("chain", "draw", ...)
        values = np.asarray(variable)
        if values.ndim < 2:
            raise ValueError(
                f"variable {name!r} must have leading axes (chain, draw), got shape {values.shape}; with NumPyro, "
                "mcmc.get_samples(group_by_chain=True)"
            )
        samples[name] = values.reshape(-1, *values.shape[2:])
    counts = {name: len(values) for name, values in samples.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"variables must have the same number of draws, got {counts}")
    return samples


def _posterior_group(idata: Any) -> Mapping[str, Any]:
    """The posterior's variables by name."""
    import xarray as xr

    if isinstance(idata, dict):
        return idata
    if isinstance(idata, xr.Dataset):
        return idata.data_vars
    try:
        groups = [str(group).strip("/") for group in (idata.groups() if callable(idata.groups) else idata.groups)]
    except AttributeError:
        raise TypeError(
            "idata must be an InferenceData or a DataTree with a group named posterior, or a dict of arrays with "
            f"leading axes (chain, draw), got {type(idata).__name__}; arviz.from_numpyro(mcmc) makes one"
        ) from None
    if "posterior" not in groups:
        raise ValueError(f"idata must have a group named posterior, but has only {sorted(filter(None, groups))}")
    return idata["posterior"].data_vars


def to_arviz(
    posterior: Posterior,
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    *,
    method: str = "systematic",
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Convert a Posterior to ArviZ.

    ArviZ knows no weights, so the particles are resampled first. The groups are

    - `posterior`: the latent sites, with dimensions (chain, draw, plate, ...), one chain;
    - `log_likelihood`: log p(x_b | z_b) of each draw, (chain, draw, plate), named after the observed site, or
      "log_likelihood" where there are several. `az.loo` makes of it an estimate of the sum of `log_evidence`
      (a datum left out takes its latents with it), and a worse one than `log_evidence` itself;
    - `sample_stats`: `log_evidence`, `log_evidence_std_error`, `ess` and `pareto_k` of each datum, (plate,);
    - `observed_data`: the observed sites.

    The data dimension is named after the plate and numbered from 0. A model with global latents has none.
    Copies of a particle are neighbouring draws, so the effective sample size that `az.summary` shows counts
    them about once.

    Args:
        posterior: result of a sampler.
        key: JAX random key of the resampling; None for `jax.random.key(0)`, so that the same Posterior gives
            the same draws.
        num_samples: draws per datum; None for as many as there are particles. The group `posterior` holds
            `num_data * num_samples` values of each latent.
        method: resampling method, see `Posterior.resample`.
        coords: coordinate values of dimensions.
        dims: names of the event dimensions of a variable, `{"z": ["coordinate"]}`.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with ArviZ 1.x. To write NetCDF files with
        `to_netcdf` the package h5netcdf or netCDF4 must be installed.

    Raises:
        ValueError: for num_samples below 1 or an unknown method.

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
                numpyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


        posterior = ImportanceSampling(500).run(jax.random.key(0), model, {}, jnp.array([0.5, 1.0, -2.0]))
        idata = posterior.to_arviz(num_samples=100, dims={"z": ["coordinate"]})
        assert idata.posterior["z"].dims == ("chain", "draw", "data", "coordinate")
        assert idata.log_likelihood["x"].shape == (1, 100, 3)
        ```
    """
    import xarray as xr

    key = jax.random.key(0) if key is None else key
    num_samples = posterior.num_particles if num_samples is None else num_samples
    draws = posterior.resample(key, num_samples, method)
    coords, dims = dict(coords or {}), dict(dims or {})
    data_dims = [] if posterior.plate is None else [posterior.plate]

    def variable(name, value, leading):
        """Xarray's (dimensions, values) of an array whose first axes are `leading`."""
        event = [f"{name}_dim_{i}" for i in range(value.ndim - len(leading))]
        # The log-likelihood bears the name of its observed site, but has no event dimensions.
        return [*leading, *(dims.get(name, event) if event else [])], value

    def by_datum(name, value):
        return variable(name, value if data_dims else value[0], data_dims)

    def by_draw(name, value):
        value = np.swapaxes(value, 0, 1) if data_dims else value[0]
        return variable(name, value[None], ["chain", "draw", *data_dims])

    def dataset(variables):
        data = xr.Dataset(variables)
        numbered = {dim: np.arange(size) for dim, size in data.sizes.items()}
        return data.assign_coords({dim: coords.get(dim, numbers) for dim, numbers in numbered.items()})

    likelihood_name = next(iter(posterior.observed)) if len(posterior.observed) == 1 else "log_likelihood"
    statistics = ("log_evidence", "log_evidence_std_error", "ess", "pareto_k")
    groups = {
        "posterior": {name: by_draw(name, value) for name, value in draws.latents.items()},
        "log_likelihood": {likelihood_name: by_draw(likelihood_name, draws.log_likelihood)},
        "sample_stats": {name: by_datum(name, getattr(posterior, name)) for name in statistics},
        "observed_data": {name: by_datum(name, value) for name, value in posterior.observed.items()},
    }
    groups = {name: dataset(variables) for name, variables in groups.items()}

    if _IS_ARVIZ_0:
        import arviz

        return arviz.InferenceData(**groups)
    return xr.DataTree.from_dict(groups)
