"""Estimates of the evidence from runs of tempered SMC, and their standard errors, by what their rungs tell."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, stdtrit

from numpyro_kaem.posterior.evidence import Evidence, finite_std, thermodynamic_of_rungs
from numpyro_kaem.posterior.swarm import Plan, Rung


def smc_std_error(rungs: Rung, share: np.ndarray, num_particles: int, plan: Plan) -> np.ndarray:
    """Standard error of the log-evidence: from the families of particles, and between runs of these evidences.

    Where it is that between a few runs alone, it is so much larger that twice of it covers as much as of a normal
    distribution: a few runs tell little of their spread (Student's t).
    """
    num_data, num_runs = share.shape
    between = np.full(num_data, np.nan)
    if num_runs > 1:
        between = share.std(1, ddof=1) / share.mean(1) / num_runs**0.5
    if plan.persistent or (plan.waste_free and num_runs > 1):
        return between * (stdtrit(num_runs - 1, ndtr(2.0)) / 2.0 if num_runs > 1 else 1.0)
    # At least what independent particles (or chains, of waste-free SMC) would have.
    variance = np.nansum(rungs.weight_variance, -1)
    if not plan.waste_free:
        last = np.isfinite(rungs.relative_variance).sum(-1, keepdims=True) - 1
        families = np.take_along_axis(rungs.relative_variance, last, -1)[..., 0]
        variance = np.maximum(variance, families)
    within = np.sqrt(np.mean(share**2 * variance, 1) / (num_particles * num_runs)) / share.mean(1)
    return np.fmax(within, between)


def thermodynamic_along_smc(rungs: Rung, log_likelihood: np.ndarray, plan: Plan) -> Evidence:
    """Thermodynamic integration along the ladder of each run, and the mean over runs."""
    num_data, num_runs, _ = rungs.temperature.shape
    log_likelihood = log_likelihood.reshape(num_data, num_runs, -1).astype(float)
    start, last = np.zeros((num_data, num_runs, 1)), np.isfinite(rungs.temperature).sum(-1, keepdims=True)

    def with_final(series, value):
        series = np.concatenate([series, np.full_like(start, np.nan)], -1)
        np.put_along_axis(series, last, value[..., None], -1)
        return series

    runs = thermodynamic_of_rungs(
        np.concatenate([start, rungs.temperature], -1),
        with_final(rungs.log_likelihood_mean, log_likelihood.mean(-1)),
        with_final(rungs.log_likelihood_std**2, finite_std(log_likelihood, -1) ** 2),
    )
    std_error = np.full(num_data, np.nan)
    if num_runs > 1:
        std_error = runs.log_evidence.std(1, ddof=1) / num_runs**0.5
    if not plan.persistent and not plan.waste_free:
        # Particles that mix slowly are worth as many fewer here as they are in the product of mean weights.
        ratio = np.take_along_axis(rungs.relative_variance, last - 1, -1)[..., 0]
        ratio = ratio / np.maximum(np.nansum(rungs.weight_variance, -1), 1e-12)
        variance = np.mean(runs.std_error**2 * np.maximum(ratio, 1.0), 1) / log_likelihood[0].size
        std_error = np.fmax(np.sqrt(variance), std_error)
    bias = runs.bias.mean(1)
    return Evidence(runs.log_evidence.mean(1), np.hypot(std_error, bias), bias)
