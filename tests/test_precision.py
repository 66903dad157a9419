"""Matrix products in bfloat16 with parameters, sums and densities in float32, and float64 throughout when enabled."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from prior_cases import quick_jit

from numpyro_kaem import KAN, MLP, BSpline, ImportanceMLE, KAPrior, UnivariateEnergy, fit
from numpyro_kaem.generators.precision import contract

# Rounding to bfloat16, of 8 significant bits, moves a factor by at most this much of itself.
U = 2.0**-8
# And a product of two.
U2 = 2 * U + U**2
Z = 1.5 * np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)


def outputs(*generators):
    """Of every generator at Z, compiled as one."""
    return map(np.asarray, quick_jit(lambda z: [generator(z) for generator in generators])(Z))


def test_affine_maps_are_within_the_rounding_of_their_factors():
    exact = MLP(jax.random.key(0), 3, 5, hidden_sizes=())
    rounded = MLP(jax.random.key(0), 3, 5, hidden_sizes=(), compute_dtype=jnp.bfloat16)
    error = np.abs(np.subtract(*outputs(rounded, exact)))
    bound = U2 * np.abs(Z) @ np.abs(exact.weights[0])
    # The last term is rounding in float32.
    assert np.all(error < bound + 1e-6)
    assert np.mean(error / bound) > 0.02


def test_errors_of_an_mlp_grow_by_its_weights():
    """The error e of a layer's input becomes (|e| (1 + U)^2 + U2 |h|) |W| in its product; |tanh'| is at most 1."""
    exact = MLP(jax.random.key(0), 3, 5, hidden_sizes=(16, 8), activation=jnp.tanh)
    rounded = MLP(jax.random.key(0), 3, 5, hidden_sizes=(16, 8), activation=jnp.tanh, compute_dtype="bfloat16")
    h, bound = Z, np.zeros_like(Z)
    for weight in map(np.asarray, exact.weights):
        bound = (bound * (1 + U) ** 2 + U2 * np.abs(h)) @ np.abs(weight)
        h = np.tanh(h @ weight)
    error = np.abs(np.subtract(*outputs(rounded, exact)))
    assert np.all(error < bound + 1e-6)
    assert np.max(error) > 1e-3


def test_a_kan_layer_is_within_the_rounding_of_its_factors():
    options = {"hidden_sizes": (), "basis": BSpline(6, 3, (-2.0, 2.0))}
    exact = KAN(jax.random.key(0), 3, 5, **options)
    rounded = KAN(jax.random.key(0), 3, 5, compute_dtype=jnp.bfloat16, **options)
    (layer,) = exact.layers
    base, basis, outputs_rounded, outputs_exact = outputs(
        lambda z: jax.nn.silu(layer.basis.clip(z)), layer.basis, rounded, exact
    )
    bound = U2 * (np.abs(base) @ np.abs(layer.base_weight))
    bound += U2 * np.einsum("big,iog->bo", np.abs(basis), np.abs(layer.coefficients))
    error = np.abs(outputs_rounded - outputs_exact)
    assert np.all(error < bound + 1e-6)
    assert np.mean(error / bound) > 0.02


def test_sums_are_accumulated_in_the_parameters_dtype():
    # In bfloat16 a sum of ones ends at 256, where adding one changes nothing.
    ones = np.ones((1, 4_001), np.float32)
    total = quick_jit(lambda ones: contract("bi,io->bo", ones, ones.T, jnp.dtype(jnp.bfloat16)))(ones)
    np.testing.assert_array_equal(total, [[4_001.0]])


GENERATORS = {
    "mlp": lambda dtype: MLP(jax.random.key(0), 3, 5, hidden_sizes=(8,), compute_dtype=dtype),
    "kan": lambda dtype: KAN(jax.random.key(0), 3, 5, compute_dtype=dtype),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_outputs_and_gradients_keep_the_parameters_dtype(name):
    @quick_jit
    def gradients(z):
        gradient = eqx.filter_grad(lambda pair: jnp.sum(jnp.sin(pair[0](pair[1]))))
        both = [gradient((GENERATORS[name](dtype), z)) for dtype in (None, jnp.bfloat16)]
        return [jax.tree.leaves(each) for each in both]

    exact, rounded = gradients(Z)
    assert jax.eval_shape(GENERATORS[name](jnp.bfloat16), Z).dtype == jnp.float32
    for a, b in zip(exact, rounded, strict=True):
        assert a.dtype == b.dtype == jnp.float32
        a, b = np.asarray(a), np.asarray(b)
        # Relative to the largest: about four roundings of U in a row.
        assert np.max(np.abs(a - b)) < 4 * U2 * np.max(np.abs(a))


@pytest.mark.parametrize("kind", [MLP, KAN])
@pytest.mark.parametrize("dtype", [jnp.int32, "complex64", bool])
def test_only_floating_dtypes_compute(kind, dtype):
    with pytest.raises(ValueError, match=r"compute_dtype must be a floating dtype such as jnp\.bfloat16"):
        kind(jax.random.key(0), 3, 5, compute_dtype=dtype)


HALF = pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])


@HALF
def test_points_in_half_precision_have_densities_and_quantiles_in_float32(half):
    basis = BSpline(8, 3, (0.0, 3.0))
    prior = KAPrior(UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=1.0), dist.Uniform(0.0, 3.0))
    z, u = np.array([0.01, 0.1, 1.7, 2.7, 2.99], half), np.array([0.01, 0.1, 0.3, 0.9, 0.997], half)
    for method, points in {"log_prob": z, "cdf": z, "icdf": u}.items():
        values = getattr(prior, method)(points)
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, getattr(prior, method)(points.astype(np.float32)))


@HALF
def test_parameters_in_half_precision_are_a_prior_once_cast_as_the_error_says(half):
    ends = np.array([-1.0, -2.0], half), np.ones(2, half)
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(4, 3, ends))
    assert energy.basis.domain[0].tolist() == [-1.0, -2.0]
    halved = jax.tree.map(lambda a: a.astype(half) if a.dtype == jnp.float32 else a, energy)
    with pytest.raises(
        TypeError, match=f"base_weight of an energy must be float32 or float64, got {half.dtype}"
    ) as told:
        KAPrior(halved, dist.Normal(0.0, 1.0))
    cure = re.search(r"jax\.tree\.map\(.*, parameters\)", str(told.value))[0]
    cast = eval(cure, {"jax": jax, "jnp": jnp, "parameters": halved})
    assert all(new.dtype == old.dtype for new, old in zip(*map(jax.tree.leaves, (cast, energy)), strict=True))
    KAPrior(cast, dist.Normal(0.0, 1.0))


@HALF
def test_knots_in_half_precision_are_the_numbers_that_they_are(half):
    knots = np.array([0.0, 0.1, 1.0], half)
    assert BSpline.from_knots(knots, 3).breakpoints.tolist() == knots.astype(np.float64).tolist()


class SameDraws(dist.Normal):
    """A standard normal whose draws are the same numbers in every precision."""

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, self.shape(sample_shape), jnp.float32).astype(jnp.result_type(float))


def train(compute_dtype):
    """Loss curve of a small model from the same start, on the same data."""
    dtype = jnp.result_type(float)
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 6.3, (200, 1))
    x = np.concatenate([np.sin(angle), np.cos(angle), angle / 6], 1) + 0.1 * rng.normal(size=(200, 3))
    decoder = MLP(jax.random.key(0), 2, 3, hidden_sizes=(32,), compute_dtype=compute_dtype)
    weights = tuple(jnp.asarray(rng.normal(size=w.shape) * w.shape[0] ** -0.5, dtype) for w in decoder.weights)
    decoder = eqx.tree_at(lambda d: d.weights, decoder, weights)

    def model(x):
        g = eqx_module("decoder", decoder)
        noise = numpyro.param("noise", jnp.asarray(0.5, dtype), constraint=dist.constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", SameDraws(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(g(z), noise).to_event(1), obs=x)

    result = fit(
        jax.random.key(2),
        model,
        x,
        objective=ImportanceMLE(50),
        optimizer=optax.adam(5e-3),
        num_epochs=5,
        batch_size=50,
        progress=False,
    )
    for leaf in jax.tree.leaves((result.params, result.state.optim_state)):
        assert not jnp.issubdtype(leaf.dtype, jnp.inexact) or leaf.dtype == dtype, leaf.dtype
    losses = result.history["loss"]
    assert losses.dtype == dtype
    assert losses[-4:].mean() < losses[:4].mean() - 0.3
    return losses


@pytest.fixture(scope="module")
def float32_losses():
    return train(None)


@pytest.mark.slow
def test_losses_in_bfloat16_follow_those_in_float32(float32_losses):
    # A relative error of 2^-8 in a mean g(z), over noise of 0.5, is 0.01 in the exponent's root; nats of 3 dimensions.
    np.testing.assert_allclose(train(jnp.bfloat16), float32_losses, atol=0.03)


@pytest.mark.slow
def test_losses_in_float64_are_those_in_float32_but_for_rounding(float32_losses, x64):
    np.testing.assert_allclose(train(None), float32_losses, atol=1e-4)


@pytest.mark.slow
def test_losses_in_bfloat16_with_float64_parameters(float32_losses, x64):
    np.testing.assert_allclose(train(jnp.bfloat16), float32_losses, atol=0.03)
