"""Energies: what they are, what of them is trained, and their values to more digits than a float has."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module, random_eqx_module
from prior_cases import BASES, quick_jit, random_energy
from reference_density import ACTIVATIONS, energy_values
from speed import slow_unless

from numpyro_kaem import BSpline, UnivariateEnergy

DOMAIN = (-3.0, 3.0)
BASIS = BSpline(num_intervals=6, degree=3, domain=DOMAIN)


# Places in the cells of a basis, as quadrature panels have them; off the ends, where a spline of degree 0 jumps.
PLACES = np.linspace(0.001, 0.999, 20)


def every_place(basis):
    """The same places in every cell: cells, places, and the points themselves."""
    cells = np.arange(basis.num_cells)
    points = basis.breakpoints[:-1, None] + np.diff(basis.breakpoints)[:, None] * PLACES
    return cells, np.tile(PLACES, (len(cells), 1)), points


@pytest.mark.parametrize(
    ("basis", "activation"), [*((basis, "silu") for basis in BASES), ("b-spline", "tanh"), ("rbf", "identity")]
)
def test_values_are_the_formula_s(x64, basis, activation):
    energy = random_energy(BASES[basis](DOMAIN), (2, 3), 1.0, dtype=np.float64, base_activation=activation)
    z = np.linspace(-5.0, 5.0, 200)  # partly outside of the domain
    cells, places, points = every_place(energy.basis)
    values, parts, offset = quick_jit(lambda e, z: (e(z), e.at_places(cells, places), e.offset))(
        energy, z[:, None, None]
    )
    np.testing.assert_allclose(values, energy_values(energy, z), rtol=1e-11, atol=1e-11)
    total = sum(np.asarray(part) for part in parts) + np.asarray(offset)[..., None, None]
    np.testing.assert_allclose(
        total, np.moveaxis(energy_values(energy, points), (0, 1), (-2, -1)), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(
    ("basis", "std"),
    # A learned scale is one float, and what it lacks in digits all values lack.
    [*((basis, 5.0) for basis in BASES if basis != "learned scale"), ("b-spline", 0.1), ("rbf", 0.1), ("rbf", 100.0)],
)
def test_values_at_fixed_points_have_more_digits_than_one_float(optimised, basis, std):
    energy = random_energy(BASES[basis](DOMAIN), (20,), std)
    cells, places, points = every_place(energy.basis)
    coarse, fine = (np.asarray(part, np.float64) for part in jax.jit(lambda e: e.at_places(cells, places))(energy))
    constant = np.asarray(energy.base_weight, np.float64) * ACTIVATIONS["silu"](0.0)  # in the middle of the domain
    error = np.abs((coarse + fine) - np.moveaxis(energy_values(energy, points) - constant, -1, 0))
    # one float32 is off by up to 3e-8 of the energy, and a sum of rounded terms by more
    size = np.abs(coarse).max((-2, -1), keepdims=True)
    change = np.abs(fine).max((-2, -1), keepdims=True)  # of a spline within one interval, which is rounded
    assert np.all(error < 1e-9 * size + 4 * np.finfo(np.float32).eps * change)
    # sums with `fine` lose nothing of the largest energies: differences of `coarse` from the largest are exact there
    largest = coarse.max((-2, -1), keepdims=True)
    near = coarse > 0.5 * largest
    difference = coarse - largest
    assert np.array_equal(difference[near].astype(np.float32).astype(np.float64), difference[near])


# One of each kind.
SOME = ["b-spline", "degree 0", "knots", "learned scale", "fourier", "chebyshev", "morlet"]


@pytest.mark.parametrize("basis", slow_unless(SOME, BASES))
def test_values_at_fixed_points_have_the_gradients_of_the_energy(x64, basis):
    energy = random_energy(BASES[basis](DOMAIN), (2,), 1.0, dtype=np.float64)
    cells, places, points = every_place(energy.basis)

    # More places in a cell than a polynomial on it has coefficients.
    places, points = places[:, ::3], points[:, ::3]

    @quick_jit
    @jax.jacrev
    def slopes(energy):
        return jnp.moveaxis(energy.centered(points[..., None]), -1, 0), sum(energy.at_places(cells, places))

    direct, by_parts = slopes(energy)
    for one, other in zip(jax.tree.leaves(direct), jax.tree.leaves(by_parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def test_points_broadcast_against_the_batch():
    energy = random_energy(BASIS, (4, 3), 1.0)
    for shape, result in [
        ((), (4, 3)),
        ((3,), (4, 3)),
        ((4, 1), (4, 3)),
        ((7, 4, 3), (7, 4, 3)),
        ((0, 4, 3), (0, 4, 3)),
    ]:
        assert jax.eval_shape(energy, jnp.zeros(shape)).shape == result
    assert energy.batch_shape == (4, 3)
    single = random_energy(BASIS, (), 1.0)
    assert single.batch_shape == () and jax.eval_shape(single, jnp.zeros(5)).shape == (5,)


def test_initial_energies_have_the_scale_that_was_asked_for():
    energy, zero = quick_jit(
        lambda key: [UnivariateEnergy.init(key, (300,), basis=BASIS, scale=scale) for scale in (0.7, 0.0)]
    )(jax.random.key(0))
    # The standard deviation of n normal numbers is itself normal with deviation scale / sqrt(2 n); six of those are
    # left by chance with probability 2e-9.
    for numbers in (np.asarray(energy.coefficients), np.asarray(energy.base_weight)):
        assert abs(numbers.std() - 0.7) < 6 * 0.7 / np.sqrt(2 * numbers.size)
    assert np.all(np.asarray(energy.spline_weight) == 1.0)
    assert np.all(np.asarray(zero.coefficients) == 0.0) and np.all(np.asarray(zero.base_weight) == 0.0)


def test_only_weights_and_coefficients_are_parameters_of_a_model():
    energy = UnivariateEnergy.init(jax.random.key(0), (4,), basis=BASIS)
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        eqx_module("energy", energy)
    leaves = jax.tree.leaves(trace["energy$params"]["value"])
    assert sorted(leaf.shape for leaf in leaves) == [(4,), (4,), (4, BASIS.num_basis)]


def test_only_weights_and_coefficients_are_sites_of_a_bayesian_model():
    energy = UnivariateEnergy.init(jax.random.key(0), (4,), basis=BASIS)
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        random_eqx_module("energy", energy, prior=dist.Normal(0.0, 1.0))
    sites = {name for name, site in trace.items() if site["type"] == "sample"}
    assert sites == {"energy/base_weight", "energy/spline_weight", "energy/coefficients"}


def test_parts_of_an_energy_that_are_elsewhere_or_abstract_are_no_errors():
    energy = random_energy(BASIS, (2,), 1.0)
    parameters, rest = eqx.partition(energy, eqx.is_inexact_array)
    assert eqx.tree_equal(eqx.combine(parameters, rest), energy)
    shapes = jax.eval_shape(lambda key: UnivariateEnergy.init(key, (2,), basis=BASIS), jax.random.key(0))
    assert shapes.batch_shape == (2,)
    stacked = jax.vmap(lambda c: UnivariateEnergy(c[0], c[0], c, BASIS))(jnp.ones((3, BASIS.num_basis)))
    assert stacked.batch_shape == (3,)
