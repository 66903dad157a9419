"""Priors fitted to samples and to log-densities: what the fit maximises, how close it comes, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from prior_cases import evaluate_quickly, quick_jit
from speed import slow_unless

from numpyro_kaem import RBF, BSpline, KAPrior, UnivariateEnergy
from numpyro_kaem._fitting.exponential_family import RIDGE
from numpyro_kaem._fitting.fit import fit_log_density, fit_samples

GRID = np.linspace(-9.0, 9.0, 3_601)


def bimodal(num_samples, batch=(), seed=0):
    rng, shape = np.random.default_rng(seed), (num_samples, *batch)
    return np.where(rng.random(shape) < 0.4, rng.normal(-2.0, 0.5, shape), rng.normal(1.0, 1.0, shape))


def bimodal_density(z):
    return 0.4 * scipy.stats.norm.pdf(z, -2.0, 0.5) + 0.6 * scipy.stats.norm.pdf(z, 1.0, 1.0)


def total_variation(prior, density, grid=GRID):
    fitted = np.exp(evaluate_quickly(prior, "log_prob", grid.reshape(-1, *[1] * len(prior.batch_shape))))
    truth = density(grid).reshape(-1, *[1] * len(prior.batch_shape))
    return 0.5 * np.abs(fitted - truth).sum(axis=0) * (grid[1] - grid[0])


def prior_of(fit):
    return KAPrior(fit.energy, fit.reference)


@quick_jit
def mean_of(prior):
    return prior.mean


def statistic_means(prior):
    """Means of the basis functions under a prior of float64 parameters, by an independent sum over a fine grid."""
    low, high = prior.energy.basis.domain
    edges = np.linspace(low, high, 200_001)
    middles = 0.5 * (edges[1:] + edges[:-1])
    log_prob, cdf = quick_jit(lambda p, z, ends: (p.log_prob(z), p.cdf(ends)))(prior, middles, np.array([low, high]))
    tails = [float(cdf[0]), 1.0 - float(cdf[1])]
    design_matrix = prior.energy.basis.design_matrix
    return np.exp(log_prob) * np.diff(edges) @ design_matrix(middles) + tails @ design_matrix(np.array([low, high]))


# What is maximised ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_penalised_log_likelihood_is_stationary_at_the_fit(x64):
    # Written again in JAX: its own quadrature (trapezoids), its own roughness (automatic derivatives of f).
    z, weights = bimodal(500), np.random.default_rng(1).gamma(2.0, size=500)
    reference, basis, smoothness = dist.Normal(0.3, 1.5), BSpline(12, 3, (-3.5, 4.5)), 0.01
    prior = KAPrior.from_samples(z, weights=weights, reference=reference, basis=basis, smoothness=smoothness)
    share = weights / weights.sum()
    scale = np.sqrt(share @ (z - share @ z) ** 2)
    points = jnp.linspace(-3.5, 4.5, 12 * 4_000 + 1)
    width = points[1] - points[0]
    trapezoid = jnp.full(points.shape, width).at[jnp.array([0, -1])].mul(0.5)
    unit = np.linspace(0.0, 1.0, 12 * 200, endpoint=False) + 0.5 / (12 * 200)

    def penalised(coefficients):
        def energy(z):
            return basis(z) @ coefficients

        body = jnp.sum(trapezoid * jnp.exp(reference.log_prob(points) + energy(points)))
        tails = [
            jnp.exp(energy(jnp.array(end))) * reference.cdf(jnp.array(x)) for end, x in ((-3.5, -3.5), (4.5, 0.6 - 4.5))
        ]
        log_likelihood = share @ (reference.log_prob(z) + energy(jnp.asarray(z))) - jnp.log(body + sum(tails))
        curvature = jax.vmap(jax.grad(jax.grad(energy)))(jnp.asarray(-3.5 + 8.0 * unit))
        roughness = scale**3 * 8.0 * jnp.mean(curvature**2)
        return log_likelihood - 0.5 * smoothness * roughness - 0.5 * RIDGE * coefficients @ coefficients

    slope = quick_jit(jax.grad(penalised))
    gradient, far = slope(prior.energy.coefficients), slope(0.9 * prior.energy.coefficients)
    # The trapezoids are good to width^2 / 12 * (log p)'', and the midpoints of the curvature to 1e-6 of it.
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    assert np.abs(far).max() > 1e-3


@pytest.mark.slow
def test_without_penalty_the_basis_functions_have_the_samples_means(x64):
    z = np.random.default_rng(0).gamma(3.0, size=400)
    prior = KAPrior.from_samples(z, basis=BSpline(6, 3, (0.0, 12.0)), smoothness=0.0)
    excess = np.mean(prior.energy.basis.design_matrix(z), axis=0) - statistic_means(prior)
    np.testing.assert_allclose(excess, RIDGE * prior.energy.coefficients, atol=1e-7)
    np.testing.assert_allclose(excess[:-1], 0.0, atol=3e-6)  # hardly a sample lies under the last function


@pytest.mark.slow
def test_maximum_likelihood_within_the_family_is_efficient(x64):
    # 2 n KL(truth | estimate) is chi-squared with as many degrees of freedom as there are free coefficients; the mean
    # of 64 replicates has a standard error of sqrt(2 * 8 / 64) = 0.5. Six of them: false alarms below 1e-6.
    basis, num_samples = BSpline(6, 3, (-2.5, 2.5)), 4_000
    coefficients = jnp.array([0.0, 0.4, -0.5, 0.6, 0.2, -0.7, 0.3, 0.0, 0.1])
    energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), coefficients, basis)
    truth = KAPrior(energy, dist.Normal(0.0, 1.0))
    z = quick_jit(lambda p: p.sample(jax.random.key(0), (num_samples, 64)))(truth)
    fitted = KAPrior.from_samples(z, basis=basis, reference=dist.Normal(0.0, 1.0), smoothness=0.0)
    points = np.linspace(-8.0, 8.0, 4_001)
    log_truth = np.asarray(evaluate_quickly(truth, "log_prob", points))
    divergence = np.exp(log_truth) @ (log_truth[:, None] - evaluate_quickly(fitted, "log_prob", points[:, None]))
    assert abs(2 * num_samples * np.mean(divergence) * (points[1] - points[0]) - 8.0) < 3.0


def test_weights_are_repetitions():
    z = bimodal(300)
    times = np.random.default_rng(1).integers(0, 4, 300)
    options = {"basis": BSpline(20, 3, (-4.0, 5.0)), "smoothness": 1e-3}
    weighted = KAPrior.from_samples(z, weights=0.1 * times, **options)
    repeated = KAPrior.from_samples(np.repeat(z, times), **options)
    np.testing.assert_allclose(weighted.energy.coefficients, repeated.energy.coefficients, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weighted.reference.loc, repeated.reference.loc, rtol=1e-5)


def test_importance_weights_turn_one_density_into_another():
    z = np.random.default_rng(0).normal(0.0, 3.0, 40_000)
    weights = bimodal_density(z) / scipy.stats.norm.pdf(z, 0.0, 3.0)
    assert total_variation(KAPrior.from_samples(z, weights=weights), bimodal_density) < 0.03
    per_coordinate = np.stack([weights, np.ones_like(weights)], axis=1)
    both = KAPrior.from_samples(np.stack([z, z], axis=1), weights=per_coordinate)
    assert total_variation(both, bimodal_density)[0] < 0.03
    assert total_variation(both, lambda z: scipy.stats.norm.pdf(z, 0.0, 3.0))[1] < 0.03


def test_infinite_smoothness_tilts_the_reference_log_linearly(x64):
    z = np.random.default_rng(0).gamma(4.0, size=1_000)
    basis = BSpline(15, 3, (-1.0, 14.0))
    prior = KAPrior.from_samples(z, reference=dist.Normal(3.0, 2.0), basis=basis, smoothness=1e9)
    inside = np.linspace(-1.0, 14.0, 31)
    energy = np.asarray(quick_jit(lambda e, z: e(z))(prior.energy, inside))
    slope = (energy[-1] - energy[0]) / 15.0
    assert abs(slope) > 0.1
    np.testing.assert_allclose(np.diff(energy), slope * 0.5, atol=1e-6)
    # of all log-linear tilts the likeliest: the one with the mean of the samples
    draws_mean = statistic_means(prior) @ np.linspace(-2.0, 15.0, 18)  # a spline that is z itself
    np.testing.assert_allclose(draws_mean, z.mean(), atol=1e-4)


def test_smoothness_means_the_same_at_any_scale_and_place(x64):
    z, points = bimodal(800), np.linspace(-4.0, 5.0, 50)
    here, there = fit_samples(z), fit_samples(1e-3 * z + 70.0)
    np.testing.assert_allclose(there.smoothness, here.smoothness)
    np.testing.assert_allclose(there.held_out_gain, here.held_out_gain, rtol=1e-6)
    moved = np.asarray(evaluate_quickly(prior_of(there), "log_prob", 1e-3 * points + 70.0)) + np.log(1e-3)
    np.testing.assert_allclose(moved, evaluate_quickly(prior_of(here), "log_prob", points), atol=1e-5)
    here, there = (
        fit_samples(size * z, basis=BSpline(8, 3, (-4.0 * size, 5.0 * size)), smoothness=0.01) for size in (1.0, 100.0)
    )
    np.testing.assert_allclose(prior_of(here).energy.coefficients, prior_of(there).energy.coefficients, atol=1e-6)


def test_coordinates_are_fitted_as_if_alone():
    z = bimodal(400, (3, 2)) * np.array([1e-2, 1.0, 1e3])[:, None] + np.array([0.0, 7.0])
    together = fit_samples(z)
    assert prior_of(together).batch_shape == together.smoothness.shape == (3, 2)
    for index in ((0, 1), (2, 0)):
        alone = fit_samples(z[(slice(None), *index)])
        np.testing.assert_allclose(together.smoothness[index], alone.smoothness)
        coefficients = prior_of(together).energy.coefficients[index]
        np.testing.assert_allclose(coefficients, prior_of(alone).energy.coefficients, atol=2e-3)


# How close it comes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_error_falls_with_the_number_of_samples_and_is_near_the_best_smoothness_s():
    errors = []
    for num_samples in (100, 1_000, 10_000):
        z = bimodal(num_samples, (8,))
        chosen = total_variation(KAPrior.from_samples(z), bimodal_density).mean()
        best = min(
            total_variation(KAPrior.from_samples(z, smoothness=10.0**power), bimodal_density).mean()
            for power in (-6, -5, -4, -3, -2, 0)
        )
        assert chosen < 1.3 * best
        errors.append(chosen)
    assert errors[0] < 0.13
    assert errors[1] < 0.045
    assert errors[2] < 0.018


def test_cross_validation_smooths_what_is_smooth():
    rng = np.random.default_rng(0)
    z = np.stack([rng.normal(3.0, 2.0, 2_000), bimodal(2_000)], axis=1)
    fit = fit_samples(z)
    assert fit.smoothness[0] > 1.0 > 1e-2 > fit.smoothness[1]
    assert abs(fit.held_out_gain[0]) < 0.002
    # The gain is the divergence of the reference: what a Normal of the same moments loses.
    z, scale = bimodal(200_000, seed=1), prior_of(fit).reference.scale[1]
    loss = np.log(bimodal_density(z)) - scipy.stats.norm.logpdf(z, prior_of(fit).reference.loc[1], scale)
    np.testing.assert_allclose(fit.held_out_gain[1], loss.mean(), atol=0.05)
    assert total_variation(prior_of(fit), lambda z: scipy.stats.norm.pdf(z, 3.0, 2.0))[0] < 0.03


def test_runs_of_a_chain_are_smoothed_more_than_shuffled_folds_would_have_it():
    # Held-out neighbours of an autocorrelated sample are no news: random folds praise a fit that follows the noise.
    rng, z = np.random.default_rng(0), np.zeros((4_000, 4))
    for step in range(1, 4_000):
        z[step] = 0.99 * z[step - 1] + np.sqrt(1 - 0.99**2) * rng.normal(size=4)
    in_runs, shuffled = fit_samples(z, shuffle=False), fit_samples(z)
    assert np.median(in_runs.smoothness) > 100.0 * np.median(shuffled.smoothness)
    truth = scipy.stats.norm.pdf
    assert total_variation(prior_of(in_runs), truth).mean() < total_variation(prior_of(shuffled), truth).mean()


BASES = {
    "BSpline of degree 0": BSpline(20, 0, (-4.0, 5.0)),
    "BSpline of degree 1": BSpline(20, 1, (-4.0, 5.0)),
    "BSpline of degree 2": BSpline(20, 2, (-4.0, 5.0)),
    "BSpline of degree 5": BSpline(20, 5, (-4.0, 5.0)),
    "RBF": RBF(20, (-4.0, 5.0)),
}


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_any_basis_fits(basis):
    fit = fit_samples(bimodal(3_000), basis=basis)
    bound = 0.10 if getattr(basis, "degree", 3) == 0 else 0.05  # a step function is half a step off
    assert total_variation(prior_of(fit), bimodal_density) < bound
    assert fit.held_out_gain > 0.15
    smooth = fit_samples(bimodal(3_000), basis=basis, smoothness=100.0)
    energies = quick_jit(lambda *energies: [e(jnp.linspace(-3.9, 4.9, 100)) for e in energies])
    energy, rough = (np.asarray(values) for values in energies(prior_of(smooth).energy, prior_of(fit).energy))
    assert np.abs(np.diff(energy, 2)).sum() < 0.3 * np.abs(np.diff(rough, 2)).sum()


@pytest.mark.parametrize(
    ("reference", "truth"),
    [
        (dist.Exponential(0.5), scipy.stats.gamma(3.0)),
        (dist.LogNormal(0.0, 1.0), scipy.stats.gamma(3.0)),
        (dist.HalfNormal(2.0), scipy.stats.expon()),
        (dist.Uniform(0.0, 1.0), scipy.stats.beta(2.0, 5.0)),
        (dist.Uniform(-1.0, 1.0).expand([1]), scipy.stats.uniform(-1.0, 2.0)),
    ],
    ids=["Exponential", "LogNormal", "HalfNormal", "Uniform", "Uniform, expanded"],
)
@pytest.mark.slow
def test_bounded_samples_keep_their_support(reference, truth):
    z = truth.rvs(5_000, random_state=0)
    z = z[:, None] if reference.batch_shape else z
    prior = KAPrior.from_samples(z, reference=reference)
    low, high = (float(np.squeeze(end)) for end in prior.energy.basis.domain)
    bounds = prior.support.lower_bound, getattr(prior.support, "upper_bound", np.inf)
    assert np.all(bounds[0] <= low) and np.all(high <= bounds[1])
    levels = np.linspace(0.01, 0.99, 25)
    points = np.append(truth.ppf(levels), bounds[0]).reshape(-1, *[1] * (z.ndim - 1))
    draws, found = quick_jit(lambda p, z: (p.sample(jax.random.key(0), (1_000,)), p.cdf(z)))(prior, points)
    assert np.all(np.asarray(draws) >= bounds[0])
    *found, at_bound = np.ravel(found)
    assert at_bound == 0.0
    # The empirical CDF of 5,000 samples strays by 0.037 with a probability of 2 exp(-2 * 5000 * 0.037^2) = 2e-6.
    np.testing.assert_allclose(found, levels, atol=0.037)


def test_samples_beyond_the_domain_count_at_its_ends(x64):
    basis = BSpline(10, 3, (-1.0, 1.0))
    z = np.random.default_rng(0).normal(size=2_000)
    moved = np.clip(z, -1.0, 1.0)
    options = {"basis": basis, "reference": dist.Normal(0.0, 1.0), "smoothness": 0.0}
    there, here = KAPrior.from_samples(z, **options), KAPrior.from_samples(moved, **options)
    np.testing.assert_allclose(here.energy.coefficients, there.energy.coefficients, atol=1e-8)
    np.testing.assert_allclose(evaluate_quickly(there, "cdf", -1.0), np.mean(z < -1.0), atol=0.02)


# What goes in and comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [np.float32, np.asarray, jnp.asarray, list])
def test_samples_may_be_of_any_kind_and_the_prior_has_the_default_dtype(convert):
    prior = KAPrior.from_samples(convert(bimodal(200)), smoothness=0.01)
    assert {leaf.dtype for leaf in jax.tree.leaves((prior.energy.coefficients, prior.reference))} == {
        jnp.dtype("float32")
    }
    np.testing.assert_allclose(prior.energy.base_weight, 0.0)
    again = KAPrior.from_samples(bimodal(200), smoothness=0.01)
    at = [evaluate_quickly(p, "log_prob", 0.3) for p in (prior, again)]
    np.testing.assert_allclose(*at, atol=1e-4)


def test_with_64_bits_the_prior_has_them(x64):
    prior = KAPrior.from_samples(bimodal(200).astype(np.float32), smoothness=0.01)
    assert prior.energy.coefficients.dtype == prior.reference.loc.dtype == jnp.float64


def test_whole_numbers_are_samples():
    prior = KAPrior.from_samples(np.random.default_rng(0).poisson(30.0, 500))
    np.testing.assert_allclose(mean_of(prior), 30.0, atol=2.0)


def test_few_samples_are_regularised():
    prior = KAPrior.from_samples(np.array([1.0, 2.0, 4.0]), smoothness=1.0)
    mean, log_prob = quick_jit(lambda p: (p.mean, p.log_prob(jnp.linspace(-10.0, 10.0, 50))))(prior)
    np.testing.assert_allclose(mean, 7.0 / 3.0, rtol=0.1)
    assert np.isfinite(log_prob).all()


def test_smoothness_may_differ_by_coordinate():
    z = bimodal(500, (2,))
    both = KAPrior.from_samples(z, smoothness=[1e-4, 10.0])
    basis = both.energy.basis
    for index, smoothness in enumerate((1e-4, 10.0)):
        alone = KAPrior.from_samples(z, basis=basis, smoothness=smoothness)
        np.testing.assert_allclose(both.energy.coefficients[index], alone.energy.coefficients[index], atol=1e-5)


def cdf_error(prior, z, weights=None):
    """The largest difference from the samples' distribution function, at 25 of their quantiles."""
    order = np.argsort(z)
    share = np.append(0.0, np.cumsum(np.full(len(z), 1.0 / len(z)) if weights is None else weights[order]))
    points = z[order][np.searchsorted(share[1:-1], np.linspace(0.01, 0.99, 25))]
    cdf = np.asarray(evaluate_quickly(prior, "cdf", points.reshape(-1, *[1] * len(prior.batch_shape))))
    cdf = cdf.reshape(25)
    below, above = (share[np.searchsorted(z[order], points, side)] for side in ("left", "right"))
    return np.max(np.maximum(below - cdf, cdf - above))


# Samples that are no draws of a smooth density ------------------------------------------------------------------------


LATTICES = {
    "counts": lambda rng: rng.poisson(3.0, 2_000),
    "binomial": lambda rng: rng.binomial(10, 0.4, 2_000),
    "scores": lambda rng: rng.integers(1, 11, 2_000),
    "rounded": lambda rng: np.round(rng.normal(size=2_000), 1),
    "tens": lambda rng: 10.0 * rng.poisson(5.0, 2_000),
}


@pytest.mark.parametrize("draw", slow_unless(list(LATTICES.values())[:3], LATTICES.values()), ids=LATTICES)
def test_values_on_a_lattice_have_the_masses_of_their_steps(draw):
    z = draw(np.random.default_rng(0)).astype(float)
    levels, counts = np.unique(z, return_counts=True)
    step = np.min(np.diff(levels))
    prior = KAPrior.from_samples(z[:, None])
    ends = np.append(levels - 0.5 * step, levels[-1] + 0.5 * step)[:, None]
    cdf, mean, variance = quick_jit(lambda p, ends: (p.cdf(ends), p.mean, p.variance))(prior, ends)
    assert np.max(np.abs(cdf[1:-1, 0] - np.cumsum(counts[:-1]) / len(z))) < 0.02
    assert 0.5 * np.abs(np.diff(cdf[:, 0]) - counts / len(z)).sum() < 0.06
    np.testing.assert_allclose(mean, z.mean(), atol=0.01 * z.std())
    # What is rounded has the variance of its rounding less than what it stands for (Sheppard 1898).
    np.testing.assert_allclose(variance, z.var() + step**2 / 12.0, rtol=0.03)


def test_an_atom_keeps_its_mass():
    rng = np.random.default_rng(0)
    z = np.where(rng.random(3_000) < 0.3, 0.0, rng.gamma(3.0, size=3_000))
    prior = KAPrior.from_samples(z[:, None])
    assert cdf_error(prior, z) < 0.02
    beside = np.asarray(evaluate_quickly(prior, "cdf", np.array([[-0.3], [0.3]])))
    np.testing.assert_allclose(np.diff(beside[:, 0]), np.mean(z < 0.3), atol=0.02)


def test_repeated_draws_share_a_fold():
    # As a bootstrap has them: held out in one fold and learned from in another, they praise the roughest fit.
    rng = np.random.default_rng(0)
    once = rng.normal(size=300)
    again = fit_samples(rng.choice(once, 1_500)[:, None])
    assert again.smoothness > 1e-3
    assert total_variation(prior_of(again), scipy.stats.norm.pdf) < 0.1


def test_discrete_samples_are_refused_and_fitted_as_they_are_with_a_smoothness():
    z = np.random.default_rng(0).binomial(1, 0.4, 500).astype(float)
    with pytest.raises(ValueError, match=r"samples of coordinate 0 are discrete, of 2 values, .*34% more variance"):
        fit_samples(z[:, None])
    prior = KAPrior.from_samples(z[:, None], smoothness=1e-3)
    np.testing.assert_allclose(mean_of(prior), z.mean(), atol=0.05)


TAILS = {
    "Cauchy": lambda rng: rng.standard_cauchy(2_000),
    "tiny": lambda rng: 1e-6 * rng.standard_cauchy(2_000),
    "log-normal": lambda rng: np.exp(2.0 * rng.normal(size=2_000)),
    "one outlier": lambda rng: np.append(rng.normal(size=1_999), 1e6),
    "two clusters": lambda rng: np.append(rng.normal(size=1_000), 1e4 + rng.normal(size=1_000)),
}


@pytest.mark.parametrize(
    "draw", slow_unless([TAILS[name] for name in ("Cauchy", "one outlier", "two clusters")], TAILS.values()), ids=TAILS
)
@pytest.mark.filterwarnings("ignore:the samples of coordinate 0 have heavy tails")
def test_heavy_tails_and_outliers_leave_the_quantiles_right(draw):
    z = draw(np.random.default_rng(0))
    assert cdf_error(KAPrior.from_samples(z[:, None]), z) < 0.02


def test_heavy_tails_are_warned_of_with_what_was_made_of_them():
    z = 1e-6 * np.random.default_rng(0).standard_cauchy((1_000, 2))
    with pytest.warns(
        UserWarning, match=r"coordinate 0 have heavy tails: half of them lie between -1\.15e-06 and 9.48e"
    ):
        prior = KAPrior.from_samples(z, smoothness=0.1)
    assert isinstance(prior.reference, dist.StudentT)
    np.testing.assert_allclose(prior.reference.scale, 1e-6, rtol=0.2)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_reference_far_from_the_samples_is_refused(scale):
    z = np.random.default_rng(0).normal(50.0, 5.0, 2_000)
    with pytest.raises(
        ValueError, match=r"reference must have mass where the samples are, but Normal has .*give one ne"
    ):
        fit_samples(z, reference=dist.Normal(0.0, scale))


def test_a_reference_that_leaves_no_digits_is_refused():
    z = np.random.default_rng(0).normal(50.0, 5.0, 2_000)
    with pytest.raises(ValueError, match=r"reference must be nearer to the samples: .* float32 keeps too few digits"):
        fit_samples(z, reference=dist.Normal(36.0, 0.03), smoothness=1e-6)


def test_a_fit_too_rough_for_its_quadrature_is_refused():
    # Quantiles at the steep edge of the atom were out of order.
    rng = np.random.default_rng(13)
    z = np.where(rng.random(8_832) < rng.uniform(0.05, 0.6), 0.0, rng.gamma(2.0, size=8_832))
    z[rng.integers(8_832)] = 100.0
    with pytest.raises(ValueError, match=r"too rough for its quadrature: its logarithm changes by \d+ within one of 4"):
        fit_samples(z)


@pytest.mark.parametrize("loc", [40.0, 45.0, 60.0])
def test_a_reference_beside_the_samples_is_tilted_to_them(loc):
    z = np.random.default_rng(0).normal(50.0, 5.0, 2_000)
    prior = KAPrior.from_samples(z[:, None], reference=dist.Normal(loc, 4.0))
    mean, variance = quick_jit(lambda p: (p.mean, p.variance))(prior)
    np.testing.assert_allclose([mean[0], np.sqrt(variance[0])], [z.mean(), z.std()], rtol=0.01)


def test_a_fit_that_is_too_coarse_for_the_samples_is_warned_of():
    z = bimodal(2_000)
    with pytest.warns(UserWarning, match=r"the fitted CDF is 0\.\d+ from that of the samples, more than the 0\.06"):
        fit_samples(z, basis=BSpline(3, 0, (-4.0, 4.0)))


Z = bimodal(100, (2,))
NAN, ONE = Z.copy(), Z.copy()
NAN[[3, 7], 1] = np.nan
ONE[:, 1] = 2.5


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (NAN, {}, r"z must be finite, but 2 of 200 values are NaN, the first in sample 3 of coordinate 1; remove"),
        (np.array([1.0, np.inf]), {}, r"1 of 2 values are infinite, the first in sample 1;"),
        (ONE, {}, r"z must vary, but all samples of coordinate 1 with positive weight are 2\.5; leave"),
        (1e6 + 1e-3 * Z, {}, r"z must have a range that float32 holds and tells apart.*subtract their mean"),
        (Z[:1], {}, r"z must have shape \(num_samples, \*batch\) with at least 2 samples, got shape \(1, 2\)"),
        (np.float64(3.0), {}, r"at least 2 samples, got shape \(\)"),
        (
            Z[:12],
            {},
            r"at least 20 samples to choose the smoothness by 10-fold cross-validation, got 12 .*smoothness=0",
        ),
        (Z[:12], {"smoothness": 0.0}, r"at least 43 samples, one for each basis function.*got 12 .*positive"),
        (Z, {"smoothness": -1.0}, r"smoothness must be finite and at least 0, or None to choose it, got -1\.0"),
        (Z, {"smoothness": np.nan}, r"smoothness must be finite"),
        (Z, {"num_folds": 1}, r"num_folds must be a whole number of at least 2, got 1"),
        (
            Z,
            {"weights": -np.ones(100)},
            r"weights must be finite, not negative and not all zero, got -1\.0 for sample 0; exponentiate",
        ),
        (Z, {"weights": np.zeros(100)}, r"not all zero, got 0\.0 for sample 0"),
        (Z, {"weights": np.full((100, 2), np.nan)}, r"got nan for sample 0 of coordinate 0"),
        (
            Z,
            {"weights": np.ones((2, 100))},
            r"weights must have shape \(100,\) or that of z, \(100, 2\), got \(2, 100\)",
        ),
        (Z, {"weights": np.eye(100)[0] + 1e-9}, r"z must have at least 20 samples .* got 1 \(effective"),
        (
            Z,
            {"reference": dist.Gamma(2.0)},
            r"support of the reference Gamma, but \d+ of 200 values do not, the first -",
        ),
        (Z, {"reference": dist.Normal(jnp.zeros(3), 1.0)}, r"broadcasts to that of z, \(2,\), got \(3,\)"),
        (Z, {"reference": dist.Poisson(2.0)}, r"reference must be continuous"),
    ],
)
def test_bad_samples_are_refused(z, options, message):
    with pytest.raises(ValueError, match=message):
        fit_samples(z, **options)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"z must be an array of real numbers, got dtype <U1"):
        fit_samples(np.array(["a", "b"]))
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda z: KAPrior.from_samples(z).mean)(Z)


def test_the_classmethods_give_these_priors():
    options = {"smoothness": 0.01, "weights": np.arange(1.0, 101.0)}
    for ours, theirs in (
        (KAPrior.from_samples(Z, **options), fit_samples(Z, **options)),
        (KAPrior.from_log_density(np.log, (1.0, 2.0)), fit_log_density(np.log, (1.0, 2.0))),
    ):
        ours, theirs = (ours.energy, ours.reference), (theirs.energy, theirs.reference)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(leaf, other)


# Log-densities --------------------------------------------------------------------------------------------------------


def test_a_member_of_the_family_is_recovered_from_its_log_density(x64):
    basis = BSpline(12, 3, (-3.0, 3.0))
    energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=basis, scale=1.5)
    energy = UnivariateEnergy(jnp.zeros(2), jnp.ones(2), energy.coefficients, basis)
    truth = KAPrior(energy, dist.Normal(0.0, 1.0))
    fit = fit_log_density(
        lambda z: np.asarray(evaluate_quickly(truth, "log_prob", z)) + 5.0,
        (-3.0, 3.0),
        reference=dist.Normal(0.0, 1.0),
        basis=basis,
        batch_shape=(2,),
    )
    assert fit.total_variation.shape == (2,)
    assert np.all(fit.total_variation < 1e-6)
    points = jnp.linspace(-6.0, 6.0, 101)[:, None]  # the tails as well: the energy is constant there, and the same
    found, expected = (evaluate_quickly(p, "log_prob", points) for p in (prior_of(fit), truth))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("density", [np.log, scipy.stats.beta(2.0, 3.0).logpdf, jnp.log1p], ids=["z", "Beta", "1 + z"])
def test_densities_on_an_interval(density):
    fit = fit_log_density(density, (0.0, 1.0))
    points = np.linspace(0.001, 0.999, 999)
    truth = np.exp(np.asarray(density(points)))
    truth /= truth.sum() * 1e-3
    log_prob, ends = quick_jit(lambda p: (p.log_prob(points), p.cdf(jnp.array([0.0, 1.0]))))(prior_of(fit))
    np.testing.assert_allclose(np.exp(log_prob), truth, atol=0.02)
    assert fit.total_variation < 1e-3
    assert ends[0] == 0.0 and ends[1] > 1.0 - 1e-6


@pytest.mark.slow
def test_of_all_priors_the_nearest_is_chosen(x64):
    # The reverse of the fit to samples: the basis functions have the means that they have under the density.
    basis = BSpline(3, 2, (-3.0, 3.0))
    with pytest.warns(UserWarning, match=r"differs from fn by 0\.\d+ in total variation; basis=BSpline"):
        fit = fit_log_density(lambda z: np.log(bimodal_density(z)), (-3.0, 3.0), basis=basis)
    points = np.linspace(-3.0, 3.0, 100_001)
    points = 0.5 * (points[1:] + points[:-1])
    target = bimodal_density(points) / bimodal_density(points).sum()
    np.testing.assert_allclose(statistic_means(prior_of(fit)), target @ basis.design_matrix(points), atol=1e-5)
    fitted = np.exp(evaluate_quickly(prior_of(fit), "log_prob", points))
    np.testing.assert_allclose(0.5 * np.abs(fitted / fitted.sum() - target).sum(), fit.total_variation, atol=1e-3)


@pytest.mark.slow
def test_a_batch_of_densities_with_domains_of_their_own():
    scale = np.array([1e-2, 1.0, 1e3])
    reference = dist.Normal(jnp.zeros(3), jnp.asarray(scale))
    fit = fit_log_density(lambda z: -np.abs(z / scale), (-6.0 * scale, 6.0 * scale), reference=reference)
    assert prior_of(fit).batch_shape == (3,)
    expected = scipy.stats.laplace.cdf(1.0) - scipy.stats.laplace.cdf(-1.0)
    mass = np.diff(evaluate_quickly(prior_of(fit), "cdf", np.stack([-scale, scale])), axis=0)[0]
    np.testing.assert_allclose(mass, expected, atol=0.01)


def test_domains_and_bounded_supports_may_differ_by_coordinate():
    low, high = np.array([0.0, 10.0, -500.0]), np.array([1.0, 20.0, -400.0])
    triangles = KAPrior.from_log_density(lambda z: np.log((z - low) / (high - low)), (low, high))
    np.testing.assert_allclose((mean_of(triangles) - low) / (high - low), 2.0 / 3.0, atol=1e-3)
    np.testing.assert_array_equal(triangles.support.lower_bound, low)
    z = low + (high - low) * np.random.default_rng(0).beta(2.0, 1.0, (1_000, 3))
    fitted = KAPrior.from_samples(z, reference=dist.Uniform(jnp.asarray(low), jnp.asarray(high)), smoothness=1.0)
    np.testing.assert_allclose((mean_of(fitted) - low) / (high - low), 2.0 / 3.0, atol=0.04)  # five standard errors


def test_where_there_is_no_density_next_to_none_is_left():
    with pytest.warns(UserWarning, match="total variation"):  # a spline has no steps
        prior = KAPrior.from_log_density(lambda z: np.where((z > 0.25) & (z < 0.5), -np.inf, 0.0), (0.0, 1.0))
    before, middle, after = evaluate_quickly(prior, "cdf", np.array([0.27, 0.375, 0.48]))
    assert after - before < 1e-3
    np.testing.assert_allclose(middle, 1.0 / 3.0, atol=0.01)


@pytest.mark.parametrize(
    ("fn", "domain", "options", "error", "message"),
    [
        (
            lambda z: np.log(z - 2.0),
            (0.0, 1.0),
            {},
            ValueError,
            r"fn must be a log-density.*is nan at \d+ of \d+ points",
        ),
        (lambda z: np.where(z > 0.5, np.inf, 0.0), (0.0, 1.0), {}, ValueError, r"is inf at .* the first z = 0\.5"),
        (lambda z: np.full_like(z, -np.inf), (0.0, 1.0), {}, ValueError, r"fn must be a log-density .*-inf at .*"),
        (
            lambda z: np.zeros((3, 2)),
            (0.0, 1.0),
            {},
            ValueError,
            r"fn must take an array of points, here of shape \(\d+,\), and return an array of that shape",
        ),
        (lambda z: -(z**2), (1.0, 0.0), {}, ValueError, r"domain must be"),
        (lambda z: -(z**2), (0.0, 1.0), {"basis": RBF(5, (0.0, 2.0))}, ValueError, r"basis must have the domain"),
        (lambda z: -(z**2), (-1.0, 1.0), {"reference": dist.Gamma(2.0)}, ValueError, r"outside the support"),
        (3.0, (0.0, 1.0), {}, TypeError, r"fn"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
def test_bad_log_densities_are_refused(fn, domain, options, error, message):
    with pytest.raises(error, match=message):
        fit_log_density(fn, domain, **options)


@pytest.mark.parametrize("seed", slow_unless([0], range(3)))
def test_domains_whose_ends_are_rounded(seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=60) * 10.0 ** rng.uniform(-3, 3, 60)
    high = low + 10.0 ** rng.uniform(-2, 3, 60)
    for reference in (None, dist.Uniform(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))):
        prior = KAPrior.from_log_density(np.zeros_like, (low, high), reference=reference)
        log_prob, mean = quick_jit(lambda p: (p.log_prob(jnp.stack([*p.energy.basis.domain])), p.mean))(prior)
        width = high.astype(np.float32) - low.astype(np.float32)
        np.testing.assert_allclose(log_prob, np.broadcast_to(-np.log(width), (2, 60)), atol=1e-5)
        np.testing.assert_allclose((mean - low) / width, 0.5, atol=0.01)
    assert float(KAPrior.from_log_density(np.zeros_like, (0.0, 0.7)).reference.high) == np.float32(0.7)


def test_a_sample_at_the_rounded_end_of_a_support_is_inside():
    z = np.append(np.random.default_rng(0).uniform(0.0, 0.7, 200), [0.0, 0.7])
    prior = KAPrior.from_samples(z[:, None], reference=dist.Uniform(jnp.float32(0.0), jnp.float32(0.7)))
    assert np.isfinite(evaluate_quickly(prior, "log_prob", z[:, None])).all()


def test_the_number_of_cells_that_is_advised_is_enough():
    fn = lambda z: 3.0 * np.cos(60.0 * z)  # noqa: E731
    with pytest.warns(UserWarning, match=r"differs from fn by .*; basis=BSpline\(\d+, 3, domain\) leaves") as caught:
        fit_log_density(fn, (-2.0, 2.0))
    cells = int(str(caught[0].message).split("BSpline(")[1].split(",")[0])
    assert fit_log_density(fn, (-2.0, 2.0), basis=BSpline(cells, 3, (-2.0, 2.0))).total_variation < 1e-3


@pytest.mark.slow
def test_a_jump_is_told_from_a_lack_of_cells():
    with pytest.warns(UserWarning, match=r"it has a jump or a peak .* end the domain at the jump"):
        fit_log_density(lambda z: np.where(np.abs(z - 0.123) < 0.05, 0.0, -20.0), (-2.0, 2.0))


@pytest.mark.parametrize("fn", [math.log, lambda z: 0.0 if z > 1.0 else -1.0], ids=["math", "if"])
def test_functions_of_single_numbers_are_told_to_take_arrays(fn):
    with pytest.raises(
        (TypeError, ValueError), match=r"fn must take an array of points, .*single numbers only .*np\.vectorize\(fn\)"
    ):
        fit_log_density(fn, (0.5, 2.0))
    assert fit_log_density(np.vectorize(math.log), (0.5, 2.0)).total_variation < 1e-6


# Tables ---------------------------------------------------------------------------------------------------------------


def test_tabulated_densities_become_priors():
    points = np.linspace(0.0, 3.0, 121)
    truth = [scipy.stats.gamma(a, scale=0.1) for a in (4.0, 8.0)]
    table = np.stack([density.pdf(points) for density in truth], axis=-1)
    prior = KAPrior.from_table(points, 7.0 * table)
    z = np.linspace(0.05, 2.5, 40)[:, None]
    cdf = np.asarray(evaluate_quickly(prior, "cdf", z))
    # The floor of a thousandth over three units, beside densities of up to 3.7.
    np.testing.assert_allclose(cdf, np.stack([density.cdf(z[:, 0]) for density in truth], axis=-1), atol=0.01)
    at = np.asarray(evaluate_quickly(prior, "log_prob", np.array([[2.9]])))
    np.testing.assert_allclose(at, np.log(1e-3 * table.max(axis=0))[None], atol=0.1)


@pytest.mark.parametrize(
    ("points", "density", "options", "message"),
    [
        ([0.0, 2.0, 1.0, 3.0], np.ones(4), {}, "increasing"),
        (np.arange(5.0), np.ones((2, 5)), {}, "axis"),
        (np.arange(5.0), -np.ones(5), {}, r"density must be finite, not negative and .* got -1\.0 for point 0; expon"),
        (np.arange(5.0), np.zeros((5, 2)), {}, r"and not all zero, got 0\.0 for point 0 of coordinate 0"),
        (np.arange(5.0), np.ones(5), {"floor": 1.5}, r"floor must be a share of the largest density, .* got 1\.5"),
    ],
)
def test_bad_tables_are_refused(points, density, options, message):
    with pytest.raises(ValueError, match=message):
        KAPrior.from_table(points, density, **options)
