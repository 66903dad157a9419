"""Guides as proposals of importance sampling and as the start of chains, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from tempered_models import ks_bound

from numpyro_kaem import (
    MALA,
    BSpline,
    ImportanceSampling,
    KAPrior,
    Langevin,
    ParallelTempering,
    UnivariateEnergy,
    compare_evidence,
)
from numpyro_kaem.distributions.reparam import normal_of_quantile, quantile_of_normal
from numpyro_kaem.models import LatentModel
from numpyro_kaem.posterior.target import Target

KEY = jax.random.key(0)
NOISE = 0.5
LEARNED = KAPrior(
    UnivariateEnergy.init(jax.random.key(1), basis=BSpline(6, 3, (-2.0, 2.0)), scale=1.0), dist.Normal(0.0, 1.0)
)


def linear_gaussian(dim, num_data, widen=1.0):
    """A linear-Gaussian model, its exact posterior as a guide (standard deviations times `widen`), data, evidence.

    Returns:
        Model, guide, guide's parameters, data, log-evidence.
    """
    rng = np.random.default_rng(dim)
    loadings = rng.normal(size=(dim, dim)) / dim**0.5
    covariance = np.linalg.inv(np.eye(dim) + loadings @ loadings.T / NOISE**2)
    marginal = loadings.T @ loadings + NOISE**2 * np.eye(dim)
    x = rng.multivariate_normal(np.zeros(dim), marginal, size=num_data)
    params = {"gain": loadings.T @ covariance / NOISE**2, "factor": widen * np.linalg.cholesky(covariance)}

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ jnp.asarray(loadings, jnp.float32), NOISE).to_event(1), obs=x)

    def guide(x):
        gain = numpyro.param("gain", jnp.zeros((dim, dim)))
        factor = numpyro.param("factor", jnp.eye(dim))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.MultivariateNormal(x @ gain, scale_tril=factor))

    square = np.einsum("bi,ij,bj->b", x, np.linalg.inv(marginal), x)
    log_evidence = -0.5 * (square + np.linalg.slogdet(2 * np.pi * marginal)[1])
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return model, guide, params, jnp.asarray(x, jnp.float32), log_evidence


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    model, guide, params, x, exact = linear_gaussian(3, 4)
    sampler = ImportanceSampling(300, guide=guide, guide_params=params)
    posterior = sampler.run(KEY, model, {}, x)
    assert posterior.latents["z"].shape == (4, 300, 3)
    # Rounding in float32, of terms of up to 20 nats.
    np.testing.assert_allclose(posterior.log_weights, np.repeat(exact[:, None], 300, 1), atol=5e-5)
    np.testing.assert_allclose(posterior.log_evidence, exact, atol=2e-5)
    np.testing.assert_allclose(posterior.ess, 300, rtol=1e-6)
    np.testing.assert_allclose(posterior.log_evidence_std_error, 0.0, atol=1e-4)
    # Every datum has draws of its own, whose errors are independent.
    assert len(np.unique(posterior.latents["z"][..., 0])) > 1_190
    assert not posterior.shares_draws
    # The weights are not the likelihoods, which depend on z.
    assert posterior.log_likelihood.std(1).min() > 0.5


@pytest.mark.slow
def test_chunks_do_not_change_the_result():
    model, guide, params, x, _ = linear_gaussian(3, 4, widen=1.5)
    posterior = ImportanceSampling(300, guide=guide, guide_params=params).run(KEY, model, {}, x)
    chunked = ImportanceSampling(300, 70, guide=guide, guide_params=params).run(KEY, model, {}, x)
    np.testing.assert_array_equal(chunked.latents["z"], posterior.latents["z"])
    np.testing.assert_allclose(chunked.log_weights, posterior.log_weights, atol=5e-5)
    np.testing.assert_allclose(chunked.log_likelihood, posterior.log_likelihood, atol=5e-5)


@pytest.mark.slow
def test_a_wider_guide_gives_the_evidence_and_more_effective_draws_than_the_prior_in_ten_dimensions():
    model, guide, params, x, exact = linear_gaussian(10, 3, widen=1.2)
    options = {"guide": guide, "guide_params": params}
    posterior = ImportanceSampling(2_000, **options).run(KEY, model, {}, x)
    # Five standard errors of each of three data: a false alarm in 6e5.
    assert np.all(np.abs(posterior.log_evidence - exact) < 5 * posterior.log_evidence_std_error)
    assert np.all(posterior.log_evidence_std_error < 0.05)
    assert np.all(posterior.pareto_k < 0.7)
    from_prior = ImportanceSampling(2_000).run(KEY, model, {}, x)
    assert np.all(posterior.ess > 10 * from_prior.ess)
    weights = np.exp(posterior.log_weights - posterior.log_weights.max(1, keepdims=True))
    np.testing.assert_allclose(posterior.ess, weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-4)
    mean = np.einsum("bs,bsi->bi", weights / weights.sum(1, keepdims=True), posterior.latents["z"])
    # Standard deviations of the posterior are below 1: five standard errors, 30 numbers, a false alarm in 6e4.
    assert np.all(np.abs(mean - x @ params["gain"]) < 5 / posterior.ess[:, None] ** 0.5)

    errors = posterior.log_evidence_std_error
    table = compare_evidence({"guide": posterior, "prior": from_prior})
    assert table.loc["guide", "std_error"] == pytest.approx(np.sqrt(np.sum(errors**2)), rel=1e-4)
    assert table.loc["prior", "std_error"] == pytest.approx(from_prior.log_evidence_std_error.sum(), rel=1e-4)

    sampler = ImportanceSampling(2_000, target_ess=2 * posterior.ess.min(), pareto_smoothed=True, **options)
    grown = sampler.run(KEY, model, {}, x)
    assert grown.reached_target.all()
    assert grown.num_particles > 2_000
    assert np.all(np.abs(grown.log_evidence - exact) < 5 * posterior.log_evidence_std_error)
    assert np.all(grown.log_weights.max(1) <= grown.proposal_log_weights.max(1) + 1e-5)


def counts(x, y):
    """A normal and a Gamma latent: p(y) is negative binomial."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        numpyro.sample("y", dist.Poisson(w), obs=y)


X, Y = np.array([0.5, -2.0, 1.0], np.float32), np.array([0, 3, 1])
COUNTS_EVIDENCE = stats.norm(0.0, 2**0.5).logpdf(X) + stats.nbinom(2, 0.5).logpmf(Y)


def counts_posterior(x, y):
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("w", dist.Gamma(2.0 + y, 2.0))
        numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_two_latent_sites_in_any_order():
    posterior = ImportanceSampling(200, guide=counts_posterior).run(KEY, counts, {}, X, Y)
    np.testing.assert_allclose(posterior.log_weights, np.repeat(COUNTS_EVIDENCE[:, None], 200, 1), atol=2e-5)


@pytest.mark.slow
def test_arviz_gets_the_model_s_densities_and_prior():
    posterior = ImportanceSampling(200, guide=counts_posterior).run(KEY, counts, {}, X, Y)
    idata = posterior.to_arviz(num_samples=50, num_prior_samples=20, num_predictive_samples=0)
    assert idata.posterior["w"].shape == (1, 50, 3)
    log_likelihood = sum(idata.log_likelihood[name].values for name in ("x", "y"))
    log_prior = dist.Normal().log_prob(idata.posterior["z"].values)
    log_prior = log_prior + dist.Gamma(2.0, 1.0).log_prob(idata.posterior["w"].values)
    np.testing.assert_allclose(idata.sample_stats["lp"].values, log_likelihood + log_prior, atol=1e-4)
    # The prior's draws are those of the model, not of the guide: E w = 2, with 60 draws of standard deviation 1.4.
    assert abs(float(idata.prior["w"].mean()) - 2.0) < 5 * (2 / 60) ** 0.5


def test_draws_outside_of_the_prior_s_support_have_no_weight():
    def guide(x, y):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(x / 2, 1.0))
            numpyro.sample("w", dist.Normal((2.0 + y) / 2, 1.0 + 0.3 * y))

    posterior = ImportanceSampling(20_000, guide=guide).run(KEY, counts, {}, X, Y)
    negative = posterior.latents["w"] <= 0
    assert negative.mean() > 0.05
    np.testing.assert_array_equal(posterior.log_weights == -np.inf, negative)
    np.testing.assert_array_equal(posterior.log_likelihood == -np.inf, negative)
    assert np.all(np.abs(posterior.log_evidence - COUNTS_EVIDENCE) < 5 * posterior.log_evidence_std_error)


def test_a_density_that_goes_on_outside_of_its_support_counts_for_nothing_there():
    """So does a half-normal one whose arguments are not validated. Six standard errors: false alarm 6e-9."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            w = numpyro.sample("w", dist.HalfNormal(1.0, validate_args=False))
            numpyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("w", dist.Normal(x / 2, 1.0))

    posterior = ImportanceSampling(20_000, guide=guide).run(KEY, model, {}, X)
    negative = posterior.latents["w"] < 0
    assert negative.mean() > 0.05
    np.testing.assert_array_equal(posterior.log_weights == -np.inf, negative)
    exact = jnp.log(2.0) + dist.Normal(0.0, 2**0.5).log_prob(X) + jax.scipy.stats.norm.logcdf(X / 2**0.5)
    assert np.all(np.abs(posterior.log_evidence - exact) < 6 * posterior.log_evidence_std_error)


def test_the_guide_has_the_model_s_sub_sample():
    def model(x):
        with numpyro.plate("data", x.shape[0], subsample_size=4) as index:
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        # Takes a random key first, so that by itself it would draw other indices than the model.
        numpyro.prng_key()
        with numpyro.plate("data", x.shape[0], subsample_size=4) as index:
            numpyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))

    x = jnp.linspace(-3.0, 3.0, 50)
    posterior = ImportanceSampling(50, guide=guide).run(KEY, model, {}, x)
    exact = stats.norm(0.0, 2**0.5).logpdf(posterior.observed["x"])
    np.testing.assert_allclose(posterior.log_weights, np.repeat(exact[:, None], 50, 1), atol=2e-5)


@pytest.mark.slow
def test_global_latents_have_a_guide_too():
    def model(x):
        mean = numpyro.sample("mean", dist.Normal())
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        numpyro.sample("mean", dist.Normal(x.sum() / (1 + x.shape[0]), (1 + x.shape[0]) ** -0.5))

    posterior = ImportanceSampling(50, guide=guide).run(KEY, model, {}, X)
    exact = stats.multivariate_normal(np.zeros(3), np.eye(3) + 1.0).logpdf(X)
    np.testing.assert_allclose(posterior.log_weights, np.full((1, 50), exact), atol=2e-5)


def counts_guide(x, y):
    shift = numpyro.param("shift", 0.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(x + shift, 0.1))
        numpyro.sample("w", dist.LogNormal(0.5 * y, 0.2))


@pytest.mark.parametrize("ladder", [None, pytest.param([0.0, 0.3, 1.0], marks=pytest.mark.slow)])
def test_chains_start_at_the_guide_s_draws(ladder):
    kernel = MALA(step_size=1e-8, precondition=False)
    options = {
        "guide": counts_guide,
        "guide_params": {"shift": jnp.float32(0.5)},
        "warmup": 0,
        "num_steps": 1,
        "progress": False,
    }
    if ladder is None:
        sampler = Langevin(kernel, num_chains=2_000, **options)
    else:
        # No swap within the one step.
        sampler = ParallelTempering(ladder, kernel, swap_every=2, num_chains=2_000, **options)
    latents = sampler.run(KEY, counts, {}, X, Y).latents
    expected = {"z": stats.norm(X + 0.5, 0.1), "w": stats.lognorm(0.2, scale=np.exp(0.5 * Y))}
    steps = np.arange(2_001)[:, None] / 2_000
    for name, distribution in expected.items():
        u = np.sort(distribution.cdf(latents[name].T), axis=0)
        distance = np.maximum(steps[1:] - u, u - steps[:-1]).max(0)
        assert np.all(distance < ks_bound(2_000)), (name, distance)


@pytest.mark.slow
def test_whitened_chains_start_where_the_guide_says():
    """A scale that is another latent, and a learned density, there and back through the whitened coordinates."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            a = numpyro.sample("a", dist.Normal())
            b = numpyro.sample("b", dist.LogNormal(jnp.zeros(2), jnp.exp(a)[:, None]).to_event(1))
            c = numpyro.sample("c", LEARNED)
            numpyro.sample("x", dist.Normal(a + b.sum(-1) + c, 1.0), obs=x)

    x = jnp.array([-1.0, 2.0])
    target = Target(LatentModel(model, {}, x), whiten=True)
    z = {"a": jnp.array(-0.7), "b": jnp.array([0.3, 2.0]), "c": jnp.array(1.6)}

    @jax.jit
    def there_and_back(z):
        position = target.position(z, (x[1],))
        return position, target.latents(position, (x[1],))

    position, back = there_and_back(z)
    eps_b = jnp.log(z["b"]) / jnp.exp(z["a"])
    eps_c = jax.scipy.special.ndtri(LEARNED.cdf(z["c"]))
    np.testing.assert_allclose(position, jnp.concatenate([z["a"][None], eps_b, eps_c[None]]), rtol=1e-4)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4), back, z)
    # What is out of the support is moved inside, what is broken is not.
    assert np.all(np.isfinite(there_and_back(z | {"b": jnp.array([-0.3, 0.0])})[0]))
    assert np.all(np.isnan(there_and_back(z | {"a": jnp.array(jnp.nan)})[0]))


@pytest.mark.parametrize(
    "distribution",
    [dist.Normal(1.0, 2.0), dist.Exponential(3.0), dist.LogNormal(0.5, 0.3), dist.Gumbel(1.0, 0.5)],
    ids=lambda distribution: type(distribution).__name__,
)
def test_the_whitened_coordinate_is_the_inverse_of_the_quantile(distribution):

    @jax.jit
    def there_and_back(eps):
        z = quantile_of_normal(distribution, eps)
        return z, distribution.log_prob(z), normal_of_quantile(distribution, z)

    eps = np.linspace(-5.0, 7.0, 49, dtype=np.float32)
    z, log_density, back = map(np.asarray, there_and_back(eps))
    # Rounding of z is what limits it: half an ulp of z, in units of dz / d eps.
    slope = np.exp(stats.norm.logpdf(eps) - log_density)
    tolerance = 2e-4 + 4 * np.spacing(np.abs(z)) / slope
    assert np.all(np.abs(back - eps) < tolerance)


def encoder(**sites):
    def guide(x, y):
        with numpyro.plate("data", x.shape[0]):
            for name, distribution in sites.items():
                numpyro.sample(name, distribution)

    return guide


def other_plate(x, y):
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Normal())
        numpyro.sample("w", dist.Gamma(2.0, 1.0))


def outside(x, y):
    numpyro.sample("w", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal())


def observing(x, y):
    counts_posterior(x, y)
    numpyro.factor("bonus", 1.0)


def mixing(x, y):
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(x.mean(), 1.0))
        numpyro.sample("w", dist.Gamma(2.0, 1.0))


def with_parameter(x, y):
    numpyro.param("shift", 0.0)
    counts_posterior(x, y)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (encoder(z=dist.Normal()), r"latent sites of the model, \['w', 'z'\]: missing \['w'\], extra \[\]"),
        (
            encoder(z=dist.Normal(), w=dist.Normal(), v=dist.Normal()),
            r"missing \[\], extra \['v'\]",
        ),
        (
            encoder(z=dist.Normal(jnp.zeros(2), 1.0).to_event(1), w=dist.Gamma(2.0, 1.0)),
            r"shapes of the model for one datum, but 'z' has \(2,\) instead of \(\)",
        ),
        (other_plate, r"guide cannot be read.*plate='data' is no plate"),
        (outside, r"guide must have latent sites inside plate 'data', but \['w'\] are outside"),
        (observing, r"guide must have latent sites only, but it observes \['bonus'\]"),
        (mixing, r"guide cannot be read.*site 'z': the log-probabilities of two rows"),
        (with_parameter, r"guide cannot be read.*missing \['shift'\]"),
    ],
)
def test_guides_that_do_not_fit_are_refused(guide, message):
    with pytest.raises(ValueError, match=message):
        ImportanceSampling(10, guide=guide).run(KEY, counts, {}, X, Y)


def test_chains_refuse_them_too():
    with pytest.raises(ValueError, match=r"guide must have latent sites inside plate 'data'"):
        Langevin(num_steps=1, guide=outside, progress=False).run(KEY, counts, {}, X, Y)


def test_arguments_without_sense_are_refused():
    with pytest.raises(ValueError, match=r"guide_params \['a'\] need a guide, but guide is None"):
        ImportanceSampling(10, guide_params={"a": 1.0})
    with pytest.raises(ValueError, match=r"guide_params \[\] need a guide"):
        ParallelTempering([0.0, 1.0], guide_params={})


def test_broken_parameters_of_a_guide_are_found():
    model, guide, params, x, _ = linear_gaussian(3, 4)
    broken = {"guide": guide, "guide_params": params | {"gain": jnp.nan * params["gain"]}}
    with pytest.raises(ValueError, match=r"log q\(z \| x\) is NaN or \+inf at 300 of 300 draws from the guide"):
        ImportanceSampling(300, **broken).run(KEY, model, {}, x)


@pytest.mark.slow
def test_chains_do_not_start_at_broken_draws():
    model, guide, params, x, _ = linear_gaussian(2, 2)
    broken = {"guide": guide, "guide_params": params | {"gain": jnp.full((2, 2), jnp.nan)}}
    with pytest.raises(
        ValueError, match=r"log-likelihood is NaN or \+inf, .* at 4 of 4 draws from the guide of datum 0"
    ):
        Langevin(num_steps=5, warmup=5, progress=False, **broken).run(KEY, model, {}, x)
