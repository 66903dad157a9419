"""Simulation-based calibration: the rank of the truth among posterior draws is uniform, of every sampler.

Each simulation is a datum, so that all of them run at once. False alarm of a histogram: 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import chi2

from numpyro_kaem import (
    MALA,
    BSpline,
    ImportanceSampling,
    KAMixture,
    KAPrior,
    Ladder,
    Langevin,
    ParallelTempering,
    TemperedSMC,
    UnivariateEnergy,
)

NUM_SIMULATIONS, NUM_DRAWS, NUM_BINS = 600, 99, 20


def make_prior():
    """A mixture of two tilted normals in each of two coordinates."""
    energy = UnivariateEnergy.init(jax.random.key(0), (2, 2), basis=BSpline(8, 3, (-3.0, 3.0)), scale=1.0)
    components = KAPrior(energy, dist.Normal(jnp.array([-0.8, 0.8]), 0.7))
    return KAMixture(components, jnp.array([0.3, -0.3])).to_event(1)


PRIOR = make_prior()


def generator(z):
    """Two values, of which neither tells a coordinate by itself."""
    return jnp.stack([jnp.tanh(z[..., 0]) + 0.5 * z[..., 1], jnp.sin(z[..., 0] * z[..., 1])], -1)


def model(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", PRIOR)
        numpyro.sample("x", dist.Normal(generator(z), 0.4).to_event(1), obs=x)


def simulate(key):
    key_z, key_x = jax.random.split(key)
    z = PRIOR.sample(key_z, (NUM_SIMULATIONS,))
    return np.asarray(z), generator(z) + 0.4 * jax.random.normal(key_x, (NUM_SIMULATIONS, 2))


def uniformity(truth, draws):
    """Chi-squared statistic of the ranks' histogram, by coordinate."""
    ranks = np.sum(draws < truth[:, None], axis=1)
    edges = np.linspace(0, NUM_DRAWS + 1, NUM_BINS + 1)
    expected = NUM_SIMULATIONS / NUM_BINS
    counts = np.stack([np.histogram(ranks[:, j], edges - 0.5)[0] for j in range(ranks.shape[1])])
    return np.sum((counts - expected) ** 2 / expected, axis=1)


BOUND = chi2.isf(1e-6, NUM_BINS - 1)
SAMPLERS = {
    "importance sampling": ImportanceSampling(30_000),
    # Enough chains that some begin in each mode.
    "Langevin": Langevin(MALA(), num_steps=99, num_chains=33, warmup=150, progress=False),
    "parallel tempering": ParallelTempering(
        Ladder.power(4, 3.0), MALA(), num_steps=495, num_chains=1, warmup=300, thin=5, progress=False
    ),
    "tempered SMC": TemperedSMC(num_particles=297, num_mcmc_steps=10, progress=False),
}


# Modes that chains do not pass between are what draws of several chains are made of here.
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:the chains of:RuntimeWarning", "ignore:the log-likelihoods of:RuntimeWarning")
@pytest.mark.parametrize("name", SAMPLERS)
def test_ranks_are_uniform(name):
    truth, x = simulate(jax.random.key(1))
    posterior = SAMPLERS[name].run(jax.random.key(2), model, {}, x)
    if name == "importance sampling":
        assert np.median(posterior.ess) > 10 * NUM_DRAWS
        draws = posterior.resample(jax.random.key(3), NUM_DRAWS, "multinomial").latents["z"]
    else:
        draws = posterior.latents["z"]
        draws = draws[:, :: draws.shape[1] // NUM_DRAWS]
    assert draws.shape == (NUM_SIMULATIONS, NUM_DRAWS, 2)
    assert np.all(uniformity(truth, draws) < BOUND)


@pytest.mark.zoo
def test_the_histogram_shows_a_posterior_that_is_too_narrow():
    """The test above can fail: draws shrunk by three tenths towards their mean do."""
    truth, x = simulate(jax.random.key(1))
    posterior = SAMPLERS["importance sampling"].run(jax.random.key(2), model, {}, x)
    draws = posterior.resample(jax.random.key(3), NUM_DRAWS, "multinomial").latents["z"]
    draws = draws.mean(1, keepdims=True) + 0.7 * (draws - draws.mean(1, keepdims=True))
    assert np.all(uniformity(truth, draws) > BOUND)
