"""Generators act on the last axis of arrays with any leading batch dimensions, and start at unit scale."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.module import eqx_module
from prior_cases import quick_jit

from numpyro_kaem.energies import RBF, BSpline
from numpyro_kaem.generators import KAN, MLP

BASIS = BSpline(num_intervals=6, degree=3, domain=(-2.0, 2.0))
GAUSSIANS = RBF(num_centers=6, domain=(-2.0, 2.0))
GENERATORS = {
    "mlp": lambda key: MLP(key, 3, 5, hidden_sizes=(16, 8)),
    "affine": lambda key: MLP(key, 3, 5, hidden_sizes=()),
    "kan": lambda key: KAN(key, 3, 5, hidden_sizes=(7,), basis=BASIS),
    "kan-rbf": lambda key: KAN(key, 3, 5, basis=GAUSSIANS, base_activation="tanh"),
}


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(params=GENERATORS, scope="module")
def generator(request):
    """One whose arrays are made by one compiled program."""
    make, key = GENERATORS[request.param], jax.random.key(0)
    shapes = eqx.filter_eval_shape(make, key)
    static = eqx.filter(shapes, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))
    return eqx.combine(quick_jit(lambda key: eqx.filter(make(key), eqx.is_array))(key), static)


def test_leading_dimensions_are_a_batch(generator):
    batches = [normal(*batch_shape, 3) for batch_shape in [(), (4,), (2, 3), (0,)]]

    @quick_jit
    def run(*batches):
        # Those that are one by one have no batch dimension.
        of_rows = jax.lax.map(generator, jnp.concatenate([z.reshape(-1, 3) for z in batches]))
        return [generator(z) for z in batches], of_rows

    outputs, of_rows = jax.tree.map(np.asarray, run(*batches))
    for z, x in zip(batches, outputs, strict=True):
        assert x.shape == (*z.shape[:-1], 5)
    flat = np.concatenate([x.reshape(-1, 5) for x in outputs])
    np.testing.assert_allclose(flat, of_rows, rtol=1e-4, atol=1e-5)


def test_every_parameter_moves_the_output(generator):
    parameters, static = eqx.partition(generator, eqx.is_inexact_array)
    total = lambda parameters, z: jnp.sum(jnp.sin(eqx.combine(parameters, static)(z)))  # noqa: E731
    gradient = quick_jit(jax.grad(total))(parameters, normal(500, 3))
    assert len(jax.tree.leaves(gradient)) >= 2
    assert all(np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_the_last_axis_must_be_in_size(generator):
    for shape in [(), (5,), (3, 4)]:
        with pytest.raises(ValueError, match=r"z must have a last axis of size 3, got shape"):
            generator(jnp.zeros(shape))


def test_mlp_is_the_composition_of_its_layers():
    mlp = MLP(jax.random.key(0), 2, 3, hidden_sizes=(4,), activation=jnp.tanh)
    z = np.array([0.3, -1.2], np.float32)
    (w1, w2), (b1, b2) = jax.tree.map(np.asarray, (mlp.weights, mlp.biases))
    np.testing.assert_allclose(quick_jit(lambda z: mlp(z))(z), np.tanh(z @ w1 + b1) @ w2 + b2, rtol=1e-6)


def test_kan_layer_is_a_sum_of_the_prior_s_univariate_functions():

    @quick_jit
    def both(key, x):
        kan, z = KAN(key, 3, 5, hidden_sizes=(4,), basis=BASIS), x
        for functions in kan.layers:
            z = functions(jnp.broadcast_to(z[..., None], (*z.shape, functions.batch_shape[1]))).sum(-2)
        return kan(x), z

    x = 2.0 * normal(50, 3)  # partly outside of the domain
    np.testing.assert_allclose(*both(jax.random.key(0), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [MLP, KAN])
@pytest.mark.slow
def test_outputs_start_at_unit_scale(kind):
    generator = quick_jit(lambda key, z: kind(key, 30, 200, hidden_sizes=(100, 100))(z))
    x = generator(jax.random.key(0), normal(1000, 30))
    # A wide band around 1: initialisation must neither explode nor vanish with depth.
    assert 0.4 < float(np.std(x)) < 2.0


def test_only_weights_are_parameters_of_the_model():
    def leaves():
        with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
            eqx_module("decoder", KAN(jax.random.key(0), 3, 5, basis=BASIS))
        return jax.tree.leaves(trace["decoder$params"]["value"])

    shapes = sorted(leaf.shape for leaf in jax.eval_shape(leaves))
    assert shapes == [(3, 5), (3, 5), (3, 5, BASIS.num_basis)]


@pytest.mark.parametrize("name", GENERATORS)
def test_float64_keys_give_float64_generators(x64, name):
    def output(key):
        return GENERATORS[name](key)(jnp.zeros((2, 3)))

    assert jax.eval_shape(output, jax.random.key(0)).dtype == jnp.float64


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (3, -1)])
@pytest.mark.parametrize("kind", [MLP, KAN])
def test_sizes_are_at_least_one(kind, sizes):
    with pytest.raises(ValueError, match=r"(in|out)_size must be a whole number of at least 1"):
        kind(jax.random.key(0), *sizes)
