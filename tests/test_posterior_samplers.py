"""Samplers over a temperature ladder against closed forms and quadrature."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from speed import optimised_loops
from tempered_models import GRID, TWO_MODES, distance, ks_bound, linear_gaussian, quadrature, two_modes

from numpyro_kaem import (
    MALA,
    PCNL,
    ULA,
    BSpline,
    EllipticalSlice,
    ImportanceSampling,
    KAPrior,
    Ladder,
    Langevin,
    LatentModel,
    ParallelTempering,
    TemperedSMC,
    UnivariateEnergy,
    kernels,
)
from numpyro_kaem.posterior import chains, particles
from numpyro_kaem.posterior.chains import Problem
from numpyro_kaem.posterior.kernel import Kernel, Tuning

KEY = jax.random.key(1)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def tempering(num_intervals=6, **kwargs):
    return ParallelTempering(Ladder.power(num_intervals, 3.0), num_chains=4, progress=False, **kwargs)


def smc(**kwargs):
    return TemperedSMC(**{"num_runs": 4, "progress": False} | kwargs)


@pytest.mark.parametrize(
    ("dim", "sampler"),
    [
        (10, tempering(num_steps=3000)),
        slow(10, smc()),
        slow(10, smc(waste_free=True, num_particles=2000, num_mcmc_steps=19, num_runs=8)),
        slow(10, smc(persistent=True, num_particles=500, max_rungs=30, num_runs=8)),
        slow(40, tempering(10, num_steps=4000)),
        slow(40, Langevin(kernels.HMC(), num_steps=4000, progress=False)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_linear_gaussian_moments_and_evidence_are_within_three_standard_errors(dim, sampler):
    model, x, mean, deviation, log_evidence = linear_gaussian(dim)
    # In 40 dimensions chains run longer than they compile.
    with optimised_loops() if dim == 40 else contextlib.nullcontext():
        posterior = sampler.run(KEY, model, {}, x)
    z = posterior.latents["z"].astype(float)
    # Root mean squares over the coordinates, each in standard errors.
    error = deviation / posterior.ess[:, None] ** 0.5
    assert np.sqrt(np.mean(((z.mean(1) - mean) / error) ** 2)) < 3
    error = 1 / (2 * posterior.ess[:, None]) ** 0.5
    assert np.sqrt(np.mean(((z.std(1) / deviation - 1) / error) ** 2)) < 3
    assert np.all(posterior.ess > 100)
    assert posterior.rhat.max() < 1.05
    if posterior.log_evidence is not None:
        for estimate in posterior.evidence.values():
            assert np.all(np.abs(estimate.log_evidence - estimate.bias - log_evidence) < 3 * estimate.std_error + 0.02)
        assert np.all(posterior.log_evidence_std_error < 0.3)


@pytest.mark.parametrize("dim", [1, 10, 40])
def test_importance_sampling_of_linear_gaussian_models(dim):
    """As above, of data noisy enough that draws of the prior hit the posterior."""
    model, x, mean, deviation, log_evidence = linear_gaussian(dim, noise=1.0 + dim**0.5 / 3)
    posterior = ImportanceSampling(100_000, chunk_size=20_000).run(KEY, model, {}, x)
    first, second = posterior.expectation(lambda z: (z["z"], z["z"] ** 2))
    error = deviation / posterior.ess[:, None] ** 0.5
    assert np.sqrt(np.mean(((first - mean) / error) ** 2)) < 3
    assert (
        np.sqrt(np.mean((((second - first**2) ** 0.5 / deviation - 1) * (2 * posterior.ess[:, None]) ** 0.5) ** 2)) < 3
    )
    assert np.all(np.abs(posterior.log_evidence - log_evidence) < 3 * posterior.log_evidence_std_error)
    assert np.all(posterior.ess > 100) and np.all(posterior.log_evidence_std_error < 0.1)


SAMPLERS = [
    slow(ImportanceSampling(20_000)),
    slow(tempering(num_steps=4000, kernel=PCNL())),
    slow(smc(num_particles=2000, kernel=MALA(whiten=True))),
    slow(Langevin(EllipticalSlice(), num_steps=6_000, progress=False)),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_bimodal_posterior_is_that_of_quadrature(sampler):
    """False alarm: about 1e-6 per datum, at the effective sample size."""
    posterior = sampler.run(KEY, two_modes, {}, TWO_MODES)
    for i, x in enumerate(TWO_MODES):
        cdf, log_evidence = quadrature(x)
        weights = np.exp(posterior.log_weights[i] - posterior.log_weights[i].max())
        size = min(posterior.ess[i], posterior.num_particles)
        assert distance(posterior.latents["z"][i], cdf, weights) < ks_bound(size)
        if posterior.log_evidence is not None:
            bound = 4 * posterior.log_evidence_std_error[i] + 1e-3
            assert abs(posterior.log_evidence[i] - log_evidence) < bound


@pytest.mark.slow
def test_langevin_does_not_cross_between_the_modes():
    """Why one tempers: each chain stays in the mode that it began in, and R-hat says so."""
    with pytest.warns(RuntimeWarning, match="the chains of 1 of 1 data disagree: R-hat is"):
        posterior = Langevin(MALA(), num_steps=2000, num_chains=8, progress=False).run(
            KEY, two_modes, {}, TWO_MODES[:1]
        )
    positive = (posterior.latents["z"].reshape(8, -1) > 0).mean(1)
    assert np.all((positive < 0.01) | (positive > 0.99))
    assert posterior.rhat[0] > 1.5


@pytest.mark.filterwarnings("ignore:the runs of:RuntimeWarning")  # of a hundred particles each
@pytest.mark.parametrize("kwargs", [{}, slow({"waste_free": True, "num_mcmc_steps": 4, "num_particles": 100})])
def test_the_evidence_is_unbiased_at_a_fixed_ladder_and_kernel(kwargs):
    """Mean of exp(log Z_hat - log Z) over 200 runs within three standard errors of 1."""
    model, x, *_, log_evidence = linear_gaussian(3, num_data=1)
    kernel = MALA(step_size=0.1, precondition=False)
    sampler = smc(
        **{"ladder": Ladder.power(5, 3.0), "kernel": kernel, "num_particles": 100, "num_mcmc_steps": 3} | kwargs,
        num_runs=200,
    )
    posterior = sampler.run(KEY, model, {}, x)
    ratios = np.exp(posterior.run_log_evidence[0] - log_evidence[0])
    error = ratios.std(ddof=1) / len(ratios) ** 0.5
    assert abs(ratios.mean() - 1) < 3 * error
    assert error < 0.05
    # The error that a run states is the spread of the runs.
    stated = posterior.log_evidence_std_error[0] * len(ratios) ** 0.5
    np.testing.assert_allclose(stated, posterior.run_log_evidence[0].std(ddof=1), rtol=0.25)


def half_line(x):
    """A normal latent of which half the values are impossible."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("positive", jnp.where(z > 0, 0.0, -jnp.inf))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    "sampler",
    [
        ImportanceSampling(20_000),
        slow(tempering(num_steps=4000)),
        slow(smc(num_particles=2000, persistent=True, max_rungs=20)),
        slow(Langevin(EllipticalSlice(), num_steps=8000, progress=False)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_zero_likelihood_at_half_of_the_prior_draws(sampler):
    x = np.array([0.0, 1.0], np.float32)
    posterior = sampler.run(KEY, half_line, {}, x)
    for i, value in enumerate(x):
        # z | x without the restriction is Normal(x / 2, 1 / 2).
        grid = np.where(GRID > 0, np.exp(-((GRID - value / 2) ** 2)), 0.0)
        cdf = np.cumsum(grid) / grid.sum()
        weights = np.exp(posterior.log_weights[i] + np.where(np.isfinite(posterior.log_likelihood[i]), 0.0, -np.inf))
        assert distance(posterior.latents["z"][i], cdf, weights) < ks_bound(posterior.ess[i]) + 1e-3
        if posterior.log_evidence is not None:
            exact = stats.norm(0.0, 2**0.5).logpdf(value) + stats.norm(value / 2, 0.5**0.5).logsf(0.0)
            assert abs(posterior.log_evidence[i] - exact) < 4 * posterior.log_evidence_std_error[i] + 1e-3


def ten_modes(x):
    """A latent uniform on (0, 10) of which the datum tells the fractional part, about."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", TEN_MODES_PRIOR)
        numpyro.sample("x", dist.Normal(jnp.cos(2 * jnp.pi * z), 0.1), obs=x)


def _ten_modes_prior():
    steps = 0.5 * jax.random.normal(jax.random.key(3), (10,))
    energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), steps, BSpline(10, 0, (0.0, 10.0)))
    return KAPrior(energy, dist.Uniform(0.0, 10.0))


TEN_MODES_PRIOR = _ten_modes_prior()


@pytest.mark.parametrize(
    "sampler",
    [
        slow(smc(num_particles=4000, num_runs=1)),
        slow(tempering(num_steps=4000)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_ten_modes_are_found_with_their_weights(sampler):
    posterior = sampler.run(KEY, ten_modes, {}, np.array([-1.0], np.float32))
    z = posterior.latents["z"][0]
    found = np.histogram(z, np.arange(11))[0] / len(z)
    # Every mode is in the middle of an interval of the energy, on which the prior is constant.
    exact = np.exp(np.asarray(TEN_MODES_PRIOR.log_prob(jnp.arange(10) + 0.5), float))
    np.testing.assert_allclose(found, exact / exact.sum(), atol=0.05)
    assert np.abs(np.cos(2 * np.pi * z) + 1).max() < 1.0


@pytest.mark.slow
def test_a_single_chain_finds_fewer_than_half_of_ten_modes():
    posterior = Langevin(MALA(), num_steps=4000, num_chains=1, progress=False).run(
        KEY, ten_modes, {}, np.array([-1.0], np.float32)
    )
    found = np.histogram(posterior.latents["z"][0], np.arange(11))[0]
    assert np.sum(found > 0) < 5


def permuted(tree, order):
    return jax.tree.map(lambda leaf: leaf[order], tree)


THREE_MODEL, THREE, *_ = linear_gaussian(2, num_data=3)
PROBLEM, KERNEL = Problem(LatentModel(THREE_MODEL, {}, THREE)), MALA()


def run_chains(rows, keys, *spans, kernel=KERNEL):
    """Chains after spans of steps, each from a first step to one before the last, adapting or not."""
    given = PROBLEM, chains.Settings(kernel, jnp.array([0.0, 0.3, 1.0]), True, 2, 20), rows, keys
    state, _ = chains.start(*given)
    for first, last, adapting in spans:
        span = jnp.asarray(first), jnp.asarray(last), jnp.asarray(adapting)
        state = chains.advance(*given, span, state)
    return state


def test_step_sizes_are_frozen_after_warm_up():
    keys = jax.random.split(KEY, 3)
    start, warm, later = (run_chains((THREE,), keys, *[(-20, 0, True), (0, 20, False)][:n]) for n in range(3))
    assert np.all(start.step_size != warm.step_size)
    assert np.any(later.points.position != warm.points.position)
    for name in ("step_size", "scale", "moments", "averaging"):
        jax.tree.map(np.testing.assert_array_equal, getattr(later, name), getattr(warm, name))


class _MALAByParts(Kernel):
    """MALA that does not say that it evaluates the model once a step."""

    def _step(self, key, point, tuning, evaluate):
        return MALA()._step(key, point, tuning, evaluate)


@pytest.mark.slow
def test_moves_and_prior_draws_may_be_evaluated_in_one_call():
    keys = jax.random.split(KEY, 3)
    spans = (-20, 0, True), (0, 20, False)
    one_call, two_calls = (run_chains((THREE,), keys, *spans, kernel=kernel) for kernel in (KERNEL, _MALAByParts()))
    assert jax.tree.structure(one_call) == jax.tree.structure(two_calls)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), one_call, two_calls)


def test_swaps_and_resampling_never_mix_data():
    """With the data and their keys in another order every result is in that order, and otherwise the same."""
    # No rotation of the data: whoever took the neighbour's state would do so in that order, too.
    x, order, keys = THREE, np.array([1, 0, 2]), jax.random.split(KEY, 3)

    def run_particles(rows, keys):
        given = PROBLEM, particles.Settings(KERNEL, 0.5, 2, 10), rows, keys[:, None]
        state, _ = particles.start(*given, 50)
        for number in range(3):
            state, _ = particles.advance(*given, jnp.asarray(number), Tuning(jnp.ones(len(x))), state)
        return state

    for run in (lambda rows, keys: run_chains(rows, keys, (0, 20, True)), run_particles):
        result, moved = run((x,), keys), run((x[order],), keys[order])
        result = permuted(jax.tree.map(lambda a: a if a.ndim else a[None].repeat(3), result), order)
        moved = jax.tree.map(lambda a: a if a.ndim else a[None].repeat(3), moved)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, moved)


@pytest.mark.parametrize(
    ("make", "small"),
    [(tempering, 5), (smc, 60)],
    ids=["parts of a datum", "parts of a run"],
)
@pytest.mark.slow
def test_chunks_do_not_change_the_result(x64, make, small):
    """In float64: chains make much of a rounding in time."""
    kwargs = {"num_steps": 30} if make is tempering else {"num_particles": 100, "num_mcmc_steps": 2}

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.5))
            numpyro.sample("x", dist.Normal(z**2, 0.3), obs=x)

    x = jnp.array([0.5, 2.0, 4.0])
    whole = make(**kwargs).run(KEY, model, {}, x)
    parts = make(**kwargs, chunk_size=small).run(KEY, model, {}, x)
    np.testing.assert_allclose(parts.latents["z"], whole.latents["z"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts.log_evidence, whole.log_evidence, rtol=1e-4)
    np.testing.assert_allclose(parts.rungs.acceptance, whole.rungs.acceptance, atol=1e-3)


@pytest.mark.slow
def test_a_small_chunk_size_bounds_the_memory_of_one_datum():
    """Hidden layers of 4,000 units for 64 chains or 64 particles of one datum, against those for 8 at once."""
    weights = jnp.ones((2, 4000)) / 4000

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            numpyro.sample("x", dist.Normal(jnp.tanh(jnp.sin(z @ weights)).sum(-1), 1.0), obs=x)

    rows, keys, zero = (jnp.zeros(1),), jax.random.split(KEY, 1), jnp.zeros((), int)

    def of_chains(batch_size):
        problem = Problem(LatentModel(model, {}, *rows), batch_size)
        given = problem, chains.Settings(KERNEL, jnp.array([0.5, 1.0]), False, 32, 1), rows, keys
        state, _ = chains.start(*given)
        span = zero, zero, jnp.asarray(True)
        return chains.start.compiled(*given), chains.advance.compiled(*given, span, state)

    def of_particles(batch_size):
        problem = Problem(LatentModel(model, {}, *rows), batch_size)
        settings = particles.Settings(KERNEL, 0.5, 2, 10, batch_size=batch_size)
        given = problem, settings, rows, keys[:, None]
        state, _ = particles.start(*given, 64)
        advance = particles.advance.compiled(*given, zero, Tuning(None), state)
        return particles.start.compiled(*given, 64), advance

    for programs in (of_chains, of_particles):
        for whole, parts in zip(programs(0), programs(8), strict=True):
            used = [program.executable.memory_analysis().temp_size_in_bytes for program in (whole, parts)]
            assert used[0] > 64 * 4000 * 4 and used[1] < 0.3 * used[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        smc(kernel=MALA(), target_ess=0.3),
        smc(kernel=PCNL(), target_ess=0.3),
        tempering(kernel=MALA(), num_steps=500, warmup=1000),
    ],
    ids=["MALA's particles", "PCNL's particles", "MALA's chains"],
)
def test_step_sizes_reach_the_best_acceptance_rate(sampler):
    """At every rung, of a ladder that SMC makes short on purpose and of one for chains.

    Near the prior PCNL accepts more than that with the largest step size that there is.
    """
    model, x, *_ = linear_gaussian(10)
    rungs, kernel = sampler.run(KEY, model, {}, x).rungs, sampler.kernel
    there = np.isfinite(rungs.temperatures[:, 1:])
    excess = (rungs.acceptance[:, 1:] - kernel.target_acceptance)[there]
    at_limit = kernel.step_limit is not None and rungs.step_size[:, 1:][there] > 0.95 * kernel.step_limit
    assert np.all((np.abs(excess) < 0.15) | (at_limit & (excess > 0)))


@pytest.mark.slow
def test_adapted_rungs_are_equally_far_apart(optimised):
    """Half of the rungs' swap rates are alike after adaptation, of a ladder that was evenly spaced before it."""
    ladder = Ladder(np.linspace(0.0, 1.0, 8))
    model, x, *_ = linear_gaussian(10, num_data=20)
    sampler = ParallelTempering(ladder, num_steps=1500, num_chains=2, progress=False)
    before = sampler.run(KEY, model, {}, x)
    after = ParallelTempering(ladder.adapt(before), num_steps=1500, num_chains=2, progress=False).run(KEY, model, {}, x)
    spread = [p.rungs.swap_acceptance.mean(0).std() for p in (before, after)]
    assert spread[1] < 0.5 * spread[0]
    assert after.log_evidence_std_error.mean() < before.log_evidence_std_error.mean()


def test_ladders():
    np.testing.assert_allclose(Ladder.power(4, 2.0).temperatures, [0, 1 / 16, 1 / 4, 9 / 16, 1])
    np.testing.assert_allclose(Ladder.geometric(3, 0.01).temperatures, [0, 0.01, 0.1, 1])
    assert len(Ladder([0.5, 1.0])) == 2


def broken_at_positive(x):
    """NaN where datum 1 meets a negative latent, infinity where datum 2 meets a positive one."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", jnp.where(x == 1, jnp.sqrt(z), jnp.where((x == 2) & (z > 0), jnp.inf, 0.0)))


def simplex_latent(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def discrete_latent(x):
    with numpyro.plate("data", x.shape[0]):
        k = numpyro.sample("k", dist.Categorical(jnp.ones(2) / 2))
        numpyro.sample("x", dist.Normal(k, 1.0), obs=x)


BAD = {
    "Ladder([0.0, 0.5, 0.4, 1.0])": "temperatures must increase, but 0.5 is followed by 0.4 at index 2",
    "Ladder([0.0, 0.5])": "temperatures must lie in [0, 1] and end at 1 exactly, got 0.0 to 0.5",
    "Ladder([-0.1, 1.0])": "temperatures must lie in [0, 1] and end at 1 exactly, got -0.1 to 1.0",
    "Ladder.power(0)": "num_intervals must be a whole number of at least 1, got 0",
    "Ladder.power(3, exponent=-1.0)": "exponent must be a positive number, got -1.0",
    "Ladder.geometric(4, 2.0)": "temperatures must increase, but 2 is followed by",
    "TemperedSMC(target_ess=1.0)": "target_ess must lie in (0, 1), got 1.0",
    "TemperedSMC(target_ess=0.0)": "target_ess must lie in (0, 1), got 0.0",
    "TemperedSMC([0.0, 1.0], target_ess=0.5)": "give ladder or target_ess, not both",
    "TemperedSMC(num_particles=1)": "num_particles must be a whole number of at least 2, got 1",
    "TemperedSMC(num_particles=4, target_ess=0.2)": "num_particles must be more than 1 / target_ess",
    "TemperedSMC(num_particles=100, num_mcmc_steps=10, waste_free=True)": "must be a multiple",
    "TemperedSMC(num_particles=11, num_mcmc_steps=10, waste_free=True)": "at least two times, of num_mcmc_steps + 1 =",
    "TemperedSMC(waste_free=True, persistent=True)": "do not go together",
    "TemperedSMC(resampling='none')": "resampling must be one of",
    "ParallelTempering([0.0, 1.0], num_steps=10, thin=3)": "thin must divide num_steps, got thin 3 and num_steps 10",
    "ParallelTempering([0.0, 1.0], swap_every=0)": "swap_every must be a whole number of at least 1, got 0",
    "Langevin(num_chains=0)": "num_chains must be a whole number of at least 1, got 0",
    "MALA(step_size=-0.1)": "step_size must be a positive number, got -0.1",
    "PCNL(step_size=3.0)": "step_size of PCNL must be at most 2, got 3.0",
    "PCNL(whiten=False)": "PCNL needs a standard normal prior: whiten must be True",
    "EllipticalSlice(precondition=True)": "precondition must be False",
    "EllipticalSlice(step_size=0.1)": "EllipticalSlice has no step size",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises(ValueError, match=re.escape(BAD[call])):
        eval(call)


def test_a_kernel_is_asked_for():
    with pytest.raises(TypeError, match="kernel"):
        Langevin(kernel="mala")


NOT_FINITE = r"NaN or \+inf, .* at \d+ of \d+ draws from the prior of datum 1 \(and of 0 other"
# Model, kernel, second datum, message.
RUNS = {
    "NaN": (broken_at_positive, MALA(), 1.0, NOT_FINITE),
    "infinity": (broken_at_positive, MALA(), 2.0, NOT_FINITE),
    "no icdf": (
        simplex_latent,
        PCNL(),
        1.0,
        r"whitening fails: site 'z' has a Dirichlet .* whiten=False, such as MALA\(\)",
    ),
    "discrete": (
        discrete_latent,
        MALA(),
        1.0,
        r"latent site 'k' is discrete: .* sum it out .* with numpyro.distributions.Mix",
    ),
}


MAKERS = {
    "Langevin": lambda kernel: Langevin(kernel, num_steps=10, num_chains=20, progress=False),
    "ParallelTempering": lambda kernel: tempering(kernel=kernel, num_steps=10),
    "TemperedSMC": lambda kernel: smc(kernel=kernel, num_particles=50),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("make", MAKERS)
def test_models_that_cannot_be_sampled_are_named(name, make):
    model, kernel, second, message = RUNS[name]
    sampler = MAKERS[make](kernel)
    with pytest.raises(ValueError, match=message):
        sampler.run(KEY, model, {}, np.array([-1.0, second], np.float32))


def impossible_second(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", jnp.where(jnp.abs(x - z) < 10.0, -jnp.log(20.0), -jnp.inf))


@pytest.mark.slow
@pytest.mark.filterwarnings("error:invalid value:RuntimeWarning")
@pytest.mark.parametrize("make", [smc, tempering], ids=["smc", "tempering"])
def test_impossible_data_are_flagged_and_harm_no_others(make):
    sampler = make(num_particles=100) if make is smc else make(num_steps=50)
    x = np.array([0.0, 100.0, 1.0], np.float32)
    with pytest.warns(RuntimeWarning, match="1 of 3 data have likelihood zero .* first at index 1"):
        posterior = sampler.run(KEY, impossible_second, {}, x)
    assert posterior.log_evidence[1] == -np.inf
    assert posterior.ess[1] == 0
    np.testing.assert_allclose(posterior.log_evidence[[0, 2]], -np.log(20.0), atol=1e-4)
    assert np.all(posterior.ess[[0, 2]] > 10)
    assert np.all(np.isfinite(posterior.latents["z"]))


@pytest.mark.slow
def test_a_ladder_that_does_not_arrive_says_so():
    with pytest.raises(RuntimeError, match=r"datum 0 is at temperature .* after 2 rungs: raise max_rungs"):
        smc(target_ess=0.99, num_particles=50, max_rungs=2).run(KEY, two_modes, {}, TWO_MODES[:1])


def test_ula_takes_the_steps_of_the_paper():
    """Twenty unadjusted steps from the prior, as the KAEM paper has them: every state is kept."""
    sampler = Langevin(ULA(step_size=0.01), num_steps=20, num_chains=3, warmup=0, progress=False)
    posterior = sampler.run(KEY, THREE_MODEL, {}, THREE)
    assert posterior.latents["z"].shape == (3, 60, 2)
    np.testing.assert_allclose(posterior.rungs.step_size, 0.01, rtol=1e-6)


def unlikely(x):
    """Likelihood zero but for a narrow interval, which few draws of the prior hit."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", jnp.where(jnp.abs(x - z) < 0.05, 0.0, -jnp.inf))


def test_runs_count_by_their_evidence_and_those_that_found_nothing_not_at_all():
    x = np.array([0.0, 2.0], np.float32)
    sampler = smc(ladder=[1.0], kernel=MALA(step_size=0.01), num_particles=50, num_mcmc_steps=2, num_runs=8)
    with pytest.warns(RuntimeWarning, match="the first at index 1, are so different that fewer than half of the runs"):
        posterior = sampler.run(KEY, unlikely, {}, x)
    found = posterior.run_log_evidence > -np.inf
    assert 0 < found[1].sum() < 8
    inside = np.abs(posterior.latents["z"] - x[:, None]) < 0.05
    assert np.all(posterior.log_weights[~inside] == -np.inf)
    share = posterior.expectation(lambda z: jnp.stack([jnp.abs(z["z"] - x0) < 0.05 for x0 in x]))
    np.testing.assert_allclose(np.diag(share), 1.0)
    mean = np.log(np.mean(np.exp(posterior.log_weights), 1))
    np.testing.assert_allclose(mean, posterior.log_evidence, rtol=1e-5)
    # Of R runs of which n found the interval by one draw each, sd(Z) / (mean(Z) sqrt(R)) is about 1 / sqrt(n).
    assert posterior.log_evidence_std_error[1] > 0.5 / found[1].sum() ** 0.5


def test_draws_of_chains_where_the_likelihood_is_zero_have_no_weight():
    x = np.array([0.0], np.float32)
    with pytest.warns(RuntimeWarning, match="1 of 1 data have draws of likelihood zero, the first at index 0"):
        posterior = Langevin(MALA(step_size=0.1), num_steps=100, progress=False).run(jax.random.key(3), unlikely, {}, x)
    inside = np.abs(posterior.latents["z"]) < 0.05
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(posterior.log_weights == 0.0, inside)
    np.testing.assert_allclose(posterior.expectation(lambda z: jnp.abs(z["z"]) < 0.05), 1.0)


@pytest.mark.slow
def test_a_frozen_run_keeps_ladders_and_tuning_and_is_unbiased():
    """The mean of exp(log Z_hat - log Z) of 200 runs is 1 within 5 standard errors: false alarm 6e-7 per datum."""
    model, x, _, _, log_evidence = linear_gaussian(2)
    options = {"num_particles": 50, "num_mcmc_steps": 3, "progress": False}
    found = TemperedSMC(**options).run(KEY, model, {}, x)
    frozen = TemperedSMC(**options, num_runs=200).frozen(found)
    posterior = frozen.run(jax.random.key(2), model, {}, x)
    for name in ("temperatures", "step_size", "scale"):
        kept, given = getattr(posterior.rungs, name), getattr(found.rungs, name)
        np.testing.assert_allclose(kept[np.isfinite(given)], given[np.isfinite(given)], rtol=1e-5)
    ratio = np.exp(posterior.run_log_evidence - log_evidence[:, None])
    assert np.all(np.abs(ratio.mean(1) - 1) < 5 * ratio.std(1) / 200**0.5)
    with pytest.raises(ValueError, match="the model has 1 data of 2 coordinates, but the sampler is frozen for 2 of 2"):
        frozen.run(KEY, model, {}, x[:1])
    with pytest.raises(ValueError, match="posterior must come of a run of TemperedSMC"):
        TemperedSMC().frozen(ImportanceSampling(10).run(KEY, model, {}, x))
