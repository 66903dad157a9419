"""Logistic distributions rounded to integers, against SciPy's in float64 and NumPyro's contract."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer.util import log_density
from prior_cases import quick_jit

from numpyro_kaem import DiscretizedLogistic

LOCS = np.array([-1e6, -300.0, -0.5, 0.0, 0.5, 100.3, 127.5, 255.0, 1e4])
SCALES = np.array([1e-6, 1e-3, 0.05, 1.0, 30.0, 1e4, 1e8])
VALUES = np.arange(256)


@quick_jit
def everything(d, values):
    """Log-probabilities of values, their derivatives by location and scale, and moments."""

    def summed(loc, scale):
        log_prob = DiscretizedLogistic(loc, scale, d.low, d.high).log_prob(values)
        return log_prob.sum(), log_prob

    gradient, log_prob = jax.grad(summed, (0, 1), has_aux=True)(d.loc, d.scale)
    return log_prob, *gradient, d.mean, d.variance


def grid(dtype, low=0, high=255):
    """All pairs of a location and a scale, along with every value: arrays (256, locations, scales)."""
    shape = (1, len(LOCS), len(SCALES))
    loc, scale = (np.broadcast_to(a, shape).astype(dtype) for a in (LOCS[:, None], SCALES))
    ones = np.ones((high - low + 1, 1, 1), dtype)
    d = DiscretizedLogistic(jnp.asarray(loc * ones), jnp.asarray(scale * ones), low, high)
    return everything(d, np.arange(low, high + 1)[:, None, None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_sum_to_one_and_all_is_finite_however_extreme_the_parameters(dtype, x64):
    log_prob, *gradient, _, _ = grid(dtype)
    assert log_prob.dtype == gradient[0].dtype == dtype
    total = np.exp(np.asarray(log_prob, np.float64)).sum(0)
    np.testing.assert_allclose(total, 1.0, rtol=3e-6 if dtype == np.float32 else 1e-12)
    for array in (log_prob, *gradient):
        assert np.isfinite(array).all()


def test_float32_has_the_digits_of_float64(x64):
    single, double = (np.asarray(grid(dtype)[0], np.float64) for dtype in (np.float32, np.float64))
    # Of parameters that float32 holds to 2^-24 of the location, in units of the scale.
    inputs = 2.0**-24 * (np.abs(LOCS)[:, None] + 256) / SCALES
    assert np.all(np.abs(single - double) <= 4 * inputs + 1e-6 * np.abs(double) + 1e-6)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-3, 4)])
def test_probabilities_are_differences_of_scipy_s_logistic_cdf(low, high, x64):
    loc, scale = np.array([-2.0, 0.3, 3.5, 90.0])[:, None, None], np.array([0.3, 2.0, 40.0])[:, None]
    x = np.arange(low, high + 1)
    logistic = scipy.stats.logistic(loc, scale)
    below, above = np.where(x == low, -np.inf, x - 0.5), np.where(x == high, np.inf, x + 0.5)
    # From the nearer tail, where the difference keeps its digits.
    expected = np.where(x > loc, logistic.sf(below) - logistic.sf(above), logistic.cdf(above) - logistic.cdf(below))
    d = DiscretizedLogistic(loc, scale, low, high)
    assert d.batch_shape == (4, 3, 1)
    np.testing.assert_allclose(np.exp(d.log_prob(x)), expected, rtol=1e-10, atol=1e-300)
    mean = (x * expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(d.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(d.variance, ((x - mean) ** 2 * expected).sum(-1, keepdims=True), rtol=1e-10)


def test_far_from_the_location_the_log_probability_falls_by_its_inverse_scale():
    loc, scale = jnp.array(-500.0), jnp.array(2.0)
    slope, curve = (
        jax.grad(lambda loc, scale, x=x: DiscretizedLogistic(loc, scale).log_prob(x), (0, 1))(loc, scale)
        for x in (3, 4)
    )
    np.testing.assert_allclose(slope[0], 0.5, rtol=1e-6)
    # Of -(x - 1/2 - loc) / s + log(1 - exp(-1/s)).
    np.testing.assert_allclose(curve[1] - slope[1], 0.25, rtol=1e-4)


@pytest.mark.parametrize("value", [-1, 256, 0.5, 254.9, np.nan, np.inf])
def test_what_is_no_value_has_no_probability_and_no_derivative(value):
    def log_prob_at(loc):
        return DiscretizedLogistic(loc, 3.0, validate_args=False).log_prob(value)

    log_prob, gradient = jax.value_and_grad(log_prob_at)(10.0)
    assert log_prob == -jnp.inf and gradient == 0.0
    with pytest.warns(UserWarning, match="Out-of-support"):
        DiscretizedLogistic(10.0, 3.0, validate_args=True).log_prob(value)


def test_draws_have_the_probabilities_and_the_moments():
    d, num_draws = DiscretizedLogistic(jnp.array([3.0, 250.0]), jnp.array([2.0, 30.0])), 40_000
    x = np.asarray(d.sample(jax.random.key(0), (num_draws,)))
    assert x.dtype == np.int32 and x.min() == 0 and x.max() == 255
    p = np.exp(np.asarray(d.log_prob(VALUES[:, None]), float))
    counts = np.stack([np.bincount(column, minlength=256) for column in x.T], 1)
    counted = p * num_draws > 10
    assert counted.sum() > 150
    z = (counts - num_draws * p) / np.sqrt(num_draws * p * (1 - p))
    assert np.abs(z[counted]).max() < 5
    assert np.all(np.abs(x.mean(0) - d.mean) < 5 * np.sqrt(d.variance / num_draws))
    np.testing.assert_allclose(x.var(0), d.variance, rtol=0.05)


def test_uniform_data_need_eight_bits_at_least_and_a_third_more_by_the_best_scale():
    scales = jnp.geomspace(1.0, 1e6, 200)
    bits = -DiscretizedLogistic(127.5, scales).log_prob(VALUES[:, None]).mean(0) / jnp.log(2.0)
    assert 8.0 < bits.min() < 8.3
    # With a scale far beyond the range the two ends have all of the probability.
    ends = DiscretizedLogistic(127.5, 1e6).log_prob(np.array([0, 255]))
    np.testing.assert_allclose(ends / jnp.log(2.0), -1.0, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_values_of_any_type_have_the_same_probability(dtype):
    d = DiscretizedLogistic(2.0, 3.0, -2, 255)
    values = np.array([0, 1]) if dtype is bool else np.array([0, 1, 200, 255])
    expected = d.log_prob(values.astype(np.float32))
    for array in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(d.log_prob(array(values.astype(dtype))), expected)


# NumPyro's contract


@pytest.mark.parametrize("shapes", [((), ()), ((3,), ()), ((2, 1), (3,))])
def test_shapes_are_numpyro_s(shapes):
    loc, scale = (np.full(shape, 4.0, np.float32) if shape else 4.0 for shape in shapes)
    d, batch_shape = DiscretizedLogistic(loc, scale), np.broadcast_shapes(*shapes)
    assert d.batch_shape == d.mean.shape == d.variance.shape == batch_shape and d.event_shape == ()
    x = d.sample(jax.random.key(0), (5,))
    assert x.shape == d.log_prob(x).shape == (5, *batch_shape)
    assert d.support(x).all() and d.is_discrete
    assert d.to_event(len(batch_shape)).log_prob(x).shape == (5,)
    wide = d.expand((7, *batch_shape))
    assert wide.batch_shape == wide.mean.shape == (7, *batch_shape)
    np.testing.assert_array_equal(
        wide.log_prob(x[:, None]), np.broadcast_to(d.log_prob(x)[:, None], (5, *wide.batch_shape))
    )
    for expand in (True, False):
        values, theirs = (
            e.enumerate_support(expand) for e in (d, dist.DiscreteUniform(np.zeros(batch_shape, int), 255))
        )
        np.testing.assert_array_equal(values, theirs)


def test_it_passes_through_jax_s_transformations_and_copies():
    loc, x = jnp.array([1.0, 100.0, 254.0]), jnp.array([0, 90, 255])
    d = DiscretizedLogistic(loc, 5.0, 0, 255)
    expected = d.log_prob(x)
    inside = jax.jit(lambda d, x: d.log_prob(x))
    np.testing.assert_allclose(inside(d, x), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(lambda m, x: DiscretizedLogistic(m, 5.0).log_prob(x))(loc, x), expected, rtol=1e-6
    )
    each = jax.vmap(lambda m: DiscretizedLogistic(m, 5.0, 0, 300))(loc)
    assert each.high == 300
    np.testing.assert_allclose(jax.vmap(lambda d, x: d.log_prob(x))(each, x)[:2], expected[:2], rtol=1e-6)
    for other in (copy.deepcopy(d), pickle.loads(pickle.dumps(d)), jax.tree.map(lambda leaf: leaf, d)):
        np.testing.assert_array_equal(other.log_prob(x), expected)

    def model(x):
        with numpyro.plate("data", 3):
            numpyro.sample("x", DiscretizedLogistic(loc, 5.0), obs=x)

    np.testing.assert_allclose(log_density(model, (x,), {}, {})[0], expected.sum(), rtol=1e-6)


def test_arguments_that_make_no_distribution_are_named():
    for low, high in ((5, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"whole numbers with low < high, got {low} and {high}"):
            DiscretizedLogistic(0.0, 1.0, low, high)
    with pytest.raises(ValueError, match=r"loc, scale must have shapes that broadcast, got \(2,\) of loc and \(3,\)"):
        DiscretizedLogistic(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="invalid scale parameter"):
        DiscretizedLogistic(0.0, -1.0, validate_args=True)
