"""Small NumPyro models of the constructs that people use, with their exact evidences and posterior moments.

The numbers come of conjugacy or of quadrature in float64 over one or two latents; none comes of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import LocScaleReparam
from scipy import special, stats
from scipy.stats import norm

from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

Y = np.array([1.2, -0.3, 0.7, 2.0])
KEEP = np.array([True, False, True, True])
COUNTS = np.array([3, 5, 2, 4])


@dataclass(frozen=True)
class Case:
    """A model, what it is given, and what is right.

    Attributes:
        model, data, kwargs: what a sampler is called with.
        log_evidence: exact, of each datum; None where only refusals are looked at.
        moments: by latent site, exact posterior means and standard deviations of each datum's elements.
        refusals: by kind of sampler ("importance", "smc", "tempering", "langevin", "objective"), what it says instead.
    """

    model: Callable
    data: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    log_evidence: Any = None
    moments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


SAMPLERS = ("importance", "smc", "tempering", "langevin")
GLOBAL = "needs every latent site inside one data plate"


def refused(model: Callable, data: tuple, message: str, *kinds: str, **rest: Any) -> Case:
    """A model that samplers of these kinds, by default of all, refuse."""
    return Case(model, data, refusals=dict.fromkeys(kinds or (*SAMPLERS, "objective"), message), **rest)


def normal_evidence(y, prior_mean=0.0, prior_sd=2.0, sd=1.0):
    """Of y_i ~ N(mu, sd) with mu ~ N(prior_mean, prior_sd): log p(y), and mean and standard deviation of mu."""
    y = np.asarray(y, float)
    covariance = sd**2 * np.eye(len(y)) + prior_sd**2
    precision = 1 / prior_sd**2 + len(y) / sd**2
    mean = (prior_mean / prior_sd**2 + y.sum() / sd**2) / precision
    return stats.multivariate_normal(np.full(len(y), prior_mean), covariance).logpdf(y), mean, precision**-0.5


def by_quadrature(log_joint, low, high, of=lambda z: z, size=40_001):
    """Log of the integral of exp(log_joint) over an interval, and mean and standard deviation of a function there."""
    z = np.linspace(low, high, size)
    values = log_joint(z)
    weights = np.full(size, (high - low) / (size - 1))
    weights[[0, -1]] /= 2
    largest = values.max()
    mass = np.exp(values - largest) * weights
    mean = np.sum(mass * of(z)) / mass.sum()
    return largest + np.log(mass.sum()), mean, np.sqrt(np.sum(mass * (of(z) - mean) ** 2) / mass.sum())


def of_site(name, triple):
    """Evidence and moments of a model with one scalar latent, as fields of a Case."""
    evidence, mean, sd = triple
    return {"log_evidence": [evidence], "moments": {name: ([mean], [sd])}}


def global_normal(y, sd=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, sd), obs=y)


def local_normal(x):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


LOCAL = {
    "log_evidence": norm(0, 1.25**0.5).logpdf(Y),
    "moments": {"z": (0.8 * Y, np.full(4, 0.2**0.5))},
}


def likelihood_by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.factor("y", dist.Normal(mu, 1.0).log_prob(y).sum())


def masked_likelihood(y, keep):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with handlers.mask(mask=keep):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked_distribution(y, keep):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).mask(keep).to_event(1), obs=y)


def scaled_likelihood(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with handlers.scale(scale=0.5), numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scaled_latent(y):
    with handlers.scale(scale=0.25):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scaled_rows(x):
    with handlers.scale(scale=2.0), numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def masked_rows(x, keep):
    with numpyro.plate("n", x.shape[0]), handlers.mask(mask=keep):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def imputed_by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    missing = numpyro.sample("missing", dist.Normal(mu, 1.0).mask(False))
    numpyro.factor("y", dist.Normal(mu, 1.0).log_prob(y.at[1].set(missing)).sum())


def imputed_by_value(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    missing = numpyro.sample("missing", dist.Normal(mu, 1.0).mask(False))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y.at[1].set(missing))


def partly_imputed(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    everywhere = numpyro.sample("everywhere", dist.Normal(mu, 1.0).expand([4]).mask(False))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.where(jnp.asarray(KEEP), y, everywhere))


def proper_missing(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    missing = numpyro.sample("missing", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y.at[1].set(missing))


def flat_by_mask(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).mask(False))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)


def partly_flat(y):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0).expand([2]).mask(jnp.array([True, False])).to_event(1))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0).expand([4]).to_event(1), obs=y)


def improper(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)


def subsampled_global(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", 4, subsample_size=2) as i:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def minibatch_of_rows(x):
    with numpyro.plate("n", 50, subsample_size=x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def random_walk(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def random_walk_moments():
    covariance = 0.25 * np.minimum.outer(np.arange(1, 5), np.arange(1, 5))
    total = covariance + np.eye(4)
    posterior = covariance - covariance @ np.linalg.solve(total, covariance)
    evidence = stats.multivariate_normal(np.zeros(4), total).logpdf(Y)
    return {
        "log_evidence": [evidence],
        "moments": {"x": ([covariance @ np.linalg.solve(total, Y)], [np.sqrt(np.diag(posterior))])},
    }


def learned_mean(y):
    with numpyro.plate("n", 4):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mean", 0.0), 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def reversed_walk(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y[::-1], reverse=True)


def reversed_walk_moments():
    """The steps of `random_walk`, which are stacked in the order of the data given to the scan."""
    one = random_walk_moments()
    mean, sd = one["moments"]["x"]
    return one | {"moments": {"x": ([mean[0][::-1]], [sd[0][::-1]])}}


def walks_of_rows(y):
    def step(x, y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.Normal(x, 0.5))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, jnp.zeros(2), y)


def walks_of_rows_moments():
    """Of the data and of their negatives: two walks in one model, which is one datum."""
    one = random_walk_moments()
    mean, sd = one["moments"]["x"]
    both = np.stack([mean[0], -mean[0]], 1), np.stack([sd[0], sd[0]], 1)
    return {"log_evidence": [2 * one["log_evidence"][0]], "moments": {"x": ([both[0]], [both[1]])}}


def volatility(y):
    def step(s, y):
        s = numpyro.sample("s", dist.Gamma(4.0, 4.0 / s))
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)
        return s, None

    scan(step, 1.0, y)


def volatility_evidence(y):
    u = np.linspace(-6.0, 3.0, 1501)  # of log s
    s, du = np.exp(u), u[1] - u[0]
    first = stats.gamma(4.0, scale=0.25).logpdf(s) + u + norm(0, s).logpdf(y[0])
    second = stats.gamma(4.0, scale=s[:, None] / 4.0).logpdf(s) + u + norm(0, s).logpdf(y[1])
    joint = first[:, None] + second
    evidence = special.logsumexp(joint) + 2 * np.log(du)
    mass = np.exp(joint - special.logsumexp(joint))
    means, squares = ([np.sum(m * s**k) for m in (mass.sum(1), mass.sum(0))] for k in (1, 2))
    return {
        "log_evidence": [evidence],
        "moments": {"s": ([means], [np.sqrt(np.array(squares) - np.array(means) ** 2)])},
    }


def branch_by_cond(y):
    def prior(concentration):
        return lambda _: numpyro.sample("s", dist.Gamma(concentration, 1.0))

    s = cond(y.sum() > 0, prior(2.0), prior(5.0), None)
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)


def reparameterised(y):
    with handlers.reparam(config={"mu": LocScaleReparam(0)}):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def log_normal(y):
    s = numpyro.sample("s", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.ExpTransform()))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)


def scale_posterior(log_prior, low, high):
    """Of y ~ N(0, s), over log s."""
    return by_quadrature(
        lambda u: log_prior(np.exp(u)) + u + norm(0, np.exp(u)[:, None]).logpdf(Y).sum(1), low, high, np.exp
    )


def half_cauchy(y):
    s = numpyro.sample("s", dist.HalfCauchy(5.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)


def simplex(k):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0, 2.0])))
    numpyro.sample("k", dist.Multinomial(14, probs=p), obs=k)


def dirichlet_moments():
    alpha = np.array([1.0, 2.0, 3.0, 2.0])
    after = alpha + COUNTS
    mean = after / after.sum()
    return {
        "log_evidence": [stats.dirichlet_multinomial(alpha, 14).logpmf(COUNTS)],
        "moments": {"p": ([mean], [np.sqrt(mean * (1 - mean) / (after.sum() + 1))])},
    }


def categories(k):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("n", len(k)):
        numpyro.sample("k", dist.Categorical(probs=p), obs=k)


PAIRS = np.array([[0.3, 0.5], [-1.2, -0.7], [0.8, 1.9]])


def cholesky(x):
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.0))
    with numpyro.plate("n", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=factor), obs=x)


def cholesky_evidence():
    # LKJ(1) in two dimensions is uniform over the correlation.
    def log_joint(r):
        square = (PAIRS[:, :1] ** 2 - 2 * r * PAIRS[:, :1] * PAIRS[:, 1:] + PAIRS[:, 1:] ** 2) / (1 - r**2)
        return np.log(0.5) - np.sum(np.log(2 * np.pi) + 0.5 * np.log1p(-(r**2)) + 0.5 * square, 0)

    evidence, mean, sd = by_quadrature(log_joint, -1 + 1e-9, 1 - 1e-9)
    _, root, root_sd = by_quadrature(log_joint, -1 + 1e-9, 1 - 1e-9, lambda r: np.sqrt(1 - r**2))
    return {
        "log_evidence": [evidence],
        "moments": {"factor": ([[[1.0, 0.0], [mean, root]]], [[[0.0, 0.0], [sd, root_sd]]])},
    }


def ordered(y):
    prior = dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), dist.transforms.OrderedTransform())
    z = numpyro.sample("z", prior)
    numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def ordered_moments(y):
    a, b = np.meshgrid(np.linspace(-7, 7, 1201), np.linspace(-7, 4, 1201), indexing="ij")
    z = a, a + np.exp(b)
    joint = norm.logpdf(a) + norm.logpdf(b) + norm(z[0], 1).logpdf(y[0]) + norm(z[1], 1).logpdf(y[1])
    evidence = special.logsumexp(joint) + np.log((14 / 1200) * (11 / 1200))
    mass = np.exp(joint - special.logsumexp(joint))
    mean = [np.sum(mass * x) for x in z]
    sd = [np.sqrt(np.sum(mass * (x - m) ** 2)) for x, m in zip(z, mean, strict=True)]
    return {"log_evidence": [evidence], "moments": {"z": ([mean], [sd])}}


def with_deterministic(x):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        twice = numpyro.deterministic("twice", 2.0 * z)
        numpyro.sample("x", dist.Normal(twice / 2, 0.5), obs=x)


def ragged(x, keep):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z[:, None], 0.5).mask(keep).to_event(1), obs=x)


RAGGED = np.array([[0.3, 1.1, np.nan], [-0.4, np.nan, np.nan], [0.9, 0.2, -0.5]])


def ragged_moments():
    rows = [row[np.isfinite(row)] for row in RAGGED]
    results = [normal_evidence(row, prior_sd=1.0, sd=0.5) for row in rows]
    evidence, mean, sd = (np.array(x) for x in zip(*results, strict=True))
    return {"log_evidence": evidence, "moments": {"z": (mean, sd)}}


def gamma_poisson(k):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
    with numpyro.plate("n", len(k)):
        numpyro.sample("k", dist.Poisson(rate), obs=k)


def gamma_poisson_evidence(a, b):
    total, n = COUNTS.sum(), len(COUNTS)
    evidence = a * np.log(b) - special.gammaln(a) + special.gammaln(a + total) - (a + total) * np.log(b + n)
    evidence -= special.gammaln(COUNTS + 1.0).sum()
    return evidence, (a + total) / (b + n), (a + total) ** 0.5 / (b + n)


def vague(k):
    rate = numpyro.sample("rate", dist.Gamma(0.001, 0.001))
    with numpyro.plate("n", len(k)):
        numpyro.sample("k", dist.Poisson(rate), obs=k)


def near_one(k):
    p = numpyro.sample("p", dist.Beta(1.0, 0.05))
    numpyro.sample("k", dist.Binomial(10, probs=p), obs=k)


def sparse_simplex(k):
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 0.05)))
    numpyro.sample("k", dist.Multinomial(5, probs=p), obs=k)


def beta_binomial(k):
    with numpyro.plate("n", len(k)):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("k", dist.Binomial(10, probs=p), obs=k)


def beta_moments():
    a, b = 2.0 + COUNTS, 3.0 + 10 - COUNTS
    return {
        "log_evidence": stats.betabinom(10, 2.0, 3.0).logpmf(COUNTS),
        "moments": {"p": (a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b))},
    }


def exponential(y):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Exponential(rate), obs=y)


def uniform(y):
    mu = numpyro.sample("mu", dist.Uniform(0.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def truncated(y):
    mu = numpyro.sample("mu", dist.TruncatedNormal(0.0, 2.0, low=0.5))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def heavy_tails(y):
    mu = numpyro.sample("mu", dist.StudentT(3.0, 0.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mixture(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    parts = dist.Normal(jnp.stack([mu, mu + 3.0], -1), 0.5)
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.7, 0.3])), parts), obs=y)


def mixture_joint(mu):
    means = mu[:, None], mu[:, None] + 3
    parts = np.stack([np.log(p) + norm(m, 0.5).logpdf(Y) for p, m in zip((0.7, 0.3), means, strict=True)])
    return norm(0, 2).logpdf(mu) + special.logsumexp(parts, 0).sum(1)


def normal_inverse_gamma(y):
    v = numpyro.sample("v", dist.InverseGamma(3.0, 2.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, jnp.sqrt(2.0 * v)))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(v)), obs=y)


def normal_inverse_gamma_moments():
    n, mean = 4, Y.mean()
    precision = 0.5 + n
    loc, a = n * mean / precision, 3.0 + n / 2
    b = 2.0 + 0.5 * np.sum((Y - mean) ** 2) + 0.5 * n * 0.5 * mean**2 / precision
    evidence = special.gammaln(a) - special.gammaln(3.0) + 3.0 * np.log(2.0) - a * np.log(b)
    evidence += 0.5 * np.log(0.5 / precision) - n / 2 * np.log(2 * np.pi)
    return {
        "log_evidence": [evidence],
        "moments": {
            "v": ([b / (a - 1)], [b / (a - 1) / (a - 2) ** 0.5]),
            "mu": ([loc], [np.sqrt(b / (a - 1) / precision)]),
        },
    }


def nested_plates(x):
    with numpyro.plate("n", x.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("d", x.shape[1], dim=-1):
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


GRID = np.array([[0.3, 1.1], [-0.4, -1.0], [0.9, 0.2]])


def nested_moments():
    results = [normal_evidence(row, prior_sd=1.0, sd=0.5) for row in GRID]
    evidence, mean, sd = (np.array(x) for x in zip(*results, strict=True))
    return {"log_evidence": evidence, "moments": {"z": (mean[:, None], sd[:, None])}}


def schools(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(theta, 0.7), obs=y)


def schools_moments():
    prior = np.eye(5)
    prior[0] = prior[:, 0] = 4.0  # mu, and each theta = mu + N(0, 1)
    prior[1:, 1:] = 4.0 + np.eye(4)
    total = prior[1:, 1:] + 0.49 * np.eye(4)
    gain = np.linalg.solve(total, prior[1:]).T
    mean, sd = gain @ Y, np.sqrt(np.diag(prior - gain @ prior[1:]))
    return {
        "log_evidence": [stats.multivariate_normal(np.zeros(4), total).logpdf(Y)],
        "moments": {"mu": ([mean[0]], [sd[0]]), "theta": ([mean[1:]], [sd[1:]])},
    }


def vectors(x):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.8], [0.8, 1.0]])))
        numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def vector_moments():
    prior = np.array([[1.0, 0.8], [0.8, 1.0]])
    total = prior + 0.25 * np.eye(2)
    gain = np.linalg.solve(total, prior).T
    sd = np.sqrt(np.diag(prior - gain @ prior))
    return {
        "log_evidence": stats.multivariate_normal(np.zeros(2), total).logpdf(GRID),
        "moments": {"z": (GRID @ gain.T, np.tile(sd, (3, 1)))},
    }


def unconditioned():
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0))


def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(k, 1.0).expand([4]).to_event(1), obs=y)


def covariates(x, c):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(c, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


C = np.array([0.5, -1.0, 0.0, 2.0])

LEARNED = UnivariateEnergy.init(jax.random.key(3), (), basis=BSpline(8, 3, (-3.0, 3.0)), scale=1.0)


def learned_prior(x):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", KAPrior(LEARNED, dist.Normal(0.0, 1.0)))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def learned_moments():
    # The energy at nodes is data here: what is tested is what is done with it.
    nodes = np.linspace(-9.0, 9.0, 20_001)
    energy = np.asarray(jax.vmap(LEARNED)(jnp.asarray(nodes)), float)

    def of_datum(x):
        prior = norm.logpdf(nodes) + energy
        prior -= special.logsumexp(prior) + np.log(nodes[1] - nodes[0])
        return by_quadrature(lambda z: np.interp(z, nodes, prior) + norm(z, 0.5).logpdf(x), -9.0, 9.0)

    evidence, mean, sd = (np.array(v) for v in zip(*map(of_datum, Y), strict=True))
    return {"log_evidence": evidence, "moments": {"z": (mean, sd)}}


def by_numpy(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=np.log(y))


def branching(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0 if y.sum() > 0 else 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def branching_rows(x):
    with numpyro.plate("n", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=np.exp(x))


def table(frame):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(frame)):
        numpyro.sample("y", dist.Normal(mu + frame["c"], 1.0), obs=frame["y"])


def fixed_by_handler(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, s), obs=y)


MU = of_site("mu", normal_evidence(Y))
KEPT = of_site("mu", normal_evidence(Y[KEEP]))
IMPUTED_SD = np.hypot(KEPT["moments"]["mu"][1][0], 1.0)
IMPUTED = {
    "log_evidence": KEPT["log_evidence"],
    "moments": KEPT["moments"] | {"missing": (KEPT["moments"]["mu"][0], [IMPUTED_SD])},
}


def proper_missing_moments():
    # Latents mu and the missing value: Gaussian, with three observations of mu and one of their difference.
    precision = np.diag([1 / 4 + 3 + 1, 1 / 100 + 1.0])
    precision[0, 1] = precision[1, 0] = -1.0
    mean = np.linalg.solve(precision, [Y[KEEP].sum(), 0.0])
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    kept = normal_evidence(Y[KEEP])
    evidence = kept[0] + norm(kept[1], np.sqrt(kept[2] ** 2 + 1 + 100)).logpdf(0.0)
    return {"log_evidence": [evidence], "moments": {"mu": ([mean[0]], [sd[0]]), "missing": ([mean[1]], [sd[1]])}}


def quadrature_of_mu(log_prior, power=1.0, low=-12.0, high=12.0):
    return of_site(
        "mu", by_quadrature(lambda m: log_prior(m) + power * norm(m[:, None], 1.0).logpdf(Y).sum(1), low, high)
    )


def squared_rows():
    results = [by_quadrature(lambda z, x=x: 2 * (norm.logpdf(z) + norm(z, 0.5).logpdf(x)), -9, 9) for x in Y]
    evidence, mean, sd = (np.array(v) for v in zip(*results, strict=True))
    return {"log_evidence": evidence, "moments": {"z": (mean, sd)}}


GAMMA_POISSON = of_site("rate", gamma_poisson_evidence(2.0, 0.5))
POSITIVE = np.abs(Y) + 0.1

ZOO: dict[str, Case] = {
    "global normal": Case(global_normal, (Y,), **MU),
    "local normal": Case(local_normal, (Y,), **LOCAL),
    "factor": Case(likelihood_by_factor, (Y,), **MU),
    "mask on a likelihood": Case(masked_likelihood, (Y, KEEP), **KEPT),
    "masked distribution": Case(masked_distribution, (np.where(KEEP, Y, np.nan), KEEP), **KEPT),
    "scale on a likelihood": Case(scaled_likelihood, (Y,), **quadrature_of_mu(norm(0, 2).logpdf, 0.5)),
    "scale on a latent": Case(scaled_latent, (Y,), **quadrature_of_mu(lambda m: 0.25 * norm.logpdf(m))),
    "scale on rows": Case(scaled_rows, (Y,), **squared_rows()),
    "mask on rows": Case(
        masked_rows,
        (Y, KEEP),
        log_evidence=np.where(KEEP, LOCAL["log_evidence"], 0.0),
        moments={"z": (np.where(KEEP, 0.8 * Y, 0.0), np.where(KEEP, 0.2**0.5, 1.0))},
    ),
    "imputation by a factor": Case(imputed_by_factor, (jnp.asarray(Y),), **IMPUTED),
    "imputation by an observed value": Case(imputed_by_value, (jnp.asarray(Y),), **IMPUTED),
    "missing value with a prior": Case(proper_missing, (jnp.asarray(Y),), **proper_missing_moments()),
    "flat by a mask": refused(flat_by_mask, (Y,), "latent site 'mu' is masked, and so has an improper prior"),
    "flat in one element": refused(partly_flat, (Y,), "latent site 'z' is masked, and so has an improper prior"),
    "imputed in part": refused(
        partly_imputed, (jnp.asarray(Y),), "latent site 'everywhere' is masked, and has elements that no observed value"
    ),
    "improper": refused(improper, (Y,), "latent site 'mu' has an improper prior"),
    "subsampled global model": refused(subsampled_global, (Y,), "plate 'n' has 2 of its 4 rows", *SAMPLERS),
    "minibatch of rows": Case(minibatch_of_rows, (Y,), **LOCAL),
    "random walk in a scan": Case(random_walk, (Y,), **random_walk_moments()),
    "scope": Case(
        handlers.scope(half_cauchy, prefix="a"),
        (Y,),
        **of_site("a/s", scale_posterior(stats.halfcauchy(0, 5).logpdf, -4, 9)),
    ),
    "lift": Case(
        handlers.lift(learned_mean, prior={"mean": dist.Normal(0.0, 2.0)}),
        (Y,),
        **of_site("mean", normal_evidence(Y, sd=1.25**0.5)),
    ),
    "seed": refused(handlers.seed(global_normal, 0), (Y,), "draws of latent site 'mu' do not depend on the random key"),
    "substitute": refused(
        handlers.substitute(global_normal, {"mu": jnp.ones(())}), (Y,), "draws of latent site 'mu' do not depend on"
    ),
    "a reversed scan": Case(reversed_walk, (Y,), **reversed_walk_moments()),
    "a plate in a scan": Case(walks_of_rows, (np.stack([Y, -Y], 1),), **walks_of_rows_moments()),
    "positive states in a scan": Case(volatility, (Y[:2],), **volatility_evidence(Y)),
    "a latent in a cond": Case(
        branch_by_cond, (jnp.asarray(Y),), **of_site("s", scale_posterior(stats.gamma(2.0).logpdf, -6, 4))
    ),
    "reparam": Case(
        reparameterised,
        (Y,),
        log_evidence=MU["log_evidence"],
        moments={"mu_decentered": tuple([m[0] / 2.0] for m in MU["moments"]["mu"])},
    ),
    "transformed": Case(log_normal, (Y,), **of_site("s", scale_posterior(stats.lognorm(1.0).logpdf, -4, 4))),
    "half-Cauchy": Case(half_cauchy, (Y,), **of_site("s", scale_posterior(stats.halfcauchy(0, 5).logpdf, -4, 9))),
    "simplex": Case(simplex, (COUNTS,), **dirichlet_moments()),
    "categories": Case(
        categories,
        (np.array([0, 2, 2, 1, 2]),),
        # Of the 20 orders of these counts one.
        log_evidence=[stats.dirichlet_multinomial(np.ones(3), 5).logpmf([1, 1, 3]) - np.log(20)],
    ),
    "Cholesky factor": Case(cholesky, (PAIRS,), **cholesky_evidence()),
    "ordered": Case(ordered, (Y[:2],), **ordered_moments(Y)),
    "deterministic": Case(with_deterministic, (Y,), **LOCAL),
    "ragged rows": Case(ragged, (np.nan_to_num(RAGGED), np.isfinite(RAGGED)), **ragged_moments()),
    "keyword arguments": Case(global_normal, (Y,), {"sd": 0.5}, **of_site("mu", normal_evidence(Y, sd=0.5))),
    "counts": Case(gamma_poisson, (COUNTS,), **GAMMA_POISSON),
    "vague prior": refused(
        vague,
        (COUNTS,),
        "latent site 'rate': .* draws from its prior lie at an end of its support",
        "smc",
        "tempering",
        "langevin",
        **of_site("rate", gamma_poisson_evidence(0.001, 0.001)),
    ),
    "proportion near one": refused(
        near_one,
        (7,),
        "latent site 'p': .* draws from its prior lie at an end of its support",
        "smc",
        "tempering",
        "langevin",
        log_evidence=[stats.betabinom(10, 1.0, 0.05).logpmf(7)],
    ),
    "sparse simplex": refused(
        sparse_simplex,
        (np.array([2, 0, 3]),),
        "latent site 'p': .* draws from its prior lie at an end of its support",
        "smc",
        "tempering",
        "langevin",
        log_evidence=[stats.dirichlet_multinomial(np.full(3, 0.05), 5).logpmf([2, 0, 3])],
    ),
    "proportions": Case(beta_binomial, (COUNTS,), **beta_moments()),
    "waiting times": Case(
        exponential,
        (POSITIVE,),
        **of_site(
            "rate",
            by_quadrature(
                lambda r: stats.gamma(3.0).logpdf(r) + 4 * np.log(r) - r * POSITIVE.sum(), 1e-9, 30.0, size=400_001
            ),
        ),
    ),
    "uniform": Case(uniform, (Y,), **quadrature_of_mu(lambda m: 0.0 * m, low=0.0, high=1.0)),
    "truncated": Case(
        truncated, (Y,), **quadrature_of_mu(stats.truncnorm(0.25, np.inf, 0, 2).logpdf, low=0.5, high=12.0)
    ),
    "heavy tails": Case(heavy_tails, (Y,), **quadrature_of_mu(stats.t(3).logpdf)),
    "mixture": Case(mixture, (Y,), **of_site("mu", by_quadrature(mixture_joint, -12.0, 12.0))),
    "mean and variance": Case(normal_inverse_gamma, (Y,), **normal_inverse_gamma_moments()),
    "nested plates": Case(nested_plates, (GRID,), **nested_moments()),
    "hierarchy": Case(schools, (Y,), **schools_moments()),
    "correlated vectors": Case(vectors, (GRID,), **vector_moments()),
    "condition": Case(handlers.condition(unconditioned, {"y": jnp.asarray(Y)}), **MU),
    "a latent that is observed": Case(
        handlers.condition(fixed_by_handler, {"s": jnp.float32(1.0)}),
        (Y,),
        **of_site("mu", (normal_evidence(Y)[0] + stats.halfnorm().logpdf(1.0), *normal_evidence(Y)[1:])),
    ),
    "intervention": Case(handlers.do(fixed_by_handler, {"s": jnp.float32(1.0)}), (Y,), **MU),
    "one row": Case(local_normal, (Y[:1],), log_evidence=LOCAL["log_evidence"][:1]),
    "no rows": refused(local_normal, (Y[:0],), "the positional data have no rows"),
    "discrete": refused(discrete, (Y,), "latent site 'k' is discrete"),
    "covariates": Case(
        covariates,
        (Y, C),
        log_evidence=norm(C, 1.25**0.5).logpdf(Y),
        moments={"z": (0.8 * Y + 0.2 * C, np.full(4, 0.2**0.5))},
    ),
    "learned prior": Case(learned_prior, (Y,), **learned_moments()),
    "NumPy on the data": Case(by_numpy, (np.exp(Y),), **MU),
    "a branch on the data": Case(branching, (Y,), **MU),
    "NumPy on rows": refused(branching_rows, (Y,), "the model needs the values of its data at line"),
    "table": Case(table, (pd.DataFrame({"y": Y + C, "c": C, "name": list("abcd")}),), **MU),
    "series": Case(global_normal, (pd.Series(Y),), **MU),
    "list": Case(global_normal, (Y.tolist(),), **MU),
}
