"""Importance sampling: evidence and posteriors against closed forms, resampling, diagnostics."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_kaem.posterior import ImportanceSampling

WEIGHT = np.array([[1.0, 0.5, -0.5], [0.3, -1.0, 0.8]])
NOISE = 0.6
DATA = np.array([[0.2, -0.4, 1.0], [1.5, 0.3, -0.6], [-0.8, 0.9, 0.1], [2.0, 0.4, -1.4]], np.float32)


def linear_gaussian(x):
    """x = gain z W + noise, z ~ Normal(0, 1)."""
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    gain = numpyro.param("gain", 1.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(gain * z @ WEIGHT, noise).to_event(1), obs=x)


def exact_posterior(x):
    """Mean and covariance of p(z | x), and log p(x)."""
    covariance = np.linalg.inv(np.eye(2) + WEIGHT @ WEIGHT.T / NOISE**2)
    marginal = WEIGHT.T @ WEIGHT + NOISE**2 * np.eye(3)
    quadratic = np.einsum("bi,ij,bj->b", x, np.linalg.inv(marginal), x)
    log_evidence = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * marginal)[1])
    return x @ WEIGHT.T @ covariance / NOISE**2, covariance, log_evidence


def sample(num_samples, x=DATA, seed=0, gain=1.0, **options):
    sampler = ImportanceSampling(num_samples, **options)
    params = {"noise": jnp.float32(NOISE), "gain": jnp.float32(gain)}
    return sampler.run(jax.random.key(seed), linear_gaussian, params, x)


def normal_by_datum(x, mean, noise):
    """The prior reads the data, so that every row has draws of its own."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


def near(x):
    """Likelihood zero unless the datum is close to the latent."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        numpyro.factor("near", jnp.where(jnp.abs(x - z) < 0.5, -(z**2), -jnp.inf))


@pytest.fixture(scope="module")
def posterior():
    return sample(20_000)


def test_log_evidence_is_within_three_standard_errors_of_the_closed_form(posterior):
    _, _, exact = exact_posterior(DATA)
    errors = (posterior.log_evidence - exact) / posterior.log_evidence_std_error
    # A fixed seed; the four errors share their draws.
    assert np.all(np.abs(errors) < 3.0), errors
    assert np.all(posterior.log_evidence_std_error < 0.05)


def test_weighted_moments_are_those_of_the_posterior(posterior):
    mean, covariance, _ = exact_posterior(DATA)
    weights = np.exp(posterior.log_weights - posterior.log_evidence[:, None]) / posterior.num_particles
    z = posterior.latents["z"]
    estimated_mean = np.einsum("bs,bsi->bi", weights, z)
    centred = z - estimated_mean[:, None]
    estimated_covariance = np.einsum("bs,bsi,bsj->bij", weights, centred, centred)
    # Five standard errors, sqrt(variance / ESS); a false alarm in 8 numbers is less likely than 5e-6.
    scale = np.sqrt(np.diag(covariance) / posterior.ess[:, None])
    assert np.all(np.abs(estimated_mean - mean) < 5 * scale)
    np.testing.assert_allclose(estimated_covariance, np.broadcast_to(covariance, (4, 2, 2)), atol=0.02)


def test_standard_error_is_the_spread_between_runs():
    # Every row has draws of its own: 400 independent runs on the same datum.
    rows = np.ones(400, np.float32)
    posterior = ImportanceSampling(1_000).run(
        jax.random.key(0), normal_by_datum, {}, 1.5 * rows, 0.0 * rows, 0.5 * rows
    )
    spread, claimed = np.std(posterior.log_evidence), np.mean(posterior.log_evidence_std_error)
    # The spread has a relative standard error of 1 / sqrt(800), 3.5 percent; 20 percent is beyond five of
    # them.
    assert abs(spread / claimed - 1.0) < 0.2


def test_draws_are_shared_and_stored_once(posterior):
    z = posterior.latents["z"]
    assert z.shape == (4, 20_000, 2)
    assert z.strides[0] == 0
    assert not z.flags.writeable


def test_permuted_data_give_permuted_results(posterior):
    order = np.array([2, 0, 3, 1])
    permuted = sample(20_000, x=DATA[order])
    for name in ["log_weights", "log_evidence", "log_evidence_std_error", "ess", "pareto_k"]:
        expected = getattr(posterior, name)[order]
        np.testing.assert_allclose(getattr(permuted, name), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(permuted.observed["x"], DATA[order])


@pytest.mark.parametrize("chunk_size", [1_000, 7_001])
def test_chunks_do_not_change_the_result(posterior, chunk_size):
    chunked = sample(20_000, chunk_size=chunk_size)
    np.testing.assert_array_equal(chunked.latents["z"], posterior.latents["z"])
    np.testing.assert_allclose(chunked.log_weights, posterior.log_weights, rtol=1e-4, atol=1e-3)


def test_ess_is_the_number_of_draws_where_the_likelihood_is_flat():
    posterior = sample(20_000, gain=0.0)
    np.testing.assert_allclose(posterior.ess, 20_000, rtol=1e-5)
    np.testing.assert_allclose(posterior.log_evidence_std_error, 0.0, atol=1e-3)
    np.testing.assert_allclose(posterior.log_evidence, stats.norm(0.0, NOISE).logpdf(DATA).sum(1), rtol=1e-5)
    assert np.all(posterior.pareto_k == -np.inf)


def test_a_datum_without_any_likelihood_is_flagged_and_leaves_the_others_alone():
    sampler = ImportanceSampling(1_000)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 data have likelihood zero .* the first at index 1"):
        posterior = sampler.run(jax.random.key(0), near, {}, np.array([0.3, 50.0, -1.0], np.float32))
    others = sampler.run(jax.random.key(0), near, {}, np.array([0.3, 0.5, -1.0], np.float32))
    assert posterior.log_evidence[1] == -np.inf
    assert posterior.ess[1] == 0
    assert posterior.log_evidence_std_error[1] == np.inf
    assert posterior.pareto_k[1] == np.inf
    for name in ["log_evidence", "ess", "log_evidence_std_error"]:
        np.testing.assert_allclose(getattr(posterior, name)[[0, 2]], getattr(others, name)[[0, 2]], rtol=1e-5)
    draws = posterior.resample(jax.random.key(1), 200)
    assert np.all(np.abs(draws.latents["z"][0] - 0.3) < 0.5)
    assert np.all(draws.log_weights[1] == -np.inf)
    assert np.all(np.isfinite(draws.latents["z"]))


def test_global_latents_make_one_datum_of_the_data_set():
    def model(x):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = np.array([0.5, 1.5, 1.0], np.float32)
    posterior = ImportanceSampling(20_000, chunk_size=6_000).run(jax.random.key(0), model, {}, x)
    exact = stats.multivariate_normal(np.zeros(3), 4.0 + np.eye(3)).logpdf(x)
    assert posterior.latents["mean"].shape == (1, 20_000)
    assert posterior.plate is None
    assert posterior.observed["x"].shape == (1, 3)
    assert abs(posterior.log_evidence[0] - exact) < 3 * posterior.log_evidence_std_error[0]


def test_a_global_prior_may_depend_on_the_data():
    def model(x):
        mean = numpyro.sample("mean", dist.Normal(x.mean(), 2.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = np.array([10.5, 11.5, 11.0], np.float32)
    posterior = ImportanceSampling(20_000).run(jax.random.key(0), model, {}, x)
    assert posterior.latents["mean"].shape == (1, 20_000)
    marginal = stats.multivariate_normal(np.full(3, 11.0), 4.0 + np.eye(3))
    assert abs(posterior.log_evidence[0] - marginal.logpdf(x)) < 3 * posterior.log_evidence_std_error[0]


def test_a_prior_that_depends_on_the_data_gets_draws_per_datum():
    x, covariate = np.array([0.5, -3.0], np.float32), np.array([0.1, -20.0], np.float32)
    arguments = x + covariate, covariate, np.ones(2, np.float32)
    posterior = ImportanceSampling(20_000).run(jax.random.key(0), normal_by_datum, {}, *arguments)
    assert posterior.latents["z"].shape == (2, 20_000)
    np.testing.assert_allclose(posterior.latents["z"].mean(1), covariate, atol=0.05)
    exact = stats.norm(0.0, 2**0.5).logpdf(x)
    assert np.all(np.abs(posterior.log_evidence - exact) < 3 * posterior.log_evidence_std_error)


def test_several_latent_and_observed_sites():
    def model(x, y):
        with numpyro.plate("rows", x.shape[0]):
            a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
            b = numpyro.sample("b", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
            numpyro.sample("x", dist.Normal(b.sum((-2, -1)), a), obs=x)
            numpyro.sample("y", dist.Poisson(a), obs=y)

    arguments = np.array([0.5, 2.0], np.float32), np.array([3, 1])
    posterior = ImportanceSampling(300).run(jax.random.key(0), model, {}, *arguments)
    assert {name: value.shape for name, value in posterior.latents.items()} == {
        "a": (2, 300),
        "b": (2, 300, 2, 3),
    }
    a, b = posterior.latents["a"], posterior.latents["b"].sum((-2, -1))
    expected = stats.norm(b, a).logpdf(arguments[0][:, None]) + stats.poisson(a).logpmf(arguments[1][:, None])
    np.testing.assert_allclose(posterior.log_weights, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(posterior.observed["y"], arguments[1])


@pytest.mark.parametrize("method", ["systematic", "stratified", "multinomial", "residual"])
def test_resampled_particles_have_the_weights_frequencies(method):
    posterior = sample(50)
    draws = posterior.resample(jax.random.key(5), 10_000, method)
    assert draws.latents["z"].shape == (4, 10_000, 2)
    weights = np.exp(posterior.log_weights - posterior.log_evidence[:, None]) / 50
    counts = np.array(
        [
            [np.sum(np.all(drawn == particle, axis=-1)) for particle in particles]
            for drawn, particles in zip(draws.latents["z"], posterior.latents["z"], strict=True)
        ]
    )
    assert np.all(counts.sum(1) == 10_000)
    if method == "systematic":
        assert np.all(np.abs(counts - 10_000 * weights) < 1.01)
    else:
        # Six binomial standard deviations for 200 numbers (false alarms below 1e-6); the others vary less.
        deviation = np.sqrt(10_000 * weights * (1 - weights))
        assert np.all(np.abs(counts - 10_000 * weights) < 6 * deviation + 1)
    assert len({tuple(row) for row in counts}) == 4


def test_resampled_posterior_has_equal_weights_and_keeps_evidence_and_diagnostics(posterior):
    draws = posterior.resample(jax.random.key(0), 7)
    np.testing.assert_array_equal(draws.log_weights, np.repeat(posterior.log_evidence[:, None], 7, axis=1))
    for name in ["log_evidence", "log_evidence_std_error", "ess", "pareto_k"]:
        np.testing.assert_array_equal(getattr(draws, name), getattr(posterior, name))
    log_likelihood = stats.norm(draws.latents["z"] @ WEIGHT, NOISE).logpdf(DATA[:, None]).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood, log_likelihood, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["systematic", "stratified", "multinomial", "residual"])
@pytest.mark.slow
def test_no_particle_of_weight_zero_is_drawn(optimised, method):
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.factor("positive", jnp.where(z > 0, x * z, -jnp.inf))

    # In float32, 80 such resamplings of 100,000 draws have hundreds of particles of weight zero.
    posterior = ImportanceSampling(100_000).run(jax.random.key(0), model, {}, jnp.linspace(0.1, 3.0, 20))
    for seed in range(4):
        draws = posterior.resample(jax.random.key(seed), 100_000, method)
        assert np.all(draws.latents["z"] > 0)
        np.testing.assert_allclose(draws.latents["z"][0].mean(), posterior_mean(0.1), atol=0.05)


def posterior_mean(tilt):
    """Mean of the normal density times exp(tilt z) on z > 0."""
    z = np.linspace(0, 10, 100_001)
    density = np.exp(tilt * z - z**2 / 2)
    return np.sum(z * density) / np.sum(density)


def test_pareto_k_tells_a_narrow_posterior_from_a_broad_one():
    def model(x, noise):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(6), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, noise[..., None]).to_event(1), obs=x)

    x, noise = jnp.full((2, 6), 0.8), jnp.array([3.0, 0.1])
    posterior = ImportanceSampling(5_000).run(jax.random.key(0), model, {}, x, noise)
    assert posterior.pareto_k[0] < 0.5
    assert posterior.pareto_k[1] > 0.7


def overlap(x, noise):
    """A prior Normal(0, 1) and a likelihood Normal(z, noise): the ESS of a prior draw falls with the noise."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


NOISES = np.array([1.0, 0.03], np.float32)


def test_draws_grow_in_batches_until_every_datum_has_its_ess():
    sampler = ImportanceSampling(500, target_ess=200)
    posterior = sampler.run(jax.random.key(0), overlap, {}, jnp.zeros(2), NOISES)
    assert posterior.num_particles % 500 == 0
    assert 500 < posterior.num_particles < 50_000
    assert np.all(posterior.reached_target)
    assert np.all(posterior.ess >= 200)
    # One batch fewer would not have done.
    weights = np.exp(posterior.log_weights[:, :-500])
    assert np.min(weights.sum(1) ** 2 / (weights**2).sum(1)) < 200
    exact = stats.norm(0.0, (1 + NOISES**2) ** 0.5).logpdf(0.0)
    assert np.all(np.abs(posterior.log_evidence - exact) < 3 * posterior.log_evidence_std_error)


def test_batches_are_different_draws_and_one_compiled_function():
    runs = []

    def counted(x, noise):
        runs.append(None)
        overlap(x, noise)

    counts = []
    # The first run fills JAX's own caches.
    for target in [1.0, 1.0, 200.0]:
        runs.clear()
        posterior = ImportanceSampling(500, target_ess=target).run(jax.random.key(0), counted, {}, jnp.zeros(2), NOISES)
        counts.append(len(runs))
    assert posterior.num_particles > 500
    assert counts[2] == counts[1]
    assert len(np.unique(posterior.latents["z"][0])) > 0.99 * posterior.num_particles


def test_data_short_of_their_ess_are_named():
    sampler = ImportanceSampling(500, target_ess=200, max_samples=1_300)
    with pytest.warns(RuntimeWarning, match=r"1 of 2 data have an ESS below target_ess=200 after 1000 .* \[1\]"):
        posterior = sampler.run(jax.random.key(0), overlap, {}, jnp.zeros(2), NOISES)
    np.testing.assert_array_equal(posterior.reached_target, [True, False])
    assert posterior.ess[1] < 200 <= posterior.ess[0]
    assert posterior.num_particles == 1_000
    np.testing.assert_array_equal(posterior.resample(jax.random.key(0), 10).reached_target, [True, False])
    assert sample(50).reached_target is None


def test_draws_by_datum_grow_too():
    covariate, noise = np.array([-5.0, 5.0], np.float32), np.full(2, 0.1, np.float32)
    sampler = ImportanceSampling(20_000, target_ess=10_000)
    posterior = sampler.run(jax.random.key(0), normal_by_datum, {}, covariate, covariate, noise)
    assert posterior.latents["z"].shape == (2, posterior.num_particles)
    assert posterior.num_particles > 20_000
    expected = stats.norm(posterior.latents["z"], 0.1).logpdf(covariate[:, None])
    np.testing.assert_allclose(posterior.log_weights, expected, rtol=1e-4, atol=1e-4)


def test_smoothed_weights_err_less_where_the_weights_have_no_variance():
    # Weights z^-0.8 of uniform z are Pareto of shape 0.8, with mean 5.
    def model(x, lowest):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Uniform(lowest, 1.0))
            numpyro.factor("power", -0.8 * jnp.log(z))

    runs = jnp.zeros(300)
    raw, smoothed = (
        ImportanceSampling(1_000, pareto_smoothed=smooth).run(jax.random.key(0), model, {}, runs, runs)
        for smooth in (False, True)
    )
    errors = [np.mean((np.exp(p.log_evidence) - 5.0) ** 2) ** 0.5 for p in (raw, smoothed)]
    assert errors[1] < 0.7 * errors[0]
    np.testing.assert_array_equal(smoothed.pareto_k, raw.pareto_k)
    np.testing.assert_array_equal(smoothed.log_likelihood, raw.log_likelihood)
    weights = np.exp(smoothed.log_weights.astype(float))
    np.testing.assert_allclose(np.log(weights.mean(1)), smoothed.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(1) ** 2 / (weights**2).sum(1), smoothed.ess, rtol=1e-4)
    assert np.mean(smoothed.ess) > np.mean(raw.ess)


def test_smoothing_leaves_a_datum_without_any_likelihood_alone():
    sampler = ImportanceSampling(1_000, pareto_smoothed=True)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 data have likelihood zero"):
        posterior = sampler.run(jax.random.key(0), near, {}, np.array([50.0, 0.0, 1.0], np.float32))
    assert posterior.log_evidence[0] == -np.inf
    assert posterior.ess[0] == 0
    assert np.all(np.isfinite(posterior.log_evidence[1:]))
    np.testing.assert_array_equal(posterior.log_weights == -np.inf, posterior.log_likelihood == -np.inf)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_broken_likelihood_names_the_datum(bad):
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.factor("broken", jnp.where((z > 0) & (x != 0), x, 0.0))

    with pytest.raises(ValueError, match=r"NaN or \+inf, .* at \d+ of 100 draws .* of datum 1 \(and of 1 other data\)"):
        ImportanceSampling(100).run(jax.random.key(0), model, {}, np.array([0.0, bad, bad], np.float32))


def test_bad_arguments_are_named(posterior):
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        ImportanceSampling(0)
    with pytest.raises(ValueError, match="chunk_size must be a whole number of at least 1, got -1"):
        ImportanceSampling(10, chunk_size=-1)
    with pytest.raises(ValueError, match="target_ess must be a positive number, got -5"):
        ImportanceSampling(10, target_ess=-5)
    with pytest.raises(ValueError, match="max_samples must be a whole number of at least 10, got 9"):
        ImportanceSampling(10, target_ess=5, max_samples=9)
    with pytest.raises(ValueError, match=r"target_ess must be at most .* 10, got 15"):
        ImportanceSampling(10, target_ess=15, max_samples=19)
    with pytest.raises(ValueError, match="max_samples=100 needs a target_ess"):
        ImportanceSampling(10, max_samples=100)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        posterior.resample(jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"method must be one of .*systematic.*, got 'bootstrap'"):
        posterior.resample(jax.random.key(0), 10, "bootstrap")
    with pytest.raises(ValueError, match="noise"):
        ImportanceSampling(10).run(jax.random.key(0), linear_gaussian, {}, DATA)


def test_running_warns_of_nothing_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(50).resample(jax.random.key(0), 10)


def test_expectations_are_weighted_means():
    x = np.array([0.0, 100.0, 2.0], np.float32)

    def normal(x):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.factor("near", jnp.where(x < 50.0, 0.0, -jnp.inf))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    with pytest.warns(RuntimeWarning, match="index 1"):
        posterior = ImportanceSampling(5_000).run(jax.random.key(0), normal, {}, x)
    found = posterior.expectation(lambda latents: {"z": latents["z"], "sum": latents["z"].sum()})
    weights = np.exp(posterior.log_weights[2] - posterior.log_weights[2].max())
    expected = np.average(posterior.latents["z"][2], axis=0, weights=weights)
    np.testing.assert_allclose(found["z"][2], expected, rtol=1e-4)
    np.testing.assert_allclose(found["sum"][[0, 2]], [0.0, 4 / 3], atol=0.1)
    assert np.all(np.isnan(found["z"][1])) and np.all(np.isfinite(found["z"][0]))
