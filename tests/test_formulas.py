"""Formulas of priors: the family that made a density is found, and what is said of it is true as printed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from numpyro.infer.util import log_density

from numpyro_kaem import (
    KAEM,
    KAN,
    RBF,
    BSpline,
    Chebyshev,
    ClusterPrior,
    Fourier,
    KAMixture,
    KAPrior,
    UnivariateEnergy,
    formula,
)
from numpyro_kaem.distributions import SideBySide
from numpyro_kaem.reading.printed_numbers import proportions, significant, to_place_of

LINE = {
    "Normal": scipy.stats.norm(1.0, 0.7),
    "Laplace": scipy.stats.laplace(-1.0, 0.8),
    "StudentT": scipy.stats.t(3.0, 0.5, 0.6),
    "Logistic": scipy.stats.logistic(0.4, 0.5),
}
HALF_LINE = {
    "LogNormal": scipy.stats.lognorm(0.6, scale=math.exp(0.3)),
    "Gamma": scipy.stats.gamma(3.0, scale=0.5),
    "Weibull": scipy.stats.weibull_min(2.5, scale=1.7),
    "Exponential": scipy.stats.expon(scale=0.8),
}
PARAMETERS = {
    "Normal": {"loc": 1.0, "scale": 0.7},
    "Laplace": {"loc": -1.0, "scale": 0.8},
    "StudentT": {"df": 3.0, "loc": 0.5, "scale": 0.6},
    "Logistic": {"loc": 0.4, "scale": 0.5},
    "LogNormal": {"loc": 0.3, "scale": 0.6},
    "Gamma": {"concentration": 3.0, "rate": 2.0},
    "Weibull": {"scale": 1.7, "concentration": 2.5},
    "Exponential": {"rate": 1.25},
}


def two_lumps(z):
    return np.logaddexp(
        math.log(0.3) + scipy.stats.norm(-2.0, 0.5).logpdf(z), math.log(0.7) + scipy.stats.norm(1.0, 0.8).logpdf(z)
    )


def columns(functions):
    return lambda z: np.stack([function(column) for function, column in zip(functions, z.T, strict=True)], axis=-1)


def flat_energy(basis, shape=()):
    return UnivariateEnergy.init(jax.random.key(0), shape, basis=basis, scale=0.0)


@pytest.fixture(scope="module")
def line():
    functions = [*(of.logpdf for of in LINE.values()), two_lumps]
    basis, reference = BSpline(140, 3, (-14.0, 14.0)), dist.Normal(0.0, 4.0)
    return KAPrior.from_log_density(
        columns(functions), basis.domain, reference=reference, basis=basis, batch_shape=(5,)
    )


@pytest.fixture(scope="module")
def line_formula(line):
    return formula(line)


@pytest.fixture(scope="module")
def half_line_formula():
    functions = [of.logpdf for of in HALF_LINE.values()]
    domain = (1e-3, 12.0)
    prior = KAPrior.from_log_density(
        columns(functions),
        domain,
        reference=dist.Exponential(1.0),
        basis=BSpline(120, 3, domain),
        batch_shape=(4,),
    )
    return formula(prior.to_event(1))


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_the_family_that_made_a_density_is_the_pick(name, line_formula, half_line_formula):
    of, families = (line_formula, LINE) if name in LINE else (half_line_formula, HALF_LINE)
    pick = of.coordinates[list(families).index(name)].pick
    assert pick.name == name
    for parameter, value in PARAMETERS[name].items():
        assert pick.parameters[parameter] == pytest.approx(
            value, abs=0.04 * abs(value) + (0.2 if parameter == "df" else 0.0)
        )


def test_two_lumps_are_a_mixture_of_two_normals(line_formula):
    pick = line_formula.coordinates[4].pick
    assert pick.name == "2 Normals"
    np.testing.assert_allclose(pick.parameters["weights"], [0.3, 0.7], atol=0.01)
    np.testing.assert_allclose(pick.parameters["loc"], [-2.0, 1.0], atol=0.03)
    np.testing.assert_allclose(pick.parameters["scale"], [0.5, 0.8], atol=0.03)


def test_nats_and_total_variation_are_those_of_the_printed_numbers(line, line_formula):
    z = np.linspace(-60.0, 60.0, 240_001)
    names = ["Normal", "StudentT", "2 Normals", "exact energy (143 terms)"]
    log_p = np.asarray(line.log_prob(jnp.asarray(z)[:, None]), np.float64)[:, 4]
    mass = np.exp(log_p) * (z[1] - z[0])
    for name in names:
        candidate = line_formula.coordinates[4][name]
        log_q = np.asarray(candidate.description.distribution().log_prob(jnp.asarray(z)), np.float64)
        nats = np.sum(mass * (log_p - log_q))
        total_variation = 0.5 * np.sum(np.abs(np.exp(log_p) - np.exp(log_q))) * (z[1] - z[0])
        assert candidate.nats == pytest.approx(nats, rel=0.01, abs=2e-4), name
        assert candidate.total_variation == pytest.approx(total_variation, rel=0.01, abs=2e-4), name


def test_the_pick_is_the_simplest_within_the_tolerance_and_the_exact_one_loses_nothing(line_formula, half_line_formula):
    for of in (*line_formula.coordinates, *half_line_formula.coordinates):
        assert all(0.0 <= c.total_variation <= 1.0 and c.nats >= 0.0 for c in of)
        within = [c.complexity for c in of if c.total_variation <= 0.01]
        assert of.pick.complexity == min(within)
        # By Pinsker's inequality.
        assert all(c.total_variation <= math.sqrt(0.5 * c.nats) + 1e-4 for c in of)
        assert of.candidates[-1].name.startswith("exact energy")
        assert of.candidates[-1].total_variation < 4e-3


def test_a_formula_is_a_distribution_of_the_prior_s_shape(line, line_formula, half_line_formula):
    prior = line_formula.to_numpyro()
    assert (prior.batch_shape, prior.event_shape) == ((5,), ())
    z = line.sample(jax.random.key(0), (500,))
    np.testing.assert_allclose(prior.log_prob(z).mean(0), line.log_prob(z).mean(0), atol=0.02)
    draws = prior.sample(jax.random.key(1), (4_000,))
    u = np.asarray(line.cdf(draws))
    # The statistic of Kolmogorov and Smirnov exceeds this once in a million times; 0.01 of it is the tolerance.
    assert np.max(np.abs(np.sort(u, axis=0) - (np.arange(4_000) / 4_000)[:, None])) < 0.01 + 2.7 / math.sqrt(4_000)

    joint = half_line_formula.to_numpyro()
    assert (joint.batch_shape, joint.event_shape) == ((), (4,))
    assert np.all(joint.sample(jax.random.key(2), (100,)) > 0.0)

    def model():
        numpyro.sample("z", joint)

    z = jnp.array([0.5, 1.0, 1.5, 2.0])
    assert log_density(model, (), {}, {"z": z})[0] == pytest.approx(float(joint.log_prob(z)))


def test_a_formula_is_the_prior_of_a_kaem(half_line_formula):
    kaem = KAEM(half_line_formula.to_numpyro(), KAN(jax.random.key(0), 4, 6), "bernoulli", shape=(6,))
    assert kaem.sample(jax.random.key(1), 3).shape == (3, 6)


@pytest.mark.slow
def test_coordinates_of_one_family_are_one_distribution_of_numpyro():
    normals = KAPrior(flat_energy(BSpline(8, 3, (-2.0, 2.0)), (3,)), dist.Normal(jnp.array([0.0, 1.0, 2.0]), 1.5))
    prior = formula(normals).to_numpyro()
    assert type(prior) is dist.Normal
    np.testing.assert_allclose(prior.loc, [0.0, 1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(prior.scale, 1.5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "basis", [BSpline(12, 3, (-3.0, 3.0)), RBF(10, (-3.0, 3.0)), Fourier(6, (-4.0, 4.0)), Chebyshev(9, (-3.0, 3.0))]
)
def test_few_terms_are_found_and_are_what_is_printed(basis):
    sympy = pytest.importorskip("sympy")
    coefficients = jnp.zeros(basis.num_basis).at[jnp.array([4, 7])].set(jnp.array([1.5, -2.0]))
    energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), coefficients, basis)
    prior = KAPrior(energy, dist.Normal(0.0, 1.0))
    found = formula(prior, tolerance=1e-3)
    pick = found.coordinates[0].pick
    assert pick.name == "energy of 2 terms"
    assert pick.parameters["coefficients"] == pytest.approx({"B4": 1.5, "B7": -2.0}, abs=0.01)
    z = np.linspace(-3.5, 3.5, 41)
    np.testing.assert_allclose(found.to_numpyro().log_prob(jnp.asarray(z)), prior.log_prob(jnp.asarray(z)), atol=0.01)
    density = sympy.lambdify(sympy.Symbol("z", real=True), found.to_sympy()[0], "numpy")
    np.testing.assert_allclose(np.log(density(z)), found.to_numpyro().log_prob(jnp.asarray(z)), atol=2e-5)


def test_sympy_s_densities_integrate_to_one_and_are_those_of_numpyro(line_formula, half_line_formula):
    sympy = pytest.importorskip("sympy")
    symbol = sympy.Symbol("z", real=True)
    z = np.linspace(-8.0, 12.0, 57)
    for of in (line_formula, half_line_formula):
        logs = np.asarray(of.to_numpyro().log_prob(jnp.asarray(z)[:, None])) if of is line_formula else None
        for k, density in enumerate(of.to_sympy()):
            evaluate = sympy.lambdify(symbol, density, ["scipy", "numpy"])
            low, middle = (-np.inf, -1.004) if of is line_formula else (0.0, 1.0)  # where the Laplace has its kink
            halves = [scipy.integrate.quad(evaluate, *ends, limit=200)[0] for ends in ((low, middle), (middle, np.inf))]
            assert sum(halves) == pytest.approx(1.0, abs=1e-6)
            if logs is not None:
                np.testing.assert_allclose(np.log(evaluate(z)), logs[:, k], rtol=1e-5, atol=1e-5)
    assert line_formula.to_latex().count("&=") == 5
    assert "p(z_{4})" in line_formula._repr_latex_()


def test_a_density_on_an_interval_has_candidates_of_that_support():
    sympy = pytest.importorskip("sympy")
    prior = KAPrior.from_log_density(
        columns([scipy.stats.beta(2.0, 3.5, -1.0, 3.0).logpdf, lambda z: -0.5 * ((z - 0.5) / 0.6) ** 2, np.zeros_like]),
        (-1.0, 2.0),
        batch_shape=(3,),
    )
    found = formula(prior)
    picks = [of.pick for of in found.coordinates]
    assert [pick.name for pick in picks] == ["Beta", "TruncatedNormal", "Uniform"]
    assert picks[0].parameters == pytest.approx({"concentration1": 2.0, "concentration0": 3.5}, rel=0.03)
    assert picks[0].expression.endswith(" of (z + 1) / 3")
    z = np.linspace(-0.97, 1.97, 31)
    logs = found.to_numpyro().log_prob(jnp.asarray(z)[:, None])
    for k, density in enumerate(found.to_sympy()):
        evaluate = np.vectorize(sympy.lambdify(sympy.Symbol("z", real=True), density, "numpy"))
        np.testing.assert_allclose(np.log(evaluate(z)), logs[:, k], rtol=1e-4, atol=1e-5)
        assert evaluate(2.5) == 0.0
    assert np.all(np.asarray(found.to_numpyro().support(jnp.array([-2.0, 0.0, 2.5]))) == [False, True, False])


def test_what_no_candidate_reaches_is_refused(line):
    refused = formula(line, tolerance=1e-5, digits=1, coordinates=[4])
    assert refused.coordinates[0].pick is None
    with pytest.raises(ValueError, match=r"no formula of z\[4\] is within a total variation of 1e-05: the nearest"):
        refused.to_sympy()
    assert "allow a greater tolerance or more digits" in str(refused)
    assert refused._repr_latex_() is None


@pytest.mark.slow
def test_a_mixture_of_tilted_references_is_itself_no_formula():
    energy = UnivariateEnergy.init(jax.random.key(3), (2, 3), basis=BSpline(8, 3, (-3.0, 3.0)), scale=2.0)
    mixture = KAMixture(KAPrior(energy, dist.Normal(0.0, 1.0)), jnp.zeros(3)).to_event(1)
    found = formula(mixture, tolerance=1e-6)
    assert all(of.candidates[-1].name == "KAMixture" and of.pick is None for of in found.coordinates)
    with pytest.raises(ValueError, match="keep the learned prior"):
        found.to_numpyro()


@pytest.mark.slow
def test_a_component_of_clusters_is_read_as_its_own_prior():
    clusters = ClusterPrior(jax.random.key(0), num_clusters=3, latent_size=2)
    found = formula(clusters, component=1, digits=4)
    prior = found.to_numpyro()
    assert prior.event_shape == (2,)
    z = clusters().component_distribution.sample(jax.random.key(1), (400,))[:, 1]
    learned = clusters().component_distribution.log_prob(z[:, None])[:, 1]
    assert abs(float(jnp.mean(prior.log_prob(z) - learned))) < 0.01
    with pytest.raises(ValueError, match="component=0 to 2"):
        formula(clusters)


def test_rounding_keeps_what_parameters_must_be():
    assert to_place_of(100.0123, 0.5, 3) == 100.012
    assert to_place_of(-0.0004, 1.0, 3) == 0.0
    assert to_place_of(1234.0, 456.0, 1) == 1200.0
    assert significant(4e-9, 1) == 4e-9
    rng = np.random.default_rng(0)
    for digits in (1, 2, 3):
        for weights in rng.dirichlet([0.3, 0.3, 0.3, 0.3], 200):
            rounded = proportions(weights, digits)
            assert min(rounded) > 0.0 and math.fsum(rounded) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
def test_few_digits_of_a_narrow_density_far_from_zero_do_no_harm():
    prior = KAPrior(flat_energy(BSpline(8, 3, (99.6, 100.4))), dist.Normal(100.0123, 0.1))
    pick = formula(prior, digits=2).coordinates[0].pick
    assert pick.expression == "Normal(100.01, 0.1)"
    assert pick.total_variation < 0.012


def test_quantiles_of_families_side_by_side_invert_their_cdf():
    parts = (dist.StudentT(3.0, 1.0, 2.0), dist.Gamma(2.0, 1.0), dist.Gamma(5.0, 1.0), dist.Normal(0.0, 1.0))
    prior = SideBySide(parts, (2, 2))
    u = jnp.array([0.001, 0.3, 0.9])[:, None, None] * jnp.ones((2, 2))
    slope, z = jax.jit(jax.grad(lambda u: (prior.icdf(u).sum(), prior.icdf(u)), has_aux=True))(u)
    truth = [scipy.stats.t(3.0, 1.0, 2.0), scipy.stats.gamma(2.0), scipy.stats.gamma(5.0), scipy.stats.norm()]
    for k, of in enumerate(truth):
        quantiles = np.asarray(z)[:, k // 2, k % 2]
        np.testing.assert_allclose(of.cdf(quantiles), [0.001, 0.3, 0.9], rtol=2e-5)
        np.testing.assert_allclose(slope[:, k // 2, k % 2], 1.0 / of.pdf(quantiles), rtol=1e-3)
    with pytest.raises(ValueError, match="one univariate distribution"):
        SideBySide(parts, (3,))


NORMAL = dist.Normal(jnp.zeros(2), 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance must be a positive number"),
        ({"tolerance": 1.5}, ValueError, "between 0 and 1"),
        ({"digits": 0}, ValueError, "digits must be a whole number of at least 1"),
        ({"digits": 9}, ValueError, "digits must be at most 8"),
        ({"coordinates": [2]}, ValueError, "coordinate must be one of the 2"),
        ({"coordinates": []}, ValueError, "coordinates must be at least one"),
        ({"component": 1}, ValueError, "component is for a mixture"),
        ({"inputs": (0.0, 1.0)}, ValueError, "inputs are those of a KAN"),
        ({"prior": 3}, TypeError, "prior must be a NumPyro distribution"),
        ({"prior": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))}, ValueError, "product of univariate"),
        (
            {"prior": dist.Normal(jnp.array([0.0, jnp.nan]), 1.0, validate_args=False)},
            ValueError,
            r"integrates to one, but that of z\[1\]",
        ),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        formula(arguments.pop("prior", NORMAL), **arguments)


def test_some_coordinates_are_no_distribution_of_a_latent():
    found = formula(NORMAL, coordinates="z[1]")
    assert [of.name for of in found.coordinates] == ["z[1]"]
    assert found.coordinates[0]["Normal"].expression == "Normal(0, 1)"
    with pytest.raises(ValueError, match="coordinates must be all 2 of a latent"):
        found.to_numpyro()


def test_the_table_says_which_is_the_pick(line_formula):
    frame = line_formula.to_pandas()
    assert list(frame[frame.picked].coordinate) == [f"z[{k}]" for k in range(5)]
    assert str(line_formula).count("->") == 5
