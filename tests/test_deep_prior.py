"""DeepKAPrior: an unnormalised density, short-run draws, and maximum likelihood with negative samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module
from numpyro.distributions import kl_divergence
from numpyro.infer import Predictive
from prior_cases import quick_jit

from numpyro_kaem import (
    KAN,
    MLP,
    PCNL,
    ULA,
    DeepKAPrior,
    ImportanceMLE,
    ImportanceSampling,
    Langevin,
    LatentModel,
    TemperedSMC,
)
from numpyro_kaem.posterior.weights import negative_phase, sample_prior

STANDARD = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
KAN_PRIOR = DeepKAPrior(KAN(jax.random.key(0), 3, 1, (2,)), STANDARD)
NOISE = 0.8


class Tilt(eqx.Module):
    """f(z) = theta' z: under a standard normal reference p is Normal(theta, 1)."""

    theta: jax.Array

    def __call__(self, z):
        return z @ self.theta


def tilted(theta, **steps):
    return DeepKAPrior(Tilt(theta), dist.Normal(jnp.zeros(theta.shape), 1.0).to_event(1), **steps)


def linear_gaussian(x, **steps):
    """z ~ Normal(theta, 1), x ~ Normal(z, NOISE)."""
    theta = numpyro.param("theta", jnp.zeros(1))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", tilted(theta, **steps))
        numpyro.sample("x", dist.Normal(z[..., 0], NOISE), obs=x)


@pytest.mark.parametrize("energy", [KAN_PRIOR.energy, MLP(jax.random.key(0), 3, 1, (4,))], ids=["KAN", "MLP"])
def test_log_prob_is_that_of_the_reference_plus_the_energy(energy):
    @quick_jit
    def log_probs(z):
        forms = energy, lambda z: energy(z)[..., 0]
        return energy(z), *(DeepKAPrior(form, STANDARD).log_prob(z) for form in forms)

    z = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    energies, *values = map(np.asarray, log_probs(z))
    for value in values:
        np.testing.assert_allclose(value, scipy.stats.norm.logpdf(z).sum(-1) + energies[:, 0], rtol=1e-6)


def test_draws_without_an_energy_are_those_of_the_reference():
    """The bias of the variance at this step size, h / 2, is far below what the test sees. False alarm: 3e-7 each."""
    location, scale = np.array([2.0, -1.0], np.float32), np.array([10.0, 0.1], np.float32)
    prior = DeepKAPrior(lambda z: 0.0 * z[..., 0], dist.Normal(location, scale).to_event(1), step_size=1e-3)
    z = (np.asarray(quick_jit(lambda key: prior.sample(key, (20_000,)))(jax.random.key(0))) - location) / scale
    assert all(scipy.stats.kstest(column, "norm").pvalue > 3e-7 for column in z.T)


def test_long_runs_have_the_moments_of_the_target_up_to_the_bias_of_the_step():
    """A quadratic energy makes a normal; eigenvalues k of its precision become k (1 - h k / 2) with steps of h."""
    h, num_draws = 0.1, 50_000
    precision = np.array([[1.5, -0.8], [-0.8, 3.0]], np.float32)
    location = np.array([1.0, -2.0], np.float32)

    def energy(z):
        return -0.5 * jnp.einsum("...i,ij,...j", z - location, precision, z - location)

    # A reference of standard deviation 2 scales steps by 4 and has precision 1/4.
    reference = dist.Normal(jnp.zeros(2), 2.0).to_event(1)
    prior = DeepKAPrior(energy, reference, num_steps=150, step_size=h / 4)
    z = np.asarray(quick_jit(lambda key: prior.sample(key, (num_draws,)))(jax.random.key(0)), np.float64)
    total = precision + np.eye(2) / 4
    mean = np.linalg.solve(total, precision @ location)
    covariance = np.linalg.inv(total @ (np.eye(2) - h / 2 * total))
    # Six standard errors: a false alarm has probability 2e-9 for each of five numbers.
    error = 6 / np.sqrt(num_draws)
    variances = np.diag(covariance)
    assert np.all(np.abs(z.mean(0) - mean) < error * np.sqrt(variances))
    of_covariance = np.sqrt(np.outer(variances, variances) + covariance**2)
    assert np.all(np.abs(np.cov(z.T) - covariance) < error * of_covariance)
    # The bias is seen: without it the test would fail.
    assert np.any(np.abs(np.cov(z.T) - np.linalg.inv(total)) > error * of_covariance)


def test_estimate_of_the_normaliser_is_within_its_error():
    theta = np.array([0.6, -0.5], np.float32)
    estimate, std_error = quick_jit(lambda key, theta: tilted(theta).log_normalizer(key, 50_000))(
        jax.random.key(0), theta
    )
    assert 0 < std_error < 0.01
    # log Z = |theta|^2 / 2; six standard errors: 2e-9.
    assert abs(estimate - theta @ theta / 2) < 6 * std_error


def loss_and_gradient(theta, x, num_samples, **steps):
    def loss(theta):
        key, model = jax.random.key(1), lambda x: linear_gaussian(x, **steps)
        return ImportanceMLE(num_samples).loss(key, {"theta": theta}, model, None, x)

    return quick_jit(jax.value_and_grad(loss))(theta)


@pytest.mark.parametrize("num_samples", [pytest.param(2_000, marks=pytest.mark.slow), 100_000])
def test_importance_mle_follows_the_gradient_of_the_normalised_likelihood(num_samples):
    """With log p(x) = log Normal(x; theta, 1 + NOISE^2) the gradient is sum_b (x_b - theta) / (1 + NOISE^2)."""
    theta, x, h = 0.9, np.array([1.5, -0.2, 0.4]), 0.1
    exact = -np.sum(x - theta) / (1 + NOISE**2)
    value, gradient = loss_and_gradient(jnp.array([theta]), jnp.asarray(x), num_samples, num_steps=80, step_size=h)
    gradient = np.asarray(gradient)
    # A datum's error is that of the mean of S draws of standard deviation 1, and that of a weighted mean of deviation
    # 0.62 with an ESS of at least S / 4: below 2.3 / sqrt(S). Six of these: a false alarm has probability 2e-9. After
    # 80 steps chains are 2e-4 short of theta.
    error = len(x) * (6 * 2.3 / np.sqrt(num_samples) + 2e-4)
    # By steps of h draws have variance v = 1 / (1 - h / 2), which takes the place of 1 above.
    variance = 1 / (1 - h / 2)
    assert abs(gradient[0] + np.sum(x - theta) * variance / (variance + NOISE**2)) < error
    assert abs(gradient[0] - exact) < error + h / 2 * abs(exact)
    expected = -scipy.stats.norm(theta, np.sqrt(variance + NOISE**2)).logpdf(x).sum()
    assert abs(value - expected) < error


def test_negative_phase_is_zero_with_the_mean_score_of_the_unnormalised_sites():
    def model(x, theta):
        with numpyro.plate("data", x.shape[0]):
            y = numpyro.sample("y", dist.Normal(theta[0], 1.0))
            z = numpyro.sample("z", tilted(theta).mask(True))
            numpyro.sample("x", dist.Normal(y + z.sum(-1), 1.0), obs=x)

    theta, x = jnp.array([0.5, 2.0]), jnp.zeros(4)
    latent_model = LatentModel(model, {}, x, theta=theta)
    assert latent_model.unnormalized_sites == ("z",)

    @quick_jit
    def phase(key, theta):
        draws = sample_prior(latent_model, key, 50)
        of_theta = lambda theta: negative_phase(LatentModel(model, {}, x, theta=theta, check=False), draws)  # noqa: E731
        return draws, *jax.value_and_grad(of_theta)(theta)

    draws, value, gradient = jax.tree.map(np.asarray, phase(jax.random.key(0), theta))
    assert value == 0
    np.testing.assert_allclose(gradient, draws["z"].mean(0), rtol=1e-5)


def test_negative_phase_of_a_prior_that_depends_on_data_is_per_datum():
    def model(x, theta):
        with numpyro.plate("data", x.shape[0]):
            reference = dist.Normal(x[:, None], 1.0).to_event(1)
            z = numpyro.sample("z", DeepKAPrior(Tilt(theta), reference))
            numpyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    x = jnp.array([-10.0, 0.0, 10.0])

    def latent_model(theta):
        return LatentModel(model, {}, x, theta=theta, check=False)

    @quick_jit
    def jacobian(key, theta):
        draws = sample_prior(latent_model(theta), key, 20)
        return draws, jax.jacobian(lambda theta: negative_phase(latent_model(theta), draws))(theta)

    draws, derivatives = jax.tree.map(np.asarray, jacobian(jax.random.key(0), np.ones(1)))
    np.testing.assert_allclose(derivatives, draws["z"].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda prior: prior, ("z",)),
        (lambda prior: prior.expand((2,)).to_event(1), ("z",)),
        (lambda prior: dist.ExpandedDistribution(prior, (2,)), ("z",)),
        (lambda prior: prior.mask(True), ("z",)),
        (lambda prior: dist.TransformedDistribution(prior, dist.transforms.ExpTransform()), ("z",)),
        (lambda prior: prior.reference, ()),
    ],
    ids=["bare", "independent", "expanded", "masked", "transformed", "its reference"],
)
def test_unnormalised_sites_are_seen_through_wrappers(wrap, names):
    def model():
        numpyro.sample("z", wrap(KAN_PRIOR))

    assert LatentModel(model, {}, check=False).unnormalized_sites == names


def test_a_constant_that_depends_on_other_latents_is_refused():
    def model():
        y = numpyro.sample("y", dist.Normal())
        numpyro.sample("z", DeepKAPrior(lambda z: y * z[..., 0], STANDARD))

    with pytest.raises(
        ValueError, match=r"'z' has a density that is not normalised and depends on the latents \['y'\]"
    ):
        LatentModel(model, {})


def test_an_observed_site_is_refused():
    def model(x):
        numpyro.sample("y", dist.Normal())
        numpyro.sample("x", KAN_PRIOR, obs=x)

    with pytest.raises(ValueError, match="observed site 'x' has a density that is not normalised"):
        LatentModel(model, {}, jnp.zeros(3))


def test_shapes_in_numpyro():
    key = jax.random.key(0)

    def model():
        prior = DeepKAPrior(eqx_module("energy", KAN_PRIOR.energy), STANDARD)
        with numpyro.plate("outer", 4, dim=-2), numpyro.plate("inner", 2):
            numpyro.sample("z", prior)

    def check():
        expanded = KAN_PRIOR.expand((4, 2))
        assert isinstance(expanded, DeepKAPrior) and expanded.batch_shape == (4, 2)
        assert expanded.sample(key, (5,)).shape == (5, 4, 2, 3)
        assert expanded.log_prob(jnp.zeros(3)).shape == expanded.log_prob(jnp.zeros((4, 2, 3))).shape == (4, 2)
        assert expanded.log_normalizer(key, 10)[1].shape == (4, 2)
        params = {"energy$params": eqx.filter(KAN_PRIOR.energy, eqx.is_inexact_array)}
        draws = Predictive(model, params=params, num_samples=6)(key)
        assert draws["z"].shape == (6, 4, 2, 3)

    jax.eval_shape(check)  # traced, not computed


def test_it_is_a_pytree_of_energy_and_reference():
    thetas = np.array([[0.3, -0.2, 0.1], [1.0, 2.0, 3.0]], np.float32)
    z = np.array([0.5, 1.0, -1.0], np.float32)
    draw = quick_jit(lambda prior, key: prior.sample(key, (4,)))
    key = jax.random.key(0)

    @quick_jit
    def of_stack(stacked, key):
        return jax.vmap(lambda prior: (prior.log_prob(z), prior.sample(key, (4,))))(stacked)

    values, draws = map(np.asarray, of_stack(quick_jit(jax.vmap(tilted))(thetas), key))
    np.testing.assert_allclose(values, scipy.stats.norm.logpdf(z).sum() + thetas @ z, rtol=1e-5)
    np.testing.assert_allclose(draws[1], draw(tilted(jnp.asarray(thetas[1])), key), rtol=1e-4, atol=1e-5)
    # A function among the leaves of an energy, or instead of it, is out of JAX's sight.
    assert jax.eval_shape(draw, DeepKAPrior(lambda z: -jnp.abs(z).sum(-1), STANDARD), key).shape == (4, 3)
    leaves, structure = jax.tree.flatten(KAN_PRIOR)
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves).energy, KAN_PRIOR.energy)


def test_draws_carry_no_gradient():
    def sum_of_draws(theta, location):
        closure = DeepKAPrior(lambda z: z @ theta, dist.Normal(location, 1.0).to_event(1), num_steps=2)
        module = DeepKAPrior(Tilt(theta), dist.Normal(location, 1.0).to_event(1), num_steps=2)
        return closure.sample(jax.random.key(0)).sum() + module.sample(jax.random.key(0)).sum()

    assert not KAN_PRIOR.has_rsample
    for gradient in quick_jit(jax.grad(sum_of_draws, (0, 1)))(np.ones(2), np.ones(2)):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("energy_dtype", [jnp.float32, jnp.float64])
def test_draws_have_the_dtype_of_the_reference_s_draws(x64, energy_dtype):
    prior = tilted(jnp.ones(2, energy_dtype))
    z = jax.eval_shape(prior.sample, jax.random.key(0))
    assert z.dtype == jax.eval_shape(prior.reference.sample, jax.random.key(0)).dtype == jnp.float64
    assert jax.eval_shape(prior.log_prob, z).dtype == jnp.float64


def of_many_steps(x):
    linear_gaussian(x, num_steps=200, step_size=0.05)


POSTERIOR_DATA = jnp.array([0.5, 2.0])


def check_posterior_mean(posterior, tolerance):
    """Of Normal(theta, 1) seen with noise."""
    theta, x = 0.9, np.asarray(POSTERIOR_DATA)
    weights = np.exp(posterior.log_weights - posterior.log_weights.max(1, keepdims=True))
    mean = np.sum(weights * posterior.latents["z"][..., 0], 1) / weights.sum(1)
    assert np.all(np.abs(mean - (theta + (x - theta) / (1 + NOISE**2))) < tolerance)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(ImportanceSampling(20_000), marks=pytest.mark.slow),
        Langevin(ULA(step_size=0.1), num_steps=30, num_chains=1_000),
        pytest.param(TemperedSMC(num_particles=5_000), marks=pytest.mark.slow),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_posterior_samplers_know_the_energy(sampler):
    posterior = sampler.run(jax.random.key(0), of_many_steps, {"theta": jnp.array([0.9])}, POSTERIOR_DATA)
    # The posterior's standard deviation is 0.62: six standard errors of a thousand independent draws.
    check_posterior_mean(posterior, 0.62 * 6 / np.sqrt(1_000))


def test_what_needs_a_normalised_invertible_density_is_not_offered():
    with pytest.raises(ValueError, match="ICDFReparam needs a univariate continuous distribution with an icdf"):
        Langevin(PCNL(), num_steps=2).run(jax.random.key(0), of_many_steps, {"theta": jnp.zeros(1)}, POSTERIOR_DATA)
    for q in (STANDARD, KAN_PRIOR):
        for p in (KAN_PRIOR, STANDARD, dist.Delta(jnp.zeros(3), event_dim=1)):
            if KAN_PRIOR in (p, q):
                with pytest.raises(NotImplementedError):
                    kl_divergence(p, q)
    for method in (KAN_PRIOR.cdf, KAN_PRIOR.icdf):
        with pytest.raises(NotImplementedError):
            method(0.5)
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError):
            getattr(KAN_PRIOR, moment)
    with pytest.raises(NotImplementedError):
        KAN_PRIOR.rsample(jax.random.key(0))
    with pytest.raises(NotImplementedError, match="inside of NumPyro's scan"):
        step = lambda carry, _: (numpyro.sample("z", KAN_PRIOR), None)  # noqa: E731
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace():
            scan(step, jnp.zeros(3), None, length=2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reference": dist.Normal()}, ValueError, "constrained to"),
        ({"reference": dist.Uniform(jnp.zeros(3), 1.0).to_event(1)}, ValueError, "constrained to"),
        ({"reference": dist.Dirichlet(jnp.ones(3))}, ValueError, "constrained to"),
        ({"reference": dist.Poisson(jnp.ones(3)).to_event(1)}, ValueError, "constrained to"),
        ({"num_steps": 0}, ValueError, "num_steps must be"),
        ({"step_size": 0.0}, ValueError, "step_size must be"),
    ],
    ids=["scalar", "box", "simplex", "counts", "num_steps", "step_size"],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"energy": KAN_PRIOR.energy, "reference": STANDARD, **change}
    with pytest.raises(error, match=message):
        DeepKAPrior(arguments.pop("energy"), arguments.pop("reference"), **arguments)


def test_an_energy_of_another_shape_and_a_value_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"energy must map \(..., 3\) to"):
        jax.eval_shape(lambda key: DeepKAPrior(lambda z: z, STANDARD).sample(key, (2,)), jax.random.key(0))
    with pytest.raises(ValueError, match="last axis of size 3"):
        KAN_PRIOR.log_prob(jnp.zeros(2))


@pytest.mark.parametrize(
    "reference",
    [
        dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        dist.StudentT(jnp.full(3, 1.5), 0.0, 1.0).to_event(1),
        dist.TransformedDistribution(STANDARD, dist.transforms.AffineTransform(1.0, 2.0)),
    ],
    ids=lambda reference: type(reference).__name__,
)
def test_references_work_also_without_a_known_finite_variance(reference):
    prior = DeepKAPrior(lambda z: z.sum(-1), reference, num_steps=2)
    assert np.all(np.isfinite(quick_jit(lambda key: prior.sample(key))(jax.random.key(0))))
