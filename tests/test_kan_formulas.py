"""Formulas of Kolmogorov-Arnold networks: known functions are found, and formulas predict as well as they say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_kaem import KAN, BSpline, UnivariateEnergy, formula

BASIS = BSpline(20, 3, (-3.0, 3.0))
FUNCTIONS = {
    (0, 0): lambda x: x**2,
    (1, 0): lambda x: 1.5 * np.sin(2.0 * x + 0.5),
    (2, 0): lambda x: 0.0 * x,
    (0, 1): lambda x: np.exp(0.7 * x),
    (1, 1): lambda x: 2.0 * np.tanh(1.3 * x - 0.4),
    (2, 1): lambda x: np.abs(x - 0.5),
    (0, 2): lambda x: 3.0 * np.log(x + 4.5),
    (1, 2): lambda x: 0.7 * x,
    (2, 2): lambda x: 2.0 * np.exp(-((0.9 * x - 0.3) ** 2)),
}


def network(functions, in_size, out_size):
    """A KAN of one layer that has these functions of (input, output)."""
    x = np.linspace(-3.0, 3.0, 600)
    design = BASIS.design_matrix(x)
    coefficients = np.zeros((in_size, out_size, BASIS.num_basis), np.float32)
    for place, function in functions.items():
        coefficients[place] = np.linalg.lstsq(design, function(x), rcond=None)[0]
    layer = UnivariateEnergy(
        jnp.zeros((in_size, out_size)), jnp.ones((in_size, out_size)), jnp.asarray(coefficients), BASIS
    )
    return eqx.tree_at(lambda kan: kan.layers, KAN(jax.random.key(0), in_size, out_size, basis=BASIS), (layer,))


@pytest.fixture(scope="module")
def kan():
    return network(FUNCTIONS, 3, 3)


@pytest.fixture(scope="module")
def found(kan):
    return formula(kan)


def explained(kan, found, z):
    y = np.asarray(kan(jnp.asarray(z, jnp.float32)), np.float64)
    return 1.0 - np.mean((found(z) - y) ** 2, axis=0) / np.var(y, axis=0)


def test_known_functions_are_found_with_their_numbers(found):
    assert str(found).split("   (R^2")[0] == "y0 = 1 z0^2 + 1.5 sin(2 z1 + 0.5)"
    picks = {(e.input, e.output): e.pick.pieces for e in found.edges}
    assert picks[2, 0] == ()
    expected = {
        (0, 1): ("exp", 0.7, 0.0, 1.0),
        (1, 1): ("tanh", 1.3, -0.4, 2.0),
        (2, 1): ("abs", 1.0, -0.5, 1.0),
        (0, 2): ("log", 1.0, 4.5, 3.0),
        (2, 2): ("gauss", 0.9, -0.3, 2.0),
    }
    for place, (name, scale, shift, coefficient) in expected.items():
        (piece,) = picks[place]
        assert piece.shape.name == name
        assert (piece.scale, piece.shift, piece.coefficient) == pytest.approx(
            (scale, shift, coefficient), rel=0.03, abs=0.02
        )
    (line,) = picks[1, 2]
    assert (line.shape, line.power, line.coefficient) == (None, 1, pytest.approx(0.7, abs=0.002))


def test_the_printed_formula_predicts_as_well_as_it_says(kan, found):
    z = np.random.default_rng(1).uniform(-3.0, 3.0, (4_000, 3))
    np.testing.assert_allclose(explained(kan, found, z), found.r_squared, atol=2e-3)
    assert min(found.r_squared) > 0.999
    assert found.refusal == ""


def test_sympy_s_expressions_are_the_printed_ones(found):
    sympy = pytest.importorskip("sympy")
    symbols = sympy.symbols("z0 z1 z2", real=True)
    z = np.random.default_rng(2).uniform(-3.0, 3.0, (50, 3))
    for o, expression in enumerate(found.to_sympy()):
        values = sympy.lambdify(symbols, expression, "numpy")(*z.T)
        np.testing.assert_allclose(values, found(z)[:, o], rtol=1e-10)
    assert found.to_latex().count("&=") == 3


def test_numbers_are_judged_after_rounding(kan):
    rough = formula(kan, digits=1, tolerance=0.2)
    z = np.random.default_rng(3).uniform(-3.0, 3.0, (4_000, 3))
    np.testing.assert_allclose(explained(kan, rough, z), rough.r_squared, atol=0.02)
    assert all(c.r_squared <= 1.0 for edge in rough.edges for c in edge.candidates)
    numbers = [piece.coefficient for edge in rough.edges for c in edge.candidates for piece in c.pieces]
    numbers += [piece.coefficient for layer in rough.nodes for node in layer for _, piece in node.terms]
    assert all(float(f"{number:.0e}") == number for number in numbers)


def test_bad_fits_are_refused():
    coefficients = jax.random.normal(jax.random.key(1), (2, 2, BASIS.num_basis))
    layer = UnivariateEnergy(jnp.zeros((2, 2)), jnp.ones((2, 2)), coefficients, BASIS)
    rough = eqx.tree_at(lambda kan: kan.layers, KAN(jax.random.key(0), 2, 2, basis=BASIS), (layer,))
    found = formula(rough)
    assert max(found.r_squared) < 0.95
    with pytest.raises(ValueError, match=r"no formula of 2 of 2 outputs explains 0\.99"):
        found.to_sympy()
    assert found.refusal in str(found)
    assert found._repr_latex_() is None
    # The whole of the loss may be allowed.
    assert formula(rough, tolerance=0.9).to_sympy()


def test_the_distribution_of_the_inputs_says_what_matters(kan):
    narrow = dist.Normal(jnp.array([0.0, -0.25, 0.0]), 0.05)
    found = formula(kan, inputs=narrow.to_event(1))
    # Where x hardly moves, a sine is a line.
    (piece,) = found.edge(1, 0).pick.pieces
    assert (piece.shape, piece.power) == (None, 1)
    assert piece.coefficient == pytest.approx(3.0, abs=0.1)
    z = np.asarray(narrow.sample(jax.random.key(5), (2_000,)), np.float64)
    assert min(explained(kan, found, z)) > 0.985


def test_a_deep_network_is_composed_and_checked_as_a_whole():
    inner = network({(0, 0): lambda x: x**2 / 4.5 - 1.0, (1, 0): np.sin}, 2, 1)
    outer = network({(0, 0): lambda x: np.exp(0.5 * x), (0, 1): lambda x: -2.0 * x}, 1, 2)
    kan = eqx.tree_at(lambda kan: kan.layers, inner, inner.layers + outer.layers)
    found = formula(kan, tolerance=1e-3)
    z = np.random.default_rng(4).uniform(-3.0, 3.0, (2_000, 2))
    assert min(explained(kan, found, z)) > 0.998
    assert "h1_0 = " in str(found) and "exp(0.5" in str(found)
    sympy = pytest.importorskip("sympy")
    values = sympy.lambdify(sympy.symbols("z0 z1", real=True), found.to_sympy()[0], "numpy")(*z.T)
    np.testing.assert_allclose(values, found(z)[:, 0], rtol=1e-9)


def test_the_table_has_all_functions(found):
    frame = found.to_pandas()
    assert set(zip(frame[frame.picked].input, frame[frame.picked].output, strict=True)) == set(FUNCTIONS)
    assert "->" in str(found.edge(0, 0))
    with pytest.raises(KeyError, match="no function from input 7"):
        found.edge(7, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": (1.0, 0.0)}, "low < high"),
        ({"inputs": (0.0, np.ones(2))}, "numbers or arrays of 3"),
        ({"inputs": dist.Normal(jnp.zeros(2), 1.0)}, "a prior of the 3 inputs"),
        ({"coordinates": [0]}, "are of a prior"),
        ({"tolerance": -1.0}, "tolerance must be a positive number"),
    ],
)
def test_bad_input_is_named(kan, arguments, message):
    with pytest.raises(ValueError, match=message):
        formula(kan, **arguments)


def test_a_network_that_is_not_finite_is_named(kan):
    broken = eqx.tree_at(
        lambda kan: kan.layers[0].coefficients, kan, jnp.full_like(kan.layers[0].coefficients, jnp.nan)
    )
    with pytest.raises(ValueError, match="outputs are not finite"):
        formula(broken)
