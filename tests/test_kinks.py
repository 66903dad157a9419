"""References whose density has a kink: quadrature panels end there, wherever it lies, and if only a program knows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from prior_cases import BASES, element, make_basis, quick_jit, random_energy
from reference_density import ReferenceDensity
from speed import slow_unless

from numpyro_kaem import BSpline, KAMixture, KAPrior, UnivariateEnergy
from numpyro_kaem._densities.cut_panels import CutPanels
from numpyro_kaem._densities.panels import Panels
from numpyro_kaem._densities.reference import kinks
from numpyro_kaem._numerics.quadrature import GaussLegendre

# NumPyro distribution of arrays, SciPy counterpart, the parameters as float32 numbers, domain.
KINKED = {
    "inside a cell": (dist.Laplace, scipy.stats.laplace, (0.137, 1.2), (-3.0, 3.0)),
    "far from zero": (dist.Laplace, scipy.stats.laplace, (100.031, 1.0), (97.0, 103.0)),
    "in a tail": (dist.Laplace, scipy.stats.laplace, (8.0, 1.0), (-3.0, 3.0)),
    "at a knot": (dist.Laplace, scipy.stats.laplace, (0.3, 1.0), (-3.0, 3.0)),
    "asymmetric": (
        dist.AsymmetricLaplace,
        lambda loc, scale, asymmetry: scipy.stats.laplace_asymmetric(asymmetry, loc, scale),
        (0.125, 1.0, 2.0),
        (-3.0, 3.0),
    ),
}
FAST = {("inside a cell", "mixture", np.float32), ("asymmetric", "univariate", np.float64)}
# Every kink in both forms and both dtypes, though not in all four combinations.
EVERY = [
    (name, form, dtype)
    for name, dtypes in zip(KINKED, itertools.cycle([(np.float64, np.float32), (np.float32, np.float64)]), strict=False)
    for form, dtype in zip(("univariate", "mixture"), dtypes, strict=True)
]


def probabilities(dtype):
    tails = np.geomspace(1e-6 if dtype == np.float32 else 1e-12, 0.1, 60).astype(dtype)
    return np.concatenate([np.linspace(0, 1, 1001).astype(dtype)[1:-1], tails, 1 - tails])


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    slow_unless(FAST, EVERY),
)
def test_quantiles_densities_and_moments_with_a_kink(request, name, form, dtype):
    """The bounds of every other reference, for energies of standard deviation 5; parameters are traced."""
    request.getfixturevalue("x64")
    family, scipy_family, numbers, domain = KINKED[name]
    numbers = np.array(numbers, np.float32).astype(float)
    batch_shape, logits = ((4, 3), np.array([0.3, -0.4, 0.1])) if form == "mixture" else ((4,), np.zeros(1))
    energy = random_energy(BASES["b-spline"](domain), batch_shape, 5.0, dtype=dtype)
    u = probabilities(dtype)

    @quick_jit
    def evaluate(numbers, u):
        prior = KAPrior(energy, family(*numbers))
        prior = KAMixture(prior, jnp.asarray(logits, dtype)) if form == "mixture" else prior
        z = prior.icdf(jnp.broadcast_to(u[:, None], (len(u), 4)))
        return z, prior.log_prob(z), prior.cdf(z), prior.mean

    z, log_prob, again, mean = (
        np.asarray(x) for x in evaluate([jnp.asarray(x, dtype) for x in numbers], jnp.asarray(u))
    )
    assert z.dtype == dtype
    distance = np.minimum(u.astype(float), 1 - u.astype(float))
    bound, relative = (1e-6, 1e-3) if dtype == np.float32 else (1e-10, 1e-6)
    kink = numbers[0]
    for i in range(4):
        components = element(energy, i) if form == "mixture" else element(energy, slice(i, i + 1))
        density = ReferenceDensity(components, scipy_family(*numbers), logits, kinks=[kink])
        rounding = np.exp(density.log_prob(z[:, i])) * np.spacing(np.abs(z[:, i]))
        error = density.u_error(u, z[:, i])
        assert np.all(error <= bound + rounding)
        assert np.all(error <= relative * distance + rounding + 1e-14)
        np.testing.assert_allclose(
            log_prob[:, i], density.log_prob(z[:, i]), atol=5e-5 if dtype == np.float32 else 1e-11
        )
        assert np.all(np.abs(again[:, i] - density.probabilities(z[:, i])[0]) <= 1e-6 + rounding)
        cuts = np.unique(np.concatenate([np.linspace(kink - 45.0, kink + 45.0, 40_001), np.linspace(*domain, 40_001)]))
        expected = np.trapezoid(cuts * np.exp(density.log_prob(cuts)), cuts)
        np.testing.assert_allclose(mean[i], expected, rtol=1e-5, atol=1e-5)


def test_kinks_of_transformed_truncated_and_mixed_references():
    laplace = dist.Laplace(jnp.array([0.5, 1.0]), 1.0)
    affine = dist.transforms.AffineTransform(1.0, -2.0)
    cases = [
        (laplace, [[0.5], [1.0]]),
        (dist.TransformedDistribution(laplace, [affine, dist.transforms.ExpTransform()]), np.exp([[0.0], [-1.0]])),
        (dist.LeftTruncatedDistribution(laplace, -1.0), [[0.5], [1.0]]),
        (dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(2)), laplace), [0.5, 1.0]),
        (dist.AsymmetricLaplaceQuantile(0.3, 1.0, 0.4), [0.3]),
    ]
    for reference, expected in cases:
        np.testing.assert_allclose(kinks(reference), expected, rtol=1e-6)
    assert kinks(dist.Normal(0.0, 1.0)) is None


def polynomial(z):
    return 1.0 + z - 2.0 * z**3 + z**5


@pytest.mark.parametrize("basis", ["b-spline", "spline domains", "fourier"])
def test_panels_that_are_cut_still_integrate(x64, basis):
    """Kinks that repeat, share a panel, lie on an edge or outside of the domain: pieces have a width, and add up."""
    rule, basis = GaussLegendre(6, 2), make_basis(basis, (-1.0, 1.0), (3,))
    panels = Panels.lay_out(rule, basis, -np.inf, np.inf, 1e-16)

    @quick_jit
    def pieces(points):
        cut = CutPanels.at(points, panels, basis, jnp.float64)
        # A polynomial at the pieces' nodes from those of the panels.
        refined = cut.refine(polynomial(jnp.asarray(sum(panels.nodes(basis, rule, np.float64)))), rule)
        return cut.edges(basis), cut.sizes(basis), sum(cut.nodes(basis, rule, jnp.float64)), refined

    for points in ([0.5, 0.5, -7.0], [0.3, 0.31, 0.3], [0.1, 0.4, 5.0]):
        check_pieces(points, len(panels.cells), rule, *(np.asarray(part) for part in pieces(np.array(points))))


def check_pieces(points, num_panels, rule, edges, sizes, nodes, refined):
    assert edges.shape[-1] == num_panels + len(points) + 1
    assert np.all(np.diff(edges) > 0)
    np.testing.assert_allclose(np.diff(edges), sizes, rtol=1e-9)
    inside = [point for point in points if np.all((point > edges[..., :1]) & (point < edges[..., -1:]))]
    for point in inside:
        np.testing.assert_allclose(np.min(np.abs(edges - point), -1), 0.0, atol=1e-14)
    np.testing.assert_allclose(refined, polynomial(nodes), atol=1e-12)
    # The integral of |z - point| times it.
    integrand = refined * np.abs(nodes - points[0])
    found = np.sum(integrand * rule.weights * sizes[..., None], (-2, -1))
    ends = np.broadcast_to(np.stack([edges[..., 0], edges[..., -1]], -1), (*found.shape, 2)).reshape(-1, 2)
    for value, (low, high) in zip(np.ravel(found), ends, strict=True):
        expected, _ = scipy.integrate.quad(
            lambda z: polynomial(z) * abs(z - points[0]),
            low,
            high,
            points=[points[0]] if low < points[0] < high else None,
        )
        np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.slow
def test_gradients_of_a_learned_kink_are_those_of_finite_differences(x64):
    energy = random_energy(BSpline(8, 3, (-3.0, 3.0)), (), 1.0, dtype=np.float64)

    def outputs(loc):
        prior = KAPrior(energy, dist.Laplace(loc, 0.8))
        values = prior.log_prob(0.3), prior.icdf(0.4), prior.cdf(1.1), prior.mean, prior.log_normalizer
        return jnp.stack(values), jnp.stack(values)

    slopes_and_values, step = quick_jit(jax.jacfwd(outputs, has_aux=True)), 1e-5
    for loc in (0.137, 0.75, 8.0):  # in a panel, at a knot, in a tail
        found, _ = slopes_and_values(loc)
        (_, above), (_, below) = slopes_and_values(loc + step), slopes_and_values(loc - step)
        expected = (np.asarray(above) - np.asarray(below)) / (2 * step)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_different_locations_for_each_component_and_each_coordinate(x64):
    """A mixture whose components have their kinks elsewhere is the weighted sum of these components."""
    locs = np.array([[0.137, -1.31], [0.45, 0.4501]])
    energy, logits = random_energy(BSpline(20, 3, (-3.0, 3.0)), (2, 2), 3.0, dtype=np.float64), np.array([0.4, -0.2])
    energy_alone = UnivariateEnergy(*jax.tree.leaves(element(energy, 1, 0))[:3], energy.basis, energy.base_activation)
    z, u = np.linspace(-5.0, 5.0, 201)[:, None], np.linspace(0.01, 0.99, 99)[:, None]

    @quick_jit
    def results(energy, energy_alone, locs, z, u):
        components = KAPrior(energy, dist.Laplace(locs, 1.0))
        mixture = KAMixture(components, jnp.asarray(logits))
        alone = KAPrior(energy_alone, dist.Laplace(locs[1, 0], 1.0))
        log_normalizers = components.log_normalizer[1, 0], alone.log_normalizer
        return components.cdf(z[..., None]), mixture.cdf(z), mixture.cdf(mixture.icdf(u)), log_normalizers

    parts, cdf, u_again, log_normalizers = results(energy, energy_alone, locs, z, u)
    np.testing.assert_allclose(cdf, np.asarray(parts) @ scipy.special.softmax(logits), atol=1e-12)
    np.testing.assert_allclose(u_again, u + np.zeros(2), atol=1e-10)
    np.testing.assert_allclose(*log_normalizers, rtol=1e-12)
