"""Models of the same data, compared by their evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from numpyro_kaem.posterior.result import Posterior

if TYPE_CHECKING:
    import pandas as pd


def compare_evidence(posteriors: Mapping[str, Posterior]) -> pd.DataFrame:
    """Compare models of the same data by their evidence.

    Args:
        posteriors: results of samplers that estimate the evidence, by name of the model.

    Returns:
        A table with a row per model, the best first: `log_evidence` (the sum over the data), `std_error` (errors of
        different data are independent, but for importance sampling, whose data share their draws: there it is their
        sum, the most it can be), `log_bayes_factor` against the best, its `bayes_factor_std_error`, and
        the `probability` of the model where all are as probable beforehand.

    Raises:
        ValueError: for fewer than two models, for different data, for a sampler without evidence, and where every
            model has log-evidence -inf.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import ImportanceSampling, compare_evidence


        def model(x):
            scale = numpyro.param("scale", 1.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, scale))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


        x = 3.0 * jax.random.normal(jax.random.key(0), (50,))
        sampler = ImportanceSampling(2000)
        posteriors = {
            f"scale {s}": sampler.run(jax.random.key(1), model, {"scale": s}, x) for s in jnp.array([0.5, 3.0])
        }
        assert compare_evidence(posteriors).index[0] == "scale 3.0"
        ```
    """
    import pandas as pd

    if len(posteriors) < 2:
        raise ValueError(f"posteriors must hold at least two models, got {list(posteriors)}")
    # Of a model with global latents all the data are one datum.
    sizes = {name: posterior.num_data for name, posterior in posteriors.items() if posterior.plate is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"posteriors must be of the same data, got numbers of data {sizes}")
    (first_name, first), *others = posteriors.items()
    for name, other in others:
        for site in first.observed.keys() & other.observed.keys():
            a, b = first.observed[site], other.observed[site]
            # Where one model has a plate and the other has not, leading axes differ by ones.
            if not np.array_equal(a.ravel(), b.ravel(), equal_nan=np.issubdtype(a.dtype, np.inexact)):
                raise ValueError(
                    f"posteriors must be of the same data, but {first_name!r} and {name!r} differ in the values of the "
                    f"observed site {site!r}"
                )
    rows = {}
    for name, posterior in posteriors.items():
        if posterior.log_evidence is None:
            raise ValueError(
                f"posterior {name!r} has no log_evidence: use ImportanceSampling, TemperedSMC, or ParallelTempering "
                "over a ladder that begins at 0"
            )
        errors = posterior.log_evidence_std_error
        total_error = errors.sum() if posterior.shares_draws else np.sqrt(np.sum(errors**2))
        rows[name] = posterior.log_evidence.sum(), total_error
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["log_evidence", "std_error"], dtype=float)
    table = table.sort_values("log_evidence", ascending=False)
    if table["log_evidence"].iloc[0] == -np.inf:
        raise ValueError(f"posteriors must hold a model that can give the data, but of {list(posteriors)} none can")
    table["log_bayes_factor"] = table["log_evidence"] - table["log_evidence"].iloc[0]
    error = np.hypot(table["std_error"], table["std_error"].iloc[0])
    table["bayes_factor_std_error"] = np.where(np.arange(len(table)) == 0, 0.0, error)
    probability = np.exp(table["log_bayes_factor"])
    table["probability"] = probability / probability.sum()
    return table
