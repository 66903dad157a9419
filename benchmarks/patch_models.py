"""The densities of whitened patches that `benchmarks.patches` compares: how they are fitted, and log p(x) by rows."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from numpyro_kaem import BSpline, KAPrior, LangevinMLE, TemperedSMC, UnivariateEnergy, fit
from numpyro_kaem.kernels import HMC

SIDE = 8
SIZE = SIDE**2 - 1
# Knots of the tilts: dense where a source is most of the time, up to where the tail begins.
BASIS = BSpline.from_knots(np.sinh(np.linspace(-4.0, 4.0, 33)), degree=3)


class ICA(eqx.Module):
    """A square generator: log p(x) = sum_q log p_q((W x)_q) + log|det W|, with sources as `distribution` gives them."""

    unmixing: jax.Array
    sources: eqx.Module

    def log_prob(self, x):
        z = x @ self.unmixing.T
        return self.sources.distribution().log_prob(z).sum(-1) + jnp.linalg.slogdet(self.unmixing)[1]


class Laplace(eqx.Module):
    def distribution(self):
        return dist.Laplace(jnp.zeros(SIZE), 1.0)


class StudentT(eqx.Module):
    log_df: jax.Array

    def distribution(self):
        return dist.StudentT(jnp.exp(self.log_df), 0.0, 1.0)


class Learned(eqx.Module):
    energy: UnivariateEnergy

    def distribution(self):
        return KAPrior(self.energy, dist.StudentT(3.0, jnp.zeros(SIZE), 1.0))


def maximise(model, x, num_steps, rate, key, batch=1_000):
    """Maximum likelihood by Adam on random batches, the rate falling to zero along a cosine."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    x = jnp.asarray(x, jnp.float32)

    def loss(parameters, rows):
        return -jnp.mean(eqx.combine(parameters, static).log_prob(rows)) / SIZE

    def step(carry, key):
        parameters, state = carry
        rows = x[jax.random.randint(key, (batch,), 0, len(x))]
        gradients = jax.grad(loss)(parameters, rows)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(key, num_steps)
    (parameters, _), _ = jax.jit(lambda c, k: jax.lax.scan(step, c, k))((parameters, optimizer.init(parameters)), keys)
    return eqx.combine(jax.block_until_ready(parameters), static)


def gaussian_log_prob(x):
    """Of whitened patches, by rows."""
    return -0.5 * (np.square(x).sum(1) + SIZE * np.log(2.0 * np.pi))


def log_prob_of(model, x):
    return np.asarray(eqx.filter_jit(lambda model, x: model.log_prob(x))(model, jnp.asarray(x, jnp.float32)), float)


def all_sources():
    """Sources of complete models, in the order of their freedom."""
    flat = UnivariateEnergy.init(jax.random.key(0), (SIZE,), basis=BASIS, base_activation="identity", scale=0.0)
    return {"laplace": Laplace(), "student": StudentT(jnp.zeros(SIZE)), "learned": Learned(flat)}


def fit_components(sources, x_train, num_steps):
    key_start, key = jax.random.split(jax.random.key(0))
    # A scale of two makes sources about as wide as the references are.
    start = ICA(2.0 * jax.random.orthogonal(key_start, SIZE), sources)
    return maximise(start, x_train, num_steps, 1e-2, key)


def mixture_log_prob(x_train, x, num_components, num_steps):
    """A mixture of Gaussians with full covariances, by expectation maximisation from a clustering by k-means."""
    mixture = GaussianMixture(num_components, max_iter=num_steps, tol=0.0, reg_covar=1e-5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is fixed
        return mixture.fit(x_train).score_samples(x)


def flow_log_prob(x_train, x, num_steps):
    """RealNVP: eight affine coupling layers, on Student-t distributions of learned degrees, locations and scales."""
    from flowjax.distributions import StudentT as Base
    from flowjax.flows import coupling_flow

    base = Base(jnp.full(SIZE, 3.0), jnp.zeros(SIZE), 0.5)
    flow = coupling_flow(jax.random.key(3), base_dist=base, flow_layers=8, nn_width=128)
    return log_prob_of(maximise(flow, x_train, num_steps, 2e-3, jax.random.key(4)), x)


class Shifted(dist.Distribution):
    """A density of vectors, moved by `location`."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("density", "location")

    def __init__(self, density, location):
        self.density, self.location = density, location
        super().__init__(location.shape[:-1], location.shape[-1:])

    def log_prob(self, x):
        return self.density.log_prob(x - self.location)


def twice_overcomplete(complete):
    """x = A z + noise with 126 sources, for a start at a complete model with as many columns more, which are small.

    The first 63 columns are square, so that the others, z', and the noise leave one value to the first 63 sources:

        p(x | z', e) = p(W (x - A' z' - noise e)) |det W|,   W the inverse of the first 63 columns.

    It is the same model, but a posterior of z' and e has no narrow valleys, as one of all z has where noise is small.
    """
    mixing = np.linalg.inv(np.asarray(complete.unmixing))
    turned = mixing @ np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]
    start = jnp.asarray(0.1 * turned, jnp.float32)

    def model(x):
        first = eqx_module("first", complete)
        others = eqx_module("others", complete.sources).distribution()
        a = numpyro.param("columns", start)
        noise = numpyro.param("noise", jnp.full(SIZE, 0.003), constraint=dist.constraints.positive)
        with numpyro.plate("patches", x.shape[0]):
            z = numpyro.sample("z", others.to_event(1))
            e = numpyro.sample("e", dist.Normal(jnp.zeros(SIZE), 1.0).to_event(1))
            numpyro.sample("x", Shifted(first, z @ a.T + noise * e), obs=x)

    return model


def fit_by_chains(model, x_train, num_epochs):
    batch = 500
    rate = optax.cosine_decay_schedule(4e-3, num_epochs * len(x_train) // batch)
    return fit(
        jax.random.key(4),
        model,
        x_train.astype(np.float32),
        objective=LangevinMLE(HMC(num_integration_steps=3), num_steps=5, persistent=True),
        optimizer=optax.adam(rate),
        num_epochs=num_epochs,
        batch_size=batch,
        progress=False,
    ).params


def evidence(model, params, x, num_particles):
    """Posterior of tempered SMC, with the log-evidence of every patch."""
    sampler = TemperedSMC(kernel=HMC(), num_particles=num_particles, num_mcmc_steps=5, progress=False)
    return sampler.run(jax.random.key(5), model, params, x.astype(np.float32))
