"""Models whose posteriors are known, for tests of the posterior samplers."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from two_bumps import bimodal_energy

from numpyro_kaem import KAPrior

NOISE = 0.5


def linear_gaussian(dim, num_data=2, noise=NOISE, seed=0):
    """A linear-Gaussian latent model, data drawn from it, and their posterior and evidence in closed form.

    Returns:
        Model, data, posterior means (num_data, dim), standard deviations (dim,), log-evidence (num_data,).
    """
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(dim, dim)) / dim**0.5
    loadings = jnp.asarray(a.T, jnp.float32)

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ loadings, noise).to_event(1), obs=x)

    covariance = a @ a.T + noise**2 * np.eye(dim)
    x = rng.multivariate_normal(np.zeros(dim), covariance, size=num_data)
    posterior = np.linalg.inv(np.eye(dim) + a.T @ a / noise**2)
    square = np.einsum("bi,ij,bj->b", x, np.linalg.inv(covariance), x)
    log_evidence = -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return model, jnp.asarray(x, jnp.float32), x @ a @ posterior / noise**2, np.diag(posterior) ** 0.5, log_evidence


GRID = np.linspace(-6.0, 6.0, 20_001)
PRIOR = KAPrior(bimodal_energy(), dist.Normal(0.0, 1.0))
# Both modes of the prior explain the first datum, one the second, and none the third.
TWO_MODES = np.array([2.0, 0.5, 0.02], np.float32)


def decode(z):
    """A nonlinear generator for which z and -z are about the same."""
    return 0.5 * z**2 + 0.05 * z


def two_modes(x):
    """A latent with two bumps behind a generator that hardly tells them apart."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", PRIOR)
        numpyro.sample("x", dist.Normal(decode(z), NOISE), obs=x)


def quadrature(x, temperature=1.0):
    """CDF on `GRID` of the posterior of `two_modes` for one datum, and its log-evidence, in float64."""
    log_prior = np.asarray(PRIOR.log_prob(jnp.asarray(GRID)), float)
    residual = (float(x) - (0.5 * GRID**2 + 0.05 * GRID)) / NOISE
    log_likelihood = -0.5 * residual**2 - np.log(NOISE) - 0.5 * np.log(2 * np.pi)
    density = np.exp(log_prior + temperature * log_likelihood)
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(GRID))])
    return cdf / cdf[-1], np.log(cdf[-1])


def distance(z, cdf, weights=None):
    """Largest distance of the empirical distribution function of draws from a CDF on `GRID`."""
    order = np.argsort(z)
    weights = np.full(len(z), 1.0) if weights is None else weights[order]
    steps = np.cumsum(weights) / np.sum(weights)
    exact = np.interp(z[order], GRID, cdf)
    return max(np.abs(steps - exact).max(), np.abs(np.concatenate([[0.0], steps[:-1]]) - exact).max())


def ks_bound(size, false_alarm=1e-6):
    """Distance that an empirical distribution function of independent draws exceeds with a given probability."""
    return (np.log(2.0 / false_alarm) / (2.0 * size)) ** 0.5
