"""ICDFReparam: latent sites in the coordinates of a standard normal, with the same density and better geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import reparam, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from prior_cases import CASES, quick_jit, random_energy
from reference_density import ReferenceDensity
from speed import slow_unless
from two_bumps import bimodal_energy

from numpyro_kaem import BSpline, ICDFReparam, KAMixture, KAPrior

NORMAL = dist.Normal(0.0, 1.0)


def prior_of(case, batch_shape=(), std=2.0):
    (reference, _), domain = CASES[case]
    return KAPrior(random_energy(BSpline(6, 3, domain), batch_shape, std), reference)


def mixture():
    return KAMixture(prior_of("normal", (2,)), jnp.array([0.5, -0.3]))


UNIVARIATE = {
    "normal": prior_of("normal"),
    "log-normal": prior_of("log-normal"),
    "uniform": prior_of("uniform"),
    "mixture": mixture(),
    # its tails are inverted by bisection
    "student t": KAPrior(random_energy(BSpline(6, 3, (-3.0, 3.0)), (), 2.0), dist.StudentT(4.0, 0.3, 1.1)),
    "shifted and scaled": dist.TransformedDistribution(prior_of("normal"), dist.transforms.AffineTransform(1.0, -2.0)),
    "numpyro's normal": dist.Normal(1.0, 3.0),
    "numpyro's gumbel": dist.Gumbel(1.0, 3.0),
}

QUICK_TAILS = [name for name in UNIVARIATE if name != "student t"]


def site(distribution):
    return lambda: numpyro.sample("z", distribution)


def reparameterised(distribution):
    return reparam(site(distribution), config={"z": ICDFReparam()})


def quantile(distribution):
    """The map from eps to z, through a model as users write it."""

    def z(eps):
        with trace() as tr, substitute(data={"z_base": eps}), seed(rng_seed=0):
            reparameterised(distribution)()
        return tr["z"]["value"]

    return z


@pytest.mark.parametrize("wrap", slow_unless(["both"], ["both", "plate", "mixture"]))
def test_the_base_site_is_standard_normal_and_the_site_its_quantile(wrap):
    prior = mixture().expand((3,)) if wrap == "mixture" else prior_of("normal", (3,))
    fn = {
        "both": dist.ExpandedDistribution(prior.to_event(1), (2,)).to_event(1),
        "plate": prior.to_event(1),
        "mixture": prior.to_event(1),
    }[wrap]

    def model():
        if wrap == "plate":
            with numpyro.plate("data", 2):
                return numpyro.sample("z", fn)
        return numpyro.sample("z", fn)

    @quick_jit
    def values(key):
        with trace() as tr, seed(rng_seed=key):
            reparam(model, config={"z": ICDFReparam()})()
        z, base = tr["z"], tr["z_base"]
        assert z["type"] == "deterministic"
        assert base["fn"].event_dim == fn.event_dim
        assert base["fn"].shape() == (fn.expand((2,)) if wrap == "plate" else fn).shape() == z["value"].shape
        eps = base["value"]
        return eps, z["value"], base["fn"].log_prob(eps), prior.icdf(jax.scipy.stats.norm.cdf(eps))

    eps, z, log_prob, expected = values(jax.random.key(0))
    assert len(np.unique(eps)) == eps.size
    np.testing.assert_allclose(np.sum(log_prob), scipy.stats.norm.logpdf(eps).sum(), rtol=1e-5)
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUICK_TAILS)
@pytest.mark.slow
def test_the_density_of_z_is_the_prior_s(name):
    """log N(eps) = log p(z) + log |dz/deps|, far into both tails."""
    distribution = UNIVARIATE[name]
    eps = jnp.linspace(-5.0, 5.0, 41)
    # What float32 leaves of 1 - u where NumPyro's icdf is all that there is.
    tolerance = np.where(eps > 3.0, 0.5, 1e-3) if "gumbel" in name else 1e-3

    @quick_jit
    def both_sides(eps):
        z, slope = jax.vmap(jax.value_and_grad(quantile(distribution)))(eps)
        return jax.scipy.stats.norm.logpdf(eps), distribution.log_prob(z) + jnp.log(jnp.abs(slope))

    left, right = both_sides(eps)
    assert np.all(np.abs(left - right) <= tolerance)


@pytest.mark.parametrize("name", ["log-normal", pytest.param("mixture", marks=pytest.mark.slow)])
def test_draws_follow_the_prior(name):
    distribution = UNIVARIATE[name]

    @quick_jit
    def probabilities(key):
        return distribution.cdf(Predictive(reparameterised(distribution), num_samples=20_000)(key)["z"])

    u = np.asarray(probabilities(jax.random.key(1)))
    # Kolmogorov's bound: a distance of 0.023 has probability 2 exp(-2 n d^2) = 1e-9.
    assert scipy.stats.kstest(u, "uniform").statistic < 0.023


@pytest.mark.parametrize(
    "case",
    [
        "normal, small tails",
        "uniform",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("normal", "normal, big tails", "log-normal")),
    ],
)
def test_both_tails_keep_their_digits_in_single_precision(case):
    """At eps = 10, a probability of 8e-24, the tail beyond z still is the normal's, to the rounding of z."""
    prior = prior_of(case)
    eps = np.array([-10.0, -8.0, -6.0, -5.0, 5.0, 6.0, 8.0, 10.0])
    z = np.asarray(quick_jit(jax.vmap(quantile(prior)))(jnp.asarray(eps, jnp.float32)), np.float64)
    density = ReferenceDensity(jax.tree.map(lambda leaf: leaf[None], prior.energy), CASES[case][0][1])
    below, above = density.probabilities(z)
    rounding = np.exp(density.log_prob(z)) * np.spacing(np.abs(z).astype(np.float32))
    tail = scipy.stats.norm.sf(np.abs(eps))
    assert np.all(np.abs(np.where(eps < 0, below, above) - tail) <= 1e-3 * tail + rounding)


@pytest.mark.parametrize("name", slow_unless(["numpyro's gumbel"], QUICK_TAILS))
def test_nothing_is_infinite_or_nan_however_far_out(name):
    eps = jnp.array([-1e6, -100.0, -38.0, -13.0, -10.0, -5.4, 0.0, 5.3, 5.5, 10.0, 13.0, 38.0, 100.0, 1e6])
    distribution = UNIVARIATE[name]

    @quick_jit
    def results(distribution, eps):
        def z(d, e):
            return quantile(d)(e)

        gradient = None
        if name != "student t":  # JAX has no derivative of its cdf in the degrees of freedom
            gradient = jax.grad(lambda d: jax.vmap(lambda e: z(d, e))(eps).sum())(distribution)
        return *jax.vmap(jax.value_and_grad(lambda e: z(distribution, e)))(eps), gradient

    z, slope, gradient = results(distribution, eps)
    assert np.all(np.isfinite(z)) and np.all(distribution.support(z))
    assert np.all(np.isfinite(slope))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert slope[6] != 0  # at eps = 0, where initialisation strategies begin
    np.testing.assert_array_equal(np.asarray(slope)[[0, 1, 2, -3, -2, -1]], 0.0)
    assert np.all(np.diff(z) >= 0)


def test_float64_reaches_further(x64):
    prior = KAPrior(random_energy(BSpline(6, 3, (-3.0, 3.0)), (), 2.0, dtype=np.float64), NORMAL)
    z, slope = quick_jit(jax.value_and_grad(quantile(prior)))(jnp.asarray(25.0, jnp.float64))
    assert z.dtype == jnp.float64 and np.isfinite(slope) and slope > 0
    density = ReferenceDensity(jax.tree.map(lambda leaf: leaf[None], prior.energy), scipy.stats.norm())
    np.testing.assert_allclose(density.probabilities(z)[1], scipy.stats.norm.sf(25.0), rtol=1e-6)


def test_the_joint_density_of_a_model_is_the_same_up_to_the_change_of_variables():
    prior = prior_of("normal", (3,))

    def model(x):
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", prior.to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    x, eps = np.array([0.3, -1.0], np.float32), np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)

    @quick_jit
    def densities(x, eps):
        z, slope = jax.jvp(quantile(prior.expand((2, 3))), (eps,), (jnp.ones_like(eps),))
        ours, _ = log_density(reparam(model, config={"z": ICDFReparam()}), (x,), {}, {"z_base": eps})
        return ours, log_density(model, (x,), {}, {"z": z})[0] + jnp.log(slope).sum()

    ours, theirs = densities(x, eps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


class WithoutQuantiles(dist.Distribution):
    support = dist.constraints.real


@pytest.mark.parametrize(
    ("distribution", "obs", "message"),
    [
        (NORMAL, 1.0, "ICDFReparam reparameterises latent variables, but site 'z' is observed"),
        (WithoutQuantiles(), None, "site 'z' has a WithoutQuantiles, whose icdf does not work"),
        (dist.Bernoulli(0.3), None, r"site 'z' has a BernoulliProbs of event shape \(\); ICDFReparam needs"),
        (dist.Dirichlet(jnp.ones(3)), None, r"site 'z' has a Dirichlet of event shape \(3,\)"),
        (NORMAL.mask(jnp.array(False)), None, "site 'z' has a MaskedDistribution, whose icdf does not work"),
        (dist.FoldedDistribution(NORMAL), None, "site 'z' has a FoldedDistribution, whose icdf does not work"),
    ],
)
def test_sites_that_it_cannot_reparameterise_are_errors(distribution, obs, message):
    model = reparam(lambda: numpyro.sample("z", distribution, obs=obs), config={"z": ICDFReparam()})
    with seed(rng_seed=0), pytest.raises(ValueError, match=message):
        model()


X, NOISE = 0.5, 2.0


def bimodal_model(prior):
    def model():
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Normal(z, NOISE), obs=X)

    return model


def run(model, num_samples, num_chains):
    """NUTS from random starting points: draws of z by chain, and gradient evaluations in all."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=300,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), extra_fields=("num_steps", "diverging"))
    assert np.mean(mcmc.get_extra_fields()["diverging"]) < 0.01
    z = np.asarray(mcmc.get_samples(group_by_chain=True)["z"], np.float64)
    return z, int(np.sum(mcmc.get_extra_fields()["num_steps"]))


def quadrature_moments(prior):
    """Mean and standard deviation of z, and the probability of z > 0, under p(z) Normal(X | z, NOISE)."""
    density = ReferenceDensity(jax.tree.map(lambda leaf: leaf[None], prior.energy), scipy.stats.norm())
    z, weights = density.integration_rule(np.float64)
    mass = weights * np.exp(density.log_prob(z) - 0.5 * ((X - z) / NOISE) ** 2)
    mass /= mass.sum()
    mean = np.sum(mass * z)
    return mean, np.sqrt(np.sum(mass * (z - mean) ** 2)), np.sum(mass[z > 0])


@pytest.mark.slow
def test_nuts_crosses_between_the_modes_of_a_prior():
    prior = KAPrior(bimodal_energy(), NORMAL)
    z, _ = run(reparam(bimodal_model(prior), config={"z": ICDFReparam()}), 1000, 2)
    mean, deviation, upper = quadrature_moments(prior)
    size = numpyro.diagnostics.effective_sample_size(z)
    assert size > 400
    # Six standard errors of a mean of `size` independent draws: false alarms with probability 2e-9 each.
    assert abs(z.mean() - mean) < 6 * deviation / np.sqrt(size)
    assert abs(np.mean(z > 0) - upper) < 6 * np.sqrt(upper * (1 - upper) / size)
    assert abs(z.std() - deviation) < 6 * deviation / np.sqrt(size)


@pytest.mark.slow
def test_effective_samples_per_gradient_grow_many_times():
    """Between modes at -2 and 2 of standard deviation 0.3 lie 17 nats: NUTS in z hardly ever crosses them."""
    prior = KAPrior(bimodal_energy(), NORMAL)
    rates = []
    for model in (bimodal_model(prior), reparam(bimodal_model(prior), config={"z": ICDFReparam()})):
        z, gradients = run(model, 2000, 4)
        rates.append(numpyro.diagnostics.effective_sample_size(z) / gradients)
    assert rates[1] > 10 * rates[0]
