"""Distances between samples and data against closed forms, SciPy and direct sums, and their errors against spreads."""

import contextlib
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from numpyro_kaem import Distance, frechet_distance, kernel_distance
from numpyro_kaem.metrics import kernel
from numpyro_kaem.metrics.frechet import _NUM_GROUPS, _cross_trace, _weight


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products in two threads take many times as long where other processes have the cores."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        threadpool_limits = contextlib.nullcontext
    with threadpool_limits(1):
        yield


def frechet(mean_1, covariance_1, mean_2, covariance_2):
    """The distance between two normal laws, by SciPy's matrix square root."""
    root = sqrtm(covariance_1 @ covariance_2).real
    return np.sum((mean_1 - mean_2) ** 2) + np.trace(covariance_1 + covariance_2 - 2 * root)


def u_statistic(x, y):
    """Kernel distance by loops over all pairs."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within = [sum(kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) for z in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y)
    return within[0] / (m * (m - 1)) + within[1] / (n * (n - 1)) - 2 * across / (m * n)


def equal(size):
    return np.zeros(size), np.eye(size), np.zeros(size), np.eye(size)


def wider(size):
    return np.zeros(size), np.eye(size), np.full(size, 0.2), 1.5 * np.eye(size)


def turned(size):
    """Two covariances with other axes and variances from 1 to 1 / 4."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    variances = np.linspace(1.0, 0.25, size)
    return np.zeros(size), np.diag(variances), np.full(size, 0.05), turn * variances @ turn.T


def standard_normal(rng, n, size):
    return rng.normal(size=(n, size))


def exponential(rng, n, size):
    """Skewed and with long tails, of mean zero and unit variance."""
    return rng.exponential(size=(n, size)) - 1


def draw(rng, law, num_real, num_generated, draw_noise=standard_normal):
    mean_1, covariance_1, mean_2, covariance_2 = law
    size = len(mean_1)
    return (
        mean_1 + draw_noise(rng, num_real, size) @ np.linalg.cholesky(covariance_1).T,
        mean_2 + draw_noise(rng, num_generated, size) @ np.linalg.cholesky(covariance_2).T,
    )


# Frechet distance


@pytest.mark.parametrize(
    ("law", "num_real", "num_generated"),
    [
        (equal(32), 400, 400),
        (turned(48), 300, 400),
        pytest.param(wider(64), 400, 400, marks=pytest.mark.slow),
        pytest.param(equal(64), 500, 300, marks=pytest.mark.slow),
    ],
    ids=["equal-32", "turned-48", "wider-64", "equal-64"],
)
def test_the_extrapolated_distance_is_right_where_the_plain_one_is_ten_errors_off(law, num_real, num_generated):
    """In each of 40 repetitions, and the errors have the spread that is stated."""
    truth = frechet(*law)
    rng = np.random.default_rng(0)
    distances = [frechet_distance(*draw(rng, law, num_real, num_generated)) for _ in range(40)]
    value, error, plain = np.array([(d.value, d.std_error, d.plain) for d in distances]).T
    scores = (value - truth) / error
    assert np.all(np.abs(scores) < 3)
    assert np.all(plain - truth > 10 * error)
    # The mean of 40 has an error of 0.16, the spread one of 0.11; the stated error is a little large.
    assert abs(scores.mean()) < 3 * 0.16
    assert 0.67 < scores.std() < 1.33


@pytest.mark.parametrize("law", [equal(16), wider(16)], ids=["equal", "wider"])
def test_the_error_is_honest_for_features_that_are_not_normal(law):
    rng = np.random.default_rng(0)
    distances = [frechet_distance(*draw(rng, law, 400, 300, exponential)) for _ in range(60)]
    scores = np.array([(d.value - frechet(*law)) / d.std_error for d in distances])
    assert abs(scores.mean()) < 3 / 60**0.5
    assert 0.67 < scores.std() < 1.28


def test_the_extrapolated_distance_spreads_as_the_plain_one_and_less_than_a_regression_on_1_over_n():
    """The regression of the literature: plain values of 15 random subsets, from a third of the samples to all."""
    law = wider(24)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, y = draw(rng, law, 300, 300)
        distance = frechet_distance(x, y)
        sizes = np.linspace(100, 300, 15).astype(int)
        subsets = [(rng.permutation(x)[:size], rng.permutation(y)[:size]) for size in sizes]
        plain = [_cross_trace(a, b)[0].sum() for a, b in subsets]
        plain = [
            np.sum((a.mean(0) - b.mean(0)) ** 2) + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * trace
            for (a, b), trace in zip(subsets, plain, strict=True)
        ]
        found.append((distance.value, distance.plain, np.polyfit(1 / sizes, plain, 1)[1]))
    spread, of_plain, of_regression = np.std(found, 0)
    assert spread < 1.1 * of_plain
    assert spread < 0.85 * of_regression


@pytest.mark.parametrize(("num_real", "num_generated", "size"), [(200, 300, 5), (100, 90, 40)])
def test_the_plain_frechet_distance_is_the_formula_of_the_textbook(num_real, num_generated, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_real, size)) @ rng.normal(size=(size, size))
    y = rng.exponential(size=(num_generated, size)) @ rng.normal(size=(size, size)) + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plain = frechet_distance(x, y).plain
    np.testing.assert_allclose(plain, frechet(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)), rtol=1e-6)


@pytest.mark.parametrize("num", [5, 20, 39])
def test_covariances_of_low_rank_are_no_trouble(num):
    """Of samples and twice the same samples S2 = 4 S1, so T = 2 tr S1; and SciPy's roots of symmetric matrices."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 40)) * np.linspace(1.0, 0.1, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        twice = frechet_distance(x, 2 * x)
        other = frechet_distance(x, y := rng.normal(size=(17, 40)))
    np.testing.assert_allclose(twice.plain, np.sum(x.mean(0) ** 2) + np.trace(np.cov(x.T)), rtol=1e-12)
    eigenvalues, vectors = np.linalg.eigh(np.cov(x.T))
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0)) @ vectors.T
    trace = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ np.cov(y.T) @ root), 0)))
    plain = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T)) - 2 * trace
    np.testing.assert_allclose(other.plain, plain, rtol=1e-6)
    assert np.all(np.isfinite([twice.value, twice.std_error, other.value, other.std_error]))


def test_too_few_samples_for_the_features_are_told_and_are_in_the_error():
    rng = np.random.default_rng(0)
    x, y = draw(rng, equal(60), 50, 50)
    with pytest.warns(UserWarning, match="50 samples are few for 60 features"):
        distance = frechet_distance(x, y)
    assert abs(distance.value) < 3 * distance.std_error
    assert distance.plain > 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(x[:, :3], y[:, :3])


@pytest.mark.parametrize("order", [1, 2])
def test_weights_of_the_extrapolation_cancel_powers_of_1_over_n(order):
    weights = [_weight(k, order) for k in range(order + 1)]
    inverse = _NUM_GROUPS / (_NUM_GROUPS - np.arange(order + 1))
    for power in range(order + 1):
        np.testing.assert_allclose(weights @ inverse**power, power == 0, atol=1e-12)


def test_constant_features_have_a_distance_without_error():
    distance = frechet_distance(np.zeros((10, 3)), np.ones((12, 3)))
    assert (distance.value, distance.plain, distance.std_error) == (3.0, 3.0, 0.0)


def test_the_seed_changes_only_the_groups():
    x, y = draw(np.random.default_rng(0), wider(6), 100, 120)
    one, same, other = (frechet_distance(x, y, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.plain == other.plain
    assert 0 < abs(one.value - other.value) < 0.5 * one.std_error


# Kernel distance


@pytest.mark.parametrize(("num_real", "num_generated"), [(2, 2), (9, 14), (30, 21)])
def test_the_kernel_distance_is_the_u_statistic_of_all_pairs(num_real, num_generated, monkeypatch):
    monkeypatch.setattr(kernel, "_TILE", 8)
    x, y = draw(np.random.default_rng(0), wider(4), num_real, num_generated)
    distance = kernel_distance(x, y)
    np.testing.assert_allclose(distance.value, u_statistic(x, y), rtol=1e-10, atol=1e-10)
    assert distance.plain == distance.value
    assert distance.std_error > 0
    whole = kernel_distance(x, y, subset_size=min(num_real, num_generated), num_subsets=2)
    if num_real == num_generated:
        np.testing.assert_allclose(whole.value, distance.value, rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"subset_size": 30, "num_subsets": 10}], ids=["all pairs", "subsets"])
@pytest.mark.parametrize("law", [equal(8), wider(8)], ids=["equal", "wider"])
def test_the_kernel_distance_has_no_bias_and_knows_its_error(law, settings):
    """The expectation is that of the first three moments; the mean square of the errors is the variance."""
    rng = np.random.default_rng(0)
    num = 100 if settings else 400
    distances = [kernel_distance(*draw(rng, law, 80, 60), **settings) for _ in range(num)]
    value, error = np.array([(d.value, d.std_error) for d in distances]).T
    assert abs(value.mean() - expected_kernel_distance(*law)) < 3 * value.std() / num**0.5
    scores = (value - expected_kernel_distance(*law)) / error
    assert 0.7 < scores.std() < 1.3
    # No variance is below zero, so the stated one is a little large between equal distributions.
    np.testing.assert_allclose(np.mean(error**2) ** 0.5, value.std(), rtol=0.25)


def expected_kernel_distance(mean_1, covariance_1, mean_2, covariance_2):
    """Of normal laws: E (t + 1)^3 = 1 + 3 E t + 3 E t^2 + E t^3 with t = a.b / d, from moments of two and three."""
    size = len(mean_1)

    def moments(mean, covariance):
        second = covariance + np.outer(mean, mean)
        third = np.einsum("i,j,k->ijk", mean, mean, mean)
        for term in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
            third = third + np.einsum(term, covariance, mean)
        return mean, second, third

    one, two = moments(mean_1, covariance_1), moments(mean_2, covariance_2)
    factors = (3 / size, 3 / size**2, 1 / size**3)
    return sum(factor * np.sum((a - b) ** 2) for factor, a, b in zip(factors, one, two, strict=True))


def test_the_variance_of_the_kernel_distance_has_no_bias():
    """Before it is kept from being negative: its mean over 1,000 repetitions is the variance of the value."""
    rng = np.random.default_rng(0)
    for law in (equal(3), wider(3)):
        parts = np.array([kernel._mmd(*draw(rng, law, 12, 9), 12, 9) for _ in range(1_000)])
        stated = parts[:, 1] + parts[:, 2]
        squares = (parts[:, 0] - parts[:, 0].mean()) ** 2
        assert abs(np.mean(stated - squares)) < 3 * np.std(stated - squares) / 1_000**0.5


def test_subsets_estimate_the_same_and_count_themselves_in_the_error():
    x, y = draw(np.random.default_rng(0), wider(8), 300, 200)
    everything = kernel_distance(x, y)
    few, many = (kernel_distance(x, y, subset_size=50, num_subsets=num) for num in (5, 100))
    assert 1.1 * many.std_error < few.std_error
    assert 0.8 < many.std_error / everything.std_error < 1.3
    assert abs(many.value - everything.value) < 2 * many.std_error
    assert (many.num_real, many.num_generated) == (300, 200)


def test_a_subset_of_more_samples_than_there_are_is_refused_with_both_numbers():
    x, y = np.zeros((40, 2)), np.zeros((50, 2))
    with pytest.raises(ValueError, match=r"subset_size .* got 1000 with 40 real and 50 generated .* subset_size=None"):
        kernel_distance(x, y, subset_size=1000)
    kernel_distance(x, y, subset_size=40, num_subsets=2)


def test_kernel_matrices_are_never_held():
    """Of 4,000 samples the matrix has 128 megabytes; a tile has eight."""
    x = np.random.default_rng(0).normal(size=(4_000, 2))
    tracemalloc.start()
    kernel_distance(x, x + 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


# What both take and give

DISTANCES = pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])


@DISTANCES
def test_arrays_of_any_kind_and_shape_are_samples(distance):
    x, y = np.random.default_rng(0).integers(0, 4, size=(2, 20, 2, 3))
    expected = distance(x.reshape(20, 6).astype(float), y.reshape(20, 6).astype(float))
    assert distance(x.astype(np.uint8), y.tolist()) == expected
    assert distance(jnp.asarray(x), jnp.asarray(y, jnp.bfloat16)) == expected


@DISTANCES
def test_features_are_computed_in_batches_and_named(distance):
    sizes = []

    def halves(batch):
        sizes.append(len(batch))
        return jnp.asarray(batch).reshape(len(batch), -1)[:, ::2]

    x, y = np.random.default_rng(0).normal(size=(2, 20, 2, 3)).astype(np.float32)
    found = distance(x, y, features=halves, batch_size=8)
    assert sizes == [8, 8, 4, 8, 8, 4]
    expected = distance(x.reshape(20, 6)[:, ::2], y.reshape(20, 6)[:, ::2])
    assert (found.value, found.std_error) == (expected.value, expected.std_error)
    assert (found.features, expected.features) == ("halves", "values")
    assert distance(x, y, features=jax.jit(halves)).features == "halves"


def test_a_distance_prints_as_many_digits_as_its_error_has():
    distance = Distance(1.2345, 0.0421, 2.0, 1000, 1000, "values")
    assert str(distance) == "1.234 +- 0.042 (n = 1000, features: values)"
    assert repr(distance) == f"Distance({distance})"
    assert float(distance) == 1.2345
    assert str(Distance(123.4, 11.2, 2.0, 10, 20, "inception")) == "123 +- 11 (n = 10 and 20, features: inception)"
    assert str(Distance(0.00213, 0.00031, 0.0, 9, 9, "f")) == "0.00213 +- 0.00031 (n = 9, features: f)"
    assert str(Distance(3.0, 0.0, 3.0, 9, 9, "f")) == "3.000 +- 0.000 (n = 9, features: f)"


@DISTANCES
@pytest.mark.parametrize(
    ("real", "generated", "settings", "message"),
    [
        (np.zeros((1, 3)), np.zeros((9, 3)), {}, r"real must have at least \d samples .* shape \(1, 3\)"),
        (np.zeros((9, 3)), np.float64(1.0), {}, r"generated must have at least \d samples .* shape \(\)"),
        (np.zeros((9, 3)), [[1.0], [1.0, 2.0]], {}, "generated must be an array of samples of one shape, got list"),
        (np.zeros((9, 0)), np.zeros((9, 0)), {}, r"real must have at least one feature .* \(9, 0\)"),
        (np.zeros((9, 3)), np.zeros((9, 4)), {}, r"one width, got 3 for real and 4 for generated, .* \(9, 4\)"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"features": np.sum}, r"features must return shape \(9, d\) .* got \(\)"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"features": lambda b: b[0]}, r"real\[0:9\] .* got \(3,\).*reshape"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"features": lambda b: b[:5]}, r"shape \(9, d\) .* got \(5, 3\)"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"batch_size": 0}, "batch_size must be .* at least 1, got 0"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"seed": -1}, "seed must be .* got -1"),
        (np.ma.masked_equal([[0.0], [1.0]], 0.0), np.zeros((9, 1)), {}, "real has 1 masked values"),
    ],
)
def test_bad_samples_and_settings_are_named(distance, real, generated, settings, message):
    with pytest.raises(ValueError, match=message):
        distance(real, generated, **settings)


@DISTANCES
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_feature_that_is_not_finite_is_told(distance, bad):
    x, y = np.zeros((2, 20, 3))
    y[7, 1] = y[12, 0] = bad
    with pytest.raises(ValueError, match=rf"generated must be finite, got {bad} for generated\[7\] \(feature 1\).* 2 "):
        distance(x, y)
    with pytest.raises(ValueError, match=r"generated\[7\] \(feature 1\)"):
        distance(x, y, features=lambda batch: batch, batch_size=4)


@DISTANCES
def test_features_of_batches_have_one_width(distance):
    x = np.zeros((9, 3))
    with pytest.raises(ValueError, match=r"features must return shape \(1, 3\) for real\[8:9\].* got \(1, 2\)"):
        distance(x, x, features=lambda batch: batch[:, : 3 if len(batch) == 8 else 2], batch_size=8)


@DISTANCES
@pytest.mark.parametrize("bad", [np.full((9, 3), "a"), np.zeros((9, 3), complex), np.full((9, 3), None)])
def test_values_that_are_no_real_numbers_are_refused(distance, bad):
    with pytest.raises(TypeError, match="real must be real numbers, got dtype"):
        distance(bad, np.zeros((9, 3)))
    with pytest.raises(TypeError, match="features of real must be real numbers, got dtype"):
        distance(np.zeros((9, 3)), np.zeros((9, 3)), features=lambda batch: bad)


@DISTANCES
def test_features_that_are_no_function_are_refused(distance):
    with pytest.raises(TypeError, match="features"):
        distance(np.zeros((9, 3)), np.zeros((9, 3)), features="inception")
