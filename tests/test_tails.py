"""Both tails of learned densities and their logarithms, against SciPy and quadrature in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from prior_cases import evaluate_quickly, quick_jit, random_energy
from speed import slow_unless
from test_reference_tails import TAILS

from numpyro_kaem import BSpline, KAMixture, KAPrior, UnivariateEnergy
from numpyro_kaem._densities.reference_tails import log_mass_above, log_mass_below, tails_of
from numpyro_kaem.distributions.copula import OpenGaussianCopula

# References with logarithms of tails of their own, and SciPy's; on supports that hold the domain given.
REFERENCES = {
    "normal": (dist.Normal(0.5, 1.5), scipy.stats.norm(0.5, 1.5), (-3.0, 3.0)),
    "student t": (dist.StudentT(30.0), scipy.stats.t(30.0), (-3.0, 3.0)),
    "laplace": (dist.Laplace(0.1, 0.5), scipy.stats.laplace(0.1, 0.5), (-3.0, 3.0)),
    "logistic": (dist.Logistic(0.1, 0.5), scipy.stats.logistic(0.1, 0.5), (-3.0, 3.0)),
    "gumbel": (dist.Gumbel(0.1, 0.5), scipy.stats.gumbel_r(0.1, 0.5), (-1.0, 3.0)),
    "gamma": (dist.Gamma(2.0, 1.0), scipy.stats.gamma(2.0), (0.1, 5.0)),
    "log-normal": (dist.LogNormal(0.0, 0.5), scipy.stats.lognorm(0.5), (0.1, 5.0)),
    "weibull": (dist.Weibull(1.5, 2.0), scipy.stats.weibull_min(2.0, scale=1.5), (0.1, 5.0)),
    "exponential": (dist.Exponential(1.5), scipy.stats.expon(scale=1 / 1.5), (0.1, 5.0)),
    "beta": (dist.Beta(2.0, 30.0), scipy.stats.beta(2.0, 30.0), (0.05, 0.4)),
}


def log_integrals(prior, scipy_reference, z):
    """Log F and log(1 - F) at points z by float64 quadrature of the unnormalised density, and SciPy's tails."""
    low, high = (float(end) for end in prior.energy.basis.domain)
    energy = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), prior.energy)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.unique(np.concatenate([np.linspace(low, high, 121), np.clip(z, low, high), [0.1]]))
    edges = edges[(edges >= low) & (edges <= high)]
    centers, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    points = centers[:, None] + halves[:, None] * nodes
    log_panels = np.asarray(energy(points)) + scipy_reference.logpdf(points)
    log_panels = scipy.special.logsumexp(log_panels, axis=1, b=weights * halves[:, None])
    below, above = float(energy(low)) + scipy_reference.logcdf(low), float(energy(high)) + scipy_reference.logsf(high)
    total = scipy.special.logsumexp([below, above, *log_panels])
    log_below, log_above = [], []
    for at in z:
        parts = np.where(edges[1:] <= at, 0.0, -np.inf), np.where(edges[:-1] >= at, 0.0, -np.inf)
        first = float(energy(low)) + scipy_reference.logcdf(min(at, low))
        last = float(energy(high)) + scipy_reference.logsf(max(at, high))
        with np.errstate(divide="ignore"):
            before = float(energy(high)) + np.log(scipy_reference.sf(high) - scipy_reference.sf(max(at, high)))
            after = float(energy(low)) + np.log(scipy_reference.cdf(low) - scipy_reference.cdf(min(at, low)))
        log_below.append(scipy.special.logsumexp([first, before, *(log_panels + parts[0])]) - total)
        log_above.append(scipy.special.logsumexp([last, after, *(log_panels + parts[1])]) - total)
    sides = np.array([log_below, log_above])
    # The larger one from the smaller one.
    smaller = np.minimum(sides[::-1], np.log(0.5))
    return np.where(sides < np.log(0.5), sides, np.log1p(-np.exp(smaller)))


@quick_jit
def sides(prior, z):
    prior = prior.tabulate()  # once for all
    return prior.log_cdf(z), prior.log_survival(z), prior.cdf(z), prior.survival(z)


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_unless(
        [("normal", np.float32)],
        [*itertools.product(REFERENCES, [np.float32]), *itertools.product(list(REFERENCES)[::4], [np.float64])],
    ),
)
def test_log_probabilities_have_full_precision_on_either_side(x64, name, dtype):
    """From deep inside one tail to deep inside the other, where the probabilities themselves underflow in float32."""
    reference, scipy_reference, domain = REFERENCES[name]
    prior = KAPrior(random_energy(BSpline(6, 3, domain), (), 2.0, dtype=dtype), reference)
    low, high = scipy_reference.support()
    z = np.concatenate(
        [np.linspace(*domain, 31), domain[0] - np.geomspace(0.01, 20, 9), domain[1] + np.geomspace(0.01, 20, 9)]
    )
    z = np.sort(z[(z > low) & (z < high)]).astype(dtype)
    expected = log_integrals(prior, scipy_reference, z.astype(float))
    found = [np.asarray(side, float) for side in sides(prior, z)]
    # What the rounding of a point costs, as a share of the probability.
    slack = [2 * np.abs(np.gradient(side, z.astype(float))) * np.spacing(np.abs(z)) for side in expected]
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    for log, plain, side, more in zip(found[:2], found[2:], expected, slack, strict=True):
        wrong = np.abs(log - side) > tolerance * np.abs(side) + more + 1e-300
        assert not np.any(wrong), (z[wrong], log[wrong], side[wrong])
        representable = side > np.log(np.finfo(dtype).tiny)
        assert np.all(
            np.abs(plain / np.exp(side) - 1.0)[representable]
            <= (1e-4 if dtype == np.float32 else 1e-8) + more[representable]
        )


def far_out(dtype=np.float32):
    """Priors of a body so wide that the reference's tails are zero at its ends, and energies that make up for it."""
    basis = BSpline(num_intervals=8, degree=3, domain=(-40.0, 40.0) if dtype == np.float64 else (-16.0, 16.0))
    z = np.linspace(*basis.domain, 400)
    design = np.asarray(basis(jnp.asarray(z, dtype)), float)
    # The log-densities of a Student t and of one of half the scale, but for what the spline cannot follow.
    targets = np.stack([scipy.stats.t(2.0).logpdf(z * shape) + 0.5 * z**2 for shape in (1.0, 2.0)])
    coefficients = np.linalg.lstsq(design, targets.T, rcond=None)[0].T
    energy = random_energy(basis, (2,), 1.0, dtype=dtype)
    parts = (jnp.zeros(2, dtype), jnp.ones(2, dtype), jnp.asarray(coefficients - coefficients.mean(), dtype))
    return KAPrior(type(energy)(*parts, basis), dist.Normal(0.0, 1.0))


def test_beyond_the_domain_a_cdf_is_finite_where_the_reference_underflows():
    prior = far_out(np.float32)
    end = prior.energy.basis.domain[1]
    z = np.array([-1e3, -end - 0.02, end + 0.02, 1e3], np.float32)[:, None]
    cdf, slope = quick_jit(lambda prior: jax.jvp(prior.cdf, (z,), (np.ones_like(z),)))(prior)
    np.testing.assert_allclose(cdf, [[0.0] * 2, [0.0] * 2, [1.0] * 2, [1.0] * 2], atol=0.01)
    assert np.all(np.isfinite(slope)) and np.all(slope[1:3] > 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("prior", np.float32), ("mixture", np.float64)])
def test_tails_of_a_reference_that_underflows_have_the_mass_that_their_density_has(x64, kind, dtype):
    """The cdf beyond is finite, its slope is the density, and a quantile of the tail is where the cdf says."""
    prior = far_out(dtype)
    end = prior.energy.basis.domain[1]
    assert dtype == np.float64 or prior.reference.cdf(np.float32(-end)) == 0.0
    if kind == "mixture":
        prior = KAMixture(prior, jnp.asarray([0.3, -0.3], dtype))
    z = np.array([-1e3, -end - 0.02, -end - 0.001, end + 0.001, end + 0.02, 1e3], dtype)
    z = z if kind == "mixture" else np.stack([z, z], -1)

    @quick_jit
    def evaluate(prior, z):
        _, slope = jax.jvp(prior.cdf, (z,), (jnp.ones_like(z),))
        _, survival_slope = jax.jvp(prior.survival, (z,), (jnp.ones_like(z),))
        of_parameters = jax.grad(lambda prior: jnp.sum(prior.cdf(z) + prior.log_survival(z)))(prior)
        share = 0.25 * prior.survival(jnp.full(z.shape, end, dtype))
        back = prior.survival(prior.icdf(1.0 - share, complement=share)) / share
        return prior.cdf(z), slope, -survival_slope, jnp.exp(prior.log_prob(z)), of_parameters, share, back

    cdf, slope, survival_slope, density, of_parameters, share, back = evaluate(prior, z)
    assert cdf.dtype == share.dtype == back.dtype == dtype
    assert np.all(cdf[0] == 0.0) and np.all(cdf[-1] == 1.0) and np.all(share > 1e-8)
    np.testing.assert_allclose(slope[:3], density[:3], rtol=1e-3)
    np.testing.assert_allclose(survival_slope[3:], density[3:], rtol=1e-3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(of_parameters))
    np.testing.assert_allclose(back, 1.0, rtol=1e-3)


@pytest.mark.slow
def test_outside_of_the_support_and_at_the_ends_of_panels_logarithms_have_finite_derivatives():
    reference, _, domain = REFERENCES["exponential"]
    prior = KAPrior(random_energy(BSpline(6, 3, domain), (), 2.0), reference)
    z = jnp.array([-jnp.inf, -1.0, 0.0, domain[0], 1.0, domain[1], 200.0, jnp.inf], jnp.float32)

    @quick_jit
    def evaluate(prior, z):
        values = prior.log_cdf(z), prior.log_survival(z), prior.cdf(z), prior.survival(z)
        return values, jax.grad(
            lambda p, z: sum(jnp.sum(jnp.where(z < 0, 0, f(z))) for f in (p.log_cdf, p.log_survival)), (0, 1)
        )(prior, z)

    values, gradients = evaluate(prior, z)
    log_cdf, log_survival, cdf, survival = map(np.asarray, values)
    np.testing.assert_array_equal(log_cdf[[0, 1, 2, 7]], [-np.inf, -np.inf, -np.inf, 0.0])
    np.testing.assert_array_equal(log_survival[[0, 1, 2, 7]], [0.0, 0.0, 0.0, -np.inf])
    np.testing.assert_array_equal(cdf[[0, 1, 2, 7]], [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(survival[[0, 1, 2, 7]], [1.0, 1.0, 1.0, 0.0])
    assert survival[6] == 0.0 and -310.0 < log_survival[6] < -280.0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_a_tail_that_holds_the_bulk_has_digits_on_both_of_its_sides(x64):
    """The location has left the domain: below the body's upper end there is next to nothing."""
    energy = random_energy(BSpline(6, 3, (-3.0, 3.0)), (), 1.0)
    z = np.array([2.9, 3.1, 4.0, 6.0, 9.0, 12.0, 15.0], np.float32)
    found = sides(KAPrior(energy, dist.Normal(9.0, 1.0)), z)
    expected = log_integrals(KAPrior(energy, dist.Normal(9.0, 1.0)), scipy.stats.norm(9.0, 1.0), z.astype(float))
    np.testing.assert_allclose(found[:2], expected, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TAILS) - {"truncated far out", "dagum"})[::2])  # SciPy has 1 - cdf of these
def test_logarithms_of_reference_tails_are_scipy_s(x64, name):
    """As far out as 1e-300, and quantiles of them, where the reference has an icdf, lead back."""
    reference, scipy_reference = TAILS[name]
    reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), reference)
    shares = np.geomspace(1e-300, 0.5, 25)
    for log_mass, quantile, log_truth, from_below in (
        (log_mass_below, scipy_reference.ppf, scipy_reference.logcdf, True),
        (log_mass_above, scipy_reference.isf, scipy_reference.logsf, False),
    ):
        z = quantile(shares)
        with np.errstate(divide="ignore"):
            expected = log_truth(z)
        with np.errstate(over="ignore", invalid="ignore"):
            rounding = scipy_reference.pdf(z) * np.spacing(np.abs(z)) / shares
        known = np.isfinite(z) & np.isfinite(expected) & (rounding < 1e-8) & (np.abs(z) > 1e-290)
        z, expected = z[known], expected[known]
        found, slopes = quick_jit(jax.vmap(jax.value_and_grad(lambda z, f=log_mass: f(reference, z))))(z)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
        assert np.all(np.isfinite(slopes))
        try:
            back = log_mass(reference, tails_of(reference).log_quantile(found, jnp.full(found.shape, from_below)))
        except ImportError:  # of an icdf that NumPyro leaves to another package
            continue
        if "truncated" not in name:
            np.testing.assert_allclose(back, expected, rtol=1e-6, atol=1e-6)


def test_quantiles_of_wider_probabilities_are_those_of_the_prior_s_own_dtype(x64):
    prior = KAPrior(random_energy(BSpline(6, 3, (-3.0, 3.0)), (), 1.0), dist.Normal(0.0, 1.0))
    q = np.array([0.1, 0.6, 0.97])
    wide, narrow = quick_jit(lambda prior, q: (prior.icdf(q), prior.icdf(q.astype(jnp.float32))))(prior, q)
    np.testing.assert_array_equal(wide, narrow)


def test_a_copula_has_its_correlation_in_the_upper_tail_as_in_the_lower_one():
    cholesky = np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]]))
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(6, 3, (-3.0, 3.0)), scale=0.0)
    marginals = KAPrior(energy, dist.Normal(0.0, 1.0))
    copula = OpenGaussianCopula(marginals, correlation_cholesky=jnp.asarray(cholesky, jnp.float32))
    z = np.array([[8.0, 8.0], [-8.0, -8.0]], np.float32)
    truth = scipy.stats.multivariate_normal(cov=cholesky @ cholesky.T).logpdf(z)
    np.testing.assert_allclose(evaluate_quickly(copula, "log_prob", z), truth, rtol=1e-5)


@pytest.mark.slow
def test_a_copula_keeps_its_correlation_forty_standard_deviations_out_on_either_side():
    """With marginals that are normal it is the multivariate normal; draws of its tails are the Gaussian's own."""
    cholesky = np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]]))
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(6, 3, (-3.0, 3.0)), scale=0.0)
    marginals = KAPrior(energy, dist.Normal(0.0, 1.0))
    copula = OpenGaussianCopula(marginals, correlation_cholesky=jnp.asarray(cholesky, jnp.float32))
    assert isinstance(copula, dist.GaussianCopula)
    z = np.array([[0.3, -0.4], [2.0, 3.5], [5.0, 5.0], [8.0, 8.0], [12.0, 11.0], [40.0, 39.0]])
    z = np.concatenate([z, -z])

    class Fixed(dist.MultivariateNormal):
        def sample(self, key, sample_shape=()):
            return jnp.broadcast_to(jnp.array([7.0, -7.0]), self.shape(sample_shape))

        def expand(self, batch_shape):
            return Fixed(jnp.zeros((*batch_shape, 2)), jnp.eye(2))

    extreme = OpenGaussianCopula(marginals, correlation_cholesky=jnp.eye(2))
    extreme.base_dist = Fixed(jnp.zeros(2), jnp.eye(2))

    @quick_jit
    def evaluate(copula, z):
        values, slopes = jax.vmap(jax.value_and_grad(copula.log_prob))(z)
        of_marginals = jax.grad(lambda copula: jnp.sum(copula.log_prob(z)))(copula).marginal_dist
        return values, slopes, of_marginals, extreme.sample(jax.random.key(0), ())

    values, slopes, of_marginals, draw = evaluate(copula, jnp.asarray(z, jnp.float32))
    normal = scipy.stats.multivariate_normal(cov=cholesky @ cholesky.T)
    np.testing.assert_allclose(values, normal.logpdf(z), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(slopes, -z @ np.linalg.inv(normal.cov), rtol=2e-3, atol=1e-2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(of_marginals))
    np.testing.assert_allclose(draw, [7.0, -7.0], rtol=1e-5)


def test_outside_of_the_support_of_a_marginal_the_density_of_a_copula_is_zero_with_finite_gradients():
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(6, 3, (0.1, 5.0)))
    copula = OpenGaussianCopula(KAPrior(energy, dist.Exponential(1.0)), correlation_cholesky=jnp.eye(2))
    value, slope = quick_jit(jax.value_and_grad(copula.log_prob))(jnp.array([1.0, -1.0]))
    assert value == -jnp.inf and np.all(np.isfinite(slope))
