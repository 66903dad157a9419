"""Composite Gauss-Legendre quadrature and the polynomials through its nodes."""

from math import factorial

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.polynomial import Polynomial
from prior_cases import evaluate_quickly
from scipy import stats

from numpyro_kaem import BSpline, GaussLegendre, KAPrior, UnivariateEnergy
from numpyro_kaem._numerics.quadrature import graded_edges, integrated_legendre

BREAKPOINTS = np.array([-1.0, 0.5, 0.7, 3.0])


def integrate(rule, function):
    edges = rule.edges(BREAKPOINTS)
    return np.sum(function(rule.nodes(edges)) * rule.weights * np.diff(edges)[:, None])


@pytest.mark.parametrize("num_nodes", [2, 5, 8])
def test_polynomials_up_to_degree_2n_minus_1_are_integrated_exactly(num_nodes):
    rule = GaussLegendre(nodes_per_panel=num_nodes, panels_per_interval=1)
    for degree in range(2 * num_nodes):
        exact = (3.0 ** (degree + 1) - (-1.0) ** (degree + 1)) / (degree + 1)
        assert integrate(rule, lambda z, degree=degree: z**degree) == pytest.approx(exact, rel=1e-13)
    exact = (3.0 ** (2 * num_nodes + 1) + 1.0) / (2 * num_nodes + 1)
    assert integrate(rule, lambda z: z ** (2 * num_nodes)) != pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("panels", [1, 4, 10])
def test_panels_are_aligned_with_the_breakpoints(panels):
    edges = GaussLegendre(panels_per_interval=panels).edges(BREAKPOINTS)
    assert len(edges) == 3 * panels + 1 and np.all(np.diff(edges) > 0)
    assert np.all(edges[::panels] == BREAKPOINTS)
    np.testing.assert_allclose(np.diff(edges, 2).reshape(-1)[: panels - 1], 0.0, atol=1e-15)


@pytest.mark.parametrize(("num_nodes", "nats"), [(2, 0.5), (4, 1.0), (8, 1.5)])
def test_the_stated_error_on_exponential_densities_holds(num_nodes, nats):
    rule = GaussLegendre(nodes_per_panel=num_nodes, panels_per_interval=1)
    result = np.sum(np.exp(nats * rule.unit_nodes) * rule.weights)
    exact = np.expm1(nats) / nats
    n = num_nodes
    stated = nats ** (2 * n) * factorial(n) ** 4 / ((2 * n + 1) * factorial(2 * n) ** 3)
    assert abs(result / exact - 1) < 1.5 * stated + 1e-15


@pytest.mark.parametrize("degree", [1, 3, 5, 7])
def test_a_polynomial_is_recovered_from_its_values_at_the_nodes(degree):
    rule = GaussLegendre(nodes_per_panel=8)
    polynomial = Polynomial(np.random.default_rng(degree).normal(size=degree + 1))
    legendre = polynomial(rule.unit_nodes) @ rule.legendre_projection(degree)
    integral = polynomial.integ()  # from 0 on
    t = np.linspace(0.1, 1.0, 10)
    integral_over_t = Polynomial(legendre @ integrated_legendre(degree))(2.0 * t - 1.0)
    np.testing.assert_allclose(integral_over_t, integral(t) / t, atol=1e-12)


def test_edges_are_graded_towards_a_close_end_of_the_support_only():
    edges = np.linspace(0.0, 4.0, 9)
    for low, high in ((0.0, np.inf), (-0.1, np.inf), (-np.inf, 4.0), (0.0, 4.0)):
        graded = graded_edges(edges, low, high, 1e-16)
        assert np.all(np.diff(graded) > 0) and np.all(np.isin(edges[1:-1], graded))
        assert graded[0] == (0.0 if low != 0.0 else pytest.approx(1.5 * 2.0**-40))
        for end in {low, high} - {np.inf, -np.inf}:
            distances = np.sort(np.abs(graded - end))
            assert np.all(distances[1:] <= 1.42 * distances[:-1])
    for low, high in ((-np.inf, np.inf), (-2.0, 6.0), (np.nan, np.nan)):
        np.testing.assert_array_equal(graded_edges(edges, low, high, 1e-16), edges)


@pytest.mark.parametrize(
    ("reference", "exact"),
    [
        (lambda: dist.LogNormal(0.0, 1.0), stats.lognorm(1.0)),
        pytest.param(lambda: dist.LogNormal(0.0, 0.5), stats.lognorm(0.5), marks=pytest.mark.slow),
        pytest.param(lambda: dist.Gamma(0.5, 1.0), stats.gamma(0.5), marks=pytest.mark.slow),
        pytest.param(lambda: dist.Beta(0.5, 2.0), stats.beta(0.5, 2.0), marks=pytest.mark.slow),
        (lambda: dist.Exponential(1.0), stats.expon()),
    ],
)
def test_without_an_energy_quantiles_are_the_reference_s_from_the_end_of_its_support(x64, reference, exact):
    domain = (0.0, 1.0 if exact.b == 1.0 else 6.0)
    energy = UnivariateEnergy.init(jax.random.key(0), (), basis=BSpline(20, 3, domain), scale=0.0)
    u = np.concatenate([np.linspace(0.0, 1.0, 201)[1:-1], 10.0 ** -np.arange(3.0, 12.0)])
    z = np.asarray(evaluate_quickly(KAPrior(energy, reference()), "icdf", u))
    np.testing.assert_allclose(exact.cdf(z), u, rtol=1e-6, atol=0)
    np.testing.assert_allclose(exact.cdf(z), u, rtol=0, atol=1e-10)
