"""Learned densities of mean zero, and of variance one, against float64 quadrature of the prior they are made of."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import biject_to, kl_divergence
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer import MCMC, NUTS
from prior_cases import each, make_case, quick_jit, random_energy
from speed import slow_unless

from numpyro_kaem import BSpline, ICDFReparam, ImportanceMLE, KAMixture, KAPrior, UnivariateEnergy, centered_prior, fit

BASIS = BSpline(6, 3, (-3.0, 3.0))
NORMAL = dist.Normal(0.0, 1.0)
NUM_DRAWS = 4_000


def small(batch_shape=(), reference=NORMAL, basis=BASIS, dtype=np.float32, seed=0):
    return KAPrior(random_energy(basis, batch_shape, 1.0, seed, dtype), reference)


def over_batch(densities, method, points):
    """A method of every reference density, at points of shape (num_points, *batch)."""
    return each(densities, method, np.asarray(points, np.float64))


@quick_jit
def everything(prior, z, location, scale, key):
    """Of the centred prior at the images of points z of the prior, and moments and draws."""
    centred = centered_prior(prior, unit_variance=True)
    x = (z - location) / scale
    draws = centred.sample(key, (NUM_DRAWS,))
    log_prob = centred.log_prob(x)
    return log_prob, centred.cdf(x), centred.icdf(jnp.full(prior.batch_shape, 0.3)), draws, centred.log_prob(draws)


@pytest.mark.parametrize(
    ("case", "basis", "num_components"),
    slow_unless(
        [("log-normal", "b-spline", None)],
        [
            ("log-normal", "b-spline", None),
            ("log-normal", "b-spline", 2),
            ("normal", "rbf", None),
            ("uniform", "fourier", None),
            ("normal, big tails", "chebyshev", None),
            ("log-normal, big tails", "knots each", None),
        ],
    ),
)
def test_density_probabilities_and_draws_are_those_of_the_affine_image(case, basis, num_components):
    """Everything in float32, mean and standard deviation of the truth by quadrature in float64."""
    prior, densities = make_case(case, basis, np.float32, num_components, stds=(0.1, 1.0), repeats=2)
    mean, variance, entropy = each(densities, "moments")
    scale = np.sqrt(variance)
    rules = [[density.integration_rule(np.float64) for density in row] for row in densities]
    z, weights = (np.stack([np.stack([rule[k] for rule in row], -1) for row in rules], -2) for k in (0, 1))
    log_prob, cdf, quantile, draws, log_prob_of_draws = everything(
        prior, jnp.asarray(z, jnp.float32), *(jnp.asarray(part, jnp.float32) for part in (mean, scale)),
        jax.random.key(0),
    )  # fmt: skip
    # The whole mass of the density in x. That its mean is zero and its variance one follows from mean and scale.
    mass, x = weights / scale * np.exp(np.asarray(log_prob, np.float64)), (z - mean) / scale
    np.testing.assert_allclose(mass.sum(0), 1.0, atol=2e-5)
    in_bulk = (np.abs(x) < 3.0) & (weights > 0)  # points without weight are at the ends of the support
    expected = over_batch(densities, "log_prob", z) + np.log(scale)
    np.testing.assert_allclose(log_prob[in_bulk], expected[in_bulk], atol=3e-4)
    below, _ = over_batch(densities, "probabilities", z)
    np.testing.assert_allclose(cdf, below, atol=2e-5)
    np.testing.assert_allclose(
        over_batch(densities, "probabilities", (mean + scale * quantile)[None])[0][0], 0.3, atol=2e-5
    )
    # Kolmogorov's distance of n draws exceeds sqrt(log(2 / p) / 2n) with probability p at most; four of 2.5e-7.
    assert np.all(np.isfinite(log_prob_of_draws))
    ordered = np.sort(np.asarray(draws, np.float64), axis=0)
    below, _ = over_batch(densities, "probabilities", mean + scale * ordered)
    rank = np.arange(NUM_DRAWS)[:, None, None] / NUM_DRAWS
    distance = np.maximum(below - rank, rank + 1 / NUM_DRAWS - below).max(0)
    assert np.all(distance < np.sqrt(np.log(2 / 2.5e-7) / (2 * NUM_DRAWS)))
    centred = centered_prior(prior, unit_variance=True)
    np.testing.assert_allclose(centred.entropy(), entropy - np.log(scale), atol=1e-4)
    assert np.all(centred.mean == 0.0) and np.all(centred.variance == 1.0)
    np.testing.assert_allclose(centered_prior(prior).variance, variance, rtol=2e-5)


def test_derivatives_pass_through_the_moments(x64):
    """In the energy and in the location of the reference, of densities, quantiles and the variance, in float64."""
    rng, step = np.random.default_rng(0), 1e-5
    parameters = random_energy(BASIS, (), 1.0, dtype=np.float64).coefficients, jnp.array(0.3)
    direction = jnp.asarray(rng.normal(size=parameters[0].shape)), jnp.array(0.7)

    def quantities(coefficients, location):
        energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), coefficients, BASIS)
        prior = KAPrior(energy, dist.Normal(location, 1.0))
        standard, centred = centered_prior(prior, unit_variance=True), centered_prior(prior)
        x = jnp.array([-4.0, 0.4, 2.0])
        return jnp.concatenate([standard.log_prob(x), standard.icdf(jnp.array([0.01, 0.7])), centred.variance[None]])

    @quick_jit
    def value_and_slope(shift):
        return jax.jvp(quantities, tuple(p + shift * d for p, d in zip(parameters, direction, strict=True)), direction)

    (_, slope), (higher, _), (lower, _) = (value_and_slope(shift) for shift in (0.0, step, -step))
    np.testing.assert_allclose(slope, (higher - lower) / (2 * step), rtol=1e-6, atol=1e-7)
    assert np.all(np.abs(slope) > 1e-3)


def test_a_prior_that_is_moved_and_stretched_has_the_same_centred_density():
    """The likelihood does not know where an energy has its mean: intercept and scale are what is left of them."""
    coefficients = random_energy(BASIS, (), 1.0).coefficients
    parts = jnp.zeros(()), jnp.ones(()), coefficients
    prior = KAPrior(UnivariateEnergy(*parts, BASIS), NORMAL)
    moved = KAPrior(UnivariateEnergy(*parts, BSpline(6, 3, (-4.0, 8.0))), dist.Normal(2.0, 2.0))
    x = jnp.linspace(-4.0, 4.0, 9)
    expected = centered_prior(prior, unit_variance=True).log_prob(x)
    np.testing.assert_allclose(centered_prior(moved, unit_variance=True).log_prob(x), expected, atol=2e-5)
    # A slope of the energy of a normal reference moves the density, and does nothing else: nothing is left of it.
    wide = BSpline(6, 3, (-9.0, 9.0))
    slope = 0.7 * 3.0 * jnp.arange(wide.num_basis)
    sloped = KAPrior(UnivariateEnergy(*parts[:2], slope, wide), NORMAL)
    np.testing.assert_allclose(sloped.mean, 0.7, atol=1e-5)
    np.testing.assert_allclose(centered_prior(sloped).log_prob(x), NORMAL.log_prob(x), atol=2e-5)


@pytest.mark.parametrize(
    ("reference", "domain"),
    [(dist.Uniform(-1.0, 2.0), (-1.0, 2.0)), (dist.Exponential(1.0), (0.0, 5.0))],
    ids=["two ends", "one end"],
)
def test_the_support_moves_along_and_holds_every_draw(reference, domain):
    prior = small(reference=reference, basis=BSpline(6, 3, domain))
    centred = centered_prior(prior, unit_variance=True)
    low = (domain[0] - prior.mean) / jnp.sqrt(prior.variance)
    np.testing.assert_allclose(centred.support.lower_bound, low, rtol=1e-6)
    # The ends themselves, which rounding may move out of the prior's support, and quantiles next to them.
    ends = [centred.icdf(jnp.array([0.0, 1e-9, 1e-8, 1e-7])), centred.support.lower_bound[None]]
    inside = [*ends, biject_to(centred.support)(jnp.linspace(-3.0, 3.0, 5))]
    outside = [centred.support.lower_bound[None] - 0.1]
    if "upper_bound" in vars(centred.support):
        outside.append(centred.support.upper_bound[None] + 0.1)
        inside.append(centred.support.upper_bound[None])
    num_inside, x = sum(map(len, inside)), jnp.concatenate(inside + outside)
    log_prob, cdf, log_cdf = (getattr(centred, method)(x) for method in ("log_prob", "cdf", "log_cdf"))
    assert np.all(np.isfinite(log_prob[:num_inside])) and np.all(log_prob[num_inside:] == -np.inf)
    assert cdf[num_inside] == 0.0 and log_cdf[num_inside] == -np.inf
    if len(outside) == 2:
        assert cdf[num_inside - 1] == 1.0 == cdf[-1]


def test_batches_events_and_transformations_of_jax_do_as_with_other_distributions():
    priors = [centered_prior(small((3,), seed=seed), unit_variance=True) for seed in range(2)]
    first, x = priors[0], jnp.linspace(-2.0, 2.0, 12).reshape(4, 3)
    expected = jnp.stack([prior.log_prob(x) for prior in priors])
    assert first.batch_shape == (3,) and expected.shape == (2, 4, 3)
    np.testing.assert_allclose(first.to_event(1).log_prob(x), expected[0].sum(-1), rtol=1e-6)
    wide = first.expand((4, 3))
    drawn = jax.eval_shape(lambda key: wide.sample(key, (5,)), jax.random.key(0))
    assert drawn.shape == (5, 4, 3) and wide.mean.shape == wide.variance.shape == (4, 3)
    np.testing.assert_allclose(centered_prior(small((3,)).expand((4, 3)), unit_variance=True).log_prob(x), expected[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *priors)
    mapped = quick_jit(jax.vmap(lambda d: (d.log_prob(x), d.tabulate().log_prob(x))))(stacked)
    np.testing.assert_allclose(mapped, [expected, expected], atol=1e-4)
    promoted = promote_batch_shape(stacked)
    assert promoted.batch_shape == (2, 3)
    np.testing.assert_allclose(promoted.log_prob(x[:, None]), expected.swapaxes(0, 1), atol=1e-4)
    log_prob = quick_jit(lambda d: d.log_prob(x))
    for same in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first), first.tabulate()):
        np.testing.assert_allclose(log_prob(same), expected[0], atol=1e-4)
    scalar = centered_prior(small(), unit_variance=True)
    divergence = kl_divergence(scalar, NORMAL)
    expected = -scalar.entropy() + 0.5 * np.log(2 * np.pi) + 0.5  # mean zero and variance one are those of NORMAL
    np.testing.assert_allclose(divergence, expected, atol=1e-5)


def test_derivatives_with_respect_to_the_centred_prior_itself_know_of_its_moments():
    """It keeps the prior and not its moments, so that parameters that are put into it later are centred as well."""
    first, second = (centered_prior(small(seed=seed)) for seed in range(2))
    swapped = jax.tree.unflatten(jax.tree.structure(first), jax.tree.leaves(second))
    assert swapped.log_prob(0.3) == second.log_prob(0.3)


def hierarchical(group, y, effects, num_groups=20):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("groups", num_groups):
        x = numpyro.sample("effect", effects())
    numpyro.sample("y", dist.Normal(intercept + scale * x[group], 0.5), obs=y)


@pytest.mark.parametrize("reparam", slow_unless([False], [True, False]))
def test_nuts_takes_it_as_the_distribution_of_effects(reparam):
    """Of a reference with bounds, too, whose support depends on the moments; in the coordinates of a normal as well."""
    prior = small(reference=dist.Uniform(-3.0, 3.0))
    model = hierarchical
    if reparam:
        model = numpyro.handlers.reparam(model, config={"effect": ICDFReparam()})
    group = jnp.repeat(jnp.arange(20), 2)
    y = jax.random.normal(jax.random.key(0), (40,))
    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(1), group, y, lambda: centered_prior(prior, unit_variance=True))
    effects = mcmc.get_samples()["effect"]
    assert effects.shape == (5, 20) and np.all(centered_prior(prior, unit_variance=True).support(effects))
    assert np.ptp(effects) > 0.0


@pytest.mark.slow
def test_maximum_likelihood_finds_an_intercept_that_no_energy_moves(optimised):
    """Two groups of effects: the intercept is the mean of the data, the scale their standard deviation."""
    rng = np.random.default_rng(0)
    effects = np.where(rng.random(600) < 0.2, 2.0, -0.5)
    y = jnp.asarray(3.0 + 2.0 * effects + 0.5 * rng.normal(size=600), jnp.float32)

    def model(y):
        intercept = numpyro.param("intercept", 2.0)
        scale = numpyro.param("scale", 1.5, constraint=dist.constraints.positive)
        coefficients = numpyro.param("coefficients", jnp.zeros(BASIS.num_basis))
        numpyro.factor("smoothness", dist.Normal(0.0, 1.0).log_prob(jnp.diff(coefficients, 2)).sum())
        prior = KAPrior(UnivariateEnergy(jnp.zeros(()), jnp.ones(()), coefficients, BASIS), NORMAL)
        with numpyro.plate("data", len(y)):
            x = numpyro.sample("x", centered_prior(prior, unit_variance=True))
            numpyro.sample("y", dist.Normal(intercept + scale * x, 0.5), obs=y)

    params = fit(
        jax.random.key(0), model, y, objective=ImportanceMLE(300), optimizer=optax.adam(0.05), num_epochs=300,
        batch_size=600, progress=False,
    ).params  # fmt: skip
    # The maximum is there but for the smoothness: a tenth of the standard deviation of the data.
    assert abs(params["intercept"] - y.mean()) < 0.2
    assert abs(params["scale"] - jnp.sqrt(y.var() - 0.25)) < 0.2
    assert np.ptp(np.diff(params["coefficients"], 2)) > 0.1


@pytest.mark.slow
def test_where_effects_are_normal_the_intercept_is_where_a_normal_model_has_it(optimised):
    """Normal effects of 40 groups: posterior of the intercept under normal and under learned effects, by NUTS."""
    rng, num_groups = np.random.default_rng(1), 40
    group = np.repeat(np.arange(num_groups), 3)
    y = jnp.asarray(1.0 + rng.normal(size=num_groups)[group] + 0.5 * rng.normal(size=len(group)), jnp.float32)
    bend = jnp.asarray(np.linalg.pinv(np.diff(np.eye(BASIS.num_basis), 2, axis=0)), jnp.float32)

    def learned():
        bends = numpyro.sample("bends", dist.Normal(0.0, 0.5).expand([bend.shape[1]]).to_event(1))
        energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), bend @ bends, BASIS)
        return centered_prior(KAPrior(energy, NORMAL), unit_variance=True)

    draws = {}
    for name, effects in (("normal", lambda: NORMAL), ("learned", learned)):
        # Outside of the plate of the groups.
        def model(group, y, effects=effects):
            distribution = effects()
            hierarchical(group, y, lambda: distribution, num_groups)

        mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=400, progress_bar=False)
        mcmc.run(jax.random.key(2), group, y)
        draws[name] = mcmc.get_samples()
    normal, ours = (draws[name]["intercept"] for name in ("normal", "learned"))
    # The posterior's standard deviation is about 0.17: means of some 100 effective draws each differ by 0.024 or so.
    assert abs(normal.mean() - ours.mean()) < 6 * 0.024
    assert 0.6 < ours.std() / normal.std() < 1.6
    assert 0.6 < draws["learned"]["scale"].mean() / draws["normal"]["scale"].mean() < 1.6


@pytest.mark.parametrize(
    ("reference", "unit_variance", "moment"),
    [
        (dist.Cauchy(0.0, 1.0), False, "mean"),
        (dist.StudentT(1.0), False, "mean"),
        (dist.StudentT(2.0), True, "variance"),
        (dist.StudentT(jnp.array([5.0, 2.0])), True, "variance"),
        (dist.TransformedDistribution(dist.Cauchy(), dist.transforms.AffineTransform(0.0, 2.0)), False, "mean"),
    ],
    ids=["Cauchy", "t of one", "variance of t of two", "one of a batch", "transformed"],
)
def test_a_reference_without_the_moment_is_refused(reference, unit_variance, moment):
    name = type(reference).__name__
    with pytest.raises(
        ValueError, match=rf"prior must have a finite {moment}, but its reference {name}.*lighter tails"
    ):
        centered_prior(small(reference=reference), unit_variance=unit_variance)


def test_a_mean_is_enough_where_only_that_is_taken_out():
    """Pareto's distribution with an index of 1.5, centred: derivatives are finite although the variance is not."""
    prior = centered_prior(small(reference=dist.Pareto(1.0, 1.5), basis=BSpline(6, 3, (1.0, 6.0))))
    gradient = quick_jit(jax.grad(lambda d: d.log_prob(0.3), allow_int=True))(prior).base_dist.energy.coefficients
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0.0)
    # Between two bounds every moment is finite.
    centered_prior(small(reference=dist.Cauchy(0.0, 1.0)).truncate(-2.0, 2.0), unit_variance=True)


def test_what_it_cannot_take_is_named():
    with pytest.raises(TypeError, match=r"prior must be a KAPrior.*got Normal"):
        centered_prior(NORMAL)
    with pytest.raises(TypeError, match=r"got Independent; call \.to_event"):
        centered_prior(small((2,)).to_event(1))
    with pytest.raises(ValueError, match="reference Cauchy"):
        jax.jit(lambda energy: centered_prior(KAPrior(energy, dist.Cauchy())).log_prob(0.0))(small().energy)
    mixture = KAMixture(small((2,)), jnp.zeros(2))
    truncated = small().truncate(low=-0.5)
    for prior in (mixture, truncated):
        assert np.isfinite(centered_prior(prior, unit_variance=True).log_prob(0.2))
