"""Derivatives of draws, probabilities and densities against central differences in float64.

Draws are implicit functions of their parameters, so their derivatives are the place where a density, its CDF and its
quantiles could disagree. All derivatives are taken with respect to one flat vector of every parameter.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from prior_cases import quick_jit, random_energy

from numpyro_kaem import RBF, BSpline, KAMixture, KAPrior


def univariate(reference, basis, batch_shape=(2,)):
    def make(parameters):
        return KAPrior(parameters["energy"], reference(*parameters["reference"]))

    return make, {"energy": random_energy(basis, batch_shape, 1.0, dtype=jax.dtypes.canonicalize_dtype(float))}


def mixture(reference, basis):
    def make(parameters):
        return KAMixture(KAPrior(parameters["energy"], reference(*parameters["reference"])), parameters["logits"])

    energy = random_energy(basis, (2, 3), 1.0, dtype=jax.dtypes.canonicalize_dtype(float))
    return make, {"energy": energy, "logits": jnp.array([0.3, -0.5, 1.0])}


SPLINE = BSpline(num_intervals=4, degree=3, domain=(-2.0, 2.0))


class Case(NamedTuple):
    make: Callable  # from parameters to a distribution
    parameters: dict  # of the energy and the mixture
    reference: tuple  # its parameters
    logits: tuple  # probabilities u, as log(u / (1 - u)): the body, both tails and their neighbourhood
    points: tuple  # arguments of densities, likewise


# Near the end of a support only so far out that a finite difference does not reach over it.
CASES = {
    "normal": lambda: Case(
        *univariate(dist.Normal, SPLINE), (0.2, 1.3), (-9.0, -2.0, -0.3, 1.1, 8.0), (-4.0, -1.9, 0.3, 1.5, 5.0)
    ),
    "log-normal": lambda: Case(
        *univariate(dist.LogNormal, RBF(num_centers=5, domain=(0.2, 4.0))),
        (0.1, 0.8),
        (-4.0, -2.0, -0.3, 1.1, 8.0),
        (0.15, 0.3, 1.0, 3.0, 9.0),
    ),
    "uniform": lambda: Case(
        *univariate(dist.Uniform, BSpline(4, 2, (-0.5, 1.0))),
        (-1.0, 2.0),
        (-3.0, -1.0, 0.3, 3.0),
        (-0.9, -0.3, 0.6, 1.9),
    ),
    "uniform on the whole domain": lambda: Case(
        *univariate(lambda: dist.Uniform(-0.5, 1.0), BSpline(4, 2, (-0.5, 1.0))),
        (),
        (-3.0, -1.0, 0.3, 3.0),
        (-0.4, -0.3, 0.6, 0.9),
    ),
    "mixture on the whole domain": lambda: Case(
        *mixture(lambda: dist.Uniform(-0.5, 1.0), BSpline(4, 2, (-0.5, 1.0))),
        (),
        (-3.0, -1.0, 0.3, 3.0),
        (-0.4, -0.3, 0.6, 0.9),
    ),
    "weibull": lambda: Case(
        *univariate(dist.Weibull, BSpline(4, 3, (0.2, 2.0))), (1.1, 1.7), (-2.5, -1.0, 0.3, 4.0), (0.15, 0.3, 1.1, 4.0)
    ),
    "mixture": lambda: Case(
        *mixture(dist.Normal, SPLINE), (0.2, 1.3), (-9.0, -2.0, -0.3, 1.1, 8.0), (-4.0, -1.9, 0.3, 1.5, 5.0)
    ),
    "mixture of references": lambda: Case(
        *mixture(dist.Normal, SPLINE),
        (np.array([-0.6, 0.1, 0.9]), np.array([0.8, 1.0, 1.5])),
        (-9.0, -2.0, -0.3, 1.1, 8.0),
        (-4.0, -1.9, 0.3, 1.5, 5.0),
    ),
}
SHIFTS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
STENCIL = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / 12.0


@functools.partial(quick_jit, static_argnums=0)
def derivatives(function, point, directions, step=1e-3):
    """Along each direction, by forward-mode differentiation and by the five-point stencil: errors of order step^4."""

    def value_and_slope(point, direction):
        return jax.jvp(function, (point,), (direction,))

    points = point + step * SHIFTS[:, None, None] * directions
    values, slopes = jax.vmap(jax.vmap(value_and_slope), (0, None))(points, directions)
    return slopes[2], jnp.tensordot(STENCIL, values, 1) / step


def check(result, expected):
    """To 1e-5 of each number, or 1e-9 of the largest where a number is next to nothing."""
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-9 * np.abs(expected).max())


def problem(name, method):
    """One of the distribution's functions, of a flat vector of all its parameters and arguments, and the vector."""
    case = CASES[name]()
    arguments = case.logits if method == "icdf" else case.points
    start, unravel = ravel_pytree(
        {**case.parameters, "reference": case.reference, "arguments": np.array(arguments)},
    )

    def function(vector):
        parameters = unravel(vector)
        argument = parameters["arguments"][:, None]
        return getattr(case.make(parameters), method)(jax.nn.sigmoid(argument) if method == "icdf" else argument)

    return function, start


SLOW = pytest.mark.slow
# Functions that are those of another case, or parts of them.
REPEATED = {
    ("weibull", "log_prob"),
    ("mixture", "log_prob"),
    ("mixture on the whole domain", "cdf"),
    ("mixture on the whole domain", "log_prob"),
}
# What is run by default; every other function of every case is among the slow tests.
METHODS = {
    "normal": ("cdf",),
    "log-normal": ("icdf",),
    "uniform on the whole domain": ("log_prob",),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if method in METHODS.get(name, ()) else SLOW)
        for name in CASES
        for method in ("icdf", "cdf", "log_prob")
        if (name, method) not in REPEATED
    ],
)
def test_first_derivatives(x64, name, method):
    function, start = problem(name, method)
    check(*derivatives(function, start, np.eye(start.size)))


@pytest.mark.parametrize(
    "name",
    ["uniform", pytest.param("normal", marks=SLOW)],
)
def test_derivatives_of_moments(x64, name):
    case = CASES[name]()
    start, unravel = ravel_pytree({**case.parameters, "reference": case.reference})

    def moments(vector):
        prior = case.make(unravel(vector))
        return jnp.stack([prior.mean, prior.variance])

    check(*derivatives(moments, start, np.eye(start.size)))


@pytest.mark.parametrize("name", ["uniform on the whole domain", pytest.param("normal", marks=SLOW)])
def test_second_derivatives_of_draws(x64, name):
    function, start = problem(name, "icdf")
    rng = np.random.default_rng(0)
    inner, outer = rng.normal(size=start.size), rng.normal(size=(3, start.size))

    def first(vector):
        return jax.jvp(function, (vector,), (inner,))[1]

    check(*derivatives(first, start, outer))


@pytest.mark.slow
def test_hessians_of_draws(x64):
    function, start = problem("log-normal", "icdf")
    gradient = jax.grad(lambda vector: jnp.sum(jnp.sin(function(vector))))
    hessian, differences = (np.asarray(part) for part in derivatives(gradient, start, np.eye(start.size)))
    check(hessian, differences)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-8, atol=1e-8 * np.abs(hessian).max())


def test_draws_are_pathwise(x64):
    """sample(key) is icdf of numbers that do not depend on the parameters, also to reverse-mode differentiation."""
    case = CASES["mixture"]()

    def total(vector):
        parameters = {**case.parameters, "reference": (vector[0], 1.3), "logits": vector[1:]}
        return jnp.sum(jnp.sin(case.make(parameters).sample(jax.random.key(0), (50,))))

    def value_and_gradient(vector):
        value, gradient = jax.value_and_grad(total)(vector)
        return jnp.append(gradient, value)

    vector = np.append(0.2, case.parameters["logits"])
    points = vector + 1e-3 * np.reshape(SHIFTS[:, None, None] * np.eye(4), (-1, 4))
    results = np.reshape(quick_jit(jax.vmap(value_and_gradient))(points), (5, 4, 5))
    check(results[2, 0, :4], np.tensordot(STENCIL, results[..., 4], 1) / 1e-3)


@pytest.mark.parametrize(
    "name", ["mixture", *(pytest.param(name, marks=SLOW) for name in ("normal", "uniform", "weibull"))]
)
def test_float32_derivatives_of_draws_are_finite_everywhere(name):
    case = CASES[name]()
    parameters = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), {**case.parameters, "reference": case.reference}
    )
    u = jnp.array([2.0**-24, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 2.0**-24])[:, None]
    gradient = quick_jit(jax.grad(lambda parameters: jnp.sum(case.make(parameters).icdf(u))))(parameters)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
