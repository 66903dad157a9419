"""Truncated and censored observations of learned densities, against the whole density in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer import MCMC, NUTS
from prior_cases import quick_jit, random_energy

from numpyro_kaem import (
    BSpline,
    IntervalCensoredPrior,
    KAMixture,
    KAPrior,
    LeftCensoredPrior,
    RightCensoredPrior,
    TruncatedPrior,
    UnivariateEnergy,
)

POSITIVE = dist.LogNormal(0.0, 1.0)
DOMAIN = (0.1, 5.0)


def whole(kind="prior", batch_shape=(), dtype=np.float32):
    shape = (*batch_shape, 2) if kind == "mixture" else batch_shape
    prior = KAPrior(random_energy(BSpline(6, 3, DOMAIN), shape, 1.5, dtype=dtype), POSITIVE)
    return KAMixture(prior, jnp.asarray([0.4, -0.4], dtype)) if kind == "mixture" else prior


def in_float64(prior):
    """The same distribution in float64."""

    def wide(energy):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, energy)

    if isinstance(prior, KAMixture):
        return KAMixture(in_float64(prior.components), prior.logits.astype(jnp.float64))
    return KAPrior(wide(prior.energy), prior.reference)


@quick_jit
def everything(d, value, q):
    d = d.tabulate()  # once for all
    quantile = d.icdf(q)
    sides = d.cdf(value), d.survival(value), d.log_cdf(value), d.log_survival(value)
    return d.log_prob(value), *sides, quantile, d.cdf(quantile)


@quick_jit
def sides_and_density(prior, points):
    """F and 1 - F at each of the points, and the log-density."""
    prior, shape = prior.tabulate(), np.broadcast_shapes(*(z.shape for z in points), prior.batch_shape)
    stacked = jnp.stack([jnp.broadcast_to(z, shape) for z in points])
    return prior.cdf(stacked), prior.survival(stacked), prior.log_prob(stacked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prior", "mixture"])
def test_a_truncated_density_is_the_part_between_its_bounds(x64, kind):
    """Bounds for each observation, in the body, in either tail and on either side of both."""
    prior = whole(kind)
    low = np.array([0.02, 0.5, 0.05, 7.0, 1.0], np.float32)
    high = np.array([0.05, 0.7, 30.0, 9.0, np.inf], np.float32)
    share = np.array([0.03, 0.5, 0.9])[:, None]
    value = np.float32(low + share * (np.minimum(high, 20.0) - low))
    truncated = prior.truncate(low, high)
    assert truncated.batch_shape == (5,)
    log_prob, cdf, survival, log_cdf, log_survival, quantile, back = everything(truncated, value, share)
    F, S, (log_density, *_) = sides_and_density(in_float64(prior), [z.astype(float) for z in (value, low, high)])
    upper = np.asarray(F[1]) > 0.5  # differences from the nearer side
    mass = np.where(upper, S[1] - S[2], F[2] - F[1])
    expected = np.where(upper, S[1] - S[0], F[0] - F[1]) / mass
    np.testing.assert_allclose(log_prob, log_density - np.log(mass), atol=1e-4)
    np.testing.assert_allclose(cdf, expected, rtol=1e-4)
    np.testing.assert_allclose(survival, 1.0 - expected, rtol=1e-4)
    np.testing.assert_allclose(log_cdf, np.log(expected), rtol=1e-4)
    np.testing.assert_allclose(log_survival, np.log1p(-expected), rtol=2e-4)
    np.testing.assert_allclose(back, np.broadcast_to(share, back.shape), rtol=2e-4)
    assert quantile.dtype == cdf.dtype == np.float32


@pytest.mark.slow
def test_derivatives_are_those_of_the_definition(x64):
    """In the parameters and both bounds, of densities, probabilities and draws, by central differences."""
    parameters = (whole(dtype=np.float64).energy, jnp.array([0.5, 4.0]), jnp.array([1.5, 7.0]))

    def total(energy, low, high):
        truncated = KAPrior(energy, POSITIVE).truncate(low, high)
        value, q = jnp.array([1.1, 4.9]), jnp.array([0.3, 0.8])
        return jnp.stack([jnp.sum(part) for part in (truncated.log_prob(value), truncated.log_survival(value))]), (
            truncated.icdf(q)
        )

    rng, step = np.random.default_rng(0), 1e-5
    direction = jax.tree.map(
        lambda leaf: (
            jnp.asarray(rng.normal(size=leaf.shape))
            if leaf.dtype == jnp.float64
            else np.zeros(leaf.shape, jax.dtypes.float0)
        ),
        parameters,
    )

    @quick_jit
    def value_and_slope(shift):
        shifted = jax.tree.map(
            lambda leaf, change: leaf if change.dtype == jax.dtypes.float0 else leaf + shift * change,
            parameters,
            direction,
        )
        return jax.jvp(total, shifted, direction)

    (_, slope), (higher, _), (lower, _) = (value_and_slope(shift) for shift in (0.0, step, -step))
    for ours, up, down in zip(slope, higher, lower, strict=True):
        np.testing.assert_allclose(ours, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_far_out_where_probabilities_underflow_there_are_densities_moments_and_draws():
    """Fifteen standard deviations out in float32, beside SciPy's truncated normal."""
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(6, 3, (-3.0, 3.0)), scale=0.0)
    prior, low = KAPrior(energy, dist.Normal(0.0, 1.0)), jnp.array([15.0, 15.0, -16.0])
    high = jnp.array([jnp.inf, 15.1, -15.0])
    truncated, exact = prior.truncate(low, high), scipy.stats.truncnorm(np.asarray(low, float), np.asarray(high, float))

    @quick_jit
    def evaluate(d):
        gradient = jax.grad(lambda d: jnp.sum(d.sample(jax.random.key(1), (5,)) + d.log_prob(d.low + 0.05)))(d)
        d = d.tabulate()  # once for all
        draws = d.sample(jax.random.key(0), (4_000,))
        return draws, d.log_prob(low + 0.05), d.mean, d.variance, gradient

    draws, log_prob, mean, variance, gradient = evaluate(truncated)
    for index, column in enumerate(np.asarray(draws, float).T):
        one = scipy.stats.truncnorm(float(low[index]), float(high[index]))
        assert scipy.stats.kstest(column, one.cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_prob, exact.logpdf(np.asarray(low, float) + 0.05), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(mean) - low, exact.mean() - low, rtol=1e-3)
    np.testing.assert_allclose(variance, exact.var(), rtol=2e-2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradient.base_dist, gradient.low)))


@pytest.mark.slow
def test_moments_are_those_of_draws():
    truncated = whole("prior", (3,)).truncate(low=0.5, high=jnp.array([[1.0], [4.0]]))

    @quick_jit
    def evaluate(d):
        d = d.tabulate()  # once for all
        draws = d.sample(jax.random.key(0), (40_000,))
        return draws.mean(0), draws.var(0), d.mean, d.variance, d.entropy(), -jnp.mean(d.log_prob(draws), 0)

    draw_mean, draw_variance, mean, variance, entropy, draw_entropy = evaluate(truncated)
    assert mean.shape == (2, 3)
    np.testing.assert_allclose(mean, draw_mean, rtol=0.02)
    np.testing.assert_allclose(variance, draw_variance, rtol=0.05)
    np.testing.assert_allclose(entropy, draw_entropy, atol=0.03)


def test_supports_bounds_and_truncations_of_truncations():
    prior = whole()
    twice = prior.truncate(low=0.5).truncate(low=0.2, high=3.0)
    assert (float(twice.low), float(twice.high)) == (0.5, 3.0)
    assert float(prior.truncate(high=2.0).support.lower_bound) == 0.0
    outside = prior.truncate(low=1.0)
    assert float(outside.log_prob(0.5)) == -np.inf
    leaves, structure = jax.tree.flatten(outside.expand((4,)))
    assert jax.tree.unflatten(structure, leaves).batch_shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "low or high must be given, got None for both"),
        ({"low": 2.0, "high": 1.0}, ValueError, "bounds must be low < high, got low 2.0 and high 1.0"),
        ({"base_dist": dist.Normal(0.0, 1.0), "low": 0.0}, TypeError, "base_dist must be a KAPrior or a KAMixture"),
    ],
)
def test_bad_bounds_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TruncatedPrior(**{"base_dist": whole(), **arguments})


# Censored -------------------------------------------------------------------------------------------------------------


def test_lifetimes_that_are_truncated_and_censored_have_the_likelihood_of_their_survival_functions():
    prior, entry = whole(), np.array([-1.0, 0.3, 0.9], np.float32)
    value, censored = np.array([0.5, 0.8, 30.0], np.float32), np.array([False, True, True])

    @quick_jit
    def evaluate(prior):
        observed = RightCensoredPrior(prior.truncate(low=entry), censored)
        exact = jnp.where(censored, prior.log_survival(value), prior.log_prob(value)) - prior.log_survival(entry)
        return observed.log_prob(value), exact

    np.testing.assert_allclose(*evaluate(prior), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch_shape"), [("prior", ()), ("mixture", (3,))])
def test_censored_observations_count_by_the_logarithm_of_a_tail(kind, batch_shape):
    """Of scalar priors and of batches, with an indicator for each observation, far out, and with finite gradients."""
    prior, shape = whole(kind, batch_shape), (6, *batch_shape)
    censored = np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    value = np.geomspace(1e-3, 1e4, censored.size).reshape(shape).astype(np.float32)

    @quick_jit
    def evaluate(prior, value):
        gradient = jax.grad(
            lambda p: sum(jnp.sum(d(p, censored).log_prob(value)) for d in (RightCensoredPrior, LeftCensoredPrior))
        )(prior)
        prior = prior.tabulate()  # once for all
        right, left = RightCensoredPrior(prior, censored), LeftCensoredPrior(prior, censored)
        late = RightCensoredPrior(prior.truncate(low=0.5 * value), censored)
        values = [d.log_prob(value) for d in (right, left, late)]
        parts = prior.log_prob(value), prior.log_survival(value), prior.log_cdf(value), prior.log_survival(0.5 * value)
        return values, parts, gradient, right.sample(jax.random.key(0), (4,))

    (right, left, late), (log_prob, above, below, entered), gradient, draws = evaluate(prior, value)
    assert isinstance(RightCensoredPrior(prior, censored), dist.RightCensoredDistribution)
    np.testing.assert_allclose(right, np.where(censored, above, log_prob), rtol=1e-6)
    np.testing.assert_allclose(left, np.where(censored, below, log_prob), rtol=1e-6)
    np.testing.assert_allclose(late, np.where(censored, above, log_prob) - entered, rtol=1e-4, atol=2e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert draws.shape == (4, *shape)


@pytest.mark.slow
def test_intervals_keep_their_digits(x64):
    prior = whole()
    low = np.array([0.4, 1.0, 1.0, 2.0, 8.0, 3.0, 3.0], np.float32)
    high = np.array([0.9, 1.0001, 1.0, 4.0, 8.01, np.inf, 4.0], np.float32)
    left = np.array([1, 0, 0, 0, 0, 0, 1])
    right = np.array([0, 0, 0, 0, 0, 1, 1])
    found = quick_jit(lambda p: IntervalCensoredPrior(p, left, right).log_prob(jnp.stack([low, high], -1)))(prior)
    F, S, (log_density, _) = sides_and_density(in_float64(prior), [low.astype(float), high.astype(float)])
    with np.errstate(divide="ignore"):
        expected = np.log(np.where(F[0] > 0.5, S[0] - S[1], F[1] - F[0]))
    expected = np.where(left == 1, np.log(F[1]), np.where(right == 1, np.log(S[0]), expected))
    expected[2], expected[6] = log_density[2], np.log(F[0][6] + S[1][6])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_nuts_learns_from_truncated_and_censored_lifetimes():
    """In a model, with the entry and the exit of each subject; the mean comes out as the truth has it."""
    rng = np.random.default_rng(0)
    life, entry = rng.exponential(2.0, 3_000), rng.uniform(0.0, 3.0, 3_000)
    seen = life > entry
    entry, exit = entry[seen], np.minimum(life[seen], entry[seen] + 2.0)
    died = life[seen] <= entry + 2.0
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(6, 3, (0.1, 5.0)), scale=0.0)

    def model(entry, exit, censored):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        lifetime = KAPrior(energy, dist.Exponential(rate)).truncate(low=entry)
        with numpyro.plate("subjects", len(entry)):
            numpyro.sample("exit", RightCensoredPrior(lifetime, censored), obs=exit)

    mcmc = MCMC(NUTS(model), num_warmup=60, num_samples=60, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(entry), jnp.asarray(exit), jnp.asarray(~died))
    assert abs(float(mcmc.get_samples()["rate"].mean()) - 0.5) < 4 * 0.5 / np.sqrt(died.sum())


def test_what_cannot_be_censored_is_refused():
    with pytest.raises(TypeError, match=r"there is numpyro.distributions.RightCensoredDistribution"):
        RightCensoredPrior(dist.Normal(0.0, 1.0), jnp.zeros(3))
