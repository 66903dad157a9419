"""Fully Bayesian priors: a P-spline prior on the energy by `random_eqx_module`; NUTS samples density and latents."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import random_eqx_module
from numpyro.distributions.transforms import LowerCholeskyAffine
from numpyro.handlers import reparam, seed, trace
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import TransformReparam
from prior_cases import quick_jit

from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

BASIS = BSpline(num_intervals=8, degree=3, domain=(-2.5, 2.5))
NORMAL = dist.Normal(0.0, 1.0)
NOISE = 0.3


def random_walk(step, size):
    """Walks with steps of the given standard deviations, as running sums of independent normals."""
    independent = dist.Normal(0.0, 1.0).expand([*jnp.shape(step), size]).to_event(1)
    running_sum = jnp.tril(jnp.ones((size, size)))
    scale = jnp.asarray(step)[..., None, None] * running_sum
    return dist.TransformedDistribution(independent, LowerCholeskyAffine(jnp.zeros(size), scale))


def model_of(num_problems, num_data):
    """Independent problems: a smoothness, a density and noisy measurements of latents in each."""
    energy = UnivariateEnergy.init(jax.random.key(0), (num_problems,), basis=BASIS, scale=0.0)

    def model(x=None):
        with numpyro.plate("problems", num_problems):
            step = numpyro.sample("step", dist.HalfNormal(0.7))
        f = random_eqx_module("energy", energy, prior={"coefficients": random_walk(step, BASIS.num_basis)})
        with numpyro.plate("data", num_data):
            z = numpyro.sample("z", KAPrior(f, NORMAL).to_event(1))
            numpyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    return reparam(model, config={"energy/coefficients": TransformReparam()})


@quick_jit
@jax.vmap
def densities(coefficients, z):
    """Of every draw of the coefficients, at points z."""
    weight = jnp.zeros(coefficients.shape[:-1])
    return jnp.exp(KAPrior(UnivariateEnergy(weight, weight + 1.0, coefficients, BASIS), NORMAL).log_prob(z))


def test_a_running_sum_of_normals_is_numpyro_s_random_walk():
    walk = jax.random.normal(jax.random.key(0), (4, 7))
    expected = dist.GaussianRandomWalk(0.6, 7).log_prob(walk)
    np.testing.assert_allclose(random_walk(0.6, 7).log_prob(walk), expected, rtol=1e-4)


def test_only_coefficients_become_random():
    """Knots and domain are no sample sites; weights that have no prior keep their values; the walk has its own site."""
    model = model_of(2, 5)
    sites = trace(seed(model, rng_seed=0)).get_trace()
    random = {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}
    (base,) = (name for name in random if name.endswith("coefficients_base"))
    assert {name: value.shape for name, value in random.items()} == {
        "step": (2,),
        base: (2, BASIS.num_basis),
        "z": (5, 2),
        "x": (5, 2),
    }
    f = sites["z"]["fn"].base_dist.energy
    assert f.basis == BASIS and np.all(f.base_weight == 0.0) and np.all(f.spline_weight == 1.0)
    np.testing.assert_array_equal(f.coefficients, sites["energy/coefficients"]["value"])
    steps = np.diff(sites["energy/coefficients"]["value"], axis=-1)
    expected = sites["step"]["value"][:, None] * random[base][:, 1:]
    np.testing.assert_allclose(steps, expected, rtol=1e-4, atol=1e-5)


def sample(model, x, num_samples, num_warmup=300):
    mcmc = MCMC(NUTS(model, target_accept_prob=0.9), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(1), x, extra_fields=("diverging",))
    assert np.mean(mcmc.get_extra_fields()["diverging"]) < 0.01
    return mcmc.get_samples()


def predictive(model, num_samples):
    """Draws from the prior and of data, as one program."""
    return quick_jit(lambda key: Predictive(model, num_samples=num_samples)(key))


@pytest.mark.slow
def test_density_and_latents_are_learned_together():
    """From noisy draws of two bumps, a density with a dip between them, and latents nearer to the truth."""
    rng = np.random.default_rng(0)
    truth = rng.choice([-1.2, 1.2], (150, 1)) + 0.3 * rng.normal(size=(150, 1))
    x = truth + NOISE * rng.normal(size=(150, 1))
    draws = sample(model_of(1, 150), jnp.asarray(x, jnp.float32), 300)
    points = jnp.array([-1.2, 0.0, 1.2])[:, None]
    left, dip, right = np.median(densities(draws["energy/coefficients"], jnp.tile(points, (300, 1, 1))), axis=0)[:, 0]
    assert min(left, right) > 4 * dip
    error = np.mean((np.mean(draws["z"], axis=0) - truth) ** 2)
    # The noise has variance 0.09, of which knowing the density exactly would leave 0.045.
    assert error < 0.75 * NOISE**2
    assert np.std(draws["step"]) > 0


@pytest.mark.slow
def test_credible_bands_cover_the_truth_as_often_as_they_say(optimised):
    """Densities drawn from the prior itself, and data from them: 90 per cent bands cover nine tenths of the truth."""
    num_problems, num_data, num_samples = 40, 100, 120
    model = model_of(num_problems, num_data)
    truth = predictive(model, 1)(jax.random.key(0))
    draws = sample(model, truth["x"][0], num_samples, num_warmup=200)
    z = jnp.linspace(-2.0, 2.0, 25)[:, None] + jnp.zeros(num_problems)
    expected = densities(truth["energy/coefficients"], z[None])[0]
    found = densities(draws["energy/coefficients"], jnp.broadcast_to(z, (num_samples, *z.shape)))
    low, high = np.quantile(found, [0.05, 0.95], axis=0)
    covered = np.mean((low <= expected) & (expected <= high), axis=0)  # of each problem
    # The share of a band that covers has a standard deviation of at most 0.3, its mean over 40 problems of 0.047: five
    # of these below 0.9 is a false alarm with probability 3e-7.
    assert covered.mean() > 0.9 - 5 * 0.047
    # Bands say something: they are much narrower than those of the prior.
    prior = predictive(model, num_samples)(jax.random.key(2))
    before = densities(prior["energy/coefficients"], jnp.broadcast_to(z, (num_samples, *z.shape)))
    assert np.mean(high - low) < 0.6 * np.mean(np.subtract(*np.quantile(before, [0.95, 0.05], axis=0)))
    latents = np.quantile(draws["z"], [0.05, 0.95], axis=0)
    inside = np.mean((latents[0] <= truth["z"][0]) & (truth["z"][0] <= latents[1]))
    # 4,000 latents, those of a problem dependent through its density: at most 0.3 / sqrt(40) again.
    assert abs(inside - 0.9) < 5 * 0.047
