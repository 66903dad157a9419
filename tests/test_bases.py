"""Bases: functions on an interval, constant beyond it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prior_cases import quick_jit
from reference_density import basis_values, breakpoints
from speed import optimisation

from numpyro_kaem import RBF, RSWAF, BSpline, Chebyshev, Fourier, Wavelet

DEGREES = range(6)
DOMAIN = (-1.5, 2.0)
KNOTS = [-1.5, -1.4, -0.3, 0.4, 0.5, 1.9, 2.0]
BASES = {
    **{f"degree {degree}": BSpline(num_intervals=7, degree=degree, domain=DOMAIN) for degree in DEGREES},
    "one interval": BSpline(num_intervals=1, degree=3, domain=DOMAIN),
    **{f"knots, degree {degree}": BSpline.from_knots(KNOTS, degree) for degree in (0, 1, 3, 5)},
    "two knots": BSpline.from_knots([-1.5, 2.0], degree=3),
    "rbf": RBF(num_centers=8, domain=DOMAIN),
    "two centers": RBF(num_centers=2, domain=DOMAIN),
    "wide rbf": RBF(num_centers=8, domain=DOMAIN, scale=2.5),
    "narrow rbf": RBF(num_centers=8, domain=DOMAIN, scale=0.3),
    "rswaf": RSWAF(num_centers=8, domain=DOMAIN),
    "mexican hat": Wavelet("mexican_hat", num_centers=8, domain=DOMAIN),
    "morlet": Wavelet("morlet", num_centers=8, domain=DOMAIN, scale=1.5),
    "dog": Wavelet("dog", num_centers=8, domain=DOMAIN),
    "fourier": Fourier(num_frequencies=4, domain=DOMAIN),
    "one frequency": Fourier(num_frequencies=1, domain=DOMAIN),
    "chebyshev": Chebyshev(degree=9, domain=DOMAIN),
    "a line": Chebyshev(degree=1, domain=DOMAIN),
}
LEARNED = {
    "rbf": RBF(num_centers=8, domain=DOMAIN, scale=1.3, learn_scale=True),
    "rswaf": RSWAF(num_centers=8, domain=DOMAIN, scale=0.7, learn_scale=True),
    "morlet": Wavelet("morlet", num_centers=8, domain=DOMAIN, learn_scale=True),
}
EACH = {  # a grid for each of three elements of a batch
    "spline": lambda ends: BSpline(7, 3, ends),
    "knots": lambda ends: BSpline.from_knots(np.stack([np.linspace(*e, 6) ** 3 for e in zip(*ends, strict=True)]), 2),
    "rbf": lambda ends: RBF(8, ends),
    "rswaf": lambda ends: RSWAF(8, ends),
    "wavelet": lambda ends: Wavelet("dog", 8, ends),
    "fourier": lambda ends: Fourier(4, ends),
    "chebyshev": lambda ends: Chebyshev(9, ends),
}
SPLINES = [name for name, basis in BASES.items() if isinstance(basis, BSpline)]
SMOOTH = [name for name in BASES if not name.endswith("degree 0")]
NUM_POINTS = 401
values_at = jax.jit(lambda basis, z: basis(z))
values_and_sum = jax.jit(lambda basis, z, coefficients: (basis(z), basis.contract(z[:, None], coefficients)))


def evaluate(basis, z):
    return np.asarray(values_at(basis, z))


def points(low=-4.0, high=4.0):
    """Arrays of one shape, so that each basis is compiled once, with both ends of the domain among them."""
    numbers = st.floats(low, high, width=32)
    return st.lists(numbers, min_size=31, max_size=31).map(lambda values: repeated([*values, -1.5, 2.0]))


def repeated(values):
    return np.resize(np.array(values, np.float32), NUM_POINTS)


@pytest.mark.parametrize("name", SPLINES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(z=points())
@example(z=repeated([-5.96e-8, *DOMAIN]))  # a rounding before the knot 0.0 is taken for one behind it
def test_splines_are_a_partition_of_unity(name, z):
    values = evaluate(BASES[name], z)
    np.testing.assert_allclose(values.sum(-1), 1.0, atol=1e-6)
    assert np.all(values >= -2e-7)
    assert np.all((np.abs(values) > 2e-7).sum(-1) <= BASES[name].degree + 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    degree=st.sampled_from(DEGREES),
    num_intervals=st.integers(1, 60),
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-2, 1e3),
    fraction=st.floats(0.0, 1.0),
)
def test_splines_sum_to_one_on_any_domain(degree, num_intervals, low, width, fraction):
    basis = BSpline(num_intervals, degree, (low, low + width))
    values = basis.design_matrix(np.array([low, low + fraction * width, low + width]))
    assert values.shape == (3, basis.num_basis) and np.all(values >= -1e-12)
    np.testing.assert_allclose(values.sum(-1), 1.0, atol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    degree=st.sampled_from(DEGREES),
    low=st.floats(-1e3, 1e3),
    widths=st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=20),
    fraction=st.floats(0.0, 1.0),
)
def test_splines_sum_to_one_on_any_knots(degree, low, widths, fraction):
    knots = low + np.concatenate([[0.0], np.cumsum(widths)])
    basis = BSpline.from_knots(knots, degree)
    z = np.append(knots, knots[0] + fraction * (knots[-1] - knots[0]))
    values = basis.design_matrix(z)
    assert values.shape == (len(z), len(widths) + degree) and np.all(values >= -1e-9)
    np.testing.assert_allclose(values.sum(-1), 1.0, atol=1e-9)
    assert np.all((np.abs(values) > 1e-9).sum(-1) <= degree + 1)


@pytest.mark.parametrize("name", SPLINES)
def test_splines_are_scipy_s(name):
    basis = BASES[name]
    knots, degree = np.asarray(basis.knots), basis.degree
    (first, *_, last), beyond = np.diff(knots)[[0, -1]], np.arange(1, degree + 1)
    knots = np.concatenate([knots[0] - first * beyond[::-1], knots, knots[-1] + last * beyond])
    z = np.linspace(-1.49, 1.99, 499)  # off the knots, where a jump of degree 0 is either side's
    expected = scipy.interpolate.BSpline.design_matrix(z, knots, basis.degree).toarray()
    np.testing.assert_allclose(basis.design_matrix(z), expected, atol=1e-12)


def test_a_function_of_degree_0_begins_at_its_knot():
    for basis in (BSpline(8, 0, (-1.0, 1.0)), BASES["knots, degree 0"]):
        knots = np.asarray(basis.knots)
        last = [np.arange(len(knots) - 1) == len(knots) - 2]
        expected = np.concatenate([np.eye(len(knots) - 1), last])
        np.testing.assert_array_equal(basis.design_matrix(knots), expected)


@pytest.mark.parametrize("name", BASES)
def test_functions_are_as_written(x64, name):
    basis, z = BASES[name], np.linspace(-1.9, 2.3, NUM_POINTS)  # partly outside of the domain
    expected = basis_values(basis, breakpoints(basis), z)
    np.testing.assert_allclose(basis.design_matrix(z), expected, atol=1e-13)
    np.testing.assert_allclose(evaluate(basis, z), expected, atol=1e-13)
    assert basis.num_basis == expected.shape[-1]


@pytest.mark.parametrize("name", SMOOTH)
def test_functions_are_as_written_to_single_precision(name):
    basis, z = BASES[name], np.linspace(-1.5, 2.0, NUM_POINTS, dtype=np.float32)
    values = evaluate(basis, z)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, basis_values(basis, breakpoints(basis), z), atol=2e-5)


@pytest.mark.parametrize("name", BASES)
def test_no_function_is_larger_than_one(name):
    """Of a wavelet too: a coefficient is the height of its function."""
    assert np.abs(BASES[name].design_matrix(np.linspace(-1.5, 2.0, 5000))).max() <= 1.0 + 1e-12


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(z=points(), seed=st.integers(0, 1000))
def test_contraction_is_the_sum_over_the_basis(name, z, seed):
    coefficients = np.random.default_rng(seed).normal(size=(2, BASES[name].num_basis)).astype(np.float32)
    with optimisation():  # whose roundings users have
        values, combination = values_and_sum(BASES[name], z, coefficients)
    expected = np.sum(np.asarray(values)[:, None, :] * coefficients, axis=-1)
    np.testing.assert_allclose(combination, expected, atol=3e-5)


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(distance=st.floats(0.0, 1e6, width=32))
def test_functions_are_constant_outside_the_domain(name, distance):
    values = evaluate(BASES[name], repeated([-1.5, -1.5 - distance, 2.0, 2.0 + distance]))
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[2], values[3])


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_those_of_the_functions(x64, name):
    basis, z, step = BASES[name], np.linspace(-1.43, 1.93, 40), 1e-6
    coefficients = np.random.default_rng(0).normal(size=basis.num_basis)
    f = quick_jit(lambda z, c: jax.jvp(lambda z: basis.contract(z, c), (z,), (jnp.ones_like(z),)))
    (_, slope), (higher, _), (lower, _) = (f(z + shift, coefficients) for shift in (0.0, step, -step))
    np.testing.assert_allclose(slope, (np.asarray(higher) - lower) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["rbf", "rswaf", "mexican hat", "morlet", "dog", "fourier", "chebyshev", "a line"])
def test_derivatives_in_closed_form_have_derivatives(x64, name):
    """Of second order in the point, in the coefficients, and of both."""
    basis, z = BASES[name], np.linspace(-1.43, 1.93, 9)
    coefficients = np.random.default_rng(0).normal(size=(9, basis.num_basis))

    @quick_jit
    def derivatives(z, coefficients):
        slope = jax.grad(lambda z, c: jnp.sum(basis.contract(z, c)))
        in_coefficients = jax.grad(lambda c, z: jnp.sum(basis.contract(z, c)))(coefficients, z)
        of_both = jax.grad(lambda c, z: jnp.sum(slope(z, c)))(coefficients, z)
        return slope(z, coefficients), jax.grad(lambda z: jnp.sum(slope(z, coefficients)))(z), in_coefficients, of_both

    step = 1e-6
    _, second, in_coefficients, of_both = derivatives(z, coefficients)
    higher, lower = (np.asarray(derivatives(z + sign * step, coefficients)[0]) for sign in (1, -1))
    np.testing.assert_allclose(second, (higher - lower) / (2 * step), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(in_coefficients, basis.design_matrix(z), atol=1e-12)
    difference = (basis.design_matrix(z + step) - basis.design_matrix(z - step)) / (2 * step)
    np.testing.assert_allclose(of_both, difference, rtol=1e-6, atol=1e-6)


def test_derivatives_of_chebyshev_polynomials_at_the_ends_are_the_squares_of_their_degrees(x64):
    basis = Chebyshev(degree=9, domain=(-1.0, 1.0))
    squares = np.arange(10) ** 2.0

    def f(z):
        return basis.contract(z, jnp.ones(10))

    @quick_jit
    def derivatives(z):
        return jax.jacfwd(lambda z: basis.evaluate(z, jnp))(z), jax.grad(f)(z), jax.grad(jax.grad(f))(z)

    for end in (-1.0, 1.0):
        slope, first, second = derivatives(end)
        np.testing.assert_allclose(slope, squares * end ** (np.arange(10) + 1), rtol=1e-12)
        assert np.isfinite(first) and np.isfinite(second)


@pytest.mark.parametrize("name", BASES)
def test_a_basis_has_nothing_to_train(name):
    basis = BASES[name]
    assert jax.tree.leaves(basis) == []
    assert hash(basis) == hash(jax.tree.map(lambda leaf: leaf, basis))
    assert basis.breakpoints[0] == -1.5 and basis.breakpoints[-1] == 2.0 and np.all(np.diff(basis.breakpoints) > 0)
    assert len(basis.breakpoints) == basis.num_cells + 1


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_scale_is_the_only_parameter(name):
    basis = LEARNED[name]
    (leaf,) = jax.tree.leaves(basis)
    assert leaf is basis.log_scale and leaf.shape == ()
    np.testing.assert_allclose(basis.scale, basis.fixed_scale, rtol=1e-6)
    z, coefficients = jnp.linspace(-1.4, 1.9, 30), np.random.default_rng(0).normal(size=8)
    coefficients = jnp.asarray(coefficients, jnp.float32)

    def value(log_scale):
        return eqx.tree_at(lambda b: b.log_scale, basis, log_scale).contract(z, coefficients)

    @jax.jit
    def results(log_scale):
        value_and_slope = jax.jvp(value, (log_scale,), (jnp.ones_like(log_scale),))
        return *value_and_slope, BASES_WITH_FIXED_SCALE[name].contract(z, coefficients)

    leaf = np.asarray(leaf)
    found, slope, expected = results(leaf)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    step = np.float32(5e-3)
    difference = (np.asarray(results(leaf + step)[0]) - results(leaf - step)[0]) / 1e-2
    np.testing.assert_allclose(slope, difference, atol=5e-3 * np.abs(difference).max() + 1e-3)


BASES_WITH_FIXED_SCALE = {
    "rbf": RBF(num_centers=8, domain=DOMAIN, scale=1.3),
    "rswaf": RSWAF(num_centers=8, domain=DOMAIN, scale=0.7),
    "morlet": Wavelet("morlet", num_centers=8, domain=DOMAIN),
}


@pytest.mark.parametrize("name", EACH)
def test_a_grid_for_each_element_is_a_basis_for_each_element(x64, name):
    ends = np.array([-1.5, -1.0, 0.5]), np.array([2.0, 0.5, 4.0])
    basis = EACH[name](ends)
    assert basis.grid.batch_shape == (3,) and not any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(basis))
    alone = [EACH[name]((ends[0][[i]], ends[1][[i]])) for i in range(3)]
    z, coefficients = np.linspace(-3.0, 5.0, 60)[:, None], np.random.default_rng(0).normal(size=(2, 3, basis.num_basis))

    @quick_jit
    def results(basis, alone, z, coefficients):
        combinations = [
            [b.contract(z, c[:, i]) for c in (coefficients[:1], coefficients[1:])] for i, b in enumerate(alone)
        ]
        over_elements = jax.vmap(lambda b, c: b.contract(z[:, 0], c))(basis, coefficients[0])
        together = basis(z), basis.contract(z[:, None], coefficients), over_elements
        return *together, [b(z) for b in alone], combinations

    values, combination, over_elements, values_alone, combinations_alone = jax.tree.map(
        np.asarray, results(basis, alone, z, coefficients)
    )
    # Along a batch of grids, and with a second batch axis for which the grids are the same.
    for i in range(3):
        np.testing.assert_allclose(values[:, i], values_alone[i][:, 0], rtol=1e-12, atol=1e-12)
        expected = np.concatenate(combinations_alone[i], -1)
        np.testing.assert_allclose(combination[:, :, i], expected, rtol=1e-12, atol=1e-12)
        own = basis_values(basis, breakpoints(basis)[i], z[:, 0])
        np.testing.assert_allclose(values[:, i], own, atol=1e-12)
    np.testing.assert_array_equal(basis.domain[0], ends[0] if name != "knots" else ends[0] ** 3)
    np.testing.assert_allclose(over_elements, combination[:, 0].T, rtol=1e-12, atol=1e-12)


def test_grids_of_traced_points_are_made_and_used_inside_a_program():
    knots, z = np.array(KNOTS, np.float32), np.linspace(-1.5, 2.0, NUM_POINTS, dtype=np.float32)
    inside = quick_jit(lambda knots, z: BSpline.from_knots(knots, 3)(z))(knots, z)
    np.testing.assert_allclose(inside, evaluate(BASES["knots, degree 3"], z), atol=1e-5)


def test_whole_numbers_are_numbers():
    bases = (
        RBF(4, (-1, 2)),
        RBF(4, (-1.0, 2.0)),
        BSpline.from_knots([-1, 0, 2], 2),
        BSpline.from_knots([-1.0, 0.0, 2.0], 2),
    )
    values = quick_jit(lambda z: [basis(z) for basis in bases])(np.linspace(-1.5, 2.5, 9, dtype=np.float32))
    np.testing.assert_array_equal(*values[:2])
    np.testing.assert_array_equal(*values[2:])
    ends = np.array([-1, -2]), np.array([2, 3])
    for basis in (Chebyshev(3, ends), BSpline.from_knots(np.stack(ends, -1), 1)):
        assert basis.domain[0].dtype == jnp.float32
        np.testing.assert_array_equal(basis.domain, ends)
