"""Generators act on the last axis of arrays with any leading batch dimensions, and start at unit scale."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.module import eqx_module

from numpyro_kaem.bases import RBF, BSpline
from numpyro_kaem.generators import KAN, MLP

BASIS = BSpline(num_intervals=6, degree=3, domain=(-2.0, 2.0))
GAUSSIANS = RBF(num_centers=6, domain=(-2.0, 2.0))
GENERATORS = {
    "mlp": lambda key: MLP(key, 3, 5, hidden_sizes=(16, 8)),
    "affine": lambda key: MLP(key, 3, 5, hidden_sizes=()),
    "kan": lambda key: KAN(key, 3, 5, hidden_sizes=(7,), basis=BASIS),
    "kan-rbf": lambda key: KAN(key, 3, 5, basis=GAUSSIANS, base_activation="tanh"),
}


@pytest.fixture(params=GENERATORS)
def generator(request):
    return GENERATORS[request.param](jax.random.key(0))


@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 3), (0,)])
def test_leading_dimensions_are_a_batch(generator, batch_shape):
    z = jax.random.normal(jax.random.key(1), (*batch_shape, 3))
    x = eqx.filter_jit(generator)(z)
    assert x.shape == (*batch_shape, 5)
    one_by_one = jax.lax.map(generator, z.reshape(-1, 3))
    np.testing.assert_allclose(x.reshape(-1, 5), one_by_one, rtol=1e-4, atol=1e-5)


def test_every_parameter_moves_the_output(generator):
    z = jax.random.normal(jax.random.key(1), (500, 3))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda g: jnp.sum(jnp.sin(g(z)))))(generator)
    assert all(jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_the_last_axis_must_be_in_size(generator):
    for shape in [(), (5,), (3, 4)]:
        with pytest.raises(ValueError, match=r"z must have a last axis of size 3, got shape"):
            generator(jnp.zeros(shape))


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (3, -1)])
@pytest.mark.parametrize("kind", [MLP, KAN])
def test_sizes_are_at_least_one(kind, sizes):
    with pytest.raises(ValueError, match=r"(in|out)_size must be a whole number of at least 1"):
        kind(jax.random.key(0), *sizes)


def test_mlp_is_the_composition_of_its_layers():
    mlp = MLP(jax.random.key(0), 2, 3, hidden_sizes=(4,), activation=jnp.tanh)
    z = jnp.array([0.3, -1.2])
    (w1, w2), (b1, b2) = mlp.weights, mlp.biases
    np.testing.assert_allclose(mlp(z), jnp.tanh(z @ w1 + b1) @ w2 + b2, rtol=1e-6)


def test_kan_layer_is_a_sum_of_the_prior_s_univariate_functions():
    kan = KAN(jax.random.key(0), 3, 5, hidden_sizes=(4,), basis=BASIS)
    z = 2.0 * jax.random.normal(jax.random.key(1), (50, 3))  # partly outside of the domain
    for functions in kan.layers:
        z = eqx.filter_jit(functions)(jnp.broadcast_to(z[..., None], (*z.shape, functions.batch_shape[1]))).sum(-2)
    x = 2.0 * jax.random.normal(jax.random.key(1), (50, 3))
    np.testing.assert_allclose(eqx.filter_jit(kan)(x), z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [MLP, KAN])
@pytest.mark.slow
def test_outputs_start_at_unit_scale(kind):
    z = jax.random.normal(jax.random.key(1), (1000, 30))
    x = eqx.filter_jit(kind(jax.random.key(0), 30, 200, hidden_sizes=(100, 100)))(z)
    # A wide band around 1: initialisation must neither explode nor vanish with depth.
    assert 0.4 < float(jnp.std(x)) < 2.0


def test_only_weights_are_parameters_of_the_model():
    kan = KAN(jax.random.key(0), 3, 5, basis=BASIS)
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        eqx_module("decoder", kan)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(trace["decoder$params"]["value"]))
    assert shapes == [(3, 5), (3, 5), (3, 5, BASIS.num_basis)]


@pytest.mark.parametrize("name", GENERATORS)
def test_float64_keys_give_float64_generators(x64, name):
    generator = GENERATORS[name](jax.random.key(0))
    assert jax.eval_shape(generator, jnp.zeros((2, 3))).dtype == jnp.float64
