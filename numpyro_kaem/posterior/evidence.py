"""Estimates of the evidence log p(x) from a population of chains over a temperature ladder."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

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
    log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood.astype(float), np.nan)
    steps = np.diff(temperatures)
    integral = np.sum(steps / 2 * (log_likelihood[..., 1:] + log_likelihood[..., :-1]), -1)
    bias = np.sum(steps**2 / 12 * np.diff(log_likelihood.var((1, 2)), axis=-1), -1)
    return Evidence(integral.mean((1, 2)), np.hypot(_std_error(integral), bias), bias)


def thermodynamic_of_rungs(
    temperatures: Float[np.ndarray, "*runs num_rungs"],
    mean: Float[np.ndarray, "*runs num_rungs"],
    variance: Float[np.ndarray, "*runs num_rungs"],
) -> Evidence:
    """As `thermodynamic`, from moments of the log-likelihood at rungs; the error is that of one draw at each."""
    # Temperatures are NaN where a ladder has fewer rungs than others.
    steps = np.nan_to_num(np.diff(temperatures, axis=-1))
    weights = 0.5 * (np.insert(steps, 0, 0.0, -1) + np.insert(steps, steps.shape[-1], 0.0, -1))
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
    with warnings.catch_warnings(action="ignore"):
        return np.nanstd(np.where(np.isfinite(values), values.astype(float), np.nan), axis)


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
