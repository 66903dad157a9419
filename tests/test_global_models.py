"""Tempered SMC on ordinary NumPyro models, whose latents are global, against long NUTS runs and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

from numpyro_kaem import TemperedSMC

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def nuts(model, *data):
    """Means, standard deviations and their standard errors of a long run, by latent; of tau those of its logarithm."""
    mcmc = MCMC(
        NUTS(model), num_warmup=1000, num_samples=5000, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), *data)
    samples = mcmc.get_samples(group_by_chain=True)
    if "tau" in samples:
        samples["tau"] = np.log(samples["tau"])
    return {name: moments(value) for name, value in samples.items()}


def moments(draws):
    """Mean and standard deviation over chains and draws, and their standard errors."""
    draws = np.asarray(draws, float)
    mean, std = draws.mean((0, 1)), draws.std((0, 1))
    squares = (draws - mean) ** 2
    error = std / effective_sample_size(draws) ** 0.5
    square_error = squares.std((0, 1)) / effective_sample_size(squares) ** 0.5
    return mean, std, error, square_error / (2 * std)


def agrees(found, expected, size):
    """Check that means and standard deviations differ by less than four Monte-Carlo errors of both."""
    (mean, std), (mean_0, std_0, error_0, std_error_0) = found, expected
    assert np.all(np.abs(mean - mean_0) < 4 * np.hypot(error_0, std / size**0.5))
    assert np.all(np.abs(std - std_0) < 4 * np.hypot(std_error_0, std / size**0.5))


@pytest.mark.slow
def test_eight_schools_agree_with_nuts():
    """Centred for SMC; NUTS samples the funnel only without the centring."""
    posterior = TemperedSMC(num_particles=4000, num_mcmc_steps=20, progress=False).run(
        jax.random.key(1), eight_schools, {}, EFFECTS, ERRORS
    )
    free = numpyro.handlers.reparam(eight_schools, config={"theta": LocScaleReparam(0.0)})
    expected = nuts(free, EFFECTS, ERRORS)
    for name in ("mu", "theta", "tau"):
        draws = np.log(posterior.latents[name][0]) if name == "tau" else posterior.latents[name][0]
        agrees((draws.mean(0), draws.std(0)), expected[name], posterior.ess[0])


@pytest.mark.slow
def test_logistic_regression_on_real_data_agrees_with_nuts(optimised):
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    x = data.data[:, :10]
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)

    def model(x, y):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
        coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(x.shape[1]), 2.5).to_event(1))
        with numpyro.plate("patients", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ coefficients), obs=y)

    arguments = x, data.target.astype(np.float32)
    posterior = TemperedSMC(num_particles=1000, num_mcmc_steps=20, progress=False).run(
        jax.random.key(1), model, {}, *arguments
    )
    expected = nuts(model, *arguments)
    for name in ("intercept", "coefficients"):
        draws = posterior.latents[name][0]
        agrees((draws.mean(0), draws.std(0)), expected[name], posterior.ess[0])


def separated(x):
    """One global latent whose square the data tell; its prior prefers the positive sign."""
    z = numpyro.sample("z", dist.Normal(1.0, 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z**2, 2.0), obs=x)


@pytest.mark.slow
def test_a_bimodal_posterior_agrees_with_quadrature_and_nuts_does_not():
    x = 9.0 + 2.0 * np.random.default_rng(0).normal(size=20).astype(np.float32)
    grid = np.linspace(-6.0, 6.0, 20_001)
    log_density = -0.5 * ((grid - 1.0) / 2.0) ** 2 - 0.5 * np.sum(((x[:, None] - grid**2) / 2.0) ** 2, 0)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = density @ grid
    std = (density @ (grid - mean) ** 2) ** 0.5
    constant = np.log(2.0 * np.sqrt(2 * np.pi)) * (len(x) + 1)
    log_evidence = log_density.max() + np.log(np.sum(np.exp(log_density - log_density.max())) * (grid[1] - grid[0]))

    posterior = TemperedSMC(num_particles=4000, progress=False).run(jax.random.key(1), separated, {}, x)
    z = posterior.latents["z"][0]
    size = posterior.ess[0]
    assert abs(z.mean() - mean) < 4 * std / size**0.5
    assert abs(z.std() - std) < 4 * std / size**0.5
    assert abs(posterior.log_evidence[0] - (log_evidence - constant)) < 4 * posterior.log_evidence_std_error[0]
    nuts_mean, nuts_std, *_ = nuts(separated, x)["z"]
    assert abs(nuts_mean - mean) > 0.5 or abs(nuts_std - std) > 0.5
