"""Markov kernels leave the tempered posterior as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm
from speed import slow_unless
from tempered_models import GRID, NOISE, PRIOR, decode, distance, ks_bound, quadrature, two_modes

from numpyro_kaem.kernels import HMC, MALA, NUTS, PCNL, ULA, Barker, EllipticalSlice, LatentGaussian
from numpyro_kaem.models import LatentModel
from numpyro_kaem.posterior.target import Point, Target

NUM_CHAINS, NUM_STEPS = 20_000, 8
X = np.array([1.0], np.float32)
KERNELS = [
    MALA(step_size=0.3),
    MALA(step_size=0.6, whiten=True),
    Barker(step_size=0.7),
    HMC(step_size=0.3, num_integration_steps=3),
    NUTS(step_size=0.3, max_num_doublings=3),
    PCNL(step_size=0.5),
    EllipticalSlice(),
    LatentGaussian(step_size=1.0),
]


def kernels(*quick):
    """A test of all kernels, by default of those of these numbers."""
    names = [type(kernel).__name__ + "-whitened" * kernel.whiten for kernel in KERNELS]
    cases = slow_unless([KERNELS[number] for number in quick], KERNELS)
    return pytest.mark.parametrize("kernel", cases, ids=names)


@functools.cache
def chains_of(kernel):
    """A compiled run of chains, a function of key, start, temperature and step size."""
    target = Target(LatentModel(two_modes, {}, jnp.asarray(X)), whiten=kernel.whiten, gradients=kernel.needs_gradients)
    row = (jnp.asarray(X[0]),)
    scale = jnp.full(1, 0.7 if kernel.precondition else 1.0)

    def evaluate(u):
        return target.evaluate(u, row)

    @jax.jit
    def chains(key, start, temperature, step_size):
        points = jax.vmap(evaluate)(start[:, None])

        def step(points, key):
            keys = jax.random.split(key, len(start))
            moves = jax.vmap(lambda k, p: kernel.step(k, p, temperature, step_size, scale, evaluate))(keys, points)
            return moves.point, moves.acceptance.mean()

        points, acceptance = jax.lax.scan(step, points, jax.random.split(key, NUM_STEPS))
        return jax.vmap(lambda u: target.latents(u, row)["z"])(points.position), acceptance.mean()

    return chains


@functools.cache
def whitened_grid():
    """The standard normal coordinates of `GRID` under the prior, each tail from its own side."""
    density = np.exp(np.asarray(PRIOR.log_prob(jnp.asarray(GRID)), float))
    below, above = np.cumsum(density), np.cumsum(density[::-1])[::-1]
    return np.where(GRID < 0, norm.ppf(below / below[-1]), norm.isf(above / above[0]))


def run(kernel, z, temperature, step_size=None):
    """Latents and mean acceptance after some steps from latents z."""
    start = np.interp(z, GRID[1:-1], whitened_grid()[1:-1]) if kernel.whiten else z
    step_size = jnp.float32(step_size or kernel.initial_step_size(1))
    start = jnp.asarray(start, jnp.float32)
    z, acceptance = chains_of(kernel)(jax.random.key(0), start, jnp.float32(temperature), step_size)
    return np.asarray(z), float(acceptance)


@functools.cache
def exact_draws(temperature):
    cdf, _ = quadrature(X[0], temperature)
    return np.interp(np.random.default_rng(1).uniform(size=NUM_CHAINS), cdf, GRID), cdf


@kernels(0, 2)
def test_exact_draws_stay_exact(kernel):
    """Detailed balance: a wrong acceptance rule shows at once. False alarm: 1e-6."""
    temperature = 0.6
    z, cdf = exact_draws(temperature)
    moved, acceptance = run(kernel, z, temperature)
    assert np.mean(np.abs(moved - z) > 1e-4) > 0.5
    assert 0.2 < acceptance <= 1.0
    assert distance(moved, cdf) < ks_bound(NUM_CHAINS)


def test_a_rule_that_accepts_everything_does_not():
    """The test above can fail: the unadjusted algorithm takes the same steps."""
    z, cdf = exact_draws(0.6)
    moved, _ = run(ULA(step_size=0.3), z, 0.6)
    assert distance(moved, cdf) > 2 * ks_bound(NUM_CHAINS)


LOADINGS = jnp.array([[1.0, 0.5, -0.5], [0.3, -1.0, 0.8], [0.9, 0.4, 0.2]])
THREE = jnp.array([0.5, -1.0, 0.8])


def three_correlated(z):
    """A standard normal prior of three latents, and three of their linear combinations with noise."""
    residual = (THREE - LOADINGS @ z) / NOISE
    return Point(z, -0.5 * z @ z, -0.5 * residual @ residual, -z, LOADINGS.T @ residual / NOISE)


@kernels(3, 5, 6)
def test_exact_draws_of_correlated_latents_stay_exact(kernel):
    """As above, in three dimensions with a scale for each; whitening a standard normal prior changes nothing."""
    temperature = 0.6
    precision = np.eye(3) + temperature * np.asarray(LOADINGS.T @ LOADINGS, float) / NOISE**2
    mean = np.linalg.solve(precision, temperature * np.asarray(LOADINGS.T @ THREE, float) / NOISE**2)
    root = np.linalg.cholesky(precision)
    start = mean + np.linalg.solve(root.T, np.random.default_rng(2).normal(size=(3, NUM_CHAINS))).T
    scale = jnp.array([0.5, 1.0, 2.0]) if kernel.precondition else jnp.ones(3)

    @jax.jit
    def chains(key, start):
        def step(points, key):
            moves = jax.vmap(
                lambda k, p: kernel.step(
                    k, p, jnp.asarray(temperature), jnp.asarray(kernel.step_size or 1.0), scale, three_correlated
                )
            )(jax.random.split(key, NUM_CHAINS), points)
            return moves.point, moves.acceptance.mean()

        points, acceptance = jax.lax.scan(step, jax.vmap(three_correlated)(start), jax.random.split(key, NUM_STEPS))
        return points.position, acceptance.mean()

    moved, acceptance = chains(jax.random.key(0), jnp.asarray(start, jnp.float32))
    assert np.mean(np.abs(moved - start) > 1e-4) > 0.3
    assert 0.02 < acceptance <= 1.0
    whitened = (np.asarray(moved) - mean) @ root
    directions = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    for direction in directions:
        projection = whitened @ direction / np.linalg.norm(direction)
        assert distance(projection, norm.cdf(GRID)) < ks_bound(NUM_CHAINS, 1e-6 / len(directions))


@pytest.mark.slow
def test_at_temperature_zero_the_prior_is_left_alone():
    u = np.random.default_rng(1).uniform(size=NUM_CHAINS)
    cdf = np.asarray(jax.jit(PRIOR.cdf)(jnp.asarray(GRID)))
    z = np.interp(u, cdf, GRID)
    moved, acceptance = run(PCNL(step_size=0.5), z, 0.0, step_size=1.0)
    assert acceptance == 1.0
    assert distance(moved, cdf) < ks_bound(NUM_CHAINS)


def test_the_generator_of_the_quadrature_is_the_model_s():
    target = Target(LatentModel(two_modes, {}, jnp.asarray(X)))
    z = jnp.array([0.7])
    expected = -0.5 * ((X[0] - decode(0.7)) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    point = jax.jit(target.evaluate)(z, (jnp.asarray(X[0]),))
    np.testing.assert_allclose(point.log_likelihood, expected, rtol=1e-5)


def test_the_bias_of_ula_is_as_documented():
    """Variance s^2 / (1 - h / (2 s^2)) on a normal target; ten standard errors."""
    target = Target(LatentModel(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), {}))

    @jax.jit
    def chains(key, h):
        points = jax.vmap(lambda u: target.evaluate(u, ()))(jax.random.normal(key, (NUM_CHAINS, 1)))

        def step(points, key):
            move = jax.vmap(
                lambda k, p: ULA().step(k, p, jnp.ones(()), h, jnp.ones(1), lambda u: target.evaluate(u, ()))
            )
            return move(jax.random.split(key, NUM_CHAINS), points).point, None

        return jax.lax.scan(step, points, jax.random.split(key, 60))[0].position

    for h in (0.2, 0.5):
        variance = np.var(chains(jax.random.key(0), jnp.float32(h)))
        np.testing.assert_allclose(variance, 1 / (1 - h / 2), rtol=10 * (2 / NUM_CHAINS) ** 0.5, err_msg=f"h = {h}")


def test_a_point_knows_its_density_at_every_temperature():
    target = Target(LatentModel(two_modes, {}, jnp.asarray(X)))
    row = (jnp.asarray(X[0]),)
    point = jax.jit(target.evaluate)(jnp.array([1.3]), row)

    @jax.jit
    @jax.value_and_grad
    def log_density(u, t):
        point = target.evaluate(u, row)
        return point.log_prior + t * point.log_likelihood

    for t in (0.0, 0.3, 1.0):
        value, gradient = log_density(point.position, t)
        np.testing.assert_allclose(point.log_density(t), value, rtol=1e-6)
        np.testing.assert_allclose(point.gradient(t), gradient, rtol=1e-5)
    impossible = point._replace(log_likelihood=jnp.array(-jnp.inf), likelihood_gradient=jnp.full(1, jnp.nan))
    assert impossible.log_density(0.0) == point.log_prior
    assert jnp.all(impossible.gradient(0.0) == point.prior_gradient)
    assert jnp.all(jnp.isfinite(impossible.gradient(0.5)))
