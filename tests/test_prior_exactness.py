"""The distribution that is drawn is the one that is written: against a float64 quadrature of the same parameters.

The yardstick of inverse-transform sampling is the u-error |F(icdf(u)) - u|. The quantile z is itself a rounded number,
which costs p(z) ulp(z) whatever the method. Energies have standard deviations of 0.1, 1 and 5 nats in every test but
those that say otherwise.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from prior_cases import (
    BASES,
    BATCHED_BASES,
    CASES,
    each,
    element,
    make_basis,
    make_case,
    quick_jit,
    random_energy,
)
from reference_density import ReferenceDensity, breakpoints, energy_values
from speed import slow_unless

from numpyro_kaem import KAMixture, KAPrior, Trapezoid

FORMS = {"univariate": None, "mixture": 3}  # number of components
EVERY_BASIS = [*BASES, *BATCHED_BASES]
HARDEST_CASES = ("log-normal", "shifted normal")
# What is run by default; the other rows are marked as slow.
FLOAT32 = {
    ("normal", "b-spline", "univariate"),
    ("normal, small tails", "b-spline", "univariate"),
    ("normal, big tails", "b-spline", "univariate"),
    ("uniform", "rbf", "mixture"),
    ("log-normal", "degree 0", "univariate"),
    ("log-normal", "chebyshev", "univariate"),
    ("shifted normal", "knots", "mixture"),
}
FLOAT64 = {("log-normal, big tails", "b-spline", "univariate")}
# Optimised code has a rounding of its own, where bounds are a few roundings wide, but takes long to compile.
# A series of high degree adds many terms: in code that is not optimised its mass is off by more.
OPTIMISED = {
    ("normal", "b-spline", "univariate"),
    ("log-normal", "chebyshev domains", "univariate"),
    ("log-normal", "morlet", "univariate"),
}


# Their mixtures are those of other bases, of both sizes of tails, or have their bulk in a tail.
REPEATED = {("normal", "rbf"), ("shifted normal", "rbf"), ("normal, big tails", "rbf"), ("uniform, big tails", "rbf")}


def rows(quick, forms, bases=EVERY_BASIS[:2], others=EVERY_BASIS[2:]):
    """Every reference with some bases, others with one of the hardest references, the forms in turn.

    Rows that are not in `quick` take their time elsewhere.
    """
    pairs = (
        itertools.product(CASES, bases),
        zip(itertools.cycle(HARDEST_CASES), others, strict=False),
    )
    every = zip(itertools.chain(*pairs), itertools.cycle(forms), strict=False)
    every = [(*pair, form) for pair, form in every if pair not in REPEATED]
    return pytest.mark.parametrize(("case", "basis", "form"), slow_unless(quick, every))


def probabilities(dtype, smallest):
    """A grid over (0, 1) and both tails down to `smallest`, exact in the dtype."""
    tails = np.geomspace(smallest, 0.1, 60).astype(dtype)
    return np.concatenate([np.linspace(0, 1, 1001).astype(dtype)[1:-1], tails, 1 - tails])


def quantiles_and_densities(prior, u, points):
    return prior.icdf(u), prior.log_prob(points)


def with_moments(prior, u, points):
    prior = prior.tabulate()  # once for all
    return *quantiles_and_densities(prior, u, points), (prior.mean, prior.variance, prior.entropy())


# Programs for all the numbers of a dtype, of one distribution each.
plain, quick, quick_with_moments = (
    jax.jit(quantiles_and_densities),
    quick_jit(quantiles_and_densities),
    quick_jit(with_moments),
)


def check_quantiles_and_mass(case, basis, form, dtype, program, smallest, bound, relative, mass_bound):
    """The u-error against bounds and what rounding z costs, the integral of the density against one.

    Returns:
        What else the program computes, and the reference densities.
    """
    prior, densities = make_case(case, basis, dtype, FORMS[form])
    u = probabilities(dtype, smallest)[:, None, None]
    u = np.broadcast_to(u, (len(u), *prior.batch_shape))
    points, weights = each(densities, "integration_rule", dtype)
    z, log_prob, *rest = program(prior, u, points)
    z = np.asarray(z)
    assert z.dtype == dtype and np.all(np.isfinite(z)) and np.all(prior.support(z))
    # The larger density of z and its neighbours: that of a spline of degree 0 jumps at the knots.
    nearby = [z, np.nextafter(z, dtype(-np.inf)), np.nextafter(z, dtype(np.inf))]
    rounding = np.exp(np.max([each(densities, "log_prob", point) for point in nearby], axis=0))
    rounding *= np.spacing(np.abs(z))
    distance = np.minimum(u.astype(np.float64), 1 - u.astype(np.float64))
    error = each(densities, "u_error", u, z)
    assert np.all(error <= bound + (rounding if dtype == np.float32 else 0.0))
    assert np.all(error <= relative * distance + rounding)
    # Over the whole support.
    mass = np.sum(weights * np.exp(np.asarray(log_prob, np.float64)), axis=0)
    assert np.all(np.abs(mass - 1.0) < mass_bound)
    return *rest, densities


def bounds_of_float32(case, basis, form):
    """Masses are held to theirs for two bases with every reference, for the others with a log-normal one."""
    has_mass_bound = basis in EVERY_BASIS[:2] or (case, form) == ("log-normal", "univariate")
    return {"smallest": 1e-6, "bound": 1e-6, "relative": 1e-3, "mass_bound": 1e-6 if has_mass_bound else np.inf}


@rows(FLOAT32, ["univariate", "mixture"])
def test_quantiles_are_exact_and_the_density_integrates_to_one_in_float32(request, case, basis, form):
    names = case, basis, form
    is_optimised = names in OPTIMISED or (basis == "b-spline" and names not in FLOAT32)
    if is_optimised:
        request.getfixturevalue("optimised")
    program = plain if is_optimised else quick
    check_quantiles_and_mass(*names, np.float32, program, **bounds_of_float32(*names))


# Cells that are crossed in one go, cells of uneven width, and those of a smooth function.
ROUGH_BASES = ["degree 1", "b-spline", "knots", "fourier", "morlet"]


@pytest.mark.parametrize("basis", slow_unless(["degree 1"], ROUGH_BASES))
def test_quantiles_of_rough_energies_in_float32(basis):
    """Of standard deviation 10, where the bound of smoother ones holds, and of 20."""
    prior, densities = make_case("normal", basis, np.float32, stds=(10.0, 20.0), repeats=4, seed=2)
    u = probabilities(np.float32, 1e-6)[::4, None, None]
    u = np.broadcast_to(u, (len(u), *prior.batch_shape))
    z = np.asarray(quick(prior, u, np.zeros(prior.batch_shape, np.float32))[0])
    nearby = [z, np.nextafter(z, np.float32(-np.inf)), np.nextafter(z, np.float32(np.inf))]
    rounding = np.exp(np.max([each(densities, "log_prob", point) for point in nearby], axis=0)) * np.spacing(np.abs(z))
    excess = each(densities, "u_error", u, z) - rounding
    assert np.all(excess[:, 0] <= 1e-6)
    assert np.all(excess[:, 1] <= 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "basis", "form"), sorted(FLOAT32 - OPTIMISED)[::2])
def test_optimised_code_is_as_exact(optimised, case, basis, form):
    check_quantiles_and_mass(case, basis, form, np.float32, plain, **bounds_of_float32(case, basis, form))


@rows(FLOAT64, ["univariate", "mixture"], EVERY_BASIS[:1], EVERY_BASIS[3::4])
def test_quantiles_densities_and_moments_are_exact_in_float64(x64, case, basis, form):
    found, densities = check_quantiles_and_mass(
        case, basis, form, np.float64, quick_with_moments, 1e-12, bound=1e-10, relative=1e-6, mass_bound=1e-12
    )
    # Tails end where 2^-100 of their mass is left.
    for value, truth in zip(found, each(densities, "moments"), strict=True):
        np.testing.assert_allclose(value, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("form", "dtype"),
    slow_unless([("mixture", np.float64)], itertools.product(FORMS, [np.float32, np.float64])),
)
def test_quantiles_and_means_where_the_bulk_of_the_reference_lies_in_a_tail(x64, form, dtype):
    """A learned location may leave the domain: the tail then begins many standard deviations from the mode."""
    locs = np.array([-8.0, 0.0, 5.0, 7.0, 12.0], dtype)[:, None]
    if form == "mixture":  # of references that differ, whose tails are found by bisection
        locs = locs + np.array([0.0, 0.7], dtype)
    energy = random_energy(BASES["b-spline"]((-3.0, 3.0)), locs.shape, 1.0, dtype=dtype)
    prior = KAPrior(energy, dist.Normal(jnp.asarray(locs), jnp.asarray(1.0, dtype)))
    prior = KAMixture(prior, jnp.zeros(2, dtype)) if form == "mixture" else prior
    u = probabilities(dtype, 1e-6 if dtype == np.float32 else 1e-12)
    columns = jnp.asarray(u).reshape(-1, *[1] * len(prior.batch_shape))
    z, mean = quick_jit(lambda p: (p.icdf(columns), p.mean))(prior)
    z, mean = np.asarray(z).reshape(len(u), len(locs)), np.asarray(mean).reshape(len(locs))
    distance = np.minimum(u.astype(np.float64), 1 - u.astype(np.float64))
    bound, relative = (1e-6, 1e-3) if dtype == np.float32 else (1e-10, 1e-6)
    for i, loc in enumerate(locs.astype(np.float64)):
        density = ReferenceDensity(element(energy, i), scipy.stats.norm(loc, 1.0), np.zeros(len(loc)))
        error, rounding = density.u_error(u, z[:, i]), np.exp(density.log_prob(z[:, i])) * np.spacing(np.abs(z[:, i]))
        assert np.all(error <= bound + rounding)
        # The reference density has 1 - F(z) to full precision beyond the domain, but not F(z).
        assert np.all(error <= relative * distance + rounding + 1e-14)
        points = np.linspace(-20.0, 25.0, 100_001)
        expected = np.trapezoid(points * np.exp(density.log_prob(points)), points)
        np.testing.assert_allclose(mean[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "form"), [("normal", "univariate"), ("log-normal, big tails", "mixture")])
def test_two_million_draws_follow_the_cdf(case, form):
    prior, densities = make_case(case, "b-spline", np.float32, FORMS[form], repeats=1)
    num_draws, step = 2_000_000, 50
    z = np.asarray(jax.jit(lambda p: p.sample(jax.random.key(0), (num_draws,)))(prior))
    assert np.all(np.isfinite(z)) and np.all(prior.support(z))
    # Kolmogorov and Smirnov's statistic at every 50th of the ordered draws: at most 2.5e-5 below the full one.
    ordered, rank = np.sort(z, axis=0)[::step], np.arange(0, num_draws, step)[:, None, None]
    below, _ = each(densities, "probabilities", ordered)
    statistic = np.maximum(below - rank / num_draws, (rank + 1) / num_draws - below).max()
    # 1.9e-3, which good draws exceed with a probability of 3e-7: 1e-7 for each of the three standard deviations.
    assert statistic < scipy.stats.kstwo.isf(1e-7, num_draws)


ROUGH = {("normal", "b-spline"), ("log-normal", "morlet")}
ALSO_ROUGH = set(zip(itertools.cycle(["normal", "log-normal"]), EVERY_BASIS[1::6], strict=False)) - ROUGH


@pytest.mark.parametrize(
    ("case", "basis"),
    [*sorted(ROUGH), *(pytest.param(*names, marks=pytest.mark.slow) for names in sorted(ALSO_ROUGH))],
)
def test_densities_draws_and_gradients_of_rough_energies_are_finite(case, basis):
    """Energies of standard deviation 10, 30 and 100: the ratio of two densities may be the exponential of 500."""
    prior, _ = make_case(case, basis, np.float32, stds=(10.0, 30.0, 100.0), repeats=2)
    u = jnp.asarray(probabilities(np.float32, 1e-6)[::20, None, None])
    inexact, rest = eqx.partition(prior, eqx.is_inexact_array)

    def draws_and_density(parameters, u):
        prior = eqx.combine(parameters, rest)
        z = prior.icdf(jnp.broadcast_to(u, (len(u), *prior.batch_shape)))
        return z, prior.log_prob(jax.lax.stop_gradient(z))

    @quick_jit
    def everything(parameters, u):
        def mean_log_prob(parameters):
            z, log_prob = draws_and_density(parameters, u)
            return jnp.mean(log_prob), (z, log_prob)

        to_parameters, (z, log_prob) = jax.grad(mean_log_prob, has_aux=True)(parameters)
        at = lambda z: jnp.sum(prior.log_prob(z))  # noqa: E731
        return z, log_prob, jax.grad(at)(z), to_parameters, prior.log_normalizer

    found = everything(inexact, u)
    z = np.asarray(found[0])
    assert np.all(prior.support(z)) and np.all(np.diff(np.sort(z, axis=0), axis=0) >= 0)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))


def test_the_error_of_the_trapezoid_rule_falls_with_the_square_of_a_panel_s_width(x64):
    (reference, scipy_reference), domain = CASES["normal"]
    energy = random_energy(BASES["b-spline"](domain), (1,), 1.0, dtype=np.float64)
    density = ReferenceDensity(energy, scipy_reference)
    u = np.linspace(0.0, 1.0, 201)[1:-1]
    errors = []
    for panels in (16, 64):
        prior = KAPrior(energy, reference, quadrature=Trapezoid(panels))
        log_normalizer, z = quick_jit(lambda p: (p.log_normalizer[0], p.icdf(jnp.asarray(u))))(prior)
        errors.append([abs(log_normalizer - density.log_normalizer[0]), density.u_error(u, np.asarray(z)).max()])
    np.testing.assert_allclose(np.log(errors[0]) - np.log(errors[1]), 2.0 * np.log(4.0), rtol=0.02)


def test_quantiles_in_the_tails_do_not_depend_on_the_rule_of_the_body(x64):
    energy = random_energy(BASES["b-spline"](CASES["normal"][1]), (1,), 5.0, dtype=np.float64)
    prior = KAPrior(energy, CASES["normal"][0][0], quadrature=Trapezoid(4))
    share = np.geomspace(1e-4, 0.99, 50)

    @quick_jit
    def tails(prior, share):
        prior = prior.tabulate()  # once for all
        # In the tails the CDF is a multiple of the reference's.
        below, above = prior.cdf(-3.0), 1.0 - prior.cdf(3.0)
        z = prior.icdf(jnp.stack([below * share, 1.0 - above * share])[..., None])
        return below, above, prior.cdf(z)[..., 0]

    below, above, (lower, upper) = jax.tree.map(np.asarray, tails(prior, share))
    np.testing.assert_allclose(lower, below * share, rtol=1e-6)
    np.testing.assert_allclose(1.0 - upper, above * share, rtol=1e-6)


@pytest.mark.parametrize("basis", slow_unless(["b-spline", "chebyshev"], EVERY_BASIS[::6]))
def test_the_yardstick_agrees_with_adaptive_quadrature(basis):
    """SciPy's general-purpose integrator, and panels of half the width, give the same numbers as the reference."""
    energy = random_energy(make_basis(basis, (-0.5, 0.7), (1,)), (2,), 2.0, dtype=np.float32)
    normal, logits = scipy.stats.norm([0.0, 0.3], [1.0, 0.8]), np.array([0.3, -0.4])
    density = ReferenceDensity(energy, normal, logits)

    def unnormalised(z, component):
        return normal.pdf(z)[component] * np.exp(energy_values(energy, z)[component])

    def integral(low, high, component):
        cuts = np.unique([low, *np.clip(breakpoints(energy.basis).ravel(), low, high), high])
        parts = [
            scipy.integrate.quad(unnormalised, a, b, args=(component,), epsabs=0, epsrel=1e-11)[0]
            for a, b in itertools.pairwise(cuts)
        ]
        return sum(parts)

    totals = [integral(-np.inf, np.inf, component) for component in range(2)]
    np.testing.assert_allclose(np.log(totals), density.log_normalizer, atol=1e-9)
    proportions = np.exp(logits) / np.exp(logits).sum()
    finer = ReferenceDensity(energy, normal, logits, panels=80)
    for z in (-2.0, -0.3, 0.123, 0.7, 1.5):
        below = sum(p * integral(-np.inf, z, k) / totals[k] for k, p in enumerate(proportions))
        np.testing.assert_allclose(density.probabilities(z), [below, 1 - below], rtol=1e-8)
        np.testing.assert_allclose(density.probabilities(z), finer.probabilities(z), rtol=1e-13)
