"""Yesterday's posterior as today's prior: what is read, and what of its dependence is kept."""

import functools
import sys

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.distributions.transforms import ComposeTransform
from numpyro.infer import MCMC, NUTS
from prior_cases import quick_jit

from numpyro_kaem import BSpline, KAPrior
from numpyro_kaem._fitting.posterior_draws import posterior_samples
from numpyro_kaem.distributions.copula import OpenGaussianCopula
from numpyro_kaem.distributions.rotation import Rotation

OPTIONS = {"smoothness": 1e-3}
MIXING = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]])


def inference_data(**posterior):
    """The same draws as InferenceData (ArviZ 0.x) or DataTree (1.x)."""
    return az.from_dict(posterior) if az.__version__.startswith("0.") else az.from_dict({"posterior": posterior})


@pytest.fixture(scope="module")
def draws():
    """Four chains of 1,000 draws: a scalar, a correlated vector of skewed sums, a matrix."""
    rng = np.random.default_rng(0)
    sources = np.stack(
        [rng.gamma(1.5, size=(4, 1_000)), rng.normal(size=(4, 1_000)), rng.uniform(-2.0, 2.0, (4, 1_000))], axis=-1
    )
    beta = sources @ MIXING.T + np.array([5.0, -3.0, 100.0])
    return {
        "beta": beta,
        "sigma": rng.gamma(4.0, size=(4, 1_000)),
        "matrix": beta[..., :2, None] * np.array([1.0, 0.1]),
    }


def flat(values):
    return values.reshape(4_000, *values.shape[2:])


@functools.partial(quick_jit, static_argnums=1)
def sample(prior, num_draws):
    return prior.sample(jax.random.key(0), (num_draws,))


@pytest.fixture(scope="module")
def fitted(draws):
    """A prior of "beta" for every way to keep its dependence, or none."""
    ways = {
        "independent": {},
        "copula": {"correlated": True},
        "pca": {"rotation": "pca"},
        "ica": {"rotation": "ica"},
    }
    return {
        way: KAPrior.from_posterior(inference_data(**draws), "beta", **options, **OPTIONS)
        for way, options in ways.items()
    }


# Reading --------------------------------------------------------------------------------------------------------------


def test_what_is_read_from_arviz_are_the_draws_of_all_chains_in_order(draws):
    group = inference_data(**draws)["posterior"]
    dataset = group.to_dataset() if hasattr(group, "to_dataset") else group
    for idata in (inference_data(**draws), group, dataset, draws):
        samples = posterior_samples(idata, ["sigma", "beta"])
        assert list(samples) == ["sigma", "beta"]
        np.testing.assert_array_equal(samples["sigma"], draws["sigma"].ravel())
        np.testing.assert_array_equal(samples["beta"], flat(draws["beta"]))


def test_dimensions_may_come_in_another_order(draws):
    dataset = inference_data(**draws)["posterior"]
    dataset = (dataset.to_dataset() if hasattr(dataset, "to_dataset") else dataset).transpose()
    np.testing.assert_array_equal(posterior_samples(dataset, ["beta"])["beta"], flat(draws["beta"]))


def test_independent_marginals_are_those_of_the_samples(draws, fitted):
    prior = fitted["independent"]
    assert isinstance(prior, KAPrior) and prior.batch_shape == (3,)
    expected = KAPrior.from_samples(flat(draws["beta"]), **OPTIONS)
    np.testing.assert_array_equal(prior.energy.coefficients, expected.energy.coefficients)
    assert KAPrior.from_posterior(draws, "sigma", **OPTIONS).batch_shape == ()
    assert KAPrior.from_posterior(draws, "matrix", **OPTIONS).batch_shape == (2, 2)
    stacked = KAPrior.from_posterior(draws, ["sigma", "beta"], **OPTIONS)
    assert stacked.batch_shape == (4,)
    for ours, expected in zip(jax.tree.leaves(stacked), jax.tree.leaves(prior), strict=True):
        np.testing.assert_allclose(ours[1:], expected, rtol=1e-5, atol=1e-5)


def test_cross_validation_takes_runs_of_the_chains():
    rng, z = np.random.default_rng(0), np.zeros((4, 1_000))
    for step in range(1, 1_000):
        z[:, step] = 0.98 * z[:, step - 1] + 0.2 * rng.normal(size=4)
    found = KAPrior.from_posterior({"z": z}, "z").energy.coefficients
    np.testing.assert_array_equal(found, KAPrior.from_samples(z.ravel(), shuffle=False).energy.coefficients)
    assert not np.allclose(found, KAPrior.from_samples(z.ravel()).energy.coefficients, atol=0.01)


@pytest.mark.slow
def test_weights_may_have_the_chains_shape(draws):
    weights = np.exp(-draws["beta"][..., 0] / 3.0)
    for correlated in (False, True):
        by_chain = KAPrior.from_posterior(draws, "beta", correlated=correlated, weights=weights, **OPTIONS)
        at_once = KAPrior.from_posterior(draws, "beta", correlated=correlated, weights=weights.ravel(), **OPTIONS)
        for ours, theirs in zip(jax.tree.leaves(by_chain), jax.tree.leaves(at_once), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    z, share = flat(draws["beta"]), weights.ravel() / weights.sum()
    np.testing.assert_allclose(by_chain.marginal_dist.reference.loc, share @ z, rtol=1e-5)
    scores = scipy.stats.norm.ppf(quick_jit(lambda p, z: p.marginal_dist.cdf(z))(by_chain, z))
    expected = np.cov(scores.T, aweights=share)
    expected /= np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(by_chain.correlation_matrix, expected, atol=0.01)


@pytest.mark.slow
def test_a_reference_bounds_the_support(draws):
    prior = KAPrior.from_posterior(draws, "sigma", reference=dist.Gamma(2.0, 0.5), **OPTIONS)
    assert np.asarray(sample(prior, 2_000)).min() > 0.0
    np.testing.assert_allclose(quick_jit(lambda p: p.mean)(prior), draws["sigma"].mean(), rtol=0.02)


# Correlations ---------------------------------------------------------------------------------------------------------


def test_a_copula_keeps_marginals_and_the_correlation_of_normal_scores(draws):
    z = flat(draws["beta"])
    prior = KAPrior.from_posterior(inference_data(**draws), "beta", correlated=True, **OPTIONS)
    assert isinstance(prior, dist.GaussianCopula)
    assert prior.event_shape == (3,) and prior.batch_shape == ()
    new = np.asarray(sample(prior, 4_000))
    for coordinate in range(3):
        # Kolmogorov-Smirnov of two samples of 4,000: 0.06 is exceeded with a probability below 1e-6.
        assert scipy.stats.ks_2samp(new[:, coordinate], z[:, coordinate]).statistic < 0.06
    rank = scipy.stats.spearmanr(z).statistic
    # Rank correlations have a standard error of about 1 / sqrt(4000) = 0.016 in either sample; 0.12 is five of both.
    np.testing.assert_allclose(scipy.stats.spearmanr(new).statistic, rank, atol=0.12)
    scores = scipy.stats.norm.ppf((scipy.stats.rankdata(z, axis=0) - 0.5) / 4_000)
    np.testing.assert_allclose(prior.correlation_matrix, np.corrcoef(scores.T), atol=1e-5)


def test_independent_coordinates_lose_the_correlation(draws, fitted):
    new = np.asarray(sample(fitted["independent"], 4_000))
    assert np.corrcoef(flat(draws["beta"]).T)[0, 1] > 0.5
    assert np.abs(np.corrcoef(new.T) - np.eye(3)).max() < 0.1  # six standard errors


@pytest.mark.slow
def test_the_density_of_a_copula_is_sklar_s(draws, x64):
    prior = KAPrior.from_posterior(draws, "beta", correlated=True, **OPTIONS)
    z = flat(draws["beta"])[::400]
    u, marginal, log_prob = quick_jit(
        lambda p, z: (p.marginal_dist.cdf(z), p.marginal_dist.log_prob(z), p.log_prob(z))
    )(prior, z)
    scores = scipy.stats.norm.ppf(u)
    joint = scipy.stats.multivariate_normal(cov=np.asarray(prior.correlation_matrix)).logpdf(scores)
    expected = joint - scipy.stats.norm.logpdf(scores).sum(-1) + np.asarray(marginal).sum(-1)
    np.testing.assert_allclose(log_prob, expected, atol=1e-8)


def test_draws_of_a_copula_are_finite_where_the_normal_cdf_rounds_to_one(fitted):
    marginal = fitted["independent"]
    cholesky = jnp.eye(3)

    class Extreme(dist.MultivariateNormal):
        def sample(self, key, sample_shape=()):
            return jnp.broadcast_to(jnp.array([-40.0, 0.0, 40.0]), self.shape(sample_shape))

        def expand(self, batch_shape):
            return Extreme(jnp.zeros((*batch_shape, 3)), jnp.eye(3))

    copula = OpenGaussianCopula(marginal, correlation_cholesky=cholesky)
    copula.base_dist = Extreme(jnp.zeros(3), jnp.eye(3))
    plain = dist.GaussianCopula(marginal, correlation_cholesky=cholesky)
    plain.base_dist = copula.base_dist
    ours, numpyro_s = quick_jit(lambda: [p.sample(jax.random.key(0), (2,)) for p in (copula, plain)])()
    assert np.isfinite(ours).all()
    assert not np.isfinite(numpyro_s).all()


@pytest.mark.slow
def test_gradients_of_a_copula_are_finite_far_out(fitted):
    @quick_jit
    def far_out(prior):
        mean, std = prior.marginal_dist.mean, jnp.sqrt(prior.marginal_dist.variance)
        return jax.vmap(jax.value_and_grad(prior.log_prob))(mean + jnp.linspace(-30.0, 30.0, 41)[:, None] * std)

    for value in far_out(fitted["copula"]):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("rotation", ["pca", "ica"])
def test_a_rotation_keeps_mean_and_covariance(draws, fitted, rotation):
    z, prior = flat(draws["beta"]), fitted[rotation]
    assert prior.event_shape == (3,) and prior.batch_shape == ()
    matrix, sources = np.asarray(prior.transforms[0].matrix), prior.base_dist.base_dist
    mean, variance = quick_jit(lambda p: (p.mean, p.variance))(sources)
    np.testing.assert_allclose(mean, 0.0, atol=0.02)
    np.testing.assert_allclose(variance, 1.0, atol=0.08)
    np.testing.assert_allclose(matrix @ matrix.T, np.cov(z.T, bias=True), rtol=1e-3, atol=1e-3)
    scale = z.std(axis=0)
    new = np.asarray(sample(prior, 100_000))
    np.testing.assert_allclose((new.mean(0) - z.mean(0)) / scale, 0.0, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(new.T), np.corrcoef(z.T), atol=0.04)


def test_independent_components_are_found(draws, fitted):
    # Of the 3 x 3 correlations of true and found sources, one in each row and column is near one.
    z, prior = flat(draws["beta"]), fitted["ica"]
    found = np.asarray(prior.transforms[0].inv(jnp.asarray(z)))
    sources = np.linalg.solve(MIXING, (z - np.array([5.0, -3.0, 100.0])).T).T
    cross = np.abs(np.corrcoef(sources.T, found.T)[:3, 3:])
    assert sorted(cross.argmax(1)) == [0, 1, 2] and cross.max(1).min() > 0.98
    # The better the coordinates, the likelier the draws: ICA over PCA over none.
    priors = prior, fitted["pca"], fitted["independent"].to_event(1)
    likelihoods = np.array(quick_jit(lambda priors: [jnp.mean(p.log_prob(z)) for p in priors])(priors))
    assert likelihoods[0] > likelihoods[1] + 0.05 > likelihoods[2] + 0.5


def test_principal_axes_are_those_of_the_correlation_matrix_and_do_not_depend_on_units(draws, fitted):
    z = flat(draws["beta"])
    units = np.array([1.0, 1e-2, 1e3])
    here = np.asarray(fitted["pca"].transforms[0].matrix)
    there = (
        KAPrior.from_posterior({"beta": draws["beta"] * units}, "beta", rotation="pca", **OPTIONS).transforms[0].matrix
    )
    np.testing.assert_allclose(there, here * units[:, None], rtol=1e-3, atol=1e-5)
    shares = (here / z.std(0)[:, None]) ** 2
    np.testing.assert_allclose(shares.sum(0), np.sort(np.linalg.eigvalsh(np.corrcoef(z.T)))[::-1], rtol=1e-4)


@pytest.mark.parametrize(
    "options", [pytest.param({"correlated": True}, marks=pytest.mark.slow), {"rotation": "pca"}], ids=["copula", "pca"]
)
def test_arrays_keep_their_shape_and_lists_their_order(draws, options):
    matrix = {"matrix": np.random.default_rng(0).normal(size=(4, 1_000, 2, 2)) + np.arange(4.0).reshape(2, 2)}
    prior = KAPrior.from_posterior(matrix, "matrix", **options, **OPTIONS)
    assert prior.event_shape == (2, 2)
    z = quick_jit(lambda p: p.sample(jax.random.key(0), (3, 2_000)))(prior)
    assert z.shape == (3, 2_000, 2, 2) and jax.eval_shape(prior.log_prob, z).shape == (3, 2_000)
    np.testing.assert_allclose(np.mean(z, axis=(0, 1)), np.arange(4.0).reshape(2, 2), atol=0.12)
    both = KAPrior.from_posterior(draws, ["sigma", "beta"], **options, **OPTIONS)
    assert both.event_shape == (4,)
    new = np.asarray(sample(both, 20_000))
    np.testing.assert_allclose(new.mean(0), np.append(draws["sigma"].mean(), flat(draws["beta"]).mean(0)), rtol=0.05)


@pytest.mark.slow
def test_nuts_draws_from_a_copula_as_it_samples_itself(draws):
    prior = KAPrior.from_posterior(draws, "beta", correlated=True)
    mcmc = MCMC(NUTS(lambda: numpyro.sample("z", prior)), num_warmup=500, num_samples=4_000, progress_bar=False)
    mcmc.run(jax.random.key(1))
    z, exact = np.asarray(mcmc.get_samples()["z"]), np.asarray(sample(prior, 20_000))
    # At least 500 effective draws: 0.25 standard deviations are more than five standard errors.
    np.testing.assert_allclose((z.mean(0) - exact.mean(0)) / exact.std(0), 0.0, atol=0.25)
    np.testing.assert_allclose(np.corrcoef(z.T), np.corrcoef(exact.T), atol=0.2)


# The rotation as a transform ------------------------------------------------------------------------------------------


def test_a_rotation_is_inverted_and_has_the_jacobian_of_automatic_differentiation(x64):
    rotation = Rotation(jnp.array([1.0, 2.0, 3.0]), jnp.asarray(MIXING))
    s = np.random.default_rng(0).normal(size=(5, 4, 3))

    @quick_jit
    def rotate(rotation, s):
        z = rotation(s)
        there_and_back = rotation.inv(z), rotation._inverse(z), ComposeTransform([rotation, rotation.inv])(s)
        log_dets = rotation.log_abs_det_jacobian(s, z), -rotation.inv.log_abs_det_jacobian(z, s)
        return there_and_back, log_dets, jax.jacobian(rotation)(s[0, 0])

    there_and_back, log_dets, jacobian = rotate(rotation, s)
    for again in there_and_back:
        np.testing.assert_allclose(again, s, atol=1e-12)
    for log_det in log_dets:
        assert log_det.shape == (5, 4)
        np.testing.assert_allclose(log_det, np.full((5, 4), np.linalg.slogdet(jacobian)[1]))


def test_a_rotation_is_a_pytree_and_is_equal_to_itself_only():
    rotation = Rotation(jnp.zeros(2), jnp.array([[1.0, 1.0], [-1.0, 1.0]]))
    leaves, structure = jax.tree.flatten(rotation)
    assert len(leaves) == 2
    assert rotation == jax.tree.unflatten(structure, leaves)
    assert rotation != jax.tree.map(lambda leaf: leaf + 1.0, rotation)
    assert rotation != Rotation(jnp.zeros(3), jnp.eye(3))
    assert rotation != dist.transforms.IdentityTransform()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), rotation)
    np.testing.assert_allclose(jax.vmap(lambda r: r(jnp.ones(2)))(batch), [[2.0, 0.0], [4.0, 0.0]])
    assert jax.jit(lambda r, s: r(s))(rotation, jnp.ones(2)).shape == (2,)


def test_a_rotation_knows_its_shapes():
    rotation = Rotation(jnp.zeros(2), jnp.eye(2))
    assert rotation.forward_shape((7, 2)) == rotation.inverse_shape((7, 2)) == (7, 2)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("var_name", "options", "message"),
    [
        ("gamma", {}, r"variables of the posterior, .*got \['gamma'\]; it has \['beta', 'matrix', 'sigma'\]"),
        (["beta", "gamma"], {}, r"variables of the posterior, .*got \['beta', 'gamma'\]"),
        ([], {}, r"var_name must be variables of the posterior, each once, got \[\]; it has \['beta'"),
        ("sigma", {"correlated": True}, r"correlated=True needs at least two coordinates, but 'sigma' is a scalar"),
        ("sigma", {"rotation": "pca"}, r"rotation='pca' needs at least two coordinates"),
        ("beta", {"rotation": "pca", "correlated": True}, r"give correlated=True or rotation='pca', not both"),
        ("beta", {"rotation": "varimax"}, r"rotation must be 'pca', 'ica' or None, got 'varimax'"),
        ("matrix", {"correlated": True}, r"singular: coordinates \[0, 1, 2, 3\].* linearly dependent"),
        (["beta", "beta"], {}, r"variables of the posterior, each once, got \['beta', 'beta'\]"),
        ("beta", {"weights": np.ones((3, 1_000))}, r"weights must have shape \(4000,\)"),
        (
            "beta",
            {"correlated": True, "weights": np.ones((4_000, 3))},
            r"weights must have shape \(4000,\)",
        ),
        ("beta", {"reference": dist.Exponential(1.0)}, r"z must lie in the support"),
    ],
)
def test_bad_requests_are_refused(draws, var_name, options, message):
    with pytest.raises(ValueError, match=message):
        KAPrior.from_posterior(inference_data(**draws), var_name, **OPTIONS, **options)


def test_what_is_no_posterior_is_refused():
    with pytest.raises(
        TypeError, match=r"idata must be an InferenceData or a DataTree .* got ndarray; arviz\.from_numpyro"
    ):
        KAPrior.from_posterior(np.ones((4, 10)), "beta")
    with pytest.raises(ValueError, match=r"variable 'beta' must have leading axes \(chain, draw\), got shape \(10,\)"):
        KAPrior.from_posterior({"beta": np.ones(10)}, "beta")
    with pytest.raises(ValueError, match=r"size 20 and .* size 30"):
        KAPrior.from_posterior({"a": np.ones((2, 10)), "b": np.ones((2, 15))}, ["a", "b"])
    prior_only = {"prior": {"beta": np.ones((1, 10))}}
    idata = az.from_dict(prior_only) if not az.__version__.startswith("0.") else az.from_dict(prior=prior_only["prior"])
    with pytest.raises(KeyError, match="posterior"):
        KAPrior.from_posterior(idata, "beta")


def test_independent_components_need_scikit_learn(draws, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(
        ImportError, match=r"rotation='ica' needs scikit-learn \(pip install scikit-learn\); rotation='pca'"
    ):
        KAPrior.from_posterior(draws, "beta", rotation="ica", **OPTIONS)


def test_the_basis_of_the_sources_can_be_given(draws):
    prior = KAPrior.from_posterior(draws, "beta", rotation="pca", basis=BSpline(8, 3, (-5.0, 5.0)), **OPTIONS)
    assert prior.base_dist.base_dist.energy.coefficients.shape == (3, 11)
