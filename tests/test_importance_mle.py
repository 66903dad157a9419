"""ImportanceMLE: its gradient, its bias, its place in NumPyro's SVI."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from prior_cases import quick_jit

from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives import ImportanceMLE

PARAMS = {
    "location": jnp.array([0.3, -0.2]),
    "weight": jnp.array([[1.0, 0.5, -0.5], [0.3, -1.0, 0.8]]),
    "noise": jnp.array(0.7),
}
DATA = jnp.array([[0.2, -0.4, 1.0], [1.5, 0.3, -0.6], [-0.8, 0.9, 0.1], [0.4, 0.4, 0.4]])


def linear_gaussian(x):
    """x = z W + noise, z ~ Normal(location, 1): log p(x) is known."""
    location = numpyro.param("location", PARAMS["location"])
    weight = numpyro.param("weight", PARAMS["weight"])
    noise = numpyro.param("noise", PARAMS["noise"], constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight, noise).to_event(1), obs=x)


def exact_loss(params, x):
    weight, noise = params["weight"], params["noise"]
    covariance = weight.T @ weight + noise**2 * jnp.eye(weight.shape[1])
    return -dist.MultivariateNormal(params["location"] @ weight, covariance).log_prob(x).sum()


quick_exact_loss = quick_jit(exact_loss)


def loss(objective, key, params, x=DATA):
    return objective.loss(key, params, linear_gaussian, None, x)


def value_and_gradient(objective, model, params, *data):
    """Loss and gradient with one key, compiled with the data as arguments."""
    function = jax.value_and_grad(lambda p, key, *data: objective.loss(key, p, model, None, *data))
    return jax.tree.map(np.asarray, quick_jit(function)(params, jax.random.key(3), *data))


def assert_trees_close(a, b, **tolerances):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, **tolerances), a, b)


@pytest.fixture(scope="module")
def of_50_draws():
    """Loss and gradient of `ImportanceMLE(50)`."""
    return value_and_gradient(ImportanceMLE(50), linear_gaussian, PARAMS, DATA)


def test_gradient_is_that_of_a_plain_transcription(of_50_draws):
    num_samples = 50

    def transcription(params, z):
        log_p_x = dist.Normal((z @ params["weight"])[:, None], params["noise"]).log_prob(DATA).sum(-1)
        log_p_z = dist.Normal(params["location"], 1.0).log_prob(z).sum(-1)[:, None]
        log_mean = jax.nn.logsumexp(log_p_x + log_p_z - jax.lax.stop_gradient(log_p_z), axis=0)
        return -jnp.sum(log_mean - jnp.log(num_samples))

    @quick_jit
    def expected(key, params):
        # The objective splits its key into one for the model's own randomness and one for the draws.
        draw_key = jax.random.split(key)[1]
        z = LatentModel(linear_gaussian, params, DATA, check=False).sample_prior(draw_key, num_samples)["z"]
        return jax.value_and_grad(transcription)(params, z)

    value, gradient = of_50_draws
    expected_value, expected_gradient = expected(jax.random.key(3), PARAMS)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_trees_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("chunk_size", [1, 7, *(pytest.param(size, marks=pytest.mark.slow) for size in (25, 50)), 80])
def test_chunks_change_neither_loss_nor_gradient(chunk_size, of_50_draws):
    chunked = value_and_gradient(ImportanceMLE(50, chunk_size), linear_gaussian, PARAMS, DATA)
    assert_trees_close(chunked, of_50_draws, rtol=1e-4, atol=1e-4)


def test_chunks_bound_the_memory_of_the_backward_pass():
    def temporary_bytes(num_samples, chunk_size):
        gradient = jax.grad(lambda p, key: loss(ImportanceMLE(num_samples, chunk_size), key, p))
        compiled = quick_jit(gradient).lower(PARAMS, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # What is left are the shared draws themselves and the little that sampling them needs.
    assert temporary_bytes(20_000, 100) < temporary_bytes(20_000, None) / 2


def mean_gradient(num_samples, num_keys, params, x):
    """Average gradient over keys, and its standard error."""

    def of_key(key, x):
        gradient = jax.grad(lambda p: loss(ImportanceMLE(num_samples), key, p, x))(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    @jax.jit
    def run(key, x):
        return jax.lax.map(lambda key: of_key(key, x), jax.random.split(key, num_keys), batch_size=1000)

    gradients = np.asarray(run(jax.random.key(0), x), np.float64)
    return gradients.mean(0), gradients.std(0) / num_keys**0.5


@pytest.mark.slow
def test_distance_to_the_gradient_of_log_p_falls_as_one_over_the_draws(optimised):
    params = {
        "location": PARAMS["location"][:2],
        "weight": PARAMS["weight"][:2, :2],
        "noise": jnp.array(1.0),
    }
    x = jnp.array([[0.5, -0.3], [1.2, 0.4]])
    exact = quick_jit(jax.grad(exact_loss))(params, x)
    exact = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(exact)])
    sizes = np.array([16, 32, 64, 128])
    distances, errors = [], []
    for num_samples in sizes:
        # The bias falls faster than the standard deviation of a gradient: as many more keys keep their ratio.
        mean, std_error = mean_gradient(int(num_samples), 1_250 * int(num_samples), params, x)
        distances.append(np.linalg.norm(mean - exact))
        errors.append(np.linalg.norm(std_error))
    slope, _ = np.polyfit(np.log(sizes), np.log(distances), 1)
    assert np.all(np.array(errors) < 0.1 * np.array(distances)), (distances, errors)
    # With every distance known to 10 percent (one standard error) the slope's standard error is below 0.07,
    # so a band of 0.35 is left by chance less than once in a million times; 1/sqrt(S) and 1/S^2 are far
    # outside.
    assert abs(slope + 1.0) < 0.35, (slope, distances, errors)


def test_loss_exceeds_the_exact_one_by_half_the_relative_variance_of_the_weights():
    x, num_samples, num_keys = np.asarray(DATA)[:1], 100, 20_000

    @quick_jit
    def losses_of_keys(key):
        keys = jax.random.split(key, num_keys)
        of_key = lambda key: loss(ImportanceMLE(num_samples), key, PARAMS, x)  # noqa: E731
        return jax.lax.map(of_key, keys, batch_size=500), exact_loss(PARAMS, x)

    losses, exact = (np.asarray(values, float) for values in losses_of_keys(jax.random.key(1)))
    p = {name: np.asarray(value) for name, value in PARAMS.items()}
    z = p["location"] + np.random.default_rng(2).normal(size=(1_000_000, 2))
    weights = np.exp(-0.5 * np.sum(((x - z @ p["weight"]) / p["noise"]) ** 2, -1))
    bias = weights.var() / weights.mean() ** 2 / (2 * num_samples)
    excess = losses.mean() - exact
    std_error = losses.std() / num_keys**0.5
    # Five standard errors (false alarms 6e-7), and a fifth of the bias for the terms of order 1/S^2.
    assert abs(excess - bias) < 5 * std_error + 0.2 * bias
    assert bias > 10 * std_error


def test_it_trains_in_plain_svi_with_and_without_an_empty_guide():
    @quick_jit
    def train(key):
        """Losses, and the exact loss after them, with either guide."""
        results = []
        for guide in (None, lambda *args, **kwargs: None):
            svi = SVI(linear_gaussian, guide, optax.adam(1e-2), loss=ImportanceMLE(100))
            result = svi.run(key, 100, DATA, progress_bar=False)
            results.append((result.losses, exact_loss(result.params, DATA)))
        return results

    (losses_none, exact_none), (losses_empty, exact_empty) = train(jax.random.key(0))
    assert max(float(exact_none), float(exact_empty)) < float(quick_exact_loss(PARAMS, DATA)) - 0.5
    np.testing.assert_array_equal(losses_none, losses_empty)


def test_a_model_of_two_arguments_needs_the_empty_guide():
    def model(x, covariate, gain=1.0):
        weight = numpyro.param("weight", 0.5)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(gain * z + weight * covariate, 1.0), obs=x)

    arguments = jnp.array([0.1, 0.5]), jnp.array([1.0, 2.0])
    svi = SVI(model, lambda *args, **kwargs: None, optax.adam(1e-2), loss=ImportanceMLE(10))
    assert jnp.isfinite(svi.run(jax.random.key(0), 2, *arguments, progress_bar=False, gain=2.0).losses[-1])
    # The documented limit of NumPyro: its handlers take a missing function for their use as a decorator.
    with pytest.raises(AssertionError):
        SVI(model, None, optax.adam(1e-2), loss=ImportanceMLE(10)).init(jax.random.key(0), *arguments)


def test_a_guide_with_sites_is_an_error():
    svi = SVI(linear_gaussian, AutoNormal(linear_gaussian), optax.adam(1e-2), loss=ImportanceMLE(10))
    with pytest.raises(ValueError, match=r"guide must have no sites with ImportanceMLE.*z_auto_loc"):
        jax.eval_shape(lambda key: svi.run(key, 1, DATA, progress_bar=False).losses, jax.random.key(0))


def test_latents_outside_of_the_data_plate_are_named():
    def with_global(x):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def without_plate(x):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    for model, site in [(with_global, "mu"), (without_plate, "z")]:
        with pytest.raises(ValueError, match=f"ImportanceMLE needs .* '{site}'"):
            ImportanceMLE(10).loss(jax.random.key(0), {}, model, None, jnp.zeros(3))


def test_subsampled_plates_scale_the_data_and_not_the_global_sites():
    def model(x):
        location = numpyro.param("location", 0.0)
        numpyro.factor("penalty", -(location**2))
        with numpyro.plate("data", 40, subsample_size=4):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.array([0.5, -1.0, 2.0, 0.3], np.float32)
    value, _ = value_and_gradient(ImportanceMLE(50_000), model, {"location": 0.8}, x)
    exact = -10 * scipy.stats.norm(0.8, 2**0.5).logpdf(x).sum() + 0.8**2
    # Per datum the standard error is below 0.01 at 50,000 draws; 0.4 is ten times that for 40 data, fully
    # correlated.
    np.testing.assert_allclose(value, exact, atol=0.4)


def test_a_prior_that_depends_on_the_data_gets_draws_per_datum():
    def model(x, covariate):
        slope = numpyro.param("slope", 2.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(slope * covariate, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, covariate = np.array([0.5, -3.0, 2.0], np.float32), np.array([0.1, -2.0, 1.5], np.float32)
    exact = -scipy.stats.norm(2.0 * covariate, 2**0.5).logpdf(x).sum()
    exact_gradient = -np.sum(covariate * (x - 2.0 * covariate)) / 2

    for chunk_size in [None, 3_000]:
        objective = ImportanceMLE(20_000, chunk_size)
        value, gradient = value_and_gradient(objective, model, {"slope": 2.0}, x, covariate)
        # Standard errors are below 0.02 (loss) and 0.05 (gradient): weights are bounded and moderate.
        np.testing.assert_allclose(value, exact, atol=0.1)
        np.testing.assert_allclose(gradient["slope"], exact_gradient, atol=0.25)


@pytest.mark.parametrize("chunk_size", [None, 30])
def test_a_datum_of_likelihood_zero_gives_infinite_loss_and_leaves_the_gradient_of_the_others(chunk_size):
    def model(x):
        weight = numpyro.param("weight", 1.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            distance = jnp.abs(x - z)
            numpyro.factor("near", jnp.where(distance < 1.0, 0.0, -jnp.inf) - weight * distance**2)

    objective, params = ImportanceMLE(100, chunk_size), {"weight": 1.5}
    value, gradient = value_and_gradient(objective, model, params, np.array([0.5, 100.0, -1.0]))
    value_of_others, gradient_of_others = value_and_gradient(
        objective, model, params, np.array([0.5, -1.0], np.float32)
    )
    assert value == np.inf
    assert np.isfinite(value_of_others)
    np.testing.assert_allclose(gradient["weight"], gradient_of_others["weight"], rtol=1e-5)
    assert gradient_of_others["weight"] != 0


def test_mutable_state_is_returned_unchanged():
    def model(x):
        state = numpyro.primitives.mutable("state", {"offset": jnp.array(0.5)})
        location = numpyro.param("location", 0.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(location + state["offset"], 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    svi = SVI(model, None, optax.adam(1e-1), loss=ImportanceMLE(100))

    @quick_jit
    def train(key, x):
        result = svi.run(key, 200, x, progress_bar=False)
        return result.state.mutable_state, result.params

    mutable_state, params = train(jax.random.key(0), np.array([0.9, 1.1], np.float32))
    assert mutable_state == {"state": {"offset": 0.5}}
    assert abs(float(params["location"]) - 0.5) < 0.2


def test_it_is_a_lower_bound_in_expectation_of_the_evidence_and_no_elbo():
    def prior(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(PARAMS["location"], 1.0).to_event(1))

    @quick_jit
    def losses(key, elbo_key):
        # With one draw the bound is E log p(x | z), the ELBO with the prior as guide.
        one_draw = jax.vmap(lambda key: loss(ImportanceMLE(1), key, PARAMS))(jax.random.split(key, 4000)).mean()
        elbo = Trace_ELBO(num_particles=4000).loss(elbo_key, PARAMS, linear_gaussian, prior, DATA)
        return one_draw, elbo, exact_loss(PARAMS, DATA)

    one_draw, elbo, exact = map(float, losses(jax.random.key(0), jax.random.key(1)))
    # Standard errors of both means are below 0.5 nats (four data with standard deviations of a few nats).
    np.testing.assert_allclose(one_draw, elbo, atol=5.0, rtol=0.05)
    assert exact < one_draw


@pytest.mark.parametrize("arguments", [(0,), (-3,), (10, 0)])
def test_counts_below_one_are_errors(arguments):
    with pytest.raises(ValueError, match=r"(num_samples|chunk_size) must be a whole number of at least 1"):
        ImportanceMLE(*arguments)
