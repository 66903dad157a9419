"""What samplers say to calls, models and data that they cannot do with."""

import copy
import dataclasses
import inspect
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_kaem import (
    MALA,
    ImportanceSampling,
    Ladder,
    Langevin,
    LangevinMLE,
    LatentModel,
    ParallelTempering,
    TemperedSMC,
    kernels,
)
from numpyro_kaem.checks import check_positive
from numpyro_kaem.posterior.diagnostics import check_call

KEY = jax.random.key(0)
X = jnp.array([0.5, -1.0])
SAMPLERS = {
    "importance": ImportanceSampling(100),
    "chains": Langevin(MALA(step_size=0.1), num_steps=4, warmup=0, progress=False),
    "smc": TemperedSMC([1.0], num_particles=10, num_mcmc_steps=1, progress=False),
}


def normal(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param]


def test_calls_are_checked(sampler):
    # Directly, because the type checker of these tests would be first.
    with pytest.raises(TypeError, match=r"key must be a JAX random key such as jax.random.key\(0\), got 0"):
        check_call(0, {})
    with pytest.raises(TypeError, match=r"params must be a dict .* got NoneType: call run\(key, model, params, \*data"):
        check_call(KEY, None)
    with pytest.raises(TypeError, match=r"samplers compile what they run, and cannot be called inside of jax.jit"):
        jax.jit(lambda key: sampler.run(key, normal, {}, X).log_weights)(KEY)


def prior_only(x=None):
    z = numpyro.sample("z", dist.Normal())
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_model_that_observes_nothing_is_told(sampler):
    # As an error, before anything is compiled.
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(RuntimeWarning, match="observes nothing, so that its posterior is its prior"),
    ):
        sampler.run(KEY, prior_only, {})


def test_the_evidence_of_nothing_is_one():
    with pytest.warns(RuntimeWarning, match="observes nothing"):
        posterior = SAMPLERS["importance"].run(KEY, prior_only, {})
    np.testing.assert_array_equal(posterior.log_evidence, [0.0])


LABELS = np.array([1.0, 1.0, 0.0], np.float32)


def labels(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Bernoulli(logits=z), obs=x)


@pytest.mark.parametrize(
    ("name", "label", "reason"),
    [
        ("importance", 2.0, "outside of its support, Boolean"),
        ("importance", np.nan, "NaN: mask what is"),
        pytest.param("smc", np.nan, "NaN: mask what is", marks=pytest.mark.slow),
    ],
)
def test_data_out_of_support_have_no_likelihood_and_are_told(name, label, reason):
    with pytest.warns(RuntimeWarning, match=rf"first at index 1 \(whose observed site 'x' (is|has) {reason}"):
        posterior = SAMPLERS[name].run(KEY, labels, {}, np.where([False, True, False], np.float32(label), LABELS))
    np.testing.assert_array_equal(posterior.log_evidence == -np.inf, [False, True, False])


def test_what_is_masked_may_be_anything():
    def model(x):
        with numpyro.plate("data", x.shape[0]), numpyro.handlers.mask(mask=~jnp.isnan(x)):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    posterior = SAMPLERS["importance"].run(KEY, model, {}, jnp.array([1.0, np.nan]))
    assert np.all(np.isfinite(posterior.log_evidence))


def test_observed_values_that_would_be_counted_several_times_are_refused():
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z[:, None] * jnp.ones(5), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"'x' has values of shape \(4, 1\), but its distribution has shape \(4, 5\)"):
        LatentModel(model, {}, jnp.ones((4, 1)))
    LatentModel(model, {}, jnp.ones((4, 5)))


def test_priors_from_which_nothing_can_be_drawn_are_refused(sampler):
    def model(x):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"latent site 'z' has an improper prior, .* a wide dist.Normal"):
        sampler.run(KEY, model, {}, X)


def test_a_prior_that_is_not_a_number_is_told(sampler):
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("y", dist.Normal(0.0, jnp.where(z > 0, jnp.nan, 1.0)))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    if isinstance(sampler, ImportanceSampling):
        return  # which evaluates no prior
    with pytest.raises(ValueError, match=r"log-likelihood is NaN or \+inf, or the log-prior NaN, at \d+ of"):
        sampler.run(KEY, model, {}, X)


def test_a_step_size_to_be_found_needs_warm_up():
    with pytest.raises(ValueError, match=r"warmup must be at least 1 .* or MALA a step_size"):
        ParallelTempering(Ladder.power(3), MALA(), warmup=0)
    assert check_positive("step_size", jnp.float32(0.5)) == 0.5


@pytest.mark.parametrize(
    ("name", "args", "settings", "told"),
    [
        ("NUTS", (normal,), {}, "<function normal at .*>"),
        ("HMC", (normal,), {"step_size": 0.1, "num_steps": 5}, "<function normal at .*>, num_steps=5"),
        ("NUTS", (), {"target_accept_prob": 0.9, "max_tree_depth": 5}, "target_accept_prob=0.9, max_tree_depth=5"),
        ("HMC", (), {"potential_fn": None, "dense_mass": True}, "potential_fn=None, dense_mass=True"),
    ],
)
def test_a_kernel_that_is_called_as_numpyro_s_tells_which_one_it_is(name, args, settings, told):
    message = (
        f"this {name} is the kernel of numpyro_kaem for its samplers, and takes no {told}: for MCMC use "
        rf"numpyro.infer.{name}; in Langevin\(kernels.{name}\(\)\)"
    )
    with pytest.raises(TypeError, match=message):
        getattr(kernels, name)(*args, **settings)


def test_a_mistyped_keyword_of_a_kernel_is_a_mistyped_keyword():
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_doublings'"):
        kernels.NUTS(max_doublings=3)


def test_kernels_keep_what_dataclasses_have():
    kernel = kernels.NUTS(step_size=0.1, max_num_doublings=3)
    assert list(inspect.signature(kernels.NUTS).parameters)[:1] == ["step_size"]
    assert dataclasses.replace(kernel, max_num_doublings=4).step_size == 0.1
    assert pickle.loads(pickle.dumps(kernel)) == kernel


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (kernels.NUTS, r"<class .*\.NUTS'>: that is the class, and an instance is NUTS\(\)$"),
        (numpyro.infer.NUTS(normal), "<numpyro.*NUTS.*>: that is NumPyro's NUTS, which runs in numpyro.infer.MCMC$"),
        (numpyro.infer.HMC, "<class .*HMC'>: that is NumPyro's HMC, which runs in numpyro.infer.MCMC$"),
        ("MALA", "'MALA'$"),
    ],
)
@pytest.mark.parametrize("taker", [ParallelTempering([0.0, 1.0]), TemperedSMC(), LangevinMLE()])
def test_samplers_and_objectives_take_kernels_of_this_package(taker, kernel, reason):
    taker = copy.copy(taker)
    # Not by the constructor, because the type checker of these tests would be first.
    object.__setattr__(taker, "kernel", kernel)
    with pytest.raises(TypeError, match=rf"kernel must be one of numpyro_kaem.kernels, .* got {reason}"):
        taker.__post_init__()


def test_nothing_is_said_of_what_is_right(sampler):
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        sampler.run(KEY, labels, {}, LABELS)
