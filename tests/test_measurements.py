"""Empirical Bayes in one call, against closed forms, fine grids, the nonparametric bound and the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import binom, norm, poisson
from scipy.stats import t as student

from numpyro_kaem import BSpline, KAPrior, empirical_bayes
from numpyro_kaem.measurements.marginal_likelihood import Family, Fit, Sums, _slopes, evidence, sums_of
from numpyro_kaem.measurements.rows import LikelihoodRows

SCENARIOS = ["normal", "two lumps", "heavy tails", "spike and slab", "skewed", "uniform"]
GRID = np.linspace(-30.0, 30.0, 12_001)


def with_error(effect, error):
    return dist.Normal(effect, error)


def draw_effects(name, rng, num_effects):
    """Effects of a scenario, and the true masses on GRID."""
    second = rng.random(num_effects) < 0.3
    if name == "normal":
        return rng.normal(1.0, 1.0, num_effects), norm.pdf(GRID, 1.0, 1.0)
    if name == "two lumps":
        effects = np.where(second, rng.normal(3.0, 0.6, num_effects), rng.normal(0.0, 0.4, num_effects))
        return effects, 0.3 * norm.pdf(GRID, 3.0, 0.6) + 0.7 * norm.pdf(GRID, 0.0, 0.4)
    if name == "heavy tails":
        return rng.standard_t(2.5, num_effects), student.pdf(GRID, 2.5)
    if name == "spike and slab":
        effects = np.where(second, rng.normal(0.0, 2.0, num_effects), 0.0)
        return effects, 0.3 * norm.pdf(GRID, 0.0, 2.0) + 0.7 * (np.abs(GRID) < 1e-9) / (GRID[1] - GRID[0])
    if name == "skewed":
        return rng.gamma(2.0, 1.0, num_effects), np.where(GRID > 0, GRID, 0.0) * np.exp(-np.maximum(GRID, 0.0))
    return rng.uniform(-3.0, 3.0, num_effects), (np.abs(GRID) < 3.0) / 6.0


def on_grid(y, error, masses, points):
    """Log-evidence and posterior mean of each datum, in parts of the data."""
    log_evidence, mean = [], []
    for part in np.array_split(np.arange(len(y)), max(len(y) // 200, 1)):
        joint = masses * norm.pdf(y[part, None], points, error[part, None])
        log_evidence.append(np.log(joint.sum(1)))
        mean.append(joint @ points / joint.sum(1))
    return np.concatenate(log_evidence), np.concatenate(mean)


def nonparametric_bound(y, error, iterations):
    """Mean log-likelihood that no prior exceeds: EM on a grid, and what its gradient says is left to gain."""
    points = np.linspace(y.min(), y.max(), 400)
    likelihood = np.asarray(norm.pdf(y[:, None], points, error[:, None]), np.float32)
    mass = np.full(len(points), 1.0 / len(points), np.float32)
    for _ in range(iterations):
        mass = mass * ((1.0 / (likelihood @ mass)) @ likelihood / len(y))
    evidence = (likelihood @ mass).astype(float)
    return np.mean(np.log(evidence)) + np.log(np.max((1.0 / evidence) @ likelihood.astype(float) / len(y)))


def normal_prior_means(y, error):
    """Posterior means under the normal prior of greatest marginal likelihood."""
    scales = np.linspace(0.02, 4.0, 400)
    best = (-np.inf, None)
    for scale in scales:
        variance = scale**2 + error**2
        loc = np.sum(y / variance) / np.sum(1.0 / variance)
        best = max(best, (norm.logpdf(y, loc, np.sqrt(variance)).sum(), (loc, scale)))
    loc, scale = best[1]
    return loc + scale**2 / (scale**2 + error**2) * (y - loc)


def measure(name, num_data, seed=0):
    rng = np.random.default_rng(seed)
    effects, density = draw_effects(name, rng, num_data)
    error = rng.uniform(0.5, 1.5, num_data)
    return effects, rng.normal(effects, error), error, density * (GRID[1] - GRID[0])


@pytest.fixture(scope="module")
def lumps():
    effects, y, error, _ = measure("two lumps", 1_000)
    return effects, y, error, empirical_bayes(with_error, y, error)


@pytest.fixture(scope="module")
def sparse():
    effects, y, error, _ = measure("spike and slab", 4_000)
    return effects, y, error, empirical_bayes(with_error, y, error, point_mass=0.0)


# The marginal likelihood ----------------------------------------------------------------------------------------------


def test_gradient_and_hessian_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    family = Family(rng.normal(size=12), rng.normal(size=(12, 3)), np.array([0.0, 1.0, 2.0]))
    block = rng.uniform(size=(20, 12))
    rows = LikelihoodRows(((slice(0, 20), lambda: block),), np.zeros(20), rng.uniform(size=20))
    penalty, at = 0.1 * family.roughness, rng.normal(size=3)

    def slopes(c):
        return _slopes(sums_of(rows, family, c), family, c, penalty)

    _, gradient, precision = slopes(at)
    steps = 1e-5 * np.eye(3)
    by_value = [(slopes(at + step)[0] - slopes(at - step)[0]) / 2e-5 for step in steps]
    by_gradient = [(slopes(at + step)[1] - slopes(at - step)[1]) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, by_value, atol=1e-8)
    np.testing.assert_allclose(precision, -np.array(by_gradient), atol=1e-8)


def test_sums_of_folds_are_those_of_their_rows():
    rng = np.random.default_rng(1)
    family = Family(rng.normal(size=8), rng.normal(size=(8, 2)), np.zeros(2))
    block, weights, c = rng.uniform(size=(10, 8)), rng.uniform(size=10), rng.normal(size=2)

    def rows(part):
        start, stop = part.start, part.stop
        cuts = [cut for cut in (0, 4, 7, 10) if start < cut < stop]
        parts = [slice(a - start, b - start) for a, b in zip([start, *cuts], [*cuts, stop], strict=True)]
        blocks = tuple((of, lambda of=of: block[part][of]) for of in parts)
        return LikelihoodRows(blocks, np.zeros(stop - start), weights[part])

    folds = [slice(0, 3), slice(3, 8), slice(8, 10)]
    together = sums_of(rows(slice(0, 10)), family, c, folds)
    for fold, part in enumerate(folds):
        alone = sums_of(rows(part), family, c)
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[fold], theirs[0], rtol=1e-12)


def test_directions_in_which_the_likelihood_is_not_concave_are_no_evidence():
    """By Laplace's method that of normal coefficients, of which one is known by the prior alone."""
    family = Family(np.zeros(2), np.zeros((2, 3)), np.ones(3))
    sums = Sums(np.array([10.0]), np.array([-10.0]), np.zeros((1, 2)), np.zeros((1, 3, 3)))
    fit = Fit(np.zeros(3), -1.0, np.diag([2.0, 5.0, -0.3]), 1.0, np.nan, sums, True)
    np.testing.assert_allclose(evidence(fit, family), -10.0 - 0.5 * np.log(10.0), atol=1e-6)


# Closed forms and fine grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smallest", [0.5, 1e-3])
def test_a_straight_tilt_of_a_normal_is_a_normal_in_closed_form(smallest):
    """With an energy that is straight the prior is Normal(loc, 1), with the loc of greatest marginal likelihood."""
    rng = np.random.default_rng(0)
    error = rng.uniform(smallest, 1.0, 400)
    error[:20] = smallest
    y = rng.normal(0.5, np.sqrt(1.0 + error**2))
    result = empirical_bayes(
        with_error, y, error, reference=dist.Normal(0.0, 1.0), basis=BSpline(20, 3, (-9.0, 9.0)), smoothness=1e6
    )
    variance = 1.0 + error**2
    loc = np.sum(y / variance) / np.sum(1.0 / variance)
    mean, std = loc + (y - loc) / variance, error / np.sqrt(variance)
    np.testing.assert_allclose(result.log_evidence, norm.logpdf(y, loc, np.sqrt(variance)), atol=2e-4)
    np.testing.assert_allclose((result.mean - mean) / std, 0.0, atol=2e-3)
    np.testing.assert_allclose(result.std / std, 1.0, atol=2e-3)
    q = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(
        (result.quantile(q) - mean[:, None]) / std[:, None], norm.ppf(q) + 0 * y[:, None], atol=0.02
    )
    np.testing.assert_allclose(
        result.probability(-0.3, 0.8), norm.cdf(0.8, mean, std) - norm.cdf(-0.3, mean, std), atol=2e-3
    )
    np.testing.assert_allclose(result.probability_positive, norm.sf(0.0, mean, std), atol=2e-3)
    np.testing.assert_allclose(result.local_false_sign_rate, norm.cdf(-np.abs(mean) / std), atol=2e-3)


LIKELIHOODS = {
    "binomial": (
        lambda logit, n: dist.Binomial(n, logits=logit),
        lambda z, y, n: binom.logpmf(y, n, 1.0 / (1.0 + np.exp(-z))),
        lambda rng: (rng.binomial(40, rng.beta(4.0, 8.0, 300)), np.full(300, 40)),
    ),
    "Poisson": (
        lambda log_rate, exposure: dist.Poisson(exposure * jnp.exp(log_rate)),
        lambda z, y, exposure: poisson.logpmf(y, exposure * np.exp(z)),
        lambda rng: (rng.poisson(3.0 * rng.gamma(3.0, 0.5, 300)), np.full(300, 3.0)),
    ),
    "Student t": (
        lambda effect, scale: dist.StudentT(5.0, effect, scale),
        lambda z, y, scale: student.logpdf(y, 5.0, z, scale),
        lambda rng: (rng.normal(size=300) + 0.5 * rng.standard_t(5.0, 300), np.full(300, 0.5)),
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("point_mass", [None, 0.0])
def test_posteriors_are_those_of_the_learned_prior_on_a_fine_grid(name, point_mass):
    likelihood, log_likelihood, draw = LIKELIHOODS[name]
    y, other = draw(np.random.default_rng(0))
    result = empirical_bayes(likelihood, y, other, point_mass=point_mass, smoothness=1e-2)
    points = np.linspace(-12.0, 12.0, 6_000)  # none of them is zero
    log_prior = np.asarray(result.prior.log_prob(points.astype(np.float32)), float) + np.log(points[1] - points[0])
    if point_mass is not None:
        weight = result.point_mass_weight
        log_prior = np.append(log_prior + np.log1p(-weight), np.log(weight))
        points = np.append(points, 0.0)
    joint = log_prior + log_likelihood(points, y[:20, None], other[:20, None])
    log_evidence = logsumexp(joint, axis=1)
    posterior = np.exp(joint - log_evidence[:, None])
    mean = posterior @ points
    std = np.sqrt(posterior @ points**2 - mean**2)
    np.testing.assert_allclose(result.log_evidence[:20], log_evidence, atol=1e-3)
    np.testing.assert_allclose(result.mean[:20], mean, atol=2e-3)
    np.testing.assert_allclose(result.std[:20], std, atol=2e-3)
    np.testing.assert_allclose(
        result.probability(-1.0, 0.0)[:20], posterior[:, (points >= -1.0) & (points <= 0.0)].sum(1), atol=3e-3
    )
    if point_mass is not None:
        np.testing.assert_allclose(result.inclusion_probability[:20], 1.0 - posterior[:, -1], atol=1e-3)


def test_several_measurements_of_an_effect_are_one_event():
    rng = np.random.default_rng(0)
    y = rng.normal(rng.normal(size=(200, 1)), 1.0, (200, 4))
    together = empirical_bayes(
        lambda effect, error: dist.Normal(effect[..., None], error).to_event(1), y, np.ones((200, 4)), smoothness=1.0
    )
    by_means = empirical_bayes(with_error, y.mean(1), np.full(200, 0.5), smoothness=1.0)
    np.testing.assert_allclose(together.mean, by_means.mean, atol=1e-3)
    np.testing.assert_allclose(together.std, by_means.std, atol=1e-3)


# What it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"two lumps", "spike and slab"} else pytest.param(name, marks=pytest.mark.slow)
        for name in SCENARIOS
    ],
)
def test_likelihood_reaches_the_bound_and_means_the_oracle_s(name):
    """Within 0.005 nats of what any prior could reach, or of the truth where that is further below (n = 1,000)."""
    effects, y, error, masses = measure(name, 1_000)
    result = empirical_bayes(with_error, y, error)
    true_evidence, oracle = on_grid(y, error, masses, GRID)
    reached, bound = result.log_likelihood / len(y), nonparametric_bound(y, error, 300)
    assert reached > min(bound, true_evidence.mean() + 0.002) - 0.005
    assert reached < bound + 1e-6
    # The truth itself is up to 0.016 nats below; a prior that is hardly smoothed reaches the bound.
    rough = empirical_bayes(with_error, y, error, smoothness=1e-8).log_likelihood / len(y)
    assert bound - 0.005 < rough < bound + 1e-6
    squared = np.mean((result.mean - effects) ** 2)
    # A squared error of 1,000 effects is known to some percent; relative to the oracle's it is known better.
    assert squared < 1.06 * np.mean((oracle - effects) ** 2)
    if name in {"two lumps", "spike and slab", "uniform"}:
        assert squared < np.mean((normal_prior_means(y, error) - effects) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_likelihood_reaches_the_bound_with_many_data(name):
    effects, y, error, masses = measure(name, 10_000)
    result = empirical_bayes(with_error, y, error)
    oracle = on_grid(y, error, masses, GRID)[1]
    assert result.log_likelihood / len(y) > nonparametric_bound(y, error, 1_000) - 0.005
    squared = np.mean((result.mean - effects) ** 2)
    assert squared < 1.02 * np.mean((oracle - effects) ** 2)
    assert squared < 1.001 * np.mean((normal_prior_means(y, error) - effects) ** 2)


def test_the_evidence_chooses_a_prior_as_good(lumps):
    _, y, error, result = lumps
    other = empirical_bayes(with_error, y, error, smoothness="evidence")
    assert abs(other.log_likelihood - result.log_likelihood) < 0.005 * len(y)


def test_signs_are_wrong_as_often_as_they_are_said_to_be(sparse):
    effects, _, _, result = sparse
    rate = result.local_false_sign_rate
    sign = np.where(result.probability_positive > result.probability(high=-1e-300), 1.0, -1.0)
    wrong = sign * effects <= 0.0  # an effect of zero has neither sign
    for low, high in ((0.0, 0.2), (0.2, 0.7), (0.7, 1.0)):
        some = (rate >= low) & (rate < high)
        spread = np.sqrt(np.sum(rate[some] * (1.0 - rate[some])))
        # Six standard deviations of chance, and what the prior, learned of them, is wrong by.
        assert abs(wrong[some].sum() - rate[some].sum()) < 6.0 * spread + 0.02 * some.sum()


def test_a_point_mass_has_its_share_and_tells_effects_apart(sparse):
    effects, _, _, result = sparse
    assert abs(result.point_mass_weight - 0.7) < 0.15
    included = result.inclusion_probability
    assert abs(included.sum() - np.sum(effects != 0.0)) < 0.15 * len(effects)
    assert included[np.abs(effects) > 4.0].mean() > 0.95
    assert np.all(result.quantile(0.5)[included < 0.5] == 0.0)


def test_few_data_fall_back_to_a_normal_prior():
    """Eight schools (Rubin 1981): the marginal likelihood has its maximum where all effects are one."""
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    result = empirical_bayes(with_error, y, error)
    pooled = np.sum(y / error**2) / np.sum(1.0 / error**2)
    np.testing.assert_allclose(result.mean, pooled, atol=0.5)
    assert result.log_likelihood < norm.logpdf(y, pooled, error).sum() + 0.1


def test_eighteen_batters_are_shrunk_as_by_a_normal_prior():
    """Hits in 45 at bats (Efron and Morris 1975)."""
    hits = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
    result = empirical_bayes(lambda logit: dist.Binomial(45, logits=logit), hits)
    average = 1.0 / (1.0 + np.exp(-result.mean))
    assert np.all(np.diff(average) <= 1e-9)
    assert 0.25 < average.min() < average.max() < 0.30
    pooled = binom.logpmf(hits, 45, hits.sum() / (45 * 18)).sum()
    assert pooled - 0.5 < result.log_likelihood < pooled + 0.5


# Weights, chunks, covariates ------------------------------------------------------------------------------------------


def test_a_weight_of_two_is_a_datum_twice():
    _, y, error, _ = measure("two lumps", 300)
    weights = np.where(np.arange(300) < 100, 2.0, 1.0)
    repeated = np.concatenate([np.arange(300), np.arange(100)])
    basis, reference = BSpline(20, 3, (-4.0, 7.0)), dist.Normal(1.0, 1.5)
    options = {"basis": basis, "reference": reference, "smoothness": 1e-3}
    weighted = empirical_bayes(with_error, y, error, weights=weights, **options)
    twice = empirical_bayes(with_error, y[repeated], error[repeated], **options)
    np.testing.assert_allclose(weighted.mean, twice.mean[:300], atol=1e-3)
    assert abs(weighted.log_likelihood - twice.log_likelihood) < 1e-2


def test_chunks_do_not_matter(lumps):
    _, y, error, result = lumps
    chunked = empirical_bayes(with_error, y, error, smoothness=result.smoothness, chunk_size=256)
    np.testing.assert_allclose(chunked.mean, result.mean, atol=2e-3)
    np.testing.assert_allclose(chunked.log_evidence, result.log_evidence, atol=2e-3)


def test_likelihoods_that_are_not_kept_are_computed_again(lumps, monkeypatch):
    monkeypatch.setattr("numpyro_kaem.measurements.rows._MEMORY", 0)
    _, y, error, result = lumps
    again = empirical_bayes(with_error, y, error, smoothness=result.smoothness)
    np.testing.assert_allclose(again.mean, result.mean, atol=2e-3)


@pytest.fixture(scope="module")
def regressed():
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(1_000, 2)), rng.normal(size=1_000)
    e = np.where(rng.random(1_000) < 0.3, 2.0, -1.0) + rng.normal(0.0, 0.3, 1_000)
    effects = x @ [1.0, -0.5] + np.exp(0.4 * s) * e
    error = rng.uniform(0.3, 0.8, 1_000)
    y = rng.normal(effects, error)
    return x, s, effects, y, error, empirical_bayes(with_error, y, error, covariates=x, scale_covariates=s)


def test_coefficients_of_covariates_are_found_within_their_errors(regressed):
    *_, result = regressed
    # Five of six standard errors at most: chance exceeds it once in a million.
    np.testing.assert_array_less(np.abs(result.location_coefficients - [1.0, -0.5]), 5.5 * result.location_errors)
    np.testing.assert_array_less(np.abs(result.scale_coefficients - 0.4), 5.5 * result.scale_errors)
    assert np.all(result.location_errors < 0.1)


def test_covariates_make_better_estimates(regressed):
    _, _, effects, y, error, result = regressed
    plain = empirical_bayes(with_error, y, error)
    assert np.mean((result.mean - effects) ** 2) < 0.95 * np.mean((plain.mean - effects) ** 2)
    assert result.log_likelihood > plain.log_likelihood + 50.0


def test_posteriors_with_covariates_are_of_the_effects(regressed):
    x, s, _, y, error, result = regressed
    draws = result.sample(jax.random.key(0), 400)
    np.testing.assert_allclose((draws.mean(0) - result.mean) / result.std * 20.0, 0.0, atol=6.0)
    again = result.posterior(y[:5], error[:5], covariates=x[:5], scale_covariates=s[:5])
    np.testing.assert_allclose(again.mean, result.mean[:5], atol=1e-6)


# What it returns ------------------------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_posteriors(sparse):
    _, y, error, result = sparse
    result = result.posterior(y[:300], error[:300])
    draws = result.sample(jax.random.key(0), 900)
    np.testing.assert_allclose((draws.mean(0) - result.mean) / result.std * 30.0, 0.0, atol=6.5)
    zero = np.mean(draws == 0.0, axis=0)
    spread = np.sqrt(result.inclusion_probability * (1.0 - result.inclusion_probability) / 900)
    assert np.all(np.abs(zero - 1.0 + result.inclusion_probability) < 6.5 * spread + 0.01)


def test_probability_inverts_quantile(lumps):
    *_, result = lumps
    for q in (0.05, 0.5, 0.99):
        np.testing.assert_allclose(result.probability(high=result.quantile(q)), q, atol=1e-6)


def test_other_data_have_the_posteriors_of_the_same_prior(lumps):
    _, y, error, result = lumps
    other = result.posterior(y[:7], error[:7])
    np.testing.assert_allclose(other.mean, result.mean[:7], atol=1e-9)
    assert other.prior is result.prior
    assert len(other) == 7


def test_the_prior_is_a_distribution_with_the_density_of_the_band(lumps):
    *_, result = lumps
    points = np.linspace(-1.0, 4.0, 11)
    band = result.density_band(points)
    assert isinstance(result.prior, KAPrior)
    np.testing.assert_allclose(
        np.exp(np.asarray(result.prior.log_prob(points.astype(np.float32)))), band.density, rtol=1e-3
    )
    assert np.all((band.low < band.density) & (band.density < band.high) & (band.standard_error > 0))


def test_the_band_covers_the_truth(lumps):
    *_, result = lumps
    points = np.linspace(-0.8, 4.5, 25)
    band = result.density_band(points, level=0.999999)
    truth = 0.3 * norm.pdf(points, 3.0, 0.6) + 0.7 * norm.pdf(points, 0.0, 0.4)
    assert np.all((band.low < truth) & (truth < band.high))


def test_a_table_has_a_row_for_each_datum(sparse):
    pytest.importorskip("pandas")
    *_, result = sparse
    table = result.to_pandas()
    assert len(table) == 4_000
    assert list(table.columns[:3]) == ["log_evidence", "mean", "std"]
    assert "inclusion_probability" in table
    assert np.all(table["q2.5"] <= table["q50"])


def test_a_plot_shows_prior_band_and_point_mass(sparse):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    *_, result = sparse
    axes = result.plot()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "95% band",
        "learned prior",
        "point mass (probability)",
    }
