"""Estimates of the evidence, effective sample sizes and ladders against closed forms, on draws made by NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_kaem import Ladder, Posterior, TemperedSMC, compare_evidence
from numpyro_kaem.posterior.evidence import chain_ess, steppingstone, thermodynamic, thermodynamic_of_rungs
from numpyro_kaem.posterior.result import Rungs

# z ~ Normal(0, 1), x | z ~ Normal(z, NOISE): every power posterior is normal.
X, NOISE = 1.5, 0.4
CONSTANT = -np.log(NOISE) - 0.5 * np.log(2 * np.pi)
LOG_EVIDENCE = -0.5 * X**2 / (1 + NOISE**2) - 0.5 * np.log(2 * np.pi * (1 + NOISE**2))


def power_posterior(t):
    """Mean and variance at a temperature."""
    variance = 1 / (1 + t / NOISE**2)
    return variance * t * X / NOISE**2, variance


def expected_log_likelihood(t):
    mean, variance = power_posterior(t)
    return CONSTANT - 0.5 * ((X - mean) ** 2 + variance) / NOISE**2


def log_likelihoods(temperatures, num_data, num_chains, num_draws):
    """Of independent draws at every rung."""
    mean, variance = power_posterior(temperatures)
    noise = np.random.default_rng(0).normal(size=(num_data, num_chains, num_draws, len(temperatures)))
    return CONSTANT - 0.5 * ((X - mean - variance**0.5 * noise) / NOISE) ** 2


def test_steppingstone_is_unbiased_and_knows_its_error():
    """The mean of exp(log Z_hat - log Z) over 400 estimates is within three standard errors of 1."""
    t = Ladder.power(6, 3.0).temperatures
    estimate = steppingstone(t, log_likelihoods(t, 400, 2, 100))
    ratios = np.exp(estimate.log_evidence - LOG_EVIDENCE)
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / 20
    assert ratios.std() / 20 < 0.02
    # The spread of 400 has a standard error of 3.5 percent, and the errors stated a bias of the effective sample size.
    np.testing.assert_allclose(np.mean(estimate.std_error**2) ** 0.5, estimate.log_evidence.std(), rtol=0.2)
    assert np.all(estimate.bias == 0)


def test_the_bias_of_thermodynamic_integration_is_in_its_error():
    """A coin that falls as its prior says it does not: the likelihood is extreme under the prior."""

    def model(heads):
        p = numpyro.sample("p", dist.Beta(20.0, 2.0))
        numpyro.sample("heads", dist.Binomial(100, probs=p), obs=heads)

    exact = stats.betabinom(100, 20.0, 2.0).logpmf(5)
    posterior = TemperedSMC(num_particles=1_000, num_runs=2, progress=False).run(jax.random.key(0), model, {}, 5)
    estimate = posterior.evidence["thermodynamic"]
    error = abs(estimate.log_evidence[0] - exact)
    assert 0.2 < error < 2 * estimate.std_error[0]
    assert abs(posterior.log_evidence[0] - exact) < 5 * posterior.log_evidence_std_error[0]


@pytest.mark.parametrize("num_intervals", [8, 16])
def test_thermodynamic_integration_knows_its_error_and_its_bias(num_intervals):
    """Trapezoids lie below a concave curve; the bias is that of the rule, and so is its sign."""
    t = Ladder.power(num_intervals, 3.0).temperatures
    expected = expected_log_likelihood(t)
    bias = np.sum(np.diff(t) * (expected[1:] + expected[:-1]) / 2) - LOG_EVIDENCE
    assert bias < -0.01
    estimate = thermodynamic(t, log_likelihoods(t, 400, 2, 200))
    error = estimate.log_evidence.std() / 20
    assert abs(estimate.log_evidence.mean() - bias - LOG_EVIDENCE) < 3 * error
    assert 3 * error < -bias
    noise = np.mean(estimate.std_error**2 - estimate.bias**2) ** 0.5
    np.testing.assert_allclose(noise, estimate.log_evidence.std(), rtol=0.2)
    # To leading order in the rungs' distances, which halve from the first case to the second.
    np.testing.assert_allclose(estimate.bias.mean(), bias, rtol=2.0 / num_intervals)


@pytest.mark.slow
def test_thermodynamic_integration_along_the_ladder_of_smc_knows_its_error_and_its_bias():
    """As above, by 100 data that are alike; a single run's error is that of its particles."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, NOISE), obs=x)

    ladder = Ladder.power(8, 3.0)
    t, expected = ladder.temperatures, expected_log_likelihood(ladder.temperatures)
    bias = np.sum(np.diff(t) * (expected[1:] + expected[:-1]) / 2) - LOG_EVIDENCE
    sampler = TemperedSMC(ladder=ladder, num_particles=200, num_mcmc_steps=8, progress=False)
    posterior = sampler.run(jax.random.key(0), model, {}, jnp.full(100, X))
    estimate = posterior.evidence["thermodynamic"]
    error = estimate.log_evidence.std() / 10
    assert abs(estimate.log_evidence.mean() - bias - LOG_EVIDENCE) < 3 * error
    assert 3 * error < -bias
    # The spread of 100 has a standard error of seven per cent.
    noise = np.mean(estimate.std_error**2 - estimate.bias**2) ** 0.5
    np.testing.assert_allclose(noise, estimate.log_evidence.std(), rtol=0.35)
    np.testing.assert_allclose(estimate.bias.mean(), bias, rtol=0.25)


def test_rungs_that_a_shorter_ladder_has_not_count_for_nothing():
    """And an infinite mean gives NaN."""
    t = np.array([[0.0, 0.5, 1.0], [0.0, 1.0, np.nan], [0.0, 0.5, 1.0]])
    mean = np.array([[-3.0, -1.0, 0.0], [-3.0, 0.0, np.nan], [-np.inf, -1.0, 0.0]])
    estimate = thermodynamic_of_rungs(t, mean, np.where(np.isnan(t), np.nan, 1.0))
    np.testing.assert_allclose(estimate.log_evidence, [-1.25, -1.5, np.nan])
    np.testing.assert_allclose(estimate.std_error, [0.375**0.5, 0.5**0.5, np.nan])


def test_zero_likelihoods_are_steps_of_their_own_and_no_integrand():
    """Where half of the prior draws are impossible, half of the first ratio is lost."""
    t = np.array([0.0, 0.5, 1.0])
    log_likelihood = np.full((2, 1, 100, 3), -1.0)
    log_likelihood[0, :, ::2, 0] = -np.inf
    log_likelihood[1] = -np.inf
    np.testing.assert_allclose(steppingstone(t, log_likelihood).log_evidence, [-1.0 + np.log(0.5), -np.inf])
    assert np.all(np.isnan(thermodynamic(t, log_likelihood).log_evidence))


def test_the_effective_sample_size_is_that_of_an_autoregression():
    """N (1 - c) / (1 + c) for the coefficient c: averaged over 200 data, within a tenth or two."""
    rng = np.random.default_rng(0)
    for c, tolerance in [(0.0, 0.35), (0.8, 0.2), (0.95, 0.2)]:
        series = np.empty((200, 2, 2000))
        series[..., 0] = rng.normal(size=(200, 2)) / (1 - c**2) ** 0.5
        for i in range(1, series.shape[-1]):
            series[..., i] = c * series[..., i - 1] + rng.normal(size=(200, 2))
        np.testing.assert_allclose(chain_ess(series).mean(), 4000 * (1 - c) / (1 + c), rtol=tolerance)


def make_posterior(log_evidence, std_error, plate="data", shared=False):
    num_data = len(log_evidence)
    return Posterior(
        latents={"z": np.zeros((num_data, 1))},
        log_weights=np.zeros((num_data, 1)),
        log_likelihood=np.zeros((num_data, 1)),
        log_evidence=np.array(log_evidence),
        log_evidence_std_error=np.array(std_error),
        ess=np.ones(num_data),
        observed={},
        plate=plate,
        shares_draws=shared,
    )


def test_models_are_compared_by_the_sum_of_their_evidence():
    table = compare_evidence(
        {
            "worse": make_posterior([-2.0, -3.0], [0.3, 0.4]),
            "better": make_posterior([-1.0, -2.0], [0.6, 0.8]),
            "shared draws": make_posterior([-3.0, -3.0], [0.6, 0.8], shared=True),
            "global": make_posterior([-4.0], [0.1], plate=None),
        }
    )
    assert list(table.index) == ["better", "global", "worse", "shared draws"]
    np.testing.assert_allclose(table["log_evidence"], [-3, -4, -5, -6])
    np.testing.assert_allclose(table["std_error"], [1.0, 0.1, 0.5, 1.4])
    np.testing.assert_allclose(table["log_bayes_factor"], [0, -1, -2, -3])
    np.testing.assert_allclose(table["bayes_factor_std_error"], np.sqrt([0, 1.01, 1.25, 1 + 1.4**2]))
    np.testing.assert_allclose(table["probability"], np.exp([0, -1, -2, -3]) / np.exp([0, -1, -2, -3]).sum())


def test_what_cannot_be_compared_is_refused():
    one = make_posterior([-1.0, -2.0], [0.1, 0.1])
    with pytest.raises(ValueError, match=r"at least two models, got \['a'\]"):
        compare_evidence({"a": one})
    with pytest.raises(ValueError, match=r"same data, got numbers of data \{'a': 2, 'b': 1\}"):
        compare_evidence({"a": one, "b": make_posterior([-1.0], [0.1])})
    chains = Posterior(**{**one.__dict__, "log_evidence": None, "log_evidence_std_error": None})
    with pytest.raises(ValueError, match=r"posterior 'b' has no log_evidence: use ImportanceSampling, TemperedSMC, or"):
        compare_evidence({"a": one, "b": chains})


def test_models_of_other_data_and_models_that_cannot_give_them_are_refused():
    one, other = (
        dataclasses.replace(make_posterior([-1.0, -2.0], [0.1, 0.1]), observed={"x": np.array(x)})
        for x in ([1.0, np.nan], [1.5, np.nan])
    )
    assert len(compare_evidence({"a": one, "b": one})) == 2
    with pytest.raises(ValueError, match="'a' and 'b' differ in the values of the observed site 'x'"):
        compare_evidence({"a": one, "b": other})
    impossible = make_posterior([-np.inf], [np.inf])
    with pytest.raises(ValueError, match=r"of \['a', 'b'\] none can"):
        compare_evidence({"a": impossible, "b": impossible})


def with_rungs(temperatures, log_likelihood_std):
    """A posterior of one datum that knows the standard deviation at each rung."""
    other = np.zeros((1, len(temperatures)))
    one = make_posterior([0.0], [0.0])
    rungs = Rungs(temperatures[None], other, other, other, other, log_likelihood_std[None])
    return Posterior(**{**one.__dict__, "rungs": rungs})


def test_an_adapted_ladder_has_equal_thermodynamic_lengths():
    """With a standard deviation of 1 / (t + a) the length is log((t + a) / a): equal ones are a geometric law."""
    a, ladder = 0.01, Ladder.power(60, 3.0)
    posterior = with_rungs(ladder.temperatures, 1 / (ladder.temperatures + a))
    adapted = ladder.adapt(posterior, 5).temperatures
    np.testing.assert_allclose(adapted, a * ((1 + a) / a) ** np.linspace(0, 1, 6) - a, rtol=0.02, atol=1e-9)
    assert len(ladder.adapt(posterior)) == len(ladder)
    flat = with_rungs(ladder.temperatures, np.zeros(len(ladder)))
    np.testing.assert_allclose(ladder.adapt(flat, 4).temperatures, [0, 0.25, 0.5, 0.75, 1])


def test_a_ladder_adapts_to_runs_on_itself_only():
    ladder = Ladder.power(4)
    with pytest.raises(ValueError, match="posterior must come of a run on this ladder"):
        ladder.adapt(make_posterior([0.0], [0.0]))
    with pytest.raises(ValueError, match=r"on this ladder, .*, but the rungs of its first datum are"):
        ladder.adapt(with_rungs(Ladder.power(4, 2.0).temperatures, np.ones(5)))


def test_a_ladder_is_its_temperatures():
    temperatures = np.array([0.0, 0.3, 1.0])
    ladder = Ladder(temperatures)
    temperatures[1] = 7.0
    assert ladder == Ladder([0.0, 0.3, 1.0]) and hash(ladder) == hash(Ladder([0.0, 0.3, 1.0]))
    assert ladder != Ladder([0.0, 0.4, 1.0])
    with pytest.raises(ValueError, match=r"end at 1 exactly, got 0.0 to 0.9999999999999999"):
        Ladder([0.0, 0.9999999999999999])
    with pytest.raises(ValueError, match="temperatures must increase, but 0 is followed by 0 at index 1"):
        Ladder.power(10, 1000.0)


def test_a_ladder_adapts_to_runs_of_smc_which_have_the_rung_of_the_prior_besides():
    ladder = Ladder([0.1, 0.5, 1.0])
    adapted = ladder.adapt(with_rungs(np.array([0.0, 0.1, 0.5, 1.0]), np.array([5.0, 1.0, 1.0, 1.0])))
    np.testing.assert_allclose(adapted.temperatures, [0.1, 0.55, 1.0])
