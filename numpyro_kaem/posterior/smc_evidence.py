"""What the rungs of tempered SMC tell: estimates of the evidence, their standard errors, and statistics."""

from __future__ import annotations

import jax
import numpy as np
from scipy.special import ndtr, stdtrit

from numpyro_kaem.posterior.evidence import Evidence, finite_std, thermodynamic_of_rungs
from numpyro_kaem.posterior.particles import Rung
from numpyro_kaem.posterior.result import Rungs


def smc_std_error(
    rungs: Rung, share: np.ndarray, num_particles: int, *, waste_free: bool, persistent: bool
) -> np.ndarray:
    """Standard error of the log-evidence: from the families of particles, and between runs of these evidences."""
    num_data, num_runs = share.shape
    between = np.full(num_data, np.nan)
    if num_runs > 1:
        between = share.std(1, ddof=1) / share.mean(1) / num_runs**0.5
    if persistent or (waste_free and num_runs > 1):
        # A few runs tell little of their spread: twice this covers as much as of a normal distribution (Student's t).
        return between * stdtrit(num_runs - 1, ndtr(2.0)) / 2.0
    # At least what independent particles (or chains, of waste-free SMC) would have.
    variance = np.nansum(rungs.weight_variance, -1)
    if not waste_free:
        last = np.isfinite(rungs.relative_variance).sum(-1, keepdims=True) - 1
        families = np.take_along_axis(rungs.relative_variance, last, -1)[..., 0]
        variance = np.maximum(variance, families)
    within = np.sqrt(np.mean(share**2 * variance, 1) / (num_particles * num_runs)) / share.mean(1)
    return np.fmax(within, between)


def thermodynamic_along_smc(rungs: Rung, log_likelihood: np.ndarray, *, in_families: bool) -> Evidence:
    """Thermodynamic integration along each run's ladder, and their mean; `in_families` if rungs tell of families."""
    num_data, num_runs, _ = rungs.temperature.shape
    log_likelihood = log_likelihood.reshape(num_data, num_runs, -1).astype(float)
    last = np.isfinite(rungs.temperature).sum(-1, keepdims=True)
    runs = thermodynamic_of_rungs(
        np.insert(rungs.temperature, 0, 0.0, -1),
        _with_final(rungs.log_likelihood_mean, last, log_likelihood.mean(-1, keepdims=True)),
        _with_final(rungs.log_likelihood_std**2, last, finite_std(log_likelihood, -1)[..., None] ** 2),
    )
    std_error = np.full(num_data, np.nan)
    if num_runs > 1:
        std_error = runs.log_evidence.std(1, ddof=1) / num_runs**0.5
    if in_families:
        # Particles that mix slowly are worth as many fewer here as they are in the product of mean weights.
        ratio = np.take_along_axis(rungs.relative_variance, last - 1, -1)[..., 0]
        ratio = ratio / np.maximum(np.nansum(rungs.weight_variance, -1), 1e-12)
        variance = np.mean(runs.std_error**2 * np.maximum(ratio, 1.0), 1) / log_likelihood[0].size
        std_error = np.fmax(np.sqrt(variance), std_error)
    bias = runs.bias.mean(1)
    return Evidence(runs.log_evidence.mean(1), np.hypot(std_error, bias), bias)


def mean_rungs(rungs: Rung, log_likelihood: np.ndarray, num_particles: int) -> Rungs:
    """Statistics by rung, means over runs; the last are of the particles `(B, R N)`."""
    # A run that has arrived stays at t = 1 while others are on their way.
    someone = np.isfinite(rungs.temperature).any(1, keepdims=True)
    rungs = rungs._replace(temperature=np.where(someone & np.isnan(rungs.temperature), 1.0, rungs.temperature))
    mean = jax.tree.map(mean_over_runs, rungs)
    last = np.isfinite(mean.temperature).sum(1, keepdims=True)
    return Rungs(
        temperatures=np.insert(mean.temperature, 0, 0.0, 1),
        acceptance=np.insert(mean.acceptance, 0, np.nan, 1),
        step_size=np.insert(mean.step_size, 0, np.nan, 1),
        ess=_with_final(mean.ess, last, num_particles),
        log_likelihood_mean=_with_final(mean.log_likelihood_mean, last, log_likelihood.mean(1, keepdims=True)),
        log_likelihood_std=_with_final(mean.log_likelihood_std, last, finite_std(log_likelihood, 1)[:, None]),
        scale=np.insert(mean.scale, 0, np.nan, 1),
    )


def _with_final(series: np.ndarray, last: np.ndarray, value: np.ndarray | int) -> np.ndarray:
    """The series `(..., K)` with room for one rung more, and a value at the index `last`."""
    series = np.insert(series, series.shape[-1], np.nan, -1)
    np.put_along_axis(series, last, value, -1)
    return series


def mean_over_runs(series: np.ndarray) -> np.ndarray:
    """The mean of `(B, R, K, ...)` over runs, of those that have come so far."""
    there = np.isfinite(series)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, series, 0.0).sum(1) / there.sum(1)
