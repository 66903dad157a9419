"""A Posterior as a Python object: printed, copied, pickled."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_kaem import ImportanceSampling, Langevin

X = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0]])


def model(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


@pytest.fixture(scope="module")
def chains():
    return Langevin(num_steps=400, num_chains=2, progress=False).run(jax.random.key(0), model, {}, X)


def test_it_is_printed_a_line_a_field(chains):
    lines = repr(chains).splitlines()
    assert lines[0] == "Posterior of 3 data in plate 'data', 800 particles, 2 chains or runs"
    fields = {line.split(":")[0].strip(): line for line in lines[1:]}
    z = chains.latents["z"]
    assert f"float32[3, 800, 2], mean {z.mean():.4g}, from {z.min():.4g} to {z.max():.4g}" in fields["latents['z']"]
    assert {"observed['x']", "ess", "divergences", "rungs.step_size", "log_likelihood"} <= set(fields)
    assert "log_evidence" not in fields  # there is none
    assert max(map(len, lines)) < 120


def test_what_is_not_finite_is_counted():
    def impossible(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.factor("x", jnp.where(z > x, 0.0, -jnp.inf))

    posterior = ImportanceSampling(100).run(jax.random.key(0), impossible, {}, jnp.array([-9.0, 0.0]))
    missing = int(np.isinf(posterior.log_likelihood).sum())
    assert f"log_likelihood: float32[2, 100], mean 0, from 0 to 0, {missing} not finite" in repr(posterior)


def test_copies_are_apart_and_share_the_model(chains):
    other = copy.deepcopy(chains)
    assert other.latent_model is chains.latent_model
    other.latents["z"][:] = 0.0
    assert np.any(chains.latents["z"] != 0.0)


def test_pickles_come_back_with_their_model(chains):
    other = pickle.loads(pickle.dumps(chains))
    np.testing.assert_array_equal(other.latents["z"], chains.latents["z"])
    np.testing.assert_array_equal(other.rungs.step_size, chains.rungs.step_size)
    np.testing.assert_array_equal(other.deterministic["twice"], chains.deterministic["twice"])
    assert other.latent_model.num_data == 3


def test_a_model_that_cannot_be_found_again_is_left_out():
    posterior = ImportanceSampling(100).run(jax.random.key(0), lambda x: model(x), {}, X)
    other = pickle.loads(pickle.dumps(posterior))
    np.testing.assert_array_equal(other.log_evidence, posterior.log_evidence)
    assert other.latent_model is None
    with pytest.raises(ValueError, match="latent_model is None, as after unpickling one whose model is defined inside"):
        other.to_arviz()


def test_shapes_of_weights_that_overflow_are_not_told():
    with np.errstate(over="raise"):
        from numpyro_kaem.posterior.pareto import pareto_smooth

        assert np.isfinite(pareto_smooth(np.linspace(-800.0, 0.0, 1_000)[None])[1]).all()
