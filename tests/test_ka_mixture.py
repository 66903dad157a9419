"""KAMixture is the mixture of its components, drawn through one quantile function."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from prior_cases import quick_jit, random_energy
from reference_density import ReferenceDensity

from numpyro_kaem import BSpline, KAMixture, KAPrior

SPLINE = BSpline(num_intervals=6, degree=3, domain=(-2.0, 2.0))
NORMAL = dist.Normal(0.3, 1.2)
LOGITS = np.array([0.5, -1.0, 0.2], np.float32)
GRID = np.linspace(-4.0, 4.0, 15, dtype=np.float32)


def make(batch_shape=(2,), logits=LOGITS, reference=NORMAL, **options):
    components = KAPrior(random_energy(SPLINE, (*batch_shape, 3), 1.0, **options), reference)
    return KAMixture(components, jnp.asarray(logits, components.energy.coefficients.dtype))


def compute(mixture, points):
    mixture = mixture.tabulate()  # once for all
    u = mixture.cdf(points)
    return mixture.log_prob(points), u, mixture.icdf(u), mixture.mean, mixture.variance


compiled = quick_jit(compute)


def functions(mixture, points):
    return [np.asarray(result) for result in compiled(mixture, points)]


def test_density_cdf_and_moments_are_weighted_sums_over_the_components():
    mixture = make()
    log_prob, cdf, _, mean, variance = functions(mixture, GRID[:, None])
    parts = functions(mixture.components, GRID[:, None, None])
    proportions = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(mixture.probs, proportions, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_prob), np.exp(parts[0]) @ proportions, rtol=5e-6)
    np.testing.assert_allclose(cdf, parts[1] @ proportions, atol=2e-6)
    np.testing.assert_allclose(mean, parts[3] @ proportions, atol=5e-6)
    # the law of total variance
    expected = (parts[4] + parts[3] ** 2) @ proportions - (parts[3] @ proportions) ** 2
    np.testing.assert_allclose(variance, expected, rtol=2e-5)


@pytest.mark.slow
def test_components_may_have_references_of_their_own(x64):
    """Their tails differ, so those of the mixture are found by bisection, to the same precision."""
    loc, scale = np.array([-0.7, 0.2, 1.0]), np.array([0.6, 1.0, 1.7])
    mixture = make(reference=dist.Normal(jnp.asarray(loc), jnp.asarray(scale)), dtype=np.float64)
    assert mixture.batch_shape == (2,)
    tails = np.geomspace(1e-12, 1e-2, 30)
    u = np.concatenate([np.linspace(0, 1, 301)[1:-1], tails, 1 - tails])
    z = np.asarray(quick_jit(mixture.icdf)(jnp.asarray(u)[:, None]))
    for j in range(2):
        energy = jax.tree.map(lambda leaf, j=j: leaf[j], mixture.components.energy)
        density = ReferenceDensity(energy, scipy.stats.norm(loc, scale), LOGITS)
        error, distance = density.u_error(u, z[:, j]), np.minimum(u, 1 - u)
        rounding = np.exp(density.log_prob(z[:, j])) * np.spacing(np.abs(z[:, j]))
        assert np.all(error <= 1e-10)
        assert np.all(error <= 1e-6 * distance + rounding)
    np.testing.assert_array_equal(quick_jit(mixture.icdf)(jnp.array([[0.0], [1.0]])), [[-np.inf] * 2, [np.inf] * 2])


@pytest.mark.slow
def test_batches_of_references_and_of_components_broadcast():
    """References that differ along the batch, and are shared by the components of each element."""
    mixture = make((1,), reference=dist.Normal(jnp.array([[-1.0], [1.0]]), 1.0))
    assert mixture.batch_shape == (2,)
    energy = jax.tree.map(lambda leaf: leaf[0], mixture.components.energy)
    results = functions(mixture, GRID[:, None])
    for i, loc in enumerate((-1.0, 1.0)):
        alone = KAMixture(KAPrior(energy, dist.Normal(loc, 1.0)), mixture.logits)
        for result, expected in zip(results, functions(alone, GRID), strict=False):
            np.testing.assert_allclose(result[..., i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reference", ["shared", "of their own"])
def test_the_dtype_is_the_components_where_float64_is_enabled(x64, reference):
    loc = 0.3 if reference == "shared" else jnp.array([-0.7, 0.2, 1.0], jnp.float32)
    mixture = make(reference=dist.Normal(loc, jnp.float32(1.2)))
    results = jax.eval_shape(compute, mixture, np.zeros((4, 2), np.float32))
    assert {result.dtype for result in results} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 1, 3)])
def test_logits_broadcast_against_the_components(shape):
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mixture = make(logits=logits)
    batch_shape = np.broadcast_shapes(shape[:-1], (2,))
    assert mixture.batch_shape == batch_shape
    for result in jax.tree.leaves(jax.eval_shape(compute, mixture, np.zeros(batch_shape, np.float32))):
        assert result.shape == batch_shape
    if len(shape) == 3:
        alone = make(logits=logits[1])
        log_prob, alone = quick_jit(lambda *mixtures: [m.log_prob(jnp.zeros(())) for m in mixtures])(mixture, alone)
        np.testing.assert_allclose(log_prob[1], alone, rtol=1e-5)


@pytest.mark.slow
def test_a_mixture_of_one_component_is_that_component():
    energy = random_energy(SPLINE, (2, 1), 1.0)
    mixture = KAMixture(KAPrior(energy, NORMAL), jnp.array([3.0]))
    alone = KAPrior(jax.tree.map(lambda leaf: leaf[:, 0], energy), NORMAL)
    for result, expected in zip(functions(mixture, GRID[:, None]), functions(alone, GRID[:, None]), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_constant_added_to_the_logits_changes_nothing():
    shifted, mixture = functions(make(logits=LOGITS + 50), GRID[:, None]), functions(make(), GRID[:, None])
    for result, expected in zip(shifted, mixture, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


def test_a_component_whose_proportion_underflows_drops_out():
    mixture = make(logits=np.array([0.5, -200.0, 0.2]))
    results = functions(mixture, GRID[:, None])
    assert all(np.all(np.isfinite(result)) for result in results)
    for j in range(2):
        energy = jax.tree.map(lambda leaf, j=j: leaf[j, np.array([0, 2])], mixture.components.energy)
        density = ReferenceDensity(energy, scipy.stats.norm(0.3, 1.2), np.float32([0.5, 0.2]))
        np.testing.assert_allclose(results[0][:, j], density.log_prob(GRID), atol=1e-5)
        np.testing.assert_allclose(results[1][:, j], density.probabilities(GRID)[0], atol=1e-6)


def test_pytree_expansion_and_vmap_keep_the_distribution():
    mixture = make()
    expected = functions(mixture, GRID[:, None])
    leaves, structure = jax.tree.flatten(mixture)
    assert len(leaves) == 6  # logits, loc and scale, two weights and the coefficients
    again = jax.tree.unflatten(structure, leaves)
    expanded = mixture.expand((3, 2))
    assert type(again) is type(expanded) is KAMixture
    assert (again.batch_shape, expanded.batch_shape, expanded.to_event(2).event_shape) == ((2,), (3, 2), (3, 2))
    for result, one in zip(functions(again, GRID[:, None]), expected, strict=False):
        np.testing.assert_array_equal(result, one)
    results = functions(expanded, GRID[:, None, None])
    for result, one in zip(results, expected, strict=False):
        one = one if one.ndim == 1 else one[:, None]
        np.testing.assert_allclose(result, np.broadcast_to(one, result.shape), rtol=1e-5, atol=1e-5)
    many, z = np.stack([LOGITS, LOGITS[::-1]]), jnp.asarray(GRID[:, None])
    draws, mapped = quick_jit(
        lambda many: (
            expanded.sample(jax.random.key(0)),
            jax.vmap(lambda logits: KAMixture(mixture.components, logits).log_prob(z))(many),
        )
    )(many)
    assert draws.shape == (3, 2) and len(np.unique(draws)) == 6
    np.testing.assert_allclose(mapped[0], expected[0], rtol=1e-5, atol=1e-5)


def test_plates_expand_mixtures_and_joint_mixtures():
    mixture = make()

    def model():
        with numpyro.plate("data", 5):
            numpyro.sample("z", mixture.to_event(1))

    @quick_jit
    def results(key):
        with numpyro.handlers.seed(rng_seed=key):
            site = numpyro.handlers.trace(model).get_trace()["z"]
        return site["value"], site["fn"].log_prob(site["value"]), mixture.log_prob(site["value"]).sum(-1)

    z, joint, summed = results(jax.random.key(0))
    assert z.shape == (5, 2) and len(np.unique(z)) == 10
    np.testing.assert_allclose(joint, summed, rtol=1e-5)


@quick_jit
def quantiles_and_back(mixture, u):
    z = mixture.icdf(u)
    return z, mixture.cdf(z), mixture.log_prob(z)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    std=st.floats(0.0, 5.0),
    logits=st.lists(st.floats(-20.0, 20.0, width=32), min_size=3, max_size=3),
    u=st.lists(st.floats(2.0**-24, 1 - 2.0**-24, width=32), min_size=16, max_size=16),
)
def test_quantiles_increase_and_invert_the_cdf(seed, std, logits, u):
    mixture = KAMixture(KAPrior(random_energy(SPLINE, (2, 3), std, seed), NORMAL), jnp.array(logits, jnp.float32))
    u = np.sort(np.array(u, np.float32))[:, None] + np.zeros(2, np.float32)
    z, again, log_prob = (np.asarray(result) for result in quantiles_and_back(mixture, u))
    assert np.all(np.diff(z, axis=0) >= 0)
    # Both functions are off by up to 1e-6, and z is a rounded number.
    assert np.all(np.abs(again - u) <= 2e-6 + np.exp(log_prob) * np.spacing(np.abs(z)))
