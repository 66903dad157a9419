"""Tables of a CDF and their inverse, against distributions whose CDF can be written down; bisection in the tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from prior_cases import quick_jit
from speed import slow_unless

from numpyro_kaem import GaussLegendre
from numpyro_kaem._densities.cdf_table import build_table, log_integral, table_masses
from numpyro_kaem._densities.inverse_table import (
    TAIL_RULE,
    TailPanels,
    build_inverse,
    invert_tail,
    table_icdf,
    tail_shares,
    with_guide,
)

RULE = GaussLegendre(nodes_per_panel=8, panels_per_interval=4)
EDGES = RULE.edges(np.linspace(-1.0, 2.0, 9))
# truncated exponential densities exp(slope z) on [-1, 2], and tails of mass exp(log_tails) before normalisation
SLOPES = np.array([-8.0, -0.3, 1e-6, 2.0, 12.0])
LOG_LOWER = np.array([-np.inf, -2.0, -np.inf, 0.5, -1.0])
LOG_UPPER = np.array([-np.inf, -np.inf, 1.0, -3.0, 2.0])


def tabulate(dtype):
    log_density = jnp.asarray(SLOPES[:, None, None] * RULE.nodes(EDGES), dtype)
    return build_table(
        log_density, EDGES, np.diff(EDGES), RULE, jnp.asarray(LOG_LOWER, dtype), jnp.asarray(LOG_UPPER, dtype)
    )


def exact_cdf(z):
    """Columns: one for each slope."""

    def body(low, high):
        return np.exp(SLOPES * low) * np.expm1(SLOPES * (high - low)) / SLOPES

    lower, upper = np.exp(LOG_LOWER), np.exp(LOG_UPPER)
    total = lower + body(-1.0, 2.0) + upper
    return (lower + body(-1.0, z[:, None])) / total, lower / total, upper / total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steep_panels_are_inverted_as_well_as_they_are_tabulated(x64, dtype):
    """One panel across which a density changes by a factor of exp(12) or exp(16), from either end."""
    slopes = np.array([-16.0, -12.0, 12.0, 16.0])
    rule, edges = GaussLegendre(10, 1), np.array([0.0, 1.0])

    @quick_jit
    def there_and_back(u):
        log_density = jnp.asarray(slopes[:, None, None] * rule.nodes(edges), dtype)
        none = jnp.full(len(slopes), -jnp.inf, dtype)
        table = build_table(log_density, edges, np.diff(edges), rule, none, none)
        return table_masses(table, table_icdf(build_inverse(table, None), u))[0]

    u = np.linspace(0.0, 1.0, 1001).astype(dtype)
    again = np.asarray(there_and_back(jnp.tile(u, (len(slopes), 1))))
    # Two nats more, and the panel's polynomial does not increase everywhere.
    np.testing.assert_allclose(again, np.tile(u, (len(slopes), 1)), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_densities_have_their_cdf_and_quantiles(x64, dtype):
    z = np.linspace(-1.0, 2.0, 401).astype(dtype)
    exact, lower, upper = exact_cdf(z.astype(np.float64))

    @quick_jit
    def there_and_back(z):
        table = tabulate(dtype)
        u = table_masses(table, z)[0]
        return table, u, table_icdf(build_inverse(table, None), u)

    table, u, again = there_and_back(jnp.tile(z, (5, 1)))
    assert u.dtype == again.dtype == dtype
    tolerance = 3e-7 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(u.T, exact, atol=tolerance)
    np.testing.assert_allclose(table.lower_tail, lower, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(table.upper_tail, upper, rtol=4 * np.finfo(dtype).eps)
    back = np.stack([exact_cdf(np.asarray(again, np.float64)[k])[0][:, k] for k in range(5)])
    np.testing.assert_allclose(back.T, exact, atol=4 * tolerance)


def test_panel_masses_and_ends_are_consistent(x64):

    @quick_jit
    def results():
        table = tabulate(np.float64)
        return table, build_inverse(table, None)

    table, inverse = jax.tree.map(np.asarray, results())
    np.testing.assert_allclose(table.lower[:, 0], table.lower_tail, rtol=1e-15)
    np.testing.assert_allclose(table.upper[:, -1], table.upper_tail, rtol=1e-15)
    np.testing.assert_allclose(table.lower + table.mass + table.upper, 1.0, rtol=1e-13)
    np.testing.assert_allclose(table.polynomials.sum(0), 1.0, rtol=1e-13)  # every Q_j(1) is 1
    assert np.all(np.diff(inverse.keys, axis=-1) >= 0)
    np.testing.assert_allclose(np.abs(1.0 / inverse.slope), table.mass, rtol=1e-15)


@pytest.mark.parametrize("dtype", slow_unless([np.float32], [np.float32, np.float64]))
def test_a_guide_changes_where_the_search_begins_and_nothing_else(x64, dtype):
    inverse = quick_jit(lambda: build_inverse(tabulate(dtype), None))()
    u = np.concatenate([np.linspace(0.0, 1.0, 2001), np.geomspace(1e-30, 0.1, 200), 1.0 - np.geomspace(1e-7, 0.1, 200)])
    u = np.tile(u.astype(dtype), (5, 1))
    guided = with_guide(inverse)
    assert np.all(np.diff(guided.guide, axis=-1) >= 0) and np.all(guided.guide_depth < 6)
    look_up = jax.jit(table_icdf)
    np.testing.assert_array_equal(look_up(guided, u), look_up(inverse, u))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-8)])
def test_tail_panels_continue_the_quantiles_of_the_body(x64, dtype, tolerance):
    """A uniform body with tails of exponential densities: the relative error in the tails."""
    shares = tail_shares(dtype)
    edges = (2.0 - np.log(shares)).astype(dtype)  # P(above z) = 0.3 exp(2 - z) beyond 2
    nodes = edges[:-1, None] + np.diff(edges)[:, None] * TAIL_RULE.unit_nodes.astype(dtype)

    @quick_jit
    def quantiles(edges, nodes, q, complement):
        upper = TailPanels(shares, edges, -nodes)
        lower = TailPanels(shares[::-1], 1.0 - edges[::-1], -nodes[::-1, ::-1])
        log_tails = (jnp.full(1, np.log(0.45), dtype), jnp.full(1, np.log(0.9), dtype))
        body = jnp.full((1, len(EDGES) - 1, RULE.nodes_per_panel), np.log(0.15), dtype)
        table = build_table(body, EDGES, np.diff(EDGES), RULE, *log_tails)
        return table_icdf(build_inverse(table, (lower, upper)), q[None], complement[None])[0]

    share = np.geomspace(3 * shares[-1], 0.999, 100)
    lower_mass, upper_mass = 0.45 / 1.8, 0.9 / 1.8
    for q, complement, sign in (
        (lower_mass * share, 1.0 - lower_mass * share, -1.0),
        (1.0 - upper_mass * share, upper_mass * share, 1.0),
    ):
        z = np.asarray(quantiles(edges, nodes, q.astype(dtype), complement.astype(dtype)), np.float64)
        distance = z - 2.0 if sign > 0 else -1.0 - z
        np.testing.assert_allclose(np.exp(-distance), share, rtol=tolerance + 8 * np.finfo(dtype).eps * np.abs(z).max())


def test_the_log_integral_is_that_of_body_and_tails(x64):
    log_density = SLOPES[:, None, None] * RULE.nodes(EDGES)
    result = quick_jit(lambda *parts: log_integral(parts[0], np.diff(EDGES), RULE, *parts[1:]))(
        log_density, LOG_LOWER, LOG_UPPER
    )
    body = np.exp(-SLOPES) * np.expm1(3 * SLOPES) / SLOPES
    np.testing.assert_allclose(result, np.log(np.exp(LOG_LOWER) + body + np.exp(LOG_UPPER)), rtol=1e-13)


def test_scaling_the_density_changes_nothing():
    """Only differences of log-densities count, also where their exponentials overflow."""
    log_density = jnp.asarray(SLOPES[:, None, None] * RULE.nodes(EDGES), jnp.float32)
    tails = jnp.asarray(LOG_LOWER, jnp.float32), jnp.asarray(LOG_UPPER, jnp.float32)
    tables = quick_jit(
        lambda c: build_table(log_density + c, EDGES, np.diff(EDGES), RULE, *(tail + c for tail in tails))
    )
    table, shifted = tables(0.0), tables(256.0)
    np.testing.assert_allclose(shifted.mass, table.mass, atol=2e-5)
    assert np.all(np.isfinite(shifted.mass))


def test_derivatives_of_the_cdf_are_the_density_everywhere(x64):
    """At panel edges, too, where a clipped argument would have half of it."""
    z = np.concatenate([EDGES, np.linspace(-0.99, 1.99, 50)])
    slope = quick_jit(jax.grad(lambda z: table_masses(tabulate(np.float64), jnp.tile(z, (5, 1)))[0][3].sum()))(z)
    total = np.exp(0.5) + np.exp(-2.0) * np.expm1(6.0) / 2.0 + np.exp(-3.0)
    np.testing.assert_allclose(slope, np.exp(2.0 * np.asarray(z)) / total, rtol=1e-8)


def test_panels_without_mass_are_never_drawn_from():
    """A density that is zero on the middle third: quantiles jump over it, derivatives are finite."""
    nodes = RULE.nodes(EDGES)
    log_density = jnp.asarray(np.where((nodes > 0.5) & (nodes < 1.25), -1e4, 0.0), jnp.float32)[None]
    none = jnp.full((1,), -jnp.inf)
    u = jnp.linspace(0.0, 1.0, 1001)[None]

    @quick_jit
    def quantiles_and_gradient(log_density):
        table = build_table(log_density, EDGES, np.diff(EDGES), RULE, none, none)
        z = table_icdf(build_inverse(table, None), u)

        def total_below(log_density):
            return table_masses(build_table(log_density, EDGES, np.diff(EDGES), RULE, none, none), z)[0].sum()

        return z, jax.grad(total_below)(log_density)

    z, gradient = quantiles_and_gradient(log_density)
    assert np.all(np.diff(z) >= 0) and np.all((z <= 0.5 + 1e-6) | (z >= 1.25 - 1e-6))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("tail", "start", "bound", "smallest"),
    [
        (scipy.stats.norm.logsf, 1.0, np.inf, 1e-35),
        (scipy.stats.norm.logcdf, -1.0, -np.inf, 1e-35),
        (scipy.stats.cauchy.logsf, 1.0, np.inf, 1e-10),
    ],
)
def test_bisection_finds_points_however_far_out(x64, dtype, tail, start, bound, smallest):
    functions = {
        scipy.stats.norm.logsf: lambda z: jax.scipy.stats.norm.cdf(-z),
        scipy.stats.norm.logcdf: jax.scipy.stats.norm.cdf,
        scipy.stats.cauchy.logsf: lambda z: jnp.arctan(1 / z) / jnp.pi,
    }
    targets = np.geomspace(smallest, 0.1, 40).astype(dtype)
    z = quick_jit(lambda t: invert_tail(functions[tail], t, start, bound))(targets)
    assert z.dtype == dtype
    slope = np.abs(np.asarray(z, np.float64)) * np.finfo(dtype).eps * 4  # what rounding z by a few ulp does to the tail
    error = np.abs(tail(np.asarray(z, np.float64)) - np.log(targets.astype(np.float64)))
    hazard = np.maximum(np.abs(np.asarray(z, np.float64)), 2.0)  # of a normal tail it is about |z|
    assert np.all(error <= slope * hazard + 20 * np.finfo(dtype).eps)


def test_bisection_stops_at_a_finite_bound(x64):
    """A tail that falls like the distance to the bound: the distance keeps its relative precision."""
    targets = np.geomspace(1e-14, 0.4, 30)
    z, at_start = quick_jit(
        lambda t: (invert_tail(lambda z: 1e-3 * z, t * 1e-3, 0.5, 0.0), invert_tail(lambda z: z, t, 0.5, 0.5))
    )(targets)
    np.testing.assert_allclose(z, targets, rtol=1e-12)
    assert np.all(np.asarray(at_start) == 0.5)
