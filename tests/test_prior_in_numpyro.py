"""The priors as latent sites of NumPyro models: NUTS, SVI with guides, Predictive, handlers, plates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.special
import scipy.stats
from numpyro.contrib.module import eqx_module
from numpyro.handlers import condition, mask, scale, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from numpyro.infer.inspect import get_model_relations
from numpyro.infer.util import log_density
from prior_cases import CASES, quick_jit, random_energy
from reference_density import ReferenceDensity

from numpyro_kaem import BSpline, KAMixture, KAPrior, UnivariateEnergy

SITES = {"normal": 0.8, "log-normal": 0.9, "uniform": 0.4}  # and the observation of each
NOISE = 0.5


def prior_of(case):
    (reference, _), domain = CASES[case]
    return KAPrior(random_energy(BSpline(6, 3, domain), (), 1.0), reference)


def posterior_moments(case):
    """Mean and standard deviation under p(z) Normal(x | z, NOISE), by quadrature of the reference density."""
    prior = prior_of(case)
    energy = jax.tree.map(lambda leaf: leaf[None], prior.energy)
    density = ReferenceDensity(energy, CASES[case][0][1])
    z, weights = density.integration_rule(np.float64)
    mass = weights * np.exp(density.log_prob(z) - 0.5 * ((SITES[case] - z) / NOISE) ** 2)
    mass /= mass.sum()
    mean = np.sum(mass * z)
    return mean, np.sqrt(np.sum(mass * (z - mean) ** 2))


@pytest.mark.slow
def test_nuts_samples_bounded_and_unbounded_priors():
    def model():
        for case, x in SITES.items():
            z = numpyro.sample(case, prior_of(case))
            numpyro.sample(f"x {case}", dist.Normal(z, NOISE), obs=x)

    mcmc = MCMC(NUTS(model, init_strategy=init_to_median), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples(group_by_chain=True)
    assert np.mean(mcmc.get_extra_fields()["diverging"]) < 0.01
    for case in SITES:
        mean, deviation = posterior_moments(case)
        z = np.asarray(draws[case], np.float64)
        assert np.all(prior_of(case).support(z))
        size = numpyro.diagnostics.effective_sample_size(z)
        assert size > 300
        # Six standard errors of the mean: a false alarm has probability 2e-9, three comparisons.
        assert abs(z.mean() - mean) < 6 * deviation / np.sqrt(size)
        assert z.std() == pytest.approx(deviation, rel=0.2)


def test_svi_learns_an_energy_and_a_guide():
    """From 2,000 numbers of two clusters, an energy over a normal reference learns their density."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.choice([-1.5, 1.5], 2000) + 0.3 * rng.normal(size=2000), jnp.float32)
    basis = BSpline(num_intervals=16, degree=3, domain=(-3.0, 3.0))
    energy = UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=0.0)

    def model(x):
        prior = KAPrior(eqx_module("energy", energy), dist.Normal(0.0, 1.0))
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.TransformedDistribution(prior, dist.transforms.AffineTransform(loc, 1.0)), obs=x)

    svi = SVI(model, AutoNormal(model), optax.adam(5e-2), Trace_ELBO())
    result = quick_jit(lambda key: svi.run(key, 600, data, progress_bar=False))(jax.random.key(1))
    assert np.all(np.isfinite(result.losses))
    # Entropy of the mixture of two normals of standard deviation 0.3 is 0.91 nats; a standard normal scores 2.1.
    assert np.mean(result.losses[-50:]) / 2000 < 1.05
    learned = result.params["energy$params"]
    leaves = jax.tree.leaves(learned)
    assert sorted(leaf.shape for leaf in leaves) == [(), (), (basis.num_basis,)]
    assert not np.array_equal(learned.coefficients, energy.coefficients)


@pytest.mark.parametrize("form", ["univariate", "mixture"])
@pytest.mark.slow
def test_guides_reach_latent_priors(form):
    """A guide of the posterior of a learned prior has finite gradients in all parameters, and improves."""
    shape = (4, 3) if form == "mixture" else (4,)
    basis = BSpline(num_intervals=6, degree=3, domain=(-2.0, 2.0))
    energy = UnivariateEnergy.init(jax.random.key(0), shape, basis=basis, scale=1.0)
    x = jax.random.normal(jax.random.key(1), (20, 4))

    def model(x):
        prior = KAPrior(eqx_module("energy", energy), dist.Normal(0.0, 1.0))
        if form == "mixture":
            prior = KAMixture(prior, numpyro.param("logits", jnp.zeros(3)))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", prior.to_event(1))
            numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    svi = SVI(model, AutoNormal(model), optax.adam(2e-2), Trace_ELBO())
    result = svi.run(jax.random.key(2), 200, x, progress_bar=False)
    assert np.all(np.isfinite(result.losses))
    assert np.mean(result.losses[-20:]) < np.mean(result.losses[:20]) - 10
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
    draws = Predictive(model, params=result.params, num_samples=7)(jax.random.key(3), x)
    assert draws["z"].shape == (7, 20, 4)


X = jnp.array([0.8, -0.5])


def two_latents(x=None):
    """Two correlated latents: the sum is measured well, each of them badly."""
    z = numpyro.sample("z", prior_of("normal").expand((2,)).to_event(1))
    numpyro.sample("each", dist.Normal(z, 1.0).to_event(1), obs=x)
    numpyro.sample("sum", dist.Normal(z.sum(), 0.5), obs=None if x is None else x.sum())
    return z


def grid_of_posterior():
    """Points of a square, and the logarithm of prior times likelihood there, from the reference density."""
    energy = jax.tree.map(lambda leaf: leaf[None], prior_of("normal").energy)
    log_prior = ReferenceDensity(energy, CASES["normal"][0][1]).log_prob
    axis = np.linspace(-6.0, 6.0, 1201)
    one, two = np.meshgrid(axis, axis, indexing="ij")
    likelihoods = (scipy.stats.norm.logpdf(float(x), z, 1.0) for x, z in zip(X, (one, two), strict=True))
    log_joint = log_prior(one) + log_prior(two) + sum(likelihoods)
    return one, two, log_joint + scipy.stats.norm.logpdf(float(X.sum()), one + two, 0.5)


GUIDES = {
    # name: guide, steps, how far below the log-evidence its bound may end
    "normal": (AutoNormal, 1500, 1.0),
    "low-rank normal": (AutoLowRankMultivariateNormal, 1500, 0.3),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.slow
def test_bounds_of_guides_reach_the_evidence(name):
    """The ELBO is below the log-evidence, known by quadrature, and the closer to it the richer the guide."""
    make, steps, gap = GUIDES[name]
    one, two, log_joint = grid_of_posterior()
    log_evidence = scipy.special.logsumexp(log_joint) + 2 * np.log(one[1, 0] - one[0, 0])
    guide = make(two_latents)
    svi = SVI(two_latents, guide, optax.adam(optax.cosine_decay_schedule(2e-2, steps)), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(0), steps, X, progress_bar=False)
    losses = Trace_ELBO(num_particles=2000)
    bound = -losses.loss(jax.random.key(1), result.params, two_latents, guide, X)
    # log p(x, z) - log q(z) has a standard deviation of less than one nat under q, so that six standard errors of 2,000
    # draws are 0.13: a false alarm has probability 1e-9.
    assert log_evidence - gap < bound < log_evidence + 0.13
    z = np.asarray(guide.sample_posterior(jax.random.key(2), result.params, sample_shape=(500,))["z"])
    assert z.shape == (500, 2)
    weights = np.exp(log_joint - log_joint.max())
    mean = [np.sum(weights * part) / weights.sum() for part in (one, two)]
    np.testing.assert_allclose(z.mean(0), mean, atol=0.35)


@pytest.mark.slow
def test_a_delta_guide_finds_the_mode():
    one, two, log_joint = grid_of_posterior()
    guide = AutoDelta(two_latents)
    steps = 1000
    svi = SVI(two_latents, guide, optax.adam(optax.cosine_decay_schedule(5e-2, steps)), Trace_ELBO())
    result = quick_jit(lambda key: svi.run(key, steps, X, progress_bar=False))(jax.random.key(0))
    mode = np.unravel_index(np.argmax(log_joint), log_joint.shape)
    np.testing.assert_allclose(guide.median(result.params)["z"], [one[mode], two[mode]], atol=0.02)


def test_predictive_draws_from_the_prior_and_from_given_latents():
    given = {"z": jnp.array([[3.0, -1.0], [0.5, 0.25]])}

    @quick_jit
    def draws(key):
        prior_draws = Predictive(two_latents, num_samples=5000)(key)
        predicted = Predictive(two_latents, given, return_sites=["z", "sum"])(key)
        parallel = Predictive(two_latents, num_samples=4, parallel=True)(key)
        return prior_draws, prior_of("normal").cdf(prior_draws["z"]), predicted, parallel

    prior_draws, u, predicted, parallel = draws(jax.random.key(0))
    assert {name: draws.shape for name, draws in prior_draws.items()} == {
        "z": (5000, 2),
        "each": (5000, 2),
        "sum": (5000,),
    }
    # Kolmogorov's bound: of 10,000 draws a distance of 0.033 has probability 2 exp(-2 n d^2) = 7e-10.
    assert scipy.stats.kstest(np.ravel(u), "uniform").statistic < 0.033
    np.testing.assert_array_equal(predicted["z"], given["z"])
    # Eight standard deviations of the noise: probability 1e-15.
    np.testing.assert_allclose(predicted["sum"], np.asarray(given["z"]).sum(-1), atol=4.0)
    assert parallel["z"].shape == (4, 2)


def test_handlers_act_on_the_prior_as_on_any_site():
    z, prior = jnp.array([0.3, -0.7]), prior_of("normal")

    @quick_jit
    def results(z, x):
        of_z = prior.log_prob(z).sum()
        alone = lambda: numpyro.sample("z", prior.expand((2,)).to_event(1))  # noqa: E731
        fixed = trace(seed(condition(two_latents, {"z": z}), 0)).get_trace(x)
        replaced = trace(seed(substitute(two_latents, {"z": z}), 0)).get_trace(x)
        assert fixed["z"]["is_observed"] and not replaced["z"]["is_observed"]
        values = fixed["z"]["value"], replaced["z"]["value"]
        densities = [
            log_density(model, (), {}, {"z": z})[0]
            for model in (alone, scale(alone, scale=3.0), mask(alone, mask=False), condition(alone, {"z": z}))
        ]
        full = log_density(two_latents, (x,), {}, {"z": z})[0]
        conditioned = log_density(condition(two_latents, {"z": z}), (x,), {}, {})[0]
        return of_z, values, densities, full, conditioned

    of_z, values, densities, full, conditioned = results(z, X)
    for value in values:
        np.testing.assert_array_equal(value, z)
    np.testing.assert_allclose(densities, [of_z, 3.0 * of_z, 0.0, of_z], rtol=1e-5, atol=1e-6)
    likelihood = scipy.stats.norm.logpdf(X, z).sum() + scipy.stats.norm.logpdf(X.sum(), z.sum(), 0.5)
    np.testing.assert_allclose([full, conditioned], of_z + likelihood, rtol=1e-5)


def test_subsampled_plates_scale_the_prior():
    """The densities of all pairs out of four rows, each scaled by two, average to the density of all rows."""
    prior = prior_of("normal").expand((3,)).to_event(1)
    z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    pairs = [(i, j) for i in range(4) for j in range(i)]

    def model(indices):
        with numpyro.plate("rows", 4, subsample_size=2):
            numpyro.sample("z", prior)

    @quick_jit
    def results(z):
        def of_pair(pair):
            return log_density(model, (None,), {}, {"rows": pair, "z": z[pair]})[0]

        return jax.vmap(of_pair)(jnp.array(pairs)), prior.log_prob(z)

    of_pairs, each = (np.asarray(part) for part in results(jnp.asarray(z)))
    for value, pair in zip(of_pairs, pairs, strict=True):
        np.testing.assert_allclose(value, 2.0 * each[np.array(pair)].sum(), rtol=1e-5)
    np.testing.assert_allclose(of_pairs.mean(), each.sum(), rtol=1e-5)


def test_model_relations_and_diagrams_name_the_prior():
    relations = get_model_relations(two_latents, (X,))
    assert relations["sample_dist"]["z"] == "KAPrior"
    assert relations["sample_sample"]["sum"] == ["z"] and relations["observed"] == ["each", "sum"]
    assert "KAPrior" in numpyro.render_model(two_latents, (X,), render_distributions=True).source
