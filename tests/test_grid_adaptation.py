"""Grids that follow samples: where the knots go, what happens to the function, and adaptation while training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer import SVI
from prior_cases import quick_jit

from numpyro_kaem import (
    RBF,
    RSWAF,
    BSpline,
    Chebyshev,
    Fourier,
    ImportanceMLE,
    KAMixture,
    KAPrior,
    LatentModel,
    UnivariateEnergy,
    Wavelet,
    adapt_svi_grid,
    energy_module,
    fit,
)
from numpyro_kaem.energies.adaptation import least_squares

DOMAIN = (-3.0, 3.0)
INSIDE = np.linspace(*DOMAIN, 801, dtype=np.float32)
SPLINES = BSpline(24, 3, DOMAIN)


def energy_of(basis, *functions):
    """The energy nearest to each of the functions of z."""
    values = np.stack([f(INSIDE) for f in functions])
    coefficients = quick_jit(lambda z, values: least_squares(basis(z), values, jnp.ones_like(values)))(INSIDE, values)
    weights = jnp.ones(len(functions))
    return UnivariateEnergy(jnp.zeros(len(functions)), weights, coefficients, basis)


def samples(scale, num_samples=2000, columns=2, loc=0.0):
    return (loc + scale * np.random.default_rng(0).normal(size=(num_samples, columns))).astype(np.float32)


adapt = quick_jit(lambda energy, z, weights, s: energy.adapt_grid(z, weights, s), static_argnums=3)
evaluate = quick_jit(lambda energy, z: energy(z))


@pytest.mark.parametrize("scale", [0.7, 1.5])  # of samples inside the domain, and partly outside
def test_a_smooth_function_stays_the_same_on_its_old_domain(scale):
    energy = energy_of(SPLINES, lambda z: -(z**2), lambda z: 0.2 * z**3 - z)
    moved, change = adapt(energy, samples(scale), None, 0.05)
    old, new = (np.asarray(evaluate(f, INSIDE[:, None])) for f in (energy, moved))
    extent = old.max(0) - old.min(0)
    assert np.all(np.abs(new - old).max(0) < 1e-3 * extent)
    # the change that is returned is the largest one, seen at the points of the fit
    np.testing.assert_allclose(change, np.abs(new - old).max(0), rtol=0.5, atol=1e-6 * extent.max())


@pytest.mark.parametrize(
    "basis",
    [
        RBF(20, DOMAIN),
        Fourier(8, DOMAIN),
        *(
            pytest.param(basis, marks=pytest.mark.slow)
            for basis in (RSWAF(20, DOMAIN), Chebyshev(12, DOMAIN), Wavelet("dog", 20, DOMAIN))
        ),
    ],
)
def test_other_bases_stay_or_stretch_over_the_samples(basis):
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=basis, scale=1.0)
    same, change = adapt(energy, samples(0.5).clip(*DOMAIN), None, 0.05)
    np.testing.assert_array_equal(same.basis.domain, np.tile(np.array(DOMAIN)[:, None], 2))
    assert np.all(change < 1e-4)
    z = samples(2.0)
    wider, change = adapt(energy, z, None, 0.05)
    np.testing.assert_array_equal(wider.basis.domain[0], np.minimum(z.min(0), -3.0))
    np.testing.assert_array_equal(wider.basis.domain[1], np.maximum(z.max(0), 3.0))
    assert np.all(np.isfinite(wider.coefficients)) and np.all(np.isfinite(change))


def test_knots_go_to_the_quantiles_and_intervals_get_equal_shares():
    z = samples(0.5, 24_000).clip(*DOMAIN)
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=SPLINES)

    @quick_jit
    def knots(z):
        return [energy.adapt_grid(z, None, fraction)[0].basis.knots for fraction in (1e-6, 1.0, 0.3)]

    moved, even, between = map(np.asarray, knots(z))
    for column in range(2):
        counts, _ = np.histogram(z[:, column], moved[column])
        assert np.all(np.abs(counts - 1000) <= 10)
    np.testing.assert_allclose(even, np.tile(SPLINES.knots, (2, 1)), atol=1e-6)
    np.testing.assert_allclose(between, 0.3 * even + 0.7 * moved, atol=1e-5)


def test_an_outlier_costs_few_knots():
    energy = energy_of(SPLINES, lambda z: -(z**2), lambda z: 0.2 * z**3 - z)
    z = np.concatenate([samples(1.0, 500).clip(*DOMAIN), np.full((1, 2), 1e3, np.float32)])
    moved, change = adapt(energy, z, None, 0.05)
    knots, extent = np.asarray(moved.basis.knots), np.ptp(np.asarray(evaluate(energy, INSIDE[:, None])), axis=0)
    assert np.all(np.sum((knots >= -3.0) & (knots <= 3.1), axis=1) >= 21) and np.all(knots[:, -1] == 1e3)
    assert np.all(np.diff(knots, axis=1) > 0) and np.all(change < 0.05 * extent)


def test_whole_weights_are_repeated_samples():
    z, counts = samples(1.0, 50), np.random.default_rng(1).integers(0, 4, size=50)
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=SPLINES)

    @quick_jit
    def knots():
        repeated = np.repeat(z, counts, axis=0)
        arguments = ((z, counts), (repeated,), (z, 2.0 * np.ones((50, 2))), (z,))
        return [energy.adapt_grid(*each)[0].basis.knots for each in arguments]

    weighted, repeated, twice, once = map(np.asarray, knots())
    # a repeated sample is a step of the distribution, a weighted one a point on its ramp: up to half a sample apart
    gap = np.max(np.diff(np.sort(z, axis=0), axis=0)[5:-5])
    assert np.max(np.abs(weighted - repeated)[:, 3:-3]) < 2 * gap
    np.testing.assert_allclose(twice, once, atol=1e-5)


ONE_ENERGY = UnivariateEnergy.init(jax.random.key(0), (1,), basis=SPLINES, scale=1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.lists(st.sampled_from([-50.0, -3.0, -1.0, 0.0, 0.0, 1e-7, 2.0, 1e3]), min_size=8, max_size=8))
def test_any_samples_give_knots_that_increase_and_cover_them(values):
    moved, change = adapt(ONE_ENERGY, np.array(values, np.float32)[:, None], None, 0.05)
    knots = np.asarray(moved.basis.knots[0])
    assert np.all(np.diff(knots) > 0)
    assert knots[0] == min(-3.0, min(values)) and knots[-1] == max(3.0, max(values))
    assert np.all(np.isfinite(moved.coefficients)) and np.all(np.isfinite(change))


@pytest.mark.slow
def test_compiled_samples_that_are_not_finite_do_not_count():
    z = samples(1.0, 100)
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=SPLINES)
    spoiled = np.concatenate([z, np.full((3, 2), np.nan, np.float32), np.full((1, 2), np.inf, np.float32)])

    @quick_jit
    def adapted():
        return [energy.adapt_grid(each) for each in (z, spoiled, np.full((5, 2), np.nan, np.float32))]

    (expected, _), (moved, _), (unmoved, change) = adapted()
    np.testing.assert_allclose(moved.basis.knots, expected.basis.knots, atol=1e-6)
    np.testing.assert_allclose(unmoved.basis.knots, np.tile(SPLINES.knots, (2, 1)), atol=1e-6)
    assert np.all(change < 1e-5)


@pytest.mark.slow
def test_components_of_a_mixture_share_the_grid_of_samples_with_an_axis_of_one():
    energy = UnivariateEnergy.init(jax.random.key(0), (2, 3), basis=SPLINES, scale=1.0)
    moved, change = adapt(energy, samples(1.0)[:, :, None], None, 0.05)
    assert moved.basis.knots.shape == (2, 1, 25) and change.shape == (2, 3)

    @quick_jit
    def sample(moved, key):
        return KAMixture(KAPrior(moved, dist.Normal(0.0, 1.0)), jnp.zeros(3)).sample(key, (4,))

    draws = np.asarray(sample(moved, jax.random.key(1)))
    assert draws.shape == (4, 2) and np.all(np.isfinite(draws))


def test_a_zero_spline_weight_can_be_refitted():
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=SPLINES, scale=1.0)
    energy = eqx.tree_at(lambda f: f.spline_weight, energy, jnp.array([0.0, 2.0]))
    moved, change = adapt(energy, samples(0.5).clip(*DOMAIN), None, 1.0)
    assert np.all(np.isfinite(moved.coefficients)) and np.all(change < 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": np.zeros((5, 3))}, r"z must be at least one sample .* got shape \(5, 3\)"),
        ({"z": np.zeros((0, 2))}, r"z must be at least one sample .* got shape \(0, 2\)"),
        ({"z": np.zeros(2)}, r"z must be at least one sample .* got shape \(2,\)"),
        ({"z": np.ones((5, 2)) * 1j}, "z and weights must be real numbers, got dtypes complex64 and float32"),
        ({"z": np.array([[0.0, np.nan]])}, "z and weights must be finite .* 1 of 2 samples are not"),
        ({"z": np.zeros((5, 2)), "weights": -np.ones(5)}, "weights not negative; 10 of 10 samples are not"),
        (
            {"z": np.zeros((5, 2)), "uniform_fraction": 0.0},
            "uniform_fraction must be a number above 0 and at most 1, got 0.0",
        ),
    ],
)
def test_bad_samples_are_told(arguments, message):
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=SPLINES)
    with pytest.raises((TypeError, ValueError), match=message):
        energy.adapt_grid(**arguments)


# Adaptation while training ----------------------------------------------------------------------------------------

INITIAL = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(12, 3, DOMAIN))


def model(y):
    energy = energy_module("energy", INITIAL)
    with numpyro.plate("data", y.shape[0]):
        z = numpyro.sample("z", KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(1))
        numpyro.sample("y", dist.Normal(z, 0.3).to_event(1), obs=y)


def no_guide(y):
    """A guide without sites."""


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-2), optax.noisy_sgd(1e-3, key=0)])
@pytest.mark.slow
def test_training_alone_leaves_the_grid_where_it_is(optimizer):
    y = jnp.asarray(samples(0.8, 64))
    svi = SVI(model, no_guide, optimizer, loss=ImportanceMLE(50))
    state = quick_jit(svi.init)(jax.random.key(1), y)
    before = np.asarray(state.mutable_state["energy$grid"]["points"])
    state, _ = quick_jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s, y), state, length=3))(state)
    np.testing.assert_array_equal(state.mutable_state["energy$grid"]["points"], before)
    assert not np.allclose(svi.get_params(state)["energy$params"].coefficients, INITIAL.coefficients)


@pytest.mark.slow
def test_a_compiled_loop_adapts_every_few_steps_and_resets_the_moments():
    y = jnp.asarray(samples(0.8, 64))
    svi = SVI(model, no_guide, optax.adam(1e-2), loss=ImportanceMLE(50))
    state = quick_jit(svi.init)(jax.random.key(1), y)

    def step(state, index):
        state, loss = svi.update(state, y)
        adapted = jax.lax.cond(
            index % 4 == 3, lambda s: adapt_svi_grid(svi, s, "energy", INITIAL, y)[0], lambda s: s, state
        )
        return adapted, (loss, state, adapted)

    _, (losses, before, after) = quick_jit(lambda state: jax.lax.scan(step, state, jnp.arange(8)))(state)
    assert np.all(np.isfinite(losses))
    points = np.asarray(after.mutable_state["energy$grid"]["points"])
    assert np.array_equal(points[0], points[2]) and not np.array_equal(points[2], points[3])
    adam_before, adam_after = (s.optim_state[1][1][0] for s in (before, after))
    for moment in ("mu", "nu"):
        old, new = (getattr(adam, moment)["energy$params"] for adam in (adam_before, adam_after))
        # Momenta start anew; of second moments each function keeps the mean.
        expected = np.asarray(old.coefficients)[3].mean(-1, keepdims=True) * (moment == "nu")
        np.testing.assert_allclose(new.coefficients[3], expected + np.zeros_like(new.coefficients[3]), rtol=1e-5)
        assert np.ptp(old.coefficients[3]) > 0.0
        np.testing.assert_array_equal(new.base_weight, old.base_weight)
        np.testing.assert_array_equal(np.asarray(new.coefficients)[:3], np.asarray(old.coefficients)[:3])
    np.testing.assert_array_equal(adam_after.count, adam_before.count)


@pytest.mark.slow
def test_the_density_hardly_changes_and_training_goes_on_from_there():
    y = jnp.asarray(samples(0.8, 64))
    svi = SVI(model, no_guide, optax.adam(1e-2), loss=ImportanceMLE(50))
    state = quick_jit(svi.init)(jax.random.key(1), y)
    adapted, change = adapt_svi_grid(svi, state, "energy", INITIAL, y, uniform_fraction=0.5)
    values = [svi.get_params(s) | s.mutable_state for s in (state, adapted)]
    z = jnp.linspace(-2.5, 2.5, 7)[:, None] * jnp.ones(2)
    log_prior = quick_jit(jax.vmap(lambda v, z: LatentModel(model, v, y).log_prior({"z": z}), (None, 0)))
    densities = [log_prior(v, z) for v in values]
    assert np.all(change < 0.2)
    np.testing.assert_allclose(*densities, atol=4 * float(change.max()) + 1e-5)
    with pytest.raises(ValueError, match=r"name must be that of an energy_module of the model, one of \['energy'\]"):
        adapt_svi_grid(svi, state, "prior", INITIAL, y)


def test_an_optimiser_of_numpyro_is_refused():
    svi = SVI(lambda y: energy_module("energy", INITIAL), no_guide, numpyro.optim.Adam(1e-2), loss=ImportanceMLE(50))
    y = samples(0.8, 64)
    with pytest.raises(ValueError, match=r"svi must have an optimiser of Optax"):
        adapt_svi_grid(svi, svi.init(jax.random.key(0), y), "energy", INITIAL, y)


@pytest.mark.slow
def test_an_energy_module_is_trained_by_fit():
    y = np.asarray(samples(0.8, 64))
    result = fit(
        jax.random.key(0),
        model,
        y,
        objective=ImportanceMLE(50),
        optimizer=optax.adam(1e-2),
        num_epochs=2,
        batch_size=32,
        progress=False,
    )
    assert set(result.params) == {"energy$params", "energy$grid"}
    latent_model = LatentModel(model, result.params, jnp.asarray(y))
    assert np.isfinite(latent_model.log_prior({"z": jnp.zeros(2)}))
