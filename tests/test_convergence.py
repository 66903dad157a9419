"""Whether chains and runs agree, and whether what is said of it is true."""

import warnings
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpyro_kaem import Ladder, ParallelTempering, TemperedSMC
from numpyro_kaem.posterior.convergence import has_two_lumps, rank_rhat


def arviz_rhat(chains):
    if version("arviz").startswith("0."):
        import arviz

        return arviz.rhat(chains)
    from arviz_stats.base import array_stats

    return array_stats.rhat(chains, chain_axis=0, draw_axis=1)


@pytest.mark.parametrize("num_draws", [4, 51, 200])
def test_rank_rhat_is_arviz_s(num_draws):
    rng = np.random.default_rng(0)
    chains = rng.standard_cauchy(size=(5, 3, num_draws, 2)) + rng.normal(size=(5, 3, 1, 2))
    chains[..., 1] = np.round(chains[..., 1])  # with ties
    expected = [max(arviz_rhat(datum[..., element]) for element in range(2)) for datum in chains]
    np.testing.assert_allclose(rank_rhat(chains), expected, rtol=1e-10)


def test_elements_that_never_move_do_not_count():
    chains = np.random.default_rng(0).normal(size=(2, 4, 100, 3))
    still = chains.copy()
    still[..., 1] = 7.0
    np.testing.assert_allclose(rank_rhat(still), rank_rhat(chains[..., [0, 2]]))
    np.testing.assert_array_equal(rank_rhat(np.ones((2, 4, 100, 1))), 1.0)
    apart = np.broadcast_to(np.arange(4.0)[:, None, None], (1, 4, 100, 1))
    assert rank_rhat(apart)[0] > 100


FAMILIES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "uniform": lambda rng, n: rng.uniform(size=n),
    "cauchy": lambda rng, n: rng.standard_cauchy(size=n),
    "minus log-normal": lambda rng, n: -np.exp(3.0 * rng.normal(size=n)),
    "minus chi-square": lambda rng, n: -rng.chisquare(2.0, size=n),
}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    size=st.integers(0, 3_000),
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e6),
)
def test_one_lump_is_one(family, size, seed, scale):
    draws = scale * FAMILIES[family](np.random.default_rng(seed), size) - scale
    assert not has_two_lumps(draws) and not has_two_lumps(draws, rare_upper=True)


@pytest.mark.parametrize("share", [0.02, 0.04, 0.3, 0.9])
def test_two_lumps_are_two(share):
    rng = np.random.default_rng(0)
    upper = rng.uniform(size=8_000) < share
    draws = np.where(upper, 8.0, 0.0) + rng.normal(size=8_000)
    assert has_two_lumps(draws)
    assert has_two_lumps(draws, rare_upper=True) == (share < 0.05)
    with_impossible = np.concatenate([draws, np.full(500, -np.inf)])
    assert has_two_lumps(with_impossible)


def spike(width):
    """99 per cent of the mass in a spike on a plateau, as the 0.01 that is left."""

    def model():
        x = numpyro.sample("x", dist.Uniform(-0.5, 0.5).expand([5]).to_event(1))
        parts = [dist.Normal(0.0, s).log_prob(x).sum() for s in (width, 0.1)]
        numpyro.factor("spike", jnp.logaddexp(jnp.log(100.0) + parts[0], parts[1]))

    return model


def told(sampler, seed, width=0.015):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = sampler.run(jax.random.key(seed), spike(width), {})
    return posterior, " ".join(str(one.message) for one in caught)


@pytest.mark.slow
def test_a_phase_transition_that_was_seen_is_told():
    sampler = ParallelTempering(Ladder.power(20, exponent=2.0), num_steps=2_000, num_chains=8, progress=False)
    posterior, text = told(sampler, 1)
    inside = (np.abs(posterior.latents["x"][0]).max(-1) < 0.06).reshape(8, -1).mean(1)
    assert inside.max() > 0.3 and np.median(inside) < 0.1  # one chain has found what the others have not
    assert "gather in two lumps that draws seldom pass between" in text
    assert "the chains of 1 of 1 data disagree: R-hat is" in text
    assert posterior.ess[0] < 100 and posterior.rhat[0] > 1.05


@pytest.mark.slow
def test_runs_that_disagree_in_their_log_likelihood_are_told():
    posterior, text = told(TemperedSMC(num_particles=1_000, num_runs=4, progress=False), 2)
    assert np.ptp(posterior.run_log_evidence) > 3
    assert "the runs of 1 of 1 data disagree: R-hat is" in text


def test_chains_that_agree_are_told_nothing():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("x is near one or minus one", -8.0 * (x**2 - 1.0) ** 2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = ParallelTempering(Ladder.power(4), num_steps=500, num_chains=4, progress=False)
        assert sampler.run(jax.random.key(0), model, {}).rhat[0] < 1.05
