"""Tails of references: both sides to full relative precision, of every NumPyro distribution that serves as one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from prior_cases import quick_jit
from speed import slow_unless

from numpyro_kaem._densities.reference_tails import mass_below, survival, tail_quantile

# NumPyro distribution, SciPy counterpart.
TAILS = {
    "normal": (dist.Normal(0.5, 2.0), scipy.stats.norm(0.5, 2.0)),
    "laplace": (dist.Laplace(0.5, 2.0), scipy.stats.laplace(0.5, 2.0)),
    "asymmetric laplace": (dist.AsymmetricLaplace(0.5, 1.0, 2.0), scipy.stats.laplace_asymmetric(2.0, 0.5, 1.0)),
    "cauchy": (dist.Cauchy(0.5, 2.0), scipy.stats.cauchy(0.5, 2.0)),
    "logistic": (dist.Logistic(0.5, 2.0), scipy.stats.logistic(0.5, 2.0)),
    "student t, 0.5": (dist.StudentT(0.5, 0.5, 2.0), scipy.stats.t(0.5, 0.5, 2.0)),
    "student t, 3": (dist.StudentT(3.0), scipy.stats.t(3.0)),
    "student t, 30": (dist.StudentT(30.0), scipy.stats.t(30.0)),
    "gumbel": (dist.Gumbel(0.5, 2.0), scipy.stats.gumbel_r(0.5, 2.0)),
    "exponential": (dist.Exponential(1.5), scipy.stats.expon(scale=1 / 1.5)),
    "half-normal": (dist.HalfNormal(1.5), scipy.stats.halfnorm(scale=1.5)),
    "half-cauchy": (dist.HalfCauchy(1.5), scipy.stats.halfcauchy(scale=1.5)),
    "gamma": (dist.Gamma(2.0, 1.5), scipy.stats.gamma(2.0, scale=1 / 1.5)),
    "singular gamma": (dist.Gamma(0.25, 1.5), scipy.stats.gamma(0.25, scale=1 / 1.5)),
    "gamma, 8": (dist.Gamma(8.0, 1.5), scipy.stats.gamma(8.0, scale=1 / 1.5)),
    "chi2": (dist.Chi2(3.0), scipy.stats.chi2(3.0)),
    "inverse gamma": (dist.InverseGamma(2.0, 1.5), scipy.stats.invgamma(2.0, scale=1.5)),
    "weibull": (dist.Weibull(1.5, 2.0), scipy.stats.weibull_min(2.0, scale=1.5)),
    "gompertz": (dist.Gompertz(1.5, 0.5), scipy.stats.gompertz(1.5, scale=2.0)),
    "dagum": (dist.Dagum(1.5, 2.0, 3.0), scipy.stats.burr(2.0, 1.5, scale=3.0)),
    "pareto": (dist.Pareto(1.0, 3.0), scipy.stats.pareto(3.0)),
    "power law": (dist.LowerTruncatedPowerLaw(-2.5, 2.0), scipy.stats.pareto(1.5, scale=2.0)),
    "log-normal": (dist.LogNormal(0.5, 1.5), scipy.stats.lognorm(1.5, scale=np.exp(0.5))),
    "beta": (dist.Beta(2.0, 3.0), scipy.stats.beta(2.0, 3.0)),
    "singular beta": (dist.Beta(0.25, 0.5), scipy.stats.beta(0.25, 0.5)),
    "log-uniform": (dist.LogUniform(1.0, 3.0), scipy.stats.loguniform(1.0, 3.0)),
    "left-truncated": (
        dist.LeftTruncatedDistribution(dist.Normal(0.0, 1.0), -1.0),
        scipy.stats.truncnorm(-1.0, np.inf),
    ),
    "truncated far out": (
        dist.TwoSidedTruncatedDistribution(dist.Normal(0.0, 1.0), 3.0, 4.0),
        scipy.stats.truncnorm(3.0, 4.0),
    ),
    "decreasing": (
        dist.TransformedDistribution(dist.Gumbel(0.0, 1.0), dist.transforms.AffineTransform(1.0, -2.0)),
        scipy.stats.gumbel_l(1.0, 2.0),
    ),
}
DTYPES = [np.float32, np.float64]
# By default of each kind of tail.
SOME = ["student t, 3", "laplace", "gamma", "beta", "truncated far out", "decreasing"]
# SciPy has no more digits than these next to the ends of some supports, and some tails as 1 - cdf.
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-9}


def points(scipy_reference, dtype):
    """From the probability 1e-9 on either side: points that the first mass is asked for, and those of the second."""
    shares = np.concatenate([np.geomspace(1e-9, 0.5, 60), np.linspace(0.1, 0.5, 20)])
    return scipy_reference.ppf(shares).astype(dtype), scipy_reference.isf(shares).astype(dtype)


def of_dtype(reference, dtype):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), reference)


def masses(reference, low, high):
    return mass_below(reference, low), survival(reference, high)


def slack(scipy_reference, z):
    """What rounding the point costs; parameters are rounded too, which counts for as much."""
    eps = np.finfo(z.dtype).eps
    slack = 8 * scipy_reference.pdf(z.astype(float)) * np.maximum(np.spacing(np.abs(z)), eps)
    return np.where(np.isfinite(slack), slack, np.inf) + 4e-16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TAILS)
def test_masses_on_either_side_have_full_relative_precision(x64, name, dtype):
    """Relative to the mass, but for what the rounding of the point itself costs."""
    reference, scipy_reference = TAILS[name]
    reference, (low, high) = of_dtype(reference, dtype), points(scipy_reference, dtype)
    both = np.concatenate([low, high])
    below, above = (np.asarray(mass) for mass in quick_jit(masses)(reference, both, both))
    assert below.dtype == dtype and above.dtype == dtype
    if name == "truncated far out":  # the log-density's own constant is off by 4e-5 in float32
        below, above = below / (below + above), above / (below + above)
    for found, z, side in ((below[: len(low)], low, "cdf"), (above[len(low) :], high, "sf")):
        expected = getattr(scipy_reference, side)(z.astype(float))
        assert np.all(np.abs(found - expected) <= TOLERANCE[dtype] * expected + slack(scipy_reference, z))


@pytest.mark.parametrize("name", slow_unless(SOME, TAILS))
def test_a_number_is_as_good_as_an_array(name):
    """As the ends of a domain are given; parameters may be numbers, too."""
    reference, scipy_reference = TAILS[name]
    z = float(np.float32(scipy_reference.ppf(0.3)))
    numbers, arrays = quick_jit(lambda array: (masses(reference, z, z), masses(reference, array, array)))(
        np.array([z], np.float32)
    )
    for number, array in zip(numbers, arrays, strict=True):
        np.testing.assert_allclose(number, array[0], rtol=1e-5)


@pytest.mark.parametrize("name", slow_unless(SOME, TAILS))
def test_the_derivative_of_a_mass_is_the_density(x64, name):
    """At the middle of symmetric references and at kinks, too: a domain may end there, and parameters be learned."""
    reference, scipy_reference = TAILS[name]
    z = np.array([*scipy_reference.ppf([0.01, 0.4, 0.9]), getattr(reference, "loc", scipy_reference.median())])

    @quick_jit
    def slopes(z):
        slope = jax.vmap(jax.jacrev(lambda z: masses(reference, z, z)))(z)
        return *slope, jnp.exp(reference.log_prob(z))

    below, above, density = slopes(z)
    np.testing.assert_allclose(below, density, rtol=1e-6)
    np.testing.assert_allclose(above, -density, rtol=1e-6)


@pytest.mark.parametrize(
    ("reference", "scipy_reference"),
    [
        (dist.Gamma(400.0), scipy.stats.gamma(400.0)),
        (dist.Gamma(600.0), scipy.stats.gamma(600.0)),
        (dist.Gamma(1e5), scipy.stats.gamma(1e5)),
        (dist.Beta(1e4, 2e4), scipy.stats.beta(1e4, 2e4)),
        (dist.StudentT(1e5), scipy.stats.t(1e5)),
    ],
)
def test_large_parameters_lose_no_more_digits_than_their_logarithms(x64, reference, scipy_reference):
    low, high = points(scipy_reference, np.float64)
    below, above = quick_jit(masses)(of_dtype(reference, np.float64), low, high)
    np.testing.assert_allclose(below, scipy_reference.cdf(low), rtol=1e-7)
    np.testing.assert_allclose(above, scipy_reference.sf(high), rtol=1e-7)


def test_masses_go_with_a_log_density_whose_constant_is_rounded():
    """In float32 a StudentT of 10,000 degrees of freedom has a density off by 1e-3; its tails are off by as much."""
    reference, exact = dist.StudentT(1e4), scipy.stats.t(1e4)
    z = np.array([-3.0, -1.2, -0.5, 0.0, 0.3, 1.0, 2.0, 4.0], np.float32)
    below, above, log_density = quick_jit(lambda p, z: (*masses(p, z, z), p.log_prob(0.0)))(reference, z)
    off = np.exp(float(log_density) - exact.logpdf(0.0))
    assert abs(off - 1.0) > 5e-4
    np.testing.assert_allclose(above, off * exact.sf(z.astype(float)), rtol=2e-4)
    np.testing.assert_allclose(below, off * exact.cdf(z.astype(float)), rtol=2e-4)


CLOSED = [
    name
    for name in TAILS
    if not name.startswith(("student", "gamma", "chi2", "inverse", "beta", "singular", "left", "trunc"))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLOSED)
def test_quantiles_in_the_tails_have_full_relative_precision(x64, name, dtype):
    reference, scipy_reference = TAILS[name]
    share = np.geomspace(1e-9, 0.5, 60).astype(dtype)
    sides = np.repeat([True, False], len(share))
    quantiles = np.asarray(quick_jit(tail_quantile)(of_dtype(reference, dtype), np.tile(share, 2), sides))
    assert quantiles.dtype == dtype
    for z, side in zip(np.split(quantiles, 2), ("cdf", "sf"), strict=True):
        found = getattr(scipy_reference, side)(z.astype(float))
        assert np.all(np.abs(found - share) <= TOLERANCE[dtype] * share + slack(scipy_reference, z))


def test_power_laws_of_both_signs_and_of_none(x64):
    z = np.linspace(1.0, 4.0, 31)
    alphas = np.array([-1.5, -1.0, 0.5])[:, None]
    reference = dist.DoublyTruncatedPowerLaw(alphas, 1.0, 4.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(alphas == -1.0, np.log(z) / np.log(4.0), (z ** (alphas + 1) - 1) / (4.0 ** (alphas + 1) - 1))

    @quick_jit
    def found(reference, below):
        quantiles = [
            tail_quantile(reference, share, jnp.full(below.shape, is_below))
            for is_below, share in ((True, below), (False, 1.0 - below))
        ]
        return *masses(reference, z, z), *quantiles

    found_below, found_above, *quantiles = found(reference, below)
    np.testing.assert_allclose(found_below, below, atol=1e-14)
    np.testing.assert_allclose(found_above, 1.0 - below, atol=1e-14)
    for quantile in quantiles:
        np.testing.assert_allclose(quantile, np.broadcast_to(z, below.shape), rtol=1e-12)


@pytest.mark.slow
def test_truncated_gammas_are_parts_of_gammas(x64):
    base, exact = dist.Gamma(2.0, 1.0), scipy.stats.gamma(2.0)
    cases = [
        (dist.LeftTruncatedGamma(base, 1.0), 1.0, np.inf),
        (dist.RightTruncatedGamma(base, 4.0), 0.0, 4.0),
        (dist.TwoSidedTruncatedGamma(base, 0.5, 4.0), 0.5, 4.0),
    ]
    for reference, low, high in cases:
        total = exact.cdf(high) - exact.cdf(low)
        z, near = np.linspace(low, min(high, 12.0), 41), low + np.geomspace(1e-9, 1e-3, 20)
        below, above = quick_jit(masses)(reference, np.array([low - 1.0, *near, *z]), np.array([1e9, *z]))
        np.testing.assert_allclose(below[21:], (exact.cdf(z) - exact.cdf(low)) / total, atol=1e-13)
        np.testing.assert_allclose(above[1:], (exact.sf(z) - exact.sf(high)) / total, atol=1e-13)
        expected = [scipy.integrate.quad(exact.pdf, low, end, epsrel=1e-12)[0] / total for end in near]
        np.testing.assert_allclose(below[1:21], expected, rtol=1e-6)
        assert below[0] == 0.0 and above[0] == 0.0


def test_the_concentration_of_a_gamma_can_be_learned(x64):
    a, z = (grid.ravel() for grid in np.meshgrid([0.5, 2.0, 9.0], [0.01, 1.0, 3.0, 30.0]))
    found = quick_jit(jax.vmap(jax.grad(lambda a, z: mass_below(dist.Gamma(a), z))))(a, z)
    expected = (scipy.stats.gamma(a + 1e-4).cdf(z) - scipy.stats.gamma(a - 1e-4).cdf(z)) / 2e-4
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


def test_the_degrees_of_freedom_of_a_student_t_can_be_learned(x64):
    """JAX's incomplete beta function has no derivative in its parameters; that of the tails is SciPy's differences."""
    df, t = (grid.ravel() for grid in np.meshgrid([0.8, 3.0, 30.0], [-0.3, 0.5, 2.0, 20.0]))
    found = quick_jit(jax.vmap(jax.grad(lambda df, t: survival(dist.StudentT(df), t))))(df, t)
    expected = (scipy.stats.t(df + 1e-4).sf(t) - scipy.stats.t(df - 1e-4).sf(t)) / 2e-4
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)
