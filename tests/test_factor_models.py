"""Factor models with missing entries: a masked entry is as if it had not been, and evidences are those of a normal."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from numpyro_kaem import ImportanceSampling, TemperedSMC

NUM_SENSORS, NUM_SOURCES, NUM_ROWS = 5, 2, 6


def factor_model(x, seen):
    mixing = numpyro.param("mixing", jnp.zeros((x.shape[-1], NUM_SOURCES)))
    noise = numpyro.param("noise", jnp.ones(x.shape[-1]), constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_SOURCES), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ mixing.T, noise).mask(seen).to_event(1), obs=x)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {"mixing": rng.normal(size=(NUM_SENSORS, NUM_SOURCES)).astype(np.float32)}
    params["noise"] = rng.uniform(0.4, 0.8, NUM_SENSORS).astype(np.float32)
    z = rng.normal(size=(NUM_ROWS, NUM_SOURCES))
    x = z @ params["mixing"].T + params["noise"] * rng.normal(size=(NUM_ROWS, NUM_SENSORS))
    seen = rng.random(x.shape) > 0.3
    return params, x.astype(np.float32), seen


def exact(params, x, seen):
    """Log-evidence, posterior means and variances of each row, from the entries that are seen."""
    found = []
    for row, at in zip(x, seen, strict=True):
        mixing, noise = params["mixing"][at].astype(float), params["noise"][at].astype(float)
        covariance = np.linalg.inv(np.eye(NUM_SOURCES) + (mixing.T / noise**2) @ mixing)
        log_evidence = multivariate_normal(np.zeros(at.sum()), mixing @ mixing.T + np.diag(noise**2)).logpdf(row[at])
        found.append((log_evidence, covariance @ (mixing.T / noise**2) @ row[at], np.diag(covariance)))
    return [np.array(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("sampler", [ImportanceSampling(50_000), TemperedSMC(num_particles=4_000, progress=False)])
def test_evidence_and_posterior_of_rows_with_gaps_are_those_of_the_entries_that_are_seen(problem, sampler):
    params, x, seen = problem
    log_evidence, mean, variance = exact(params, x, seen)
    posterior = sampler.run(jax.random.key(0), factor_model, params, np.where(seen, x, np.nan), seen)
    # Six rows: five standard errors are passed by chance once in 300,000 runs, and ten allow for their own error.
    assert np.all(np.abs(posterior.log_evidence - log_evidence) < 10.0 * posterior.log_evidence_std_error)
    found = posterior.expectation(lambda z: z["z"])
    assert np.all(np.abs(found - mean) < 8.0 * np.sqrt(variance / posterior.ess[:, None]))


def test_what_a_masked_entry_holds_does_not_matter(problem):
    params, x, seen = problem
    run = lambda fill: ImportanceSampling(500).run(  # noqa: E731
        jax.random.key(0), factor_model, params, np.where(seen, x, fill).astype(np.float32), seen
    )
    first, second = run(0.0), run(1e3)
    np.testing.assert_array_equal(first.log_weights, second.log_weights)


def test_a_sensor_that_is_never_seen_is_no_sensor(problem):
    params, x, seen = problem
    seen = seen & (np.arange(NUM_SENSORS) < 4)
    fewer = {name: value[:4] for name, value in params.items()}
    run = ImportanceSampling(500).run
    whole = run(jax.random.key(0), factor_model, params, x, seen)
    part = run(jax.random.key(0), factor_model, fewer, x[:, :4], seen[:, :4])
    np.testing.assert_allclose(whole.log_evidence, part.log_evidence, rtol=1e-5)
