"""kl_divergence of learned densities, against quadrature by NumPy and SciPy, and its place in NumPyro's registry."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.distributions import kl_divergence
from numpyro.infer import SVI, TraceMeanField_ELBO
from prior_cases import CASES, quick_jit, random_energy
from reference_density import ReferenceDensity
from two_bumps import bimodal_energy

from numpyro_kaem import BSpline, KAMixture, KAPrior

NORMAL = dist.Normal(0.0, 1.0)


def prior_of(case, batch_shape=(), std=1.0, seed=0, dtype=np.float32):
    (reference, _), domain = CASES[case]
    return KAPrior(random_energy(BSpline(6, 3, domain), batch_shape, std, seed, dtype), reference)


def density_of(prior, case, index=(), logits=(0.0,)):
    energy = jax.tree.map(lambda leaf: leaf[index], prior.energy)
    if len(logits) == 1:
        energy = jax.tree.map(lambda leaf: leaf[None], energy)
    return ReferenceDensity(energy, CASES[case][0][1], logits)


def expectation(density, function):
    """E[function(z)] in float64: panels on the body, and in each tail panels in the logarithm of its probability."""
    low, high = density.energy.basis.domain
    nodes, node_weights = np.polynomial.legendre.leggauss(400)
    points, weights = density.integration_rule(np.float64)
    points, weights = points[:-20], weights[:-20]
    total = np.sum(weights * np.exp(density.log_prob(points)) * function(points))
    u, u_weights = np.exp(20 * (nodes - 1)), 20 * node_weights * np.exp(20 * (nodes - 1))  # shares from exp(-40) to 1
    reference = density.reference
    for tail, z in (
        (density.lower_tail, reference.ppf(u * reference.cdf(low))),
        (density.upper_tail, reference.isf(u * reference.sf(high))),
    ):
        if tail > 0:
            total += tail * np.sum(u_weights * function(z))
    return total


@pytest.mark.parametrize(
    "case",
    [
        "normal, big tails",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("uniform", "log-normal")),
    ],
)
def test_divergences_are_those_of_an_independent_quadrature(case):
    """From another prior of the same reference, from the reference, and from another distribution of its support."""
    p, q = prior_of(case, (3,)), prior_of(case, (3,), seed=5)
    scipy_reference = CASES[case][0][1]
    wider, scipy_wider = {
        "log-normal": (dist.LogNormal(0.4, 1.5), scipy.stats.lognorm(1.5, scale=np.exp(0.4))),
        "uniform": (dist.Uniform(-2.0, 2.5), scipy.stats.uniform(-2.0, 4.5)),
    }.get(case, (dist.Laplace(0.3, 1.4), scipy.stats.laplace(0.3, 1.4)))
    ours = quick_jit(lambda p, q: [kl_divergence(p, other) for other in (q, p.reference, wider)])(p, q)
    for index in range(3):
        density, other = density_of(p, case, index), density_of(q, case, index)
        for value, log_prob in zip(ours, (other.log_prob, scipy_reference.logpdf, scipy_wider.logpdf), strict=True):
            expected = expectation(density, lambda z, f=log_prob, d=density: d.log_prob(z) - f(z))
            # A Laplace density has a kink inside a panel.
            np.testing.assert_allclose(value[index], expected, rtol=1e-4, atol=2e-5)
    assert np.all(np.array(ours) > 0)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_a_normal_s_divergence_from_a_learned_density_is_that_of_quadrature(x64, dtype):
    """Of one much narrower than a panel, of one much wider than the domain, and far away, with finite gradients."""
    q = prior_of("normal", dtype=dtype)
    loc, scale = (np.array(part, dtype) for part in ([0.3, 1.0, 0.0, 30.0, -2.9], [0.7, 1e-3, 50.0, 0.5, 0.2]))

    @quick_jit
    def evaluate(loc, scale, q):
        total = lambda loc, scale, q: jnp.sum(kl_divergence(dist.Normal(loc, scale), q))  # noqa: E731
        return kl_divergence(dist.Normal(loc, scale), q), jax.grad(total, argnums=(0, 1, 2))(loc, scale, q)

    values, gradients = evaluate(loc, scale, q)
    density = density_of(q, "normal")
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for index, (m, s) in enumerate(zip(loc.astype(float), scale.astype(float), strict=True)):
        edges = np.unique(np.concatenate([m + s * np.linspace(-12, 12, 121), np.linspace(-3.0, 3.0, 121)]))
        z = 0.5 * (edges[1:] + edges[:-1])[:, None] + 0.5 * np.diff(edges)[:, None] * nodes
        mass = scipy.stats.norm(m, s).pdf(z) * 0.5 * np.diff(edges)[:, None] * weights
        expected = np.sum(mass * (scipy.stats.norm(m, s).logpdf(z) - density.log_prob(z.ravel()).reshape(z.shape)))
        np.testing.assert_allclose(values[index], expected, rtol=2e-5 if dtype == np.float32 else 1e-8, atol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_divergences_of_mixtures():
    logits = jnp.array([0.7, -0.4])
    p = KAMixture(prior_of("normal", (2,)), logits)
    q = prior_of("normal", seed=3)
    forward, backward = quick_jit(lambda p, q: (kl_divergence(p, q), kl_divergence(q, p)))(p, q)
    one, other = density_of(p.components, "normal", (), np.asarray(logits)), density_of(q, "normal")
    for value, p, q in ((forward, one, other), (backward, other, one)):
        expected = expectation(p, lambda z, p=p, q=q: p.log_prob(z) - q.log_prob(z))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_the_divergence_from_oneself_is_zero():
    """From the same density, and from the same written as a mixture of equal components."""
    prior = prior_of("normal")
    twice = KAPrior(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), prior.energy), NORMAL)
    mixture = KAMixture(twice, jnp.array([0.3, 1.0]))
    values = quick_jit(lambda p, q: (kl_divergence(p, q), kl_divergence(p, p)))(mixture, prior)
    np.testing.assert_allclose(values, 0.0, atol=1e-6)


@pytest.mark.slow
def test_a_tail_beyond_the_other_s_support_is_infinitely_far_away():
    inside = prior_of("uniform")  # on [-1, 2]
    wide, positive = dist.Uniform(-20.0, 20.0), dist.LogNormal(0.0, 1.0)
    ends = dist.Uniform(jnp.array([-1.5, -0.9, -1.0]), jnp.array([3.0, 3.0, 2.0]))

    @quick_jit
    def results(p):
        infinite = [kl_divergence(p, q) for q in (wide, positive, inside)]
        return infinite, kl_divergence(inside, p), kl_divergence(inside, ends)

    infinite, finite, values = results(prior_of("normal", (2,)))
    assert np.all(np.isinf(infinite)) and np.all(np.isfinite(finite))
    np.testing.assert_array_equal(np.isinf(values), [False, True, False])  # element by element


@pytest.mark.slow
def test_gradients_stay_finite_beside_an_infinite_divergence():
    """Also where the other density's formula is NaN outside of its support, as a log-normal's is."""
    p = prior_of("uniform", (2,))

    def loss(p, high, loc):
        values = jnp.stack([kl_divergence(p, q) for q in (dist.Uniform(-1.0, high), dist.LogNormal(loc, 1.0))])
        return jnp.sum(jnp.where(jnp.isinf(values), 0.0, values)), values

    gradients, values = quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(p, jnp.array([2.5, 1.5]), 0.3)
    np.testing.assert_array_equal(np.isinf(values), [[False, True], [True, True]])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(gradients[1][0], 1 / 3.5, rtol=1e-5)  # of log(high + 1)


@pytest.mark.slow
@pytest.mark.parametrize("against", ["prior", "mixture", "reference"])
def test_gradients_agree_with_central_differences(x64, against):
    """In every parameter of both distributions, those of the references included, whose tails move."""
    parameters = {
        "p": jax.tree.map(lambda leaf: leaf.astype(jnp.float64), prior_of("normal", std=1.5).energy),
        "loc": jnp.asarray(0.3),
        "q": jax.tree.map(lambda leaf: leaf.astype(jnp.float64), prior_of("normal", (2,), seed=4).energy),
        "scale": jnp.asarray(1.4),
        "logits": jnp.array([0.2, -0.5]),
    }

    def divergence(parameters):
        p = KAPrior(parameters["p"], dist.Normal(parameters["loc"], 1.0))
        q = KAPrior(parameters["q"], dist.Normal(0.0, parameters["scale"]))
        if against == "mixture":
            return kl_divergence(p, KAMixture(q, parameters["logits"]))
        return kl_divergence(p, q if against == "prior" else q.reference).sum()

    rng, step = np.random.default_rng(1), 1e-4
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), parameters)

    @quick_jit
    def value_and_slope(shift):
        shifted = jax.tree.map(lambda leaf, change: leaf + shift * change, parameters, direction)
        return jax.jvp(divergence, (shifted,), (direction,))

    (_, slope), (higher, _), (lower, _) = (value_and_slope(shift) for shift in (0.0, step, -step))
    np.testing.assert_allclose(slope, (np.asarray(higher) - lower) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_batches_broadcast():
    """Of two distributions with different batch shapes, the divergence of every pair."""
    p, q = prior_of("normal", (3, 1)), prior_of("normal", (4,), seed=2)
    wide = dist.Normal(jnp.linspace(-1.0, 1.0, 2)[:, None, None], jnp.array([1.0, 2.0, 3.0, 4.0]))
    pairs, many, expanded, scalar = quick_jit(
        lambda p, q: (
            kl_divergence(p, q),
            kl_divergence(p, wide),
            kl_divergence(p.expand((2, 3, 4)), NORMAL),
            kl_divergence(prior_of("normal"), wide),
        )
    )(p, q)
    assert (pairs.shape, many.shape, expanded.shape, scalar.shape) == ((3, 4), (2, 3, 4), (2, 3, 4), (2, 1, 4))
    np.testing.assert_array_equal(expanded, np.broadcast_to(expanded[:1, :, :1], (2, 3, 4)))
    one = quick_jit(lambda p, q, loc, scale: (kl_divergence(p, q), kl_divergence(p, dist.Normal(loc, scale))))
    for i, j in [(0, 0), (2, 1), (1, 3)]:
        pi, qj = (jax.tree.map(lambda leaf, k=k: leaf[k], d.energy) for d, k in ((p, (i, 0)), (q, j)))
        expected = one(KAPrior(pi, NORMAL), KAPrior(qj, NORMAL), wide.loc[1, 0, 0], wide.scale[0, 0, j])
        np.testing.assert_allclose((pairs[i, j], many[1, i, j]), expected, rtol=1e-5)


@pytest.mark.slow
def test_joint_distributions_add_up_through_numpyro_s_own_rule():
    p, q = prior_of("normal", (2, 3)), prior_of("normal", (2, 3), seed=2)
    batch, expanded, single = quick_jit(
        lambda p, q: (
            kl_divergence(p.to_event(1), q.to_event(1)),
            kl_divergence(p.to_event(1), NORMAL.expand([2, 3]).to_event(1)),
            (kl_divergence(p, q), kl_divergence(p, NORMAL)),
        )
    )(p, q)
    np.testing.assert_allclose(batch, single[0].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(expanded, single[1].sum(-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        (dist.Bernoulli(0.5), ValueError, "q must be a univariate continuous distribution, as the KAPrior p is"),
        (NORMAL.expand([2]).to_event(1), ValueError, r"got Independent of event shape \(2,\)"),
        (NORMAL.mask(jnp.array(True)), NotImplementedError, "the divergence from a MaskedDistribution"),
    ],
)
def test_what_has_no_divergence_is_an_error(q, error, message):
    with pytest.raises(error, match=message):
        kl_divergence(prior_of("normal", (3,)), q)


@pytest.mark.slow
def test_numpyro_s_mean_field_objective_uses_it():
    """With the guide's site a KAPrior, the loss has no sampling noise: it is the divergence itself."""
    prior = KAPrior(bimodal_energy(), NORMAL)
    svi = SVI(
        lambda: numpyro.sample("z", prior),
        lambda: numpyro.sample("z", KAPrior(prior_of("normal").energy, NORMAL)),
        numpyro.optim.Adam(1e-3),
        TraceMeanField_ELBO(),
    )
    losses = [svi.evaluate(svi.init(jax.random.key(seed))) for seed in (0, 1)]
    np.testing.assert_allclose(losses, float(kl_divergence(prior_of("normal"), prior)), rtol=1e-5)
