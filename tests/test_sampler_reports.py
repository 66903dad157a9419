"""What samplers tell of a run: progress, ladders by datum, swap rates, effective sample sizes, tuning."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_kaem import MALA, ImportanceSampling, Langevin, ParallelTempering, TemperedSMC
from numpyro_kaem.posterior import chains
from numpyro_kaem.posterior import particles as particles_file
from numpyro_kaem.posterior.diagnostics import check_log_likelihood
from numpyro_kaem.posterior.kernel import Kernel, Move
from numpyro_kaem.posterior.smc_evidence import mean_over_runs
from numpyro_kaem.posterior.target import Point

KEY, NOISE = jax.random.key(1), 0.5
X = np.array([0.0, 4.0], np.float32)


def conjugate(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def run_and_watch(sampler):
    """The result, and what the progress bar showed."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        posterior = sampler.run(KEY, conjugate, {}, X)
    return posterior, shown.getvalue()


@pytest.fixture(scope="module")
def two_rungs():
    return run_and_watch(ParallelTempering([0.0, 1.0], num_steps=2000, num_chains=4))


@pytest.fixture(scope="module")
def particles():
    return run_and_watch(TemperedSMC(num_particles=200, num_mcmc_steps=2, num_runs=3))


def test_progress_shows_rungs_acceptance_and_ess(two_rungs, particles):
    _, shown = two_rungs
    assert "4000/4000" in shown
    assert "warm-up, 2 rungs, acceptance 0." in shown
    assert "swaps 0." in shown and ", ESS " in shown
    posterior, shown = particles
    num_rungs = np.isfinite(posterior.rungs.temperatures).sum(1).max() - 1
    assert f"rung {num_rungs}, t 1, acceptance 0." in shown and ", ESS " in shown
    assert "1/1" in shown
    _, shown = run_and_watch(ImportanceSampling(1000, target_ess=5.0))
    assert " draws, ESS " in shown
    _, shown = run_and_watch(ImportanceSampling(1000, target_ess=5.0, progress=False))
    assert shown == ""


def test_swaps_are_as_frequent_as_the_densities_say(two_rungs):
    """E min(1, p(x | z_0) / p(x | z_1)) over draws of the prior and the posterior; fifteen standard errors or so."""
    posterior, _ = two_rungs
    rng = np.random.default_rng(0)
    deviation = (1 + 1 / NOISE**2) ** -0.5
    low, high = rng.normal(size=(2, 400_000)), X[:, None] / (1 + NOISE**2) + deviation * rng.normal(size=(2, 400_000))
    difference = 0.5 * ((X[:, None] - high) ** 2 - (X[:, None] - low) ** 2) / NOISE**2
    exact = np.exp(np.minimum(difference, 0.0)).mean(1)
    np.testing.assert_allclose(posterior.rungs.swap_acceptance[:, 0], exact, atol=0.03)
    assert exact[0] > 10 * exact[1]


def test_with_two_rungs_every_swap_is_a_round_trip(two_rungs):
    """The prior is drawn afresh at each step, and the pair takes turns with none: half of the steps attempt a swap."""
    rungs = two_rungs[0].rungs
    np.testing.assert_allclose(rungs.round_trip_rate, rungs.swap_acceptance[:, 0] / 2, atol=0.02)


def test_every_datum_finds_its_own_ladder(particles):
    """A datum that says more of its latent needs more rungs; ladders increase to 1, as means over runs too."""
    posterior, _ = particles
    lengths = np.isfinite(posterior.rungs.temperatures).sum(1)
    assert lengths[1] > lengths[0]
    for temperatures, length in zip(posterior.rungs.temperatures, lengths, strict=True):
        ladder = temperatures[:length]
        assert ladder[0] == 0 and ladder[-1] == 1 and np.all(np.diff(ladder) > 0)
        assert np.all(np.isnan(temperatures[length:]))
    # A step is as long as half of the particles allow, and the last one as long as what is left.
    np.testing.assert_allclose(posterior.rungs.ess[1, 0], 100.0, rtol=1e-2)
    assert np.nanmin(posterior.rungs.ess) > 99.0
    exact = np.asarray(dist.Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(X))
    assert np.all(np.abs(posterior.log_evidence - exact) < 4 * posterior.log_evidence_std_error)


def test_means_over_runs_leave_out_those_that_have_arrived():
    series = np.array([[[0.2, 0.4, np.nan], [0.4, np.nan, np.nan]]])
    np.testing.assert_allclose(mean_over_runs(series), [[0.3, 0.4, np.nan]])


def test_a_chain_that_never_moved_is_one_draw():
    sampler = Langevin(MALA(step_size=1e6), num_steps=50, num_chains=1, warmup=0, progress=False)
    posterior = sampler.run(KEY, conjugate, {}, X)
    assert np.all(np.ptp(posterior.latents["z"], axis=1) == 0)
    np.testing.assert_array_equal(posterior.ess, 1.0)


def effective_size(ancestor, values):
    latents = {"z": jnp.asarray(values, jnp.float32)[None]}
    return float(particles_file.effective_size(jnp.asarray(ancestor)[None, None], latents, 1)[0, 0])


def test_copies_of_a_particle_count_once():
    """N independent particles are worth N, families of copies their number, one family one draw."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    # A family is a particle: the sums over families are the particles themselves.
    assert effective_size(np.arange(1000), values) > 990
    family = np.repeat(np.arange(40), 25)
    np.testing.assert_allclose(effective_size(family, values[family]), 40.0, rtol=0.05)
    few = np.repeat(np.arange(2), 500)
    np.testing.assert_allclose(effective_size(few, values[few]), 1.0, rtol=0.01)
    assert effective_size(np.zeros(1000, int), values) == 1.0
    assert effective_size(np.zeros(1000, int), np.ones(1000)) == 1.0


class _Named(Kernel):
    """A kernel that is asked for its settings only."""


class _Marching(Kernel):
    """A kernel whose every move leads a thousand further, wherever prior and likelihood are."""

    target_acceptance = None

    def _step(self, key, point, tuning, evaluate):
        return Move(evaluate(point.position + 1000.0), jnp.ones(()), jnp.zeros((), bool))


@pytest.mark.parametrize(
    ("sampler", "moves"),
    [
        (TemperedSMC(num_particles=50, num_mcmc_steps=3, ladder=[1.0], kernel=_Marching(), progress=False), [3] * 50),
        (Langevin(_Marching(), num_steps=4, num_chains=1, warmup=2, progress=False), [3, 4, 5, 6]),
    ],
    ids=["particles", "chains"],
)
def test_particles_and_chains_make_as_many_moves_as_they_are_asked_for(sampler, moves):
    def flat(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(0.0 * numpyro.sample("z", dist.Normal(0.0, 1.0)), NOISE), obs=x)

    posterior = sampler.run(KEY, flat, {}, X)
    np.testing.assert_array_equal(np.round(posterior.latents["z"] / 1000.0), [moves, moves])


class _Still(Kernel):
    """A kernel that stays where it is."""

    target_acceptance = None

    def _step(self, key, point, tuning, evaluate):
        return Move(point, jnp.ones(()), jnp.zeros((), bool))


def test_particles_that_do_not_move_are_draws_of_the_prior_chosen_by_the_likelihood():
    """Six standard errors, at a tenth of the particles for effective sample size: false alarm 2e-9 for each number."""
    x, size = np.array([-1.0, 1.0], np.float32), 4000
    sampler = TemperedSMC(num_particles=size, num_mcmc_steps=1, ladder=[0.3, 1.0], kernel=_Still(), progress=False)
    posterior = sampler.run(KEY, conjugate, {}, x)
    z, deviation, error = posterior.latents["z"], (1 + 1 / NOISE**2) ** -0.5, 6 / (size / 10) ** 0.5
    assert np.all(np.abs(z.mean(1) - x / (1 + NOISE**2)) < error * deviation)
    assert np.all(np.abs(z.std(1) / deviation - 1) < error)
    evidence = np.asarray(dist.Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(x))
    assert np.all(np.abs(posterior.log_evidence - evidence) < error)
    np.testing.assert_allclose(posterior.log_likelihood, dist.Normal(z, NOISE).log_prob(x[:, None]), rtol=1e-4)


def test_the_preconditioner_is_the_particles_standard_deviation():
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(500, 3)) * [0.1, 1.0, 30.0]
    weights = rng.dirichlet(np.ones(500))
    points = Point(jnp.asarray(positions, jnp.float32), *[jnp.zeros(500)] * 2, *[jnp.zeros((500, 3))] * 2)
    expected = np.cov(positions.T, aweights=weights, ddof=0).diagonal() ** 0.5
    found = particles_file._spread(jnp.asarray(weights, jnp.float32), points, _Named())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    left = particles_file._spread(jnp.asarray(weights, jnp.float32), points, _Named(precondition=False))
    np.testing.assert_array_equal(left, np.ones(3))


def test_the_chains_spread_is_that_of_all_of_their_positions():
    positions = np.random.default_rng(0).normal(size=(7, 2, 4, 3, 5)).astype(np.float32) + 3.0
    moments = (jnp.zeros(()), jnp.zeros((2, 3, 5)), jnp.zeros((2, 3, 5)))
    for step in positions:
        moments = chains._add(moments, jnp.asarray(step))
    count, mean, squares = moments
    assert count == 28
    np.testing.assert_allclose(mean, positions.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(squares / count, positions.var((0, 2)), rtol=1e-4)


def test_copies_that_fill_up_a_chunk_are_not_counted_as_data():
    with pytest.raises(ValueError, match=r"at 3 of 10 draws from the prior of datum 4 \(and of 1 other data\)"):
        check_log_likelihood(np.array([0, 2, 3, 2, 2]), np.array([3, 5, 4, 5, 5]), 10)
