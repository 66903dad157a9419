"""KAPrior keeps NumPyro's contract: shapes, pytrees, expansion, jit and vmap, moments, supports, dtypes."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from prior_cases import CASES, make_case, quick_jit, random_energy
from reference_density import ReferenceDensity
from speed import slow_unless

from numpyro_kaem import RBF, BSpline, GaussLegendre, KAMixture, KAPrior, UnivariateEnergy

DOMAIN = (-2.0, 2.0)
SPLINE = BSpline(num_intervals=6, degree=3, domain=DOMAIN)
NORMAL = dist.Normal(0.3, 1.2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def prior():
    return KAPrior(random_energy(SPLINE, (3,), 1.0), NORMAL)


@pytest.fixture(scope="module")
def grid(prior):
    return jnp.linspace(-4.0, 4.0, 15)[:, None] + jnp.zeros(3)


def test_shapes_are_those_of_a_univariate_distribution(prior):
    assert prior.batch_shape == (3,) and prior.event_shape == ()
    joint = prior.to_event(1)
    assert joint.batch_shape == () and joint.event_shape == (3,)

    def check():
        kept = prior.tabulate()
        for sample_shape in [(), (5,), (4, 2), (0,)]:
            shape = (*sample_shape, 3)
            for tables in (kept, prior) if sample_shape == (4, 2) else (kept,):
                assert tables.sample(jax.random.key(0), sample_shape).shape == shape
                for method in ("log_prob", "cdf", "icdf"):
                    assert getattr(tables, method)(jnp.zeros(shape)).shape == shape
        for method in ("log_prob", "cdf", "icdf"):
            assert getattr(kept, method)(jnp.zeros(())).shape == (3,)
            assert getattr(kept, method)(jnp.zeros((2, 1))).shape == (2, 3)
        for moment in ("mean", "variance", "log_normalizer"):
            assert getattr(prior, moment).shape == (3,)
        assert joint.log_prob(jnp.zeros((7, 3))).shape == (7,)

    jax.eval_shape(check)  # traced, not computed


def test_batch_shapes_of_energy_and_reference_broadcast():
    """A batch of references is, element by element, the priors of each."""
    energy = random_energy(SPLINE, (3,), 1.0)
    locs, scales = np.array([[-0.5], [0.8]], np.float32), np.array([0.5, 1.0, 2.0], np.float32)
    prior = KAPrior(energy, dist.Normal(jnp.asarray(locs), jnp.asarray(scales)))
    assert prior.batch_shape == (2, 3)
    u = jnp.array([1e-5, 0.2, 0.7, 1 - 1e-5])
    z, log_normalizer = quick_jit(lambda: (prior.icdf(u[:, None, None]), prior.log_normalizer))()
    assert z.shape == (4, 2, 3)
    for i in range(2):
        for j in range(3):
            reference = scipy.stats.norm(np.float64(locs[i, 0]), np.float64(scales[j]))
            density = ReferenceDensity(jax.tree.map(lambda leaf, j=j: leaf[j : j + 1], energy), reference)
            assert np.all(density.u_error(u, z[:, i, j]) < 1e-6)
            np.testing.assert_allclose(log_normalizer[i, j], density.log_normalizer[0], atol=2e-6)


def compute(prior, points):
    """The functions of a distribution, at points of its support."""
    prior = prior.tabulate()  # once for all
    u = prior.cdf(points)
    return prior.log_prob(points), u, prior.icdf(u)


functions = quick_jit(compute)


def test_pytree_round_trip_keeps_everything(prior, grid):
    leaves, structure = jax.tree.flatten(prior)
    shapes = sorted(np.shape(leaf) for leaf in leaves)
    assert shapes == [(), (), (3,), (3,), (3, SPLINE.num_basis)]  # loc, scale, two weights, coefficients
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is KAPrior and again.batch_shape == (3,) and again.quadrature == prior.quadrature
    returned = jax.jit(lambda p: jax.tree.map(lambda leaf: 1 * leaf, p))(prior)
    for result, expected in zip(functions(returned, grid), functions(prior, grid), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_compiled_with_the_distribution_as_argument_or_called_directly(prior, grid):
    log_prob, u, z = functions(prior, grid)
    np.testing.assert_allclose(prior.log_prob(grid), log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(prior.cdf(grid), u, atol=1e-6)
    np.testing.assert_allclose(prior.icdf(u), z, atol=1e-4)


def test_vmap_over_parameters_and_over_distributions(prior, grid):
    energies = jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf, 0.5 * np.asarray(leaf)])), prior.energy)
    expected = functions(KAPrior(energies, NORMAL), grid[:, None])

    @quick_jit
    def mapped(energies, grid):
        distributions = jax.vmap(lambda energy: KAPrior(energy, NORMAL))(energies)
        draws = jax.vmap(lambda energy: KAPrior(energy, NORMAL).sample(KEY))(energies)
        return jax.vmap(lambda p: compute(p, grid))(distributions), draws, prior.sample(KEY)

    results, draws, alone = mapped(energies, grid)
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(result, 0, 1), other, rtol=1e-5, atol=1e-4)
    assert draws.shape == (2, 3)
    np.testing.assert_allclose(draws[0], alone, rtol=1e-5)


def test_expansion_keeps_cdf_and_icdf():
    prior = KAPrior(random_energy(SPLINE, (3, 1), 1.0), NORMAL)
    expanded = prior.expand((2, 3, 4))
    assert type(expanded) is KAPrior and expanded.batch_shape == (2, 3, 4)
    points = jnp.linspace(-4.0, 4.0, 9)[:, None, None]
    for one, other in zip(functions(prior, points), functions(expanded, points[..., None]), strict=True):
        assert other.shape == (9, 2, 3, 4)
        np.testing.assert_allclose(other, np.broadcast_to(one[:, None], other.shape), rtol=1e-5, atol=1e-5)
    draws, mean = quick_jit(lambda: (expanded.sample(jax.random.key(0)), expanded.mean))()
    assert draws.shape == (2, 3, 4) and len(np.unique(draws)) == 24  # independent along the new dimensions too
    assert mean.shape == (2, 3, 4) and len(np.unique(mean)) == 3
    assert expanded.energy.coefficients.shape == (3, 1, SPLINE.num_basis)  # no table is built twice
    restored = jax.tree.unflatten(*reversed(jax.tree.flatten(expanded)))
    assert restored.batch_shape == (2, 3, 4)
    assert restored.expand((5, 2, 3, 4)).batch_shape == (5, 2, 3, 4)


def test_plates_expand_priors_and_joint_priors(prior):
    def model():
        with numpyro.plate("rows", 5, dim=-2), numpyro.plate("columns", 3, dim=-1):
            numpyro.sample("z", prior)
        with numpyro.plate("data", 5):
            numpyro.sample("joint", prior.to_event(1))

    sites = [("z", (5, 3), ()), ("joint", (5,), (3,))]

    @quick_jit
    def results(key):
        with numpyro.handlers.seed(rng_seed=key):
            trace = numpyro.handlers.trace(model).get_trace()
        for name, *shapes in sites:
            assert [trace[name]["fn"].batch_shape, trace[name]["fn"].event_shape] == shapes
        values = [trace[name]["value"] for name, *_ in sites]
        kept = prior.tabulate()
        return [
            (z, trace[name]["fn"].log_prob(z), kept.log_prob(z)) for z, (name, *_) in zip(values, sites, strict=True)
        ]

    for (z, log_prob, expected), (_, _, event_shape) in zip(results(KEY), sites, strict=True):
        assert z.shape == (5, 3) and len(np.unique(z)) == 15
        np.testing.assert_allclose(log_prob, expected.sum(-1) if event_shape else expected, rtol=1e-5)


@pytest.mark.parametrize(
    "case", ["log-normal, big tails", *(pytest.param(case, marks=pytest.mark.slow) for case in ("normal", "uniform"))]
)
def test_moments_agree_with_quadrature_and_with_draws(case):
    prior, densities = make_case(case, "b-spline", np.float32, stds=(0.1, 1.0, 5.0), repeats=2)
    num_draws = 100_000
    mean, variance, draws = (
        np.asarray(result, np.float64)
        for result in quick_jit(lambda p: (p.mean, p.variance, p.sample(jax.random.key(1), (num_draws,))))(prior)
    )
    for i, j in np.ndindex(3, 2):
        expected = moments(densities[i][j])
        np.testing.assert_allclose([mean[i, j], variance[i, j]], expected[:2], rtol=2e-5, atol=2e-6)
        # Six standard errors: false alarms with probability 2e-9 a comparison, 12 comparisons a case.
        error = 6 / np.sqrt(num_draws)
        assert abs(draws[:, i, j].mean() - expected[0]) < error * np.sqrt(expected[1])
        assert abs(draws[:, i, j].var() - expected[1]) < error * np.sqrt(expected[2] - expected[1] ** 2)


def moments(density):
    """Mean, variance and fourth central moment by quadrature: Gauss-Legendre panels in log(u) in the tails."""
    points, weights = density.integration_rule(np.float64)
    body = slice(0, len(points) - 20)
    z, mass = [points[body]], [weights[body] * np.exp(density.log_prob(points[body]))]
    nodes, node_weights = np.polynomial.legendre.leggauss(400)
    log_u, log_weights = 20 * (nodes - 1), 20 * node_weights  # u from exp(-40) to 1
    for tail, quantile in ((density.lower_tail, density.reference.ppf), (density.upper_tail, density.reference.isf)):
        inside = density.reference.cdf if quantile == density.reference.ppf else density.reference.sf
        end = density.energy.basis.domain[0 if quantile == density.reference.ppf else 1]
        z.append(quantile(np.exp(log_u) * inside(end)))
        mass.append(tail * np.exp(log_u) * log_weights)
    z, mass = np.concatenate(z), np.concatenate(mass)
    z, mass = z[mass > 0], mass[mass > 0]
    mean = np.sum(mass * z)
    return mean, np.sum(mass * (z - mean) ** 2), np.sum(mass * (z - mean) ** 4)


# NumPyro distribution, domain, mean, variance. StudentT has no icdf; of Pareto's only the transformation is known.
HEAVY = {
    "student t, 2.05": (dist.StudentT(2.05), DOMAIN, 0.0, 41.0),
    "pareto, 1.05": (dist.Pareto(1.0, 1.05), (1.0, 5.0), 21.0, np.inf),
    "log-normal": (dist.LogNormal(0.0, 3.0), (0.1, 5.0), np.exp(4.5), np.expm1(9.0) * np.exp(9.0)),
    "cauchy": (dist.Cauchy(0.0, 1.0), DOMAIN, np.nan, np.nan),
    "half-cauchy": (dist.HalfCauchy(1.0), (0.1, 5.0), np.inf, np.inf),
    "transformed cauchy": (
        dist.TransformedDistribution(dist.Cauchy(0.0, 1.0), dist.transforms.AffineTransform(1.0, 2.0)),
        DOMAIN,
        np.nan,
        np.nan,
    ),
}


@pytest.mark.parametrize("name", HEAVY)
def test_moments_of_heavy_tails(name):
    """With a zero energy they are the reference's: next to those that do not exist, or infinite."""
    reference, domain, mean, variance = HEAVY[name]
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(6, 3, domain), scale=0.0)
    found = quick_jit(lambda p: (p.mean, p.variance))(KAPrior(energy, reference))
    np.testing.assert_allclose(found, [mean, variance], rtol=2e-3, atol=1e-5)


def test_a_reference_narrower_than_the_panels_is_warned_of():
    energy = UnivariateEnergy.init(KEY, (2,), basis=BSpline(20, 3, (-3.0, 3.0)))
    warned = r"the reference Normal has a scale of 0.01, less than .* where it lies, 0.075: .* a basis of more cells"
    for scale in (0.01, jnp.array([1.0, 0.01])):
        with pytest.warns(UserWarning, match=warned):
            KAPrior(energy, dist.Normal(0.1, scale))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KAPrior(energy, dist.Normal(0.1, 0.01), quadrature=GaussLegendre(10, 30))
        KAPrior(energy, dist.Normal(9.0, 0.01))  # where there are no panels
        jax.eval_shape(lambda scale: KAPrior(energy, dist.Normal(0.1, scale)).mean, 0.01)
        outlier = BSpline.from_knots(jnp.array([[-3.0, -1.0, 0.0, 1.0, 3.0, 1e3]] * 2), 3)
        KAPrior(UnivariateEnergy.init(KEY, (2,), basis=outlier), dist.Normal(0.0, 1.0))


@pytest.mark.slow
def test_a_support_that_is_learned_and_ends_inside_the_domain_gives_nan():
    energy = random_energy(SPLINE, (2,), 1.0)
    points = jnp.linspace(-1.9, 1.9, 5)[:, None]

    @quick_jit
    def results(low):
        prior = KAPrior(energy, dist.Uniform(low, 3.0))
        mixture = KAMixture(prior, jnp.zeros(2))
        # Tables are made once for all of them.
        functions = [
            (p.log_prob(z), p.mean, p.icdf(0.3), p.sample(KEY))
            for p, z in ((prior.tabulate(), points), (mixture.tabulate(), points[..., 0]))
        ]
        return jax.tree.leaves(functions), jax.grad(lambda low: KAPrior(energy, dist.Uniform(low, 3.0)).mean.sum())(low)

    zero = UnivariateEnergy.init(KEY, basis=SPLINE, scale=0.0)

    @quick_jit
    def moved(high):
        on_domain = eqx.tree_at(lambda e: e.basis, zero, BSpline(6, 3, (0.0, high)))
        return KAPrior(on_domain, dist.Uniform(0.0, 1.0)).mean

    assert np.isnan(moved(1.1)) and np.isfinite(moved(1.0))
    values, slope = results(-1.95)
    assert all(np.all(np.isnan(value)) for value in values)
    for low in (-2.0, -2.5):
        values, slope = results(low)
        assert all(np.all(np.isfinite(value)) for value in values) and np.isfinite(slope)
        known = quick_jit(lambda low=low: KAPrior(energy, dist.Uniform(low, 3.0)).mean)()
        np.testing.assert_allclose(values[1], known, rtol=1e-5)


# points inside the support, below it and above it
SUPPORTS = {
    "normal": ((-50.0, 50.0), (), (), (-np.inf, np.inf)),
    "log-normal": ((1e-20, 1e9), (-1.0, 0.0), (), (0.0, np.inf)),
    "uniform": ((-1.0, 2.0), (-1.001,), (2.001,), (-1.0, 2.0)),
}


@pytest.mark.parametrize("case", slow_unless(["log-normal"], SUPPORTS))
def test_support_is_the_reference_s(case):
    (reference, _), domain = CASES[case]
    inside, below, above, ends = SUPPORTS[case]
    # NumPyro's own validation would put -inf outside the support whatever the density says there.
    prior = KAPrior(random_energy(BSpline(6, 3, domain), (2,), 1.0), reference, validate_args=False)
    assert prior.support == reference.support

    @quick_jit
    def results(points):
        u = jnp.array([0.0, 1.0, -0.1, 1.1, jnp.nan])[:, None]
        log_prob = jax.vmap(jax.value_and_grad(lambda z: prior.log_prob(z)[0]))(points)
        return prior.icdf(u), prior.cdf(points[:, None]), *log_prob

    z, cdf, log_prob, slope = results(jnp.array([*inside, *below, *above]))
    np.testing.assert_array_equal(z[:2], np.array(ends, np.float32)[:, None] + np.zeros(2))
    assert np.all(np.isnan(z[2:]))
    assert np.all(np.isfinite(log_prob[:2])) and np.all(log_prob[2:] == -np.inf)
    assert np.all(np.isfinite(slope))
    assert np.all((cdf >= 0) & (cdf <= 1))
    assert np.all(cdf[2 : 2 + len(below)] == 0) and np.all(cdf[2 + len(below) :] == 1)


@pytest.mark.parametrize("case", ["normal", "log-normal", "uniform"])
def test_no_draw_is_at_an_end_of_the_support(case, monkeypatch):
    """The smallest and the largest number that JAX's generator gives lead to finite draws, which are its quantiles."""
    ends = np.array([0.0, 1 - 2.0**-23], np.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.resize(ends, shape).astype(dtype))
    (reference, _), domain = CASES[case]
    prior = KAPrior(random_energy(BSpline(6, 3, domain), (2,), 1.0), reference)
    u = ends + np.float32(2.0**-24)
    # No other test has traced draws of this shape, with another generator.
    z, quantiles = quick_jit(lambda: (prior.sample(jax.random.key(0), (1, 1, 1)), prior.icdf(u)))()
    np.testing.assert_array_equal(z[0, 0, 0], quantiles)
    assert np.all(np.isfinite(z)) and np.all(reference.cdf(z) > 0)
    assert np.all(reference.support(z))


@pytest.mark.parametrize(
    ("reference", "dtype"),
    slow_unless(
        [("arrays", np.float32), ("python numbers", np.float64)],
        itertools.product(["arrays", "python numbers", "without icdf"], [np.float32, np.float64]),
    ),
)
def test_the_dtype_is_the_energy_s_where_float64_is_enabled(x64, reference, dtype):
    references = {
        "arrays": lambda: dist.Normal(jnp.asarray(0.3, dtype), jnp.asarray(1.2, dtype)),
        "python numbers": lambda: NORMAL,
        "without icdf": lambda: dist.Weibull(1.2, 1.8),
    }
    energy = random_energy(BSpline(6, 3, (0.1, 2.0)), (3,), 1.0, dtype=dtype)
    prior = KAPrior(energy, references[reference]())

    def compute(prior):
        z = prior.sample(jax.random.key(0), (4,))
        drawn_from, prior = prior, prior.tabulate()
        gradient = jax.grad(lambda p: p.sample(jax.random.key(0), (4,)).sum())(drawn_from)
        moments = prior.mean, prior.variance, prior.log_normalizer
        return z, prior.log_prob(z), prior.cdf(z), prior.icdf(z), moments, gradient.energy

    results = jax.tree.leaves(jax.eval_shape(lambda: compute(prior)))
    assert {result.dtype for result in results} == {jnp.dtype(dtype)}


def test_old_and_new_style_keys_give_the_same_draws(prior):
    keys = jax.random.key(3), jax.random.PRNGKey(3)
    draws = quick_jit(lambda prior, *keys: [prior.sample(key, (4,)) for key in keys])(prior, *keys)
    np.testing.assert_array_equal(*draws)


# NumPyro distribution, SciPy counterpart, domain. Weibull and StudentT have a cdf only: tails are found by bisection.
# A reference with a kink is integrated to full precision where the kink is a knot, as that of Laplace is here.
OTHERS = {
    "exponential": (dist.Exponential(1.5), scipy.stats.expon(scale=1 / 1.5), (0.0, 2.0)),
    "laplace": (dist.Laplace(0.0, 1.2), scipy.stats.laplace(0.0, 1.2), DOMAIN),
    "logistic": (dist.Logistic(0.5, 0.7), scipy.stats.logistic(0.5, 0.7), DOMAIN),
    "gumbel": (dist.Gumbel(0.5, 0.7), scipy.stats.gumbel_r(0.5, 0.7), DOMAIN),
    "half-normal": (dist.HalfNormal(1.3), scipy.stats.halfnorm(scale=1.3), (0.2, 2.0)),
    "weibull": (dist.Weibull(1.2, 1.8), scipy.stats.weibull_min(1.8, scale=1.2), (0.1, 2.0)),
    "decreasing transform": (
        dist.TransformedDistribution(dist.Normal(0.5, 1.0), dist.transforms.AffineTransform(1.0, -2.0)),
        scipy.stats.norm(0.0, 2.0),
        DOMAIN,
    ),
}
TAILS = np.geomspace(1e-9, 1e-2, 30)
U = np.concatenate([np.linspace(0, 1, 301), TAILS, 1 - TAILS])


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.slow
def test_other_references_are_drawn_exactly(x64, name):
    reference, scipy_reference, domain = OTHERS[name]
    energy = random_energy(BSpline(6, 3, domain), (4,), 1.0, dtype=np.float64)
    z = np.asarray(quick_jit(KAPrior(energy, reference).icdf)(jnp.asarray(U)[:, None]))
    assert np.all(z[0] == scipy_reference.ppf(0.0)) and np.all(z[300] == scipy_reference.ppf(1.0))
    u, z = np.delete(U, [0, 300]), np.delete(z, [0, 300], axis=0)
    assert np.all(np.isfinite(z))
    for j in range(4):
        density = ReferenceDensity(jax.tree.map(lambda leaf, j=j: leaf[j : j + 1], energy), scipy_reference)
        assert np.all(density.u_error(u, z[:, j]) <= 1e-10)


@jax.jit
def quantiles_and_back(prior, u):
    z = prior.icdf(u)
    return z, prior.cdf(z), prior.log_prob(z)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    std=st.floats(0.0, 5.0),
    u=st.lists(st.floats(2.0**-24, 1 - 2.0**-24, width=32), min_size=16, max_size=16),
)
def test_quantiles_increase_and_invert_the_cdf(seed, std, u):
    energy = random_energy(RBF(num_centers=6, domain=DOMAIN), (3,), std, seed)
    prior = KAPrior(energy, NORMAL)
    u = np.sort(np.array(u, np.float32))[:, None] + np.zeros(3, np.float32)
    z, again, log_prob = (np.asarray(result) for result in quantiles_and_back(prior, u))
    assert np.all(np.diff(z, axis=0) >= 0)
    # Both functions are off by up to 1e-6, and z is a rounded number.
    assert np.all(np.abs(again - u) <= 2e-6 + np.exp(log_prob) * np.spacing(np.abs(z)))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["normal", "uniform"])
def test_huge_energies_give_finite_draws_and_densities(case):
    """Energies of size 1e3 and 1e4 make densities of one narrow peak; nothing in them is NaN."""
    (reference, _), domain = CASES[case]
    std = np.array([1e3, 1e3, 1e3, 1e4])
    prior = KAPrior(random_energy(BSpline(20, 3, domain), (4,), std), reference)

    @quick_jit
    def results(prior):
        z = prior.sample(jax.random.key(0), (5000,))
        u = prior.cdf(z)
        gradient = jax.grad(lambda p: p.log_prob(z).sum() + p.sample(jax.random.key(0), (500,)).sum())(prior)
        return z, prior.log_prob(z), u, prior.mean, prior.variance, gradient

    z, log_prob, u, mean, variance, gradient = results(prior)
    assert np.all(np.isfinite(z)) and np.all(reference.support(z))
    assert np.all(np.isfinite(log_prob))
    assert np.all((u >= 0) & (u <= 1))
    assert np.all(np.isfinite(mean)) and np.all(variance >= 0)
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_zero_energy_is_the_reference(prior, grid):
    zero = KAPrior(jax.tree.map(jnp.zeros_like, prior.energy), NORMAL)
    log_prob, u, _ = functions(zero, grid)
    exact = scipy.stats.norm(0.3, 1.2)
    np.testing.assert_allclose(log_prob, exact.logpdf(grid), atol=2e-6)
    np.testing.assert_allclose(u, exact.cdf(grid), atol=1e-6)


def test_adding_a_constant_to_the_energy_changes_nothing(prior, grid):
    """The splines sum to one, so a constant added to all coefficients is a constant added to the energy."""
    coefficients = prior.energy.coefficients + 7.0 / prior.energy.spline_weight[:, None]
    shifted = KAPrior(eqx.tree_at(lambda energy: energy.coefficients, prior.energy, coefficients), NORMAL)
    for result, expected in zip(functions(shifted, grid), functions(prior, grid), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-6)
    log_normalizers = quick_jit(lambda *priors: [p.log_normalizer for p in priors])(shifted, prior)
    np.testing.assert_allclose(np.subtract(*log_normalizers), 7.0, atol=5e-6)


def test_vmapped_draws_share_the_tables(prior):
    """Of many single draws under vmap none builds tables of its own: memory by draw is that of draws in one call."""
    keys = jax.random.split(jax.random.key(0), 1000)
    singly = quick_jit(jax.vmap(prior.sample)).lower(keys).compile().memory_analysis()
    together = quick_jit(lambda key: prior.sample(key, (1000,))).lower(keys[0]).compile().memory_analysis()
    assert singly.temp_size_in_bytes < 4 * together.temp_size_in_bytes + 10**5
