"""Estimates of the evidence log p(x) from a population of chains over a temperature ladder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd

    from numpyro_kaem.posterior.result import Posterior


_NUM_BATCHES = 20


class Evidence(NamedTuple):
    """An estimate of the log-evidence of each datum.

    Attributes:
        log_evidence: estimate of log p(x_b).
        std_error: its standard error, with the bias in it.
        bias: estimate of its bias; zero where there is none that is known.
    """

    log_evidence: Float[np.ndarray, " num_data"]
    std_error: Float[np.ndarray, " num_data"]
    bias: Float[np.ndarray, " num_data"]


def steppingstone(
    temperatures: Float[np.ndarray, " num_rungs"],
    log_likelihood: Float[np.ndarray, "num_data num_chains num_draws num_rungs"],
) -> Evidence:
    r"""Steppingstone estimate: each rung is the importance proposal of the next.

    $$\log p(x) = \sum_k \log E_{t_k} \bigl[ p(x \mid z)^{t_{k+1} - t_k} \bigr]$$

    The product of the ratios would be unbiased if rungs were independent and exact; its logarithm is low by half its
    variance. The standard error accounts for autocorrelation and for correlation between rungs.

    Args:
        temperatures: increasing, from 0 to 1.
        log_likelihood: log p(x_b | z) of the chains at each rung.

    Returns:
        An Evidence per datum.

    References:
        W. Xie et al., Improving marginal likelihood estimation for Bayesian phylogenetic model selection, Systematic
        Biology 60(2), 2011.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem.posterior.evidence import steppingstone

        ones = np.ones((1, 4, 100, 3))  # p(x | z) = e at every z
        assert np.allclose(steppingstone(np.array([0.0, 0.5, 1.0]), ones).log_evidence, 1.0)
        ```
    """
    log_weights = np.diff(temperatures) * log_likelihood[..., :-1].astype(float)
    largest = log_weights.max((1, 2), keepdims=True)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    weights = np.exp(log_weights - shift)
    mean = weights.mean((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_evidence = np.sum(np.log(mean) + shift[:, 0, 0], -1)
        influence = np.sum(weights / mean[:, None, None] - 1.0, -1)
    return Evidence(log_evidence, _std_error(influence), np.zeros_like(log_evidence))


def thermodynamic(
    temperatures: Float[np.ndarray, " num_rungs"],
    log_likelihood: Float[np.ndarray, "num_data num_chains num_draws num_rungs"],
) -> Evidence:
    r"""Thermodynamic integration by the trapezoidal rule.

    $$\log p(x) = \int_0^1 E_t[\log p(x \mid z)]\, dt \approx \sum_k \tfrac{t_{k+1} - t_k}{2} (E_k + E_{k+1})$$

    The integrand increases with derivative $V_t = \operatorname{Var}_t \log p(x \mid z)$. The rule's bias is estimated
    from that of adjacent rungs, $\sum_k \tfrac{(t_{k+1} - t_k)^2}{12} (V_{k+1} - V_k)$. It is not subtracted, because
    the variances are noisy, and too large an estimate where rungs are far apart; it is reported, and part of the
    standard error, $\sqrt{\text{noise}^2 + \text{bias}^2}$. Where the likelihood is zero at some draws the estimate
    does not apply, and is NaN.

    Args:
        temperatures: increasing, from 0 to 1.
        log_likelihood: log p(x_b | z) of the chains at each rung.

    Returns:
        An Evidence per datum.

    References:
        N. Friel, M. Hurn and J. Wyse, Improving power posterior estimation of statistical evidence, Statistics and
        Computing 24, 2014.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem.posterior.evidence import thermodynamic

        ones = np.ones((1, 4, 100, 3))  # p(x | z) = e at every z
        assert np.allclose(thermodynamic(np.array([0.0, 0.5, 1.0]), ones).log_evidence, 1.0)
        ```
    """
    log_likelihood = log_likelihood.astype(float)
    log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood, np.nan)
    steps = np.diff(temperatures)
    integral = np.sum(steps / 2 * (log_likelihood[..., 1:] + log_likelihood[..., :-1]), -1)
    with np.errstate(invalid="ignore"):
        variances = log_likelihood.var((1, 2))
    bias = np.sum(steps**2 / 12 * np.diff(variances, axis=-1), -1)
    return Evidence(integral.mean((1, 2)), np.hypot(_std_error(integral), bias), bias)


def thermodynamic_of_rungs(
    temperatures: Float[np.ndarray, "*runs num_rungs"],
    mean: Float[np.ndarray, "*runs num_rungs"],
    variance: Float[np.ndarray, "*runs num_rungs"],
) -> Evidence:
    """Thermodynamic integration as in `thermodynamic`, from the moments of the log-likelihood at each rung.

    Args:
        temperatures: increasing from 0 to 1, and then NaN where a ladder has fewer rungs than others.
        mean: of the log-likelihood at the rungs; -inf gives NaN.
        variance: of the log-likelihood at the rungs.

    Returns:
        An Evidence per run; the standard error is that of one independent draw at each rung.
    """
    steps = np.nan_to_num(np.diff(temperatures, axis=-1))
    none = np.zeros((*steps.shape[:-1], 1))
    weights = 0.5 * (np.concatenate([steps, none], -1) + np.concatenate([none, steps], -1))
    used = weights > 0
    with np.errstate(invalid="ignore"):
        integral = np.sum(np.where(used, weights * mean, 0.0), -1)
        # A rung that is not there follows only a step of size zero.
        bias = np.sum(steps**2 / 12 * np.nan_to_num(np.diff(variance, axis=-1)), -1)
        noise = np.sqrt(np.sum(np.where(used, weights**2 * variance, 0.0), -1))
    applies = np.isfinite(integral)
    return Evidence(*(np.where(applies, part, np.nan) for part in (integral, noise, bias)))


def _std_error(series: Float[np.ndarray, "num_data num_chains num_draws"]) -> Float[np.ndarray, " num_data"]:
    """Standard error of the mean of each datum's chains."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(series.var((1, 2)) / chain_ess(series))


def finite_std(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Standard deviation of what is finite, NaN where nothing is."""
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = finite.sum(axis, keepdims=True)
        squares = np.where(finite, (values - values.sum(axis, keepdims=True) / count) ** 2, 0.0)
        return np.sqrt(squares.sum(axis) / count.squeeze(axis))


def chain_ess(series: Float[np.ndarray, "num_data num_chains num_draws"]) -> Float[np.ndarray, " num_data"]:
    """Effective sample size of the mean of each datum's chains; at least 1.

    The smaller of NumPyro's estimate, from autocorrelations, and that of the means of twenty batches of each chain,
    which sees slow and faint correlations, such as those of chains that come back by swaps.
    """
    from numpyro.diagnostics import effective_sample_size

    num_data, num_chains, num_draws = series.shape
    if num_draws < 4:
        return np.full(num_data, float(num_chains))
    total = num_chains * num_draws
    series = np.where(np.isfinite(series), series, 0.0).astype(float)
    constant = np.ptp(series, axis=(1, 2)) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ess = effective_sample_size(np.moveaxis(series, 0, -1))
        if (length := num_draws // _NUM_BATCHES) >= 4:
            batches = series[..., : length * _NUM_BATCHES].reshape(num_data, -1, length).mean(-1)
            ess = np.minimum(ess, total * series.var((1, 2)) / (length * batches.var(1, ddof=1)))
    ess = np.where(constant | ~np.isfinite(ess), total, ess)
    return np.clip(ess, 1.0, total)


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
        TypeError: for anything but a dict.
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

    if not isinstance(posteriors, Mapping):
        raise TypeError(f"posteriors must be a dict of results by name of the model, got {type(posteriors).__name__}")
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
